"""What networks see in a set of images: drawn or read once, block by block, for all networks; by one process or many.

A network always sees images 0 ... 63, 64 ... 127 and so on together, however many are drawn at once: its answers change
with the company in the last bits. Whole such groups are dealt to the processes, so that many compute what one would.
Whose features are kept is a function of the numbers of the images.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dmdistill.commands.evaluate.generated_images import batch_ranges
from dmdistill.commands.evaluate.partial_results import PartialResults
from dmdistill.data.image_sources import ImageSource
from dmdistill.data.seeds import derive_seed
from dmdistill.distributed.process_group import ProcessGroup
from dmdistill.metrics.accumulate import KEPT, FeatureAccumulator
from dmdistill.metrics.clip_score import ClipScore
from dmdistill.metrics.features import Classifying, Features
from dmdistill.training.progress import progress_bar

__all__ = ["ClipScoring", "Extraction", "FeatureExtraction", "extract_features"]

GROUP = 64  # images that a network sees at once: Inception's activations of 500 are gigabytes
CHOOSING = 32  # groups, after which it is chosen whose features are kept: that copies all of them
KEY = 2  # in the key of a seed: of no image's noise


class Extraction(Protocol):
    """One network's look at a set of images."""

    gathering: FeatureAccumulator

    @property
    def id(self) -> str:
        """Tells looks that gather other things apart."""
        ...

    def add(self, images: Tensor, rows: range) -> None:
        """Images of these numbers: uint8, B C H W."""
        ...

    def done(self) -> FeatureAccumulator:
        """What was gathered of all of them."""
        ...


@dataclass
class FeatureExtraction:
    """By features. keep: those of KEPT images too. classes: the sums of the Inception score too."""

    network: Features
    keep: bool = False
    classes: bool = False
    gathering: FeatureAccumulator = field(init=False)
    found: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # features and keys, still to be chosen from

    def __post_init__(self) -> None:
        self.gathering = FeatureAccumulator(self.network.id, self.network.name, KEPT if self.keep else 0)

    @property
    def id(self) -> str:
        return f"{self.network.id}, {self.gathering.keep} kept, classes: {self.classes}"

    def add(self, images: Tensor, rows: range) -> None:
        features = self.seen(images, rows)
        self.gathering.moments.add(features)
        if self.keep:
            keys = torch.tensor([derive_seed(0, row, KEY) for row in rows], dtype=torch.float64)
            self.found.append((features.float().cpu(), keys))
        if len(self.found) >= CHOOSING:
            self.done()

    def done(self) -> FeatureAccumulator:
        if self.found:
            features, keys = map(torch.cat, zip(*self.found, strict=True))
            self.gathering.sample(features, keys)
            self.found = []
        return self.gathering

    def seen(self, images: Tensor, rows: range) -> Tensor:
        if not self.classes:
            return self.network(images)
        assert isinstance(self.network, Classifying)
        features, probabilities = self.network.classify(images)
        self.gathering.classes.add(probabilities, first=rows.start)
        return features


@dataclass
class ClipScoring:
    """By CLIP, beside the prompts: image i is of prompt i, in turn."""

    score: ClipScore
    prompts: Sequence[str]
    gathering: FeatureAccumulator = field(init=False)

    def __post_init__(self) -> None:
        self.gathering = FeatureAccumulator(self.score.id, "clip", 0)

    @property
    def id(self) -> str:
        return f"{self.score.id}, {list(self.prompts)}"

    def add(self, images: Tensor, rows: range) -> None:
        self.gathering.add_clip(self.score(images, [self.prompts[row % len(self.prompts)] for row in rows]))

    def done(self) -> FeatureAccumulator:
        return self.gathering


def extract_features(
    source: ImageSource, count: int, looks: Sequence[Extraction], *, batch: int, processes: ProcessGroup, name: str
) -> list[FeatureAccumulator]:
    """What each look gathers of the first `count` images; of all processes for the first, [] for the others.

    What was interrupted before goes on where it was, to the same digits.

    name: of the progress, which the first process shows.
    """
    size = GROUP * math.ceil(batch / GROUP)
    own = processes.split(batch_ranges(count, size))
    kept = PartialResults(looks, lambda: [source.digest(), count, size, processes.rank, processes.world_size])
    before = kept.resume()
    bar = progress_bar(name, len(own)) if processes.is_main else contextlib.nullcontext(lambda _: None)
    with bar as advance:
        for done, rows in enumerate(own[before:], before + 1):
            images = torch.cat([source.images(part) for part in evenly(rows, batch)])
            for start in range(0, len(images), GROUP):  # fewer than rows where damaged ones are left out
                few = images[start : start + GROUP]
                for look in looks:
                    look.add(few, rows[start : start + len(few)])
            kept.keep(done)
            advance(done)
    shares = processes.gather([look.done() for look in looks])
    kept.forget()
    return [functools.reduce(operator.add, parts) for parts in zip(*shares, strict=True)]


def evenly(rows: range, batch: int) -> list[range]:
    """Parts of at most `batch` numbers, as few as can be, of nearly the same size."""
    parts = math.ceil(len(rows) / batch)
    return [rows[len(rows) * i // parts : len(rows) * (i + 1) // parts] for i in range(parts)]
