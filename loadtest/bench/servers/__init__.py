"""The servers that are compared; each module runs alone, prints `up` and ends on SIGTERM."""
