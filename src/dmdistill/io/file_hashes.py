"""Hashes of files' contents, kept as long as the files stay as they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from dmdistill.io.atomic import read_json, write_json
from dmdistill.io.folders import cache_folder

__all__ = ["hash_files"]


def hash_files(files: Sequence[Path], note: str = "") -> str:
    """A hash of files' contents and of a note. It is kept, and taken again as long as sizes and times are the same."""
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    seen = hashlib.sha256(json.dumps([stats, note]).encode()).hexdigest()
    kept = cache_folder() / "digests" / f"{seen[:32]}.json"
    if kept.is_file():
        return read_json(kept)["sha256"]
    sha = hashlib.sha256(note.encode())
    for file in files:
        with file.open("rb") as opened:
            sha.update(hashlib.file_digest(opened, "sha256").digest())
    write_json(kept, {"sha256": sha.hexdigest(), "files": len(files)})
    return sha.hexdigest()
