"""The command `dmdistill`, also as `python -m dmdistill`."""

from __future__ import annotations

from dmdistill.models.quiet import quiet_libraries
from dmdistill.training.signals import exit_if_closed, exit_on_interrupt

__all__ = ["main"]


def main() -> None:
    """Run the command line. Ctrl-C while modules are imported ends it in one line, a closed stdout without any."""
    quiet_libraries()
    with exit_on_interrupt():
        from dmdistill.commands import cli
    with exit_if_closed():
        cli.main()


if __name__ == "__main__":
    main()
