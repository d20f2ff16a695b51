"""Hashes of files' contents, cached for as long as the files' sizes and times stay the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dmdistill.io.atomic import read_json, write_json
from dmdistill.io.folders import cache_folder

__all__ = ["file_sha256", "hash_files"]


def file_sha256(file: Path) -> str:
    """Return the SHA-256, hexadecimal, of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_files(files: Sequence[Path], note: str = "") -> str:
    """Return the SHA-256, hexadecimal, of files' contents in their order and of a note.

    It is cached by the files' paths, sizes and times of modification. A cache that is damaged or cannot be written is
    none.
    """
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(json.dumps([stats, note]).encode()).hexdigest()
    cached = cache_folder() / "digests" / f"{key[:32]}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):
        return str(bytes.fromhex(read_json(cached)["sha256"]).hex())  # raises for what is no hash
    sha = hashlib.sha256(note.encode())
    for file in files:
        sha.update(bytes.fromhex(file_sha256(file)))
    with suppress(OSError):
        write_json(cached, {"sha256": sha.hexdigest(), "files": len(files)})
    return sha.hexdigest()
