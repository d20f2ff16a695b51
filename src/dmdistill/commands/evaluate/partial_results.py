"""How far a long look at images has come, kept in the cache: what was interrupted, or killed, goes on from there.

    CACHE/looking/DIGEST.pt    blocks that are done, and what each network gathered of them

The digest is of all that decides it. Like a checkpoint, a file that is damaged is not believed; it is gone in the end.
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
from typing import Any, Protocol

import torch

from dmdistill.io.atomic import atomic_write
from dmdistill.io.folders import cache_folder
from dmdistill.metrics.accumulate import FeatureAccumulator
from dmdistill.metrics.frechet import Moments
from dmdistill.metrics.inception_score import ClassScores
from dmdistill.training.checkpoints import DamagedCheckpointError, read_checkpoint

__all__ = ["EVERY", "PartialResults"]

EVERY = 60.0  # seconds between two savings


class Looking(Protocol):
    """A look that can be gone on with. id: tells it from others, by network and by what it gathers."""

    gathering: FeatureAccumulator

    @property
    def id(self) -> str: ...

    def done(self) -> FeatureAccumulator: ...


class PartialResults:
    """The state of some looks at a set of images.

    Args:
        about: all that decides what they gather. It is asked late: to tell a folder's content all of it is read.
    """

    def __init__(self, looks: Sequence[Looking], about: Callable[[], list[Any]]) -> None:
        self.looks, self.about = looks, about
        self.folder = cache_folder() / "looking"
        self.saved = time.monotonic()

    @cached_property
    def file(self) -> Path:
        key = json.dumps([self.about(), [look.id for look in self.looks]])
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.pt"

    def resume(self) -> int:
        """Give the looks what they gathered before; how many blocks that was of."""
        if not self.folder.is_dir() or not any(self.folder.iterdir()) or not self.file.is_file():
            return 0
        try:
            state = read_checkpoint(self.file)
        except DamagedCheckpointError:
            return 0
        for look, gathered in zip(self.looks, state["gathered"], strict=True):
            look.gathering = restored(**gathered)
        return state["done"]

    def keep(self, done: int) -> None:
        """Save, where the last time was a while ago. A cache that cannot be written is none."""
        if time.monotonic() - self.saved < EVERY:
            return
        with suppress(OSError), atomic_write(self.file) as temporary:
            torch.save({"done": done, "gathered": [asdict(look.done()) for look in self.looks]}, temporary)
        self.saved = time.monotonic()

    def forget(self) -> None:
        if self.folder.is_dir() and any(self.folder.iterdir()):
            self.file.unlink(missing_ok=True)


def restored(*, moments: dict[str, Any], classes: dict[str, Any], **others: Any) -> FeatureAccumulator:
    return FeatureAccumulator(moments=Moments(**moments), classes=ClassScores(**classes), **others)
