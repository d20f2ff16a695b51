"""Random damage to a file's bytes, of the kinds that disks, copies, power cuts and editors do."""

import random


def damage(content: bytes, rng: random.Random) -> bytes:
    """Return the content with flipped bits, cut short, emptied, spliced, zeroed or replaced."""
    data, kind = bytearray(content), rng.randrange(8)
    at = rng.randrange(len(data))
    if kind <= 2:
        for _ in range(rng.choice([1, 1, 4])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 3:
        del data[at:]
    elif kind == 4:
        source, length = rng.randrange(len(data)), rng.randint(1, 60)
        data[at : at + rng.randint(0, 60)] = data[source : source + length]
    elif kind == 5:
        length = min(rng.randint(1, 512), len(data) - at)
        data[at : at + length] = bytes(length)
    elif kind == 6:  # a number of a header or a text becomes another
        data[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"1e99", b"null", b"-1,1"])
    else:
        return rng.choice([b"", b"\x00" * len(data), b"\xff\xd8\xff\xe0 not what you think", b"<html>404</html>\n"])
    return bytes(data)
