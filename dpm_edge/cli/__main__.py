"""`python -m dpm_edge.cli`."""

from dpm_edge.cli.commands import main

main()
