"""A set of pairs in words, after all of it was verified."""

from __future__ import annotations

from pathlib import Path

from dmdistill.data.pairs import open_pairs
from dmdistill.io.checksums import note_unverified
from dmdistill.training.progress import track_rows

__all__ = ["describe_pairs"]


def describe_pairs(folder: Path) -> dict[str, str]:
    """Read all of a set, with a progress bar, and return the rows of a table about it.

    ValueError, naming the files, where it is incomplete or damaged.
    """
    pairs = open_pairs(folder)
    pairs.verify(track_rows)
    settings, layout, stored = pairs.settings, pairs.shards.layout, pairs.shards.rows
    files = [layout.file(number) for number in range(len(layout))]
    note_unverified(folder / "pairs.json", *files)
    dtypes = ", ".join(f"{name} {str(stored[name].dtype).removeprefix('torch.')}" for name in stored)
    return {
        "pairs": f"{len(pairs)} of {' x '.join(map(str, pairs.shape))}, {dtypes}",
        "teacher": settings.teacher,
        "conditions": settings.conditions,
        "solver": f"{settings.solver}, {settings.steps} steps, guidance scale {settings.guidance:g}",
        "computed in": settings.precision,
        "seed": str(settings.seed),
        "verified": f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1e9:.3g} GB",
    }
