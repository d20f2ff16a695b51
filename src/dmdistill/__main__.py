"""`python -m dmdistill` is the command `dmdistill`."""

from dmdistill.app.cli import main

main()
