"""Files of ours with other entries, as if they had been written so: with a checksum that is theirs."""

from pathlib import Path
from typing import Any

from dmdistill.io.atomic import read_json, write_json
from dmdistill.io.checksums import add_checksum, pop_checksum

__all__ = ["edit_json", "read_entries"]


def read_entries(file: Path) -> dict[str, Any]:
    """The entries of a JSON file without its checksum."""
    values = read_json(file)
    pop_checksum(values, file)
    return values


def edit_json(file: Path, remove: str | None = None, **changes: Any) -> None:
    """Change entries of a JSON file, remove one, and write it with a checksum."""
    values = read_entries(file) | changes
    values.pop(remove, None)
    write_json(file, add_checksum(values))
