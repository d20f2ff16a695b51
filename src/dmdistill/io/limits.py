"""Bounds on what compressed data may unpack to."""

from __future__ import annotations

__all__ = ["check_expansion"]

SMALL = 1 << 24  # bytes, which may be compressed as much as they like: labels, plain areas
MAX_RATIO = 200  # of what is larger; photos reach 1 to 5, drawings 50, "zip bombs" 1,000 and more


def check_expansion(unpacked: int, packed: int) -> None:
    """Raise ValueError where `packed` bytes claim to unpack to far more bytes than images and labels do."""
    if unpacked > max(SMALL, MAX_RATIO * packed):
        raise ValueError(f"its {packed} bytes would unpack to {unpacked}, which no images do")
