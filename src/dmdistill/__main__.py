"""`python -m dmdistill` is the command `dmdistill`."""

from dmdistill.commands.cli import main

main()
