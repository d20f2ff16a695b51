"""The log of a run: FOLDER/metrics.jsonl, a JSON object of numbers per line.

Each row ends in a CRC-32 of itself and of all rows before it, so that changed digits and missing rows are detected.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from dmdistill.io.atomic import atomic_write, flush_to_disk
from dmdistill.io.errors import describe_write_errors, first_line

__all__ = ["MetricsLog", "read_metrics"]

FILE = "metrics.jsonl"
CHECKSUM = re.compile(rb', "crc32": "([0-9a-f]{8})"\}$')
REMEDY = "restore a copy of the file, or remove it to continue without the rows so far"


class MetricsLog:
    """Append-only log of a run's metrics; each row has its "step" and the "seconds" of training so far.

    Args:
        folder: the run's folder.

    Attributes:
        checksum: of the last row; 0 without rows. A training checkpoint holds it, for `truncate`.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE
        self.checksum = 0

    def append(self, row: Mapping[str, float]) -> None:
        """Write one row. OSError, naming the file, if that fails."""
        text = json.dumps(row)
        self.checksum = zlib.crc32(text.encode(), self.checksum)
        with describe_write_errors(self.file), self.file.open("a", encoding="utf-8") as file:
            file.write(f'{text[:-1]}, "crc32": "{self.checksum:08x}"}}\n')

    def flush(self) -> None:
        """Wait until the disk has every row."""
        flush_to_disk(self.file)

    def truncate(self) -> None:
        """Drop the rows after the one of `checksum`, which a resumed run writes again; create a missing file.

        ValueError if a row up to that one is damaged or missing. A missing file, which the user may have removed, is
        started anew.
        """
        kept: list[bytes] = []
        checksum = 0
        if self.checksum and self.file.exists():
            for line, _, checksum in verified_rows(self.file):
                kept.append(line + b"\n")
                if checksum == self.checksum:
                    break
            if checksum != self.checksum:
                raise ValueError(f"{self.file} is damaged, rows before the checkpoint are missing: {REMEDY}")
        with atomic_write(self.file) as temporary:
            temporary.write_bytes(b"".join(kept))
        self.checksum = checksum


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Read the rows of a run's metrics.jsonl; a last line that a killed run left unfinished is dropped.

    ValueError, naming the line, if one is no row or its checksum differs. A file without any checksums is not verified.
    """
    file = folder / FILE
    return [row for _, row, _ in verified_rows(file)] if file.exists() else []


def verified_rows(file: Path) -> Iterator[tuple[bytes, dict[str, float], int]]:
    """Yield each line, the row that it holds, and its checksum, 0 in a file without checksums."""
    checksum, has_checksums = 0, None
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], 1):
        written = CHECKSUM.search(line)
        has_checksums = written is not None if has_checksums is None else has_checksums
        try:
            if (written is not None) is not has_checksums:
                raise ValueError(
                    "it has no checksum" if has_checksums else "it has a checksum and those before have none"
                )
            if written is not None:
                checksum = zlib.crc32(line[: written.start()] + b"}", checksum)
                if checksum != int(written[1], 16):
                    raise ValueError("its checksum differs, or rows before it are missing")
            yield line, parse_row(line), checksum
        except ValueError as error:
            raise ValueError(f"{file}, line {number}, is damaged ({first_line(error)}): {REMEDY}") from None


def parse_row(line: bytes) -> dict[str, float]:
    """Parse one line, without its checksum. ValueError if it has no step or a value is no number."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"{row!r:.50} is no row")
    row.pop("crc32", None)
    for key, kind in (("step", int), *dict.fromkeys(row, int | float).items()):
        if not isinstance(row.get(key), kind) or isinstance(row[key], bool):
            raise ValueError(f"{key} {row.get(key)!r:.50}")
    return row
