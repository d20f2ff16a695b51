"""Hostile content: trees of JSON and TOML with values of another kind or size, and pickles of other opcodes."""

from __future__ import annotations

import copy
import math
import pickle
import pickletools
import random
from typing import Any

NUMBERS = (0, -1, 1, 2, 7, 10**4, 10**6, 10**9, 2**31, 2**63, 10**30, -(10**30), 1.5, -0.5, 1e-300, 1e30, 1e300)
TEXTS = (
    "",
    "x",
    "1",
    "é\n",
    "\x1b[31m",
    "x" * 10**5,
    "../../etc/passwd",
    "os.system",
    "[/bold]",
    "\ud800".encode("utf-16", "surrogatepass").decode("latin-1"),
)
OTHERS = (None, True, False, math.nan, math.inf, [], [None], [1] * 70, [[[]]], {}, {"a": {"b": 1}}, list(range(10**5)))
RAW = (b"", b"3", b"[]", b"null", b'"x"', b"{", b"[" * 10**5, b'{"a":' * 10**4, b"\xff\xfe{}", b"{}", b"1" * 10**5)


def hostile_value(rng: random.Random) -> Any:
    """A value that no config has there."""
    value = copy.deepcopy(rng.choice(rng.choice([NUMBERS, TEXTS, OTHERS])))
    for _ in range(rng.choice([0, 0, 0, 1, 100])):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container of a tree with each of its keys."""
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []
    return [(tree, key) for key in keys] + [place for key in keys for place in places(tree[key])]


def mutate_tree(tree: Any, rng: random.Random) -> Any:
    """Change a tree of dicts and lists in one place or three; the tree is changed."""
    for _ in range(rng.choice([1, 1, 1, 3])):
        if not (where := places(tree)):
            return hostile_value(rng)
        (container, key), (other, other_key) = rng.choice(where), rng.choice(where)
        kind = rng.randrange(8)
        if kind <= 3:
            container[key] = hostile_value(rng)
        elif kind == 4:
            del container[key]
        elif kind == 5:
            number = container[key]
            scaled = isinstance(number, int | float) and not isinstance(number, bool)
            container[key] = number * rng.choice([-1, 10, 0.1, 1000, 10**12]) if scaled else [number]
        elif kind == 6:
            container[key] = other[other_key] if not isinstance(other[other_key], dict | list) else 3
        elif isinstance(container, dict):
            container[rng.choice(["odd", "class", "__class__", "_class_name", key.upper()])] = hostile_value(rng)
        else:
            container.insert(rng.randrange(len(container) + 1), hostile_value(rng))
    return tree


def mutate_pickle(data: bytes, rng: random.Random) -> bytes:
    """Change opcodes of a pickle: another one, an unknown one, one more, one less, two swapped, other arguments."""
    starts = [at for _, _, at in pickletools.genops(data) if at is not None]
    parts = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, other, kind = rng.randrange(len(parts)), rng.randrange(len(parts)), rng.randrange(7)
        if kind == 0:
            parts[at] = bytes([rng.randrange(256)]) + parts[at][1:]
        elif kind == 1:
            parts[at] = parts[at][:1] + rng.randbytes(len(parts[at]) - 1)
        elif kind == 2:
            parts.insert(at, parts[other] * rng.choice([1, 1, 1000]))
        elif kind == 3:
            parts[at] = b""
        elif kind == 4:
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == 5:
            parts.insert(at, pickle.dumps(hostile_value(rng), protocol=rng.choice([2, 4, 5]))[2:-1])
        else:
            parts.insert(at, rng.choice(ODD_OPCODES))
    return b"".join(parts)


ODD_OPCODES = (  # lengths that lie, memo entries that are not there, marks, calls
    *(
        b"X\xff\xff\xff\x7f",
        b"\x8d" + b"\xff" * 8,
        b"B\xff\xff\xff\xff",
        b"\x8e" + b"\x7f" * 8,
        b"\x8b\xff\xff\xff\x7f",
    ),
    *(b"j\xff\xff\xff\xff", b"h\xfe", b"(" * 1000, b"R", b"b", b"\x81", b"\x92", b"o", b"cposix\nsystem\n"),
    *(
        b"\x95" + b"\xff" * 8,
        b"\x96" + b"\xff" * 8,
        b"\x97",
        b"2" * 1000,
        b"]" * 1000,
        b"Q",
        b"I1e9\n",
        b"L9" + b"9" * 5000 + b"L\n",
    ),
)
