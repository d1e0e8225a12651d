"""Files that ship with Prism: settings, scenarios and deployment examples. No code."""
