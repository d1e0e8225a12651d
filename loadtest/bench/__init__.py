"""The side-by-side benchmark: Prism, plain Ray Serve and other servers on the same models, on one machine.

`python -m loadtest.bench --help` shows the commands; README.md in this folder says what is measured, and how.
"""
