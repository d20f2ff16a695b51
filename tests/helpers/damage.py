"""Random damage to a file's bytes, of the kinds that disks, copies, power cuts and editors do."""

from __future__ import annotations

import random
import re

NUMBERS = (b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"1e99", b"null", b"-1,1")
FOREIGN = (b"", b"\xff\xd8\xff\xe0 not what you think", b"<html>404</html>\n")


def damage(content: bytes, rng: random.Random) -> bytes:
    """Return other content: of flipped bits, another digit, cut, extended, spliced, zeroed, swapped, without a line."""
    damaged = content
    while damaged == content:
        damaged = rng.choice(KINDS)(bytearray(content), rng)
    return damaged


def flip(data: bytearray, rng: random.Random) -> bytes:
    """Flip one bit, or four."""
    for _ in range(rng.choice([1, 1, 4])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def change_digit(data: bytearray, rng: random.Random) -> bytes:
    """Change one of the digits of a text; a bit where there are none."""
    digits = [match.start() for match in re.finditer(rb"\d", data)]
    if not digits:
        return flip(data, rng)
    data[rng.choice(digits)] = rng.choice(b"0123456789")
    return bytes(data)


def cut(data: bytearray, rng: random.Random) -> bytes:
    """Cut the file short."""
    return bytes(data[: rng.randrange(len(data))])


def extend(data: bytearray, rng: random.Random) -> bytes:
    """Append zeros, noise or the file's own beginning."""
    return bytes(data) + rng.choice([bytes(rng.randint(1, 512)), rng.randbytes(40), bytes(data[:100])])


def splice(data: bytearray, rng: random.Random) -> bytes:
    """Put a piece of the file into another place."""
    at, source = rng.randrange(len(data)), rng.randrange(len(data))
    data[at : at + rng.randint(0, 60)] = data[source : source + rng.randint(1, 60)]
    return bytes(data)


def zero_block(data: bytearray, rng: random.Random) -> bytes:
    """Set a block to zeros."""
    at = rng.randrange(len(data))
    length = min(rng.randint(1, 512), len(data) - at)
    data[at : at + length] = bytes(length)
    return bytes(data)


def swap_blocks(data: bytearray, rng: random.Random) -> bytes:
    """Swap two blocks of one size."""
    size = max(1, min(512, len(data) // 4))
    a, b = (rng.randrange(max(1, len(data) // size)) * size for _ in range(2))
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    return bytes(data)


def delete_line(data: bytearray, rng: random.Random) -> bytes:
    """Delete a line, which is a key of an indented JSON or a TOML file."""
    lines = bytes(data).splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    return b"".join(lines)


def write_number(data: bytearray, rng: random.Random) -> bytes:
    """Write another number or word into a header or a text."""
    at = rng.randrange(len(data))
    data[at : at + 4] = rng.choice(NUMBERS)
    return bytes(data)


def replace(data: bytearray, rng: random.Random) -> bytes:
    """Replace all."""
    return rng.choice([*FOREIGN, bytes(len(data))])


KINDS = (
    *(flip, flip, change_digit, change_digit, cut, extend, splice, zero_block, swap_blocks),
    *(delete_line, write_number, replace),
)
