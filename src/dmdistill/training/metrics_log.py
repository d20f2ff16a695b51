"""The log of a run: FOLDER/metrics.jsonl, a JSON object of numbers per line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from dmdistill.io.atomic import atomic_write, flush_to_disk
from dmdistill.io.errors import describe_write_errors, first_line

__all__ = ["MetricsLog", "read_metrics"]

FILE = "metrics.jsonl"


class MetricsLog:
    """Append-only log of a run's metrics; each row has its "step" and the "seconds" of training so far.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / FILE

    def append(self, row: Mapping[str, float]) -> None:
        """Write one row. OSError, naming the file, if that fails."""
        with describe_write_errors(self.file), self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def flush(self) -> None:
        """Wait until the disk has every row."""
        flush_to_disk(self.file)

    def truncate(self, step: int) -> None:
        """Drop the rows after `step`, which a resumed run writes again; create the file if it is missing."""
        rows = [row for row in read_metrics(self.folder) if row["step"] <= step]
        with atomic_write(self.file) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Read the rows of a run's metrics.jsonl; a last line that a killed run left unfinished is dropped.

    ValueError, naming the line, if one is no row.
    """
    file = folder / FILE
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return [parse_row(line, f"{file}, line {i}") for i, line in enumerate(lines, 1)]


def parse_row(line: bytes, where: str) -> dict[str, float]:
    """Parse one line; `where` names it in the error."""
    try:
        row = json.loads(line)
        if not isinstance(row["step"], int):
            raise ValueError(f"step {row['step']!r}")
        if odd := [name for name, value in row.items() if not isinstance(value, int | float)]:
            raise ValueError(f"{odd[0]} {row[odd[0]]!r}, expected a number")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where}, is damaged ({first_line(error)}): remove that line to go on without it") from None
    return row
