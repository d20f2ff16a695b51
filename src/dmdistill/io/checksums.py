"""Checksums inside files: damage by a disk, a copy or a power cut is detected when a file is read."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

__all__ = ["add_tensor_checksum", "check_tensor_checksum", "json_checksum"]


def add_tensor_checksum(file: bytes) -> bytes:
    """Return the content of a safetensors file with the CRC-32 of everything else in its metadata.

    safetensors itself writes metadata of several entries in any order; written here, equal tensors make equal files.
    """
    size = int.from_bytes(file[:8], "little")
    header, content = json.loads(file[8 : 8 + size]), file[8 + size :]
    header["__metadata__"]["crc32"] = f"{zlib.crc32(content, zlib.crc32(compact_json(header))):08x}"
    text = compact_json(header)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content


def check_tensor_checksum(path: Path) -> None:
    """Read a safetensors file to its end. ValueError where its checksum differs; files of others have none."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        metadata = header.get("__metadata__", {})
        written = metadata.pop("crc32", None)
        if written is None:
            if any(len(name) == 5 and len(value) == 8 for name, value in metadata.items()):
                raise ValueError("the name of its checksum is damaged")
            return
        crc = zlib.crc32(compact_json(header))
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    if written != f"{crc:08x}":
        raise ValueError(f"its checksum is {crc:08x}, {written} was written")


def json_checksum(values: dict[str, Any]) -> str:
    """Return the CRC-32, hexadecimal, of a dict as JSON, in whatever order its keys are."""
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


def compact_json(header: dict[str, Any]) -> bytes:
    """Return the header as it is written: JSON without spaces."""
    return json.dumps(header, separators=(",", ":")).encode()
