"""`python -m cluster`: the `prism` command, where its console script is not on the path."""

from cluster.cli.main import main

main()
