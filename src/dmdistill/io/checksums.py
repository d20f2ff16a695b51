"""Checksums inside files: what a disk, a copy or a power cut spoilt is known when it is read."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

__all__ = ["add_tensor_checksum", "add_text_checksum", "check_tensor_checksum", "read_checked_text"]

SEAL = re.compile(rb"# crc32 ([0-9a-f]{8}) of all below[^\n]*\n")


def add_text_checksum(text: str) -> str:
    """The text below a comment that holds its CRC-32."""
    crc = zlib.crc32(text.encode())
    return f"# crc32 {crc:08x} of all below: remove this line if you change another\n{text}"


def read_checked_text(file: Path) -> str:
    """The text of a file, sealed or not. ValueError, naming it, where it is not what was sealed, or no text."""
    content = file.read_bytes()
    found = SEAL.match(content)
    if found is not None and int(found[1], 16) != zlib.crc32(content[found.end() :]):
        raise ValueError(
            f"{file} is not as it was written, it was cut short, damaged or changed: mend it, or remove its first "
            "line to use it as it is"
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8: {error.reason} at byte {error.start}") from None


def add_tensor_checksum(file: bytes) -> bytes:
    """A safetensors file with the CRC-32 of all else among its metadata.

    It is put there by hand: safetensors writes more than one metadata in any order, and equal tensors make equal files.
    """
    size = int.from_bytes(file[:8], "little")
    header, content = json.loads(file[8 : 8 + size]), file[8 + size :]
    header["__metadata__"]["crc32"] = f"{zlib.crc32(content, zlib.crc32(dumped(header))):08x}"
    text = dumped(header)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content


def check_tensor_checksum(path: Path) -> None:
    """Read a whole safetensors file. ValueError where it is not what was sealed; others' files have no seal."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        sealed = header.get("__metadata__", {}).pop("crc32", None)
        if sealed is None:
            return
        crc = zlib.crc32(dumped(header))
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    if sealed != f"{crc:08x}":
        raise ValueError(f"its checksum is {crc:08x}, {sealed} was written")


def dumped(header: dict[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()
