"""Checksums inside files: damage by a disk, a copy or a power cut, and edits by hand, are detected on reading.

Files of others, and those that an earlier version wrote, have none: `note_unverified` names them.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tomllib
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "add_checksum",
    "add_tensor_checksum",
    "check_tensor_checksum",
    "note_once",
    "note_unverified",
    "pop_checksum",
    "tensor_bytes",
    "tensor_digest",
]

NAME = "crc32"


def add_tensor_checksum(file: bytes) -> tuple[bytes, memoryview]:
    """Return a safetensors file with the CRC-32 of everything else in its metadata: a new head, and what follows it.

    safetensors itself writes metadata of several entries in any order; written here, equal tensors make equal files.
    """
    size = int.from_bytes(file[:8], "little")
    header, content = json.loads(file[8 : 8 + size]), memoryview(file)[8 + size :]
    header["__metadata__"][NAME] = f"{zlib.crc32(content, zlib.crc32(compact_json(header))):08x}"
    text = compact_json(header)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, content


def check_tensor_checksum(path: Path) -> None:
    """Read a safetensors file to its end. ValueError where its checksum differs; files of others have none."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        metadata = header.get("__metadata__", {})
        written = metadata.pop(NAME, None)
        if written is None:
            if any(len(name) == len(NAME) and is_checksum(value) for name, value in metadata.items()):
                raise ValueError("the name of its checksum is damaged")
            return
        crc = zlib.crc32(compact_json(header))
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    if written != f"{crc:08x}":
        raise ValueError(f"its checksum is {crc:08x}, {written} was written")


def add_checksum(values: dict[str, Any]) -> dict[str, Any]:
    """Return a dict that is written as JSON or TOML with its CRC-32 as first entry, which `pop_checksum` verifies."""
    return {NAME: json_checksum(values), **values}


def pop_checksum(values: dict[str, Any], file: Path) -> None:
    """Remove the checksum, where there is one, from the dict that a file holds.

    ValueError, naming the file, where it is another one than that of the other entries, or its name is damaged.
    """
    if NAME not in values and any(len(key) == len(NAME) and is_checksum(value) for key, value in values.items()):
        raise ValueError(f"{file} is damaged: so is the name of its checksum")
    written = values.pop(NAME, None)
    if written is not None and written != (checksum := json_checksum(values)):
        raise ValueError(
            f"{file} is damaged or was changed: its checksum is {checksum}, {written!r:.50} was written; restore it, "
            f"or remove the entry {NAME} to use it as it is"
        )


def is_checksum(value: Any) -> bool:
    """Return whether a value looks like a checksum."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{8}", value) is not None


def json_checksum(values: dict[str, Any]) -> str:
    """Return the CRC-32, hexadecimal, of a dict as JSON, in whatever order its keys are; a path is its text."""
    text = json.dumps(values, default=str)
    return f"{zlib.crc32(json.dumps(json.loads(text), sort_keys=True).encode()):08x}"


def note_unverified(*files: Path) -> None:
    """Name on stderr, once each, those of some JSON, TOML and safetensors files, just read, that have no checksum."""
    for file in files:
        if NAME not in read_metadata(file):
            note_once(f"{file} is not verified: it has no checksum, an earlier version or a person wrote it")


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, hexadecimal, of tensors' names and content, whichever file they come from."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(name.encode())
        sha.update(tensor_bytes(tensor))
    return sha.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return a tensor's content, of any type, without a copy where it is in the host's memory: numpy has no bf16."""
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


@cache
def note_once(text: str) -> None:
    """Print a line on stderr the first time that it is given."""
    print(f"dmdistill: {text}", file=sys.stderr)


def read_metadata(file: Path) -> dict[str, Any]:
    """Return the part of a readable file that holds its checksum."""
    if file.suffix == ".safetensors":
        with file.open("rb") as stream:
            return json.loads(stream.read(int.from_bytes(stream.read(8), "little"))).get("__metadata__", {})
    parse = tomllib.loads if file.suffix == ".toml" else json.loads
    return parse(file.read_bytes().decode("utf-8-sig"))


def compact_json(header: dict[str, Any]) -> bytes:
    """Return the header as it is written: JSON without spaces."""
    return json.dumps(header, separators=(",", ":")).encode()
