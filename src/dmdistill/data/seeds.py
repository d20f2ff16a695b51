"""Seeds derived from keys."""

from __future__ import annotations

import numpy as np

__all__ = ["derive_seed"]


def derive_seed(*key: int) -> int:
    """A seed of its own for every key, well mixed: neighbouring keys give unrelated draws."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
