"""Seeds derived from keys."""

from __future__ import annotations

import numpy as np

__all__ = ["seed_of"]


def seed_of(*key: int) -> int:
    """A seed of its own for every key, well mixed: neighbouring keys give unrelated draws."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
