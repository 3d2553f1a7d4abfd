"""`python -m perdure`: the same as the command `perdure`."""

from perdure.cli import main

main()
