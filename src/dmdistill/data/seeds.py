"""Seeds derived from keys."""

from __future__ import annotations

import numpy as np

__all__ = ["derive_seed"]


def derive_seed(*key: int) -> int:
    """Derive a seed, 0 to 2**63 - 1, from a key of integers of 0 or more. Neighbouring keys give unrelated draws."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
