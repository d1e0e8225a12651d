"""What should run and how much of it: specs, settings, version store, policies, processes, and the `prism` command."""

__version__ = "0.1.0"
