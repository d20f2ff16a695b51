"""Partial results of a long feature extraction, stored in the cache: an interrupted or killed one resumes from them.

    CACHE/extractions/DIGEST.pt    the blocks that are done, and what each network accumulated of them

The digest is of everything that decides the results. A damaged file is ignored; in the end the file is removed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dmdistill.io.atomic import atomic_write
from dmdistill.io.folders import cache_folder
from dmdistill.metrics.accumulate import FeatureAccumulator
from dmdistill.metrics.extraction import Extraction
from dmdistill.metrics.frechet import Moments
from dmdistill.metrics.inception_score import ClassScores
from dmdistill.training.checkpoints import DamagedCheckpointError, read_checkpoint

__all__ = ["PartialResults"]

SAVE_SECONDS = 60.0  # between two savings


class PartialResults:
    """State of some extractions of one set of images.

    Args:
        extractions: whose accumulators are saved and restored.
        key: returns everything else that decides the results. It is called late, as a folder's digest takes a reading.
    """

    def __init__(self, extractions: Sequence[Extraction], key: Callable[[], list[Any]]) -> None:
        self.extractions, self.key = extractions, key
        self.folder = cache_folder() / "extractions"
        self.saved = time.monotonic()

    @cached_property
    def file(self) -> Path:
        """File of this state."""
        key = json.dumps([self.key(), [extraction.id for extraction in self.extractions]])
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.pt"

    def resume(self) -> int:
        """Restore the accumulators; return the number of blocks that are done."""
        if not self.exists():
            return 0
        try:
            state = read_checkpoint(self.file)
            done, accumulators = state["done"], [restore(**one) for one in state["accumulated"]]
        except (DamagedCheckpointError, LookupError, TypeError):  # or written by another version
            return 0
        for extraction, accumulator in zip(self.extractions, accumulators, strict=True):
            extraction.accumulator = accumulator
        return done

    def save(self, done: int) -> None:
        """Save after so many blocks, unless that was done recently. A cache that cannot be written is no error."""
        if time.monotonic() - self.saved < SAVE_SECONDS:
            return
        accumulated = [asdict(extraction.accumulator) for extraction in self.extractions]
        with suppress(OSError), atomic_write(self.file) as temporary, temporary.open("wb") as file:
            torch.save({"done": done, "accumulated": accumulated}, file)
        self.saved = time.monotonic()

    def remove(self) -> None:
        """Remove the file."""
        if self.exists():
            with suppress(OSError):
                self.file.unlink()

    def exists(self) -> bool:
        """Whether there is such a file; without any file the key is not computed."""
        try:
            return self.folder.is_dir() and any(self.folder.iterdir()) and self.file.is_file()
        except OSError:
            return False


def restore(*, moments: dict[str, Any], classes: dict[str, Any], **others: Any) -> FeatureAccumulator:
    """Build an accumulator from its `asdict`."""
    return FeatureAccumulator(moments=Moments(**moments), classes=ClassScores(**classes), **others)
