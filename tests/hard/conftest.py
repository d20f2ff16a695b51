"""The table of outcomes at the end of a run."""

from helpers.outcomes import OUTCOMES, TABLE


def pytest_terminal_summary(terminalreporter):
    """Print how many damaged and hostile files of each kind had which outcome."""
    if not TABLE:
        return
    terminalreporter.section("damaged and hostile files")
    terminalreporter.write_line(f"{'kind of file':<34}" + "".join(f"{name:>11}" for name in OUTCOMES))
    total = sum(TABLE.values(), start=type(next(iter(TABLE.values())))())
    for name, counts in [*TABLE.items(), ("all", total)]:
        terminalreporter.write_line(f"{name:<34}" + "".join(f"{counts[one] or '-':>11}" for one in OUTCOMES))
