"""What images are compared with: opened by name, seen once by each network, kept in the cache by content."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dmdistill.commands.evaluate.feature_extraction import FeatureExtraction, extract_features
from dmdistill.data.image_sources import ImageSource
from dmdistill.distributed.process_group import ProcessGroup
from dmdistill.io.atomic import read_safetensors, write_safetensors
from dmdistill.io.folders import cache_folder
from dmdistill.metrics.accumulate import KEPT, FeatureStatistics
from dmdistill.metrics.features import Features
from dmdistill.metrics.frechet import Statistics, load_statistics, save_statistics

__all__ = ["Reference", "reference_features"]


@dataclass(frozen=True)
class Reference:
    """source: the images, or None where a file holds the statistics of Inception's features alone."""

    name: str
    source: ImageSource | None
    statistics: Statistics | None = None

    @property
    def count(self) -> int | None:
        """Images, where it is known."""
        return len(self.source) if self.source is not None else None


def reference_features(
    reference: Reference,
    looks: Sequence[FeatureExtraction],
    *,
    batch: int,
    processes: ProcessGroup,
    say: Callable[[str], None],
) -> list[FeatureStatistics]:
    """What each look sees in its images, for the first process; [] for the others.

    What was seen before is read from the cache. say: takes a line about it.
    """
    source = reference.source
    if source is None:
        assert reference.statistics is not None
        return [FeatureStatistics(look.network.id, look.network.name, reference.statistics) for look in looks]
    homes = [home(source, look.network) for look in looks] if processes.is_main else []
    known = processes.broadcast([complete(one, keep=look.keep) for one, look in zip(homes, looks, strict=False)])
    missing = [look for look, there in zip(looks, known, strict=True) if not there]
    if missing:
        name = f"looking at {reference.name}"
        seen = iter(extract_features(source, len(source), missing, batch=batch, processes=processes, name=name))
        for folder, there in zip(homes, known, strict=False):
            if not there:
                save(folder, next(seen).description())
    elif processes.is_main and looks:
        say(f"{reference.name} was looked at before: {cache_folder() / 'seen'}")
    return [read(folder, look) for folder, look in zip(homes, looks, strict=False)]


def home(source: ImageSource, network: Features) -> Path:
    """A folder of its own for each content, network and number of images whose features are kept."""
    words = f"{source.digest()[:32]}-{network.id}-{KEPT}"
    return cache_folder() / "seen" / re.sub(r"[^\w.-]", "_", words)


def complete(folder: Path, *, keep: bool) -> bool:
    return (folder / "statistics.safetensors").is_file() and (not keep or (folder / "features.safetensors").is_file())


def save(folder: Path, seen: FeatureStatistics) -> None:
    if seen.features is not None:
        write_safetensors(folder / "features.safetensors", {"features": seen.features})
    save_statistics(folder / "statistics.safetensors", seen.statistics)


def read(folder: Path, look: FeatureExtraction) -> FeatureStatistics:
    features: torch.Tensor | None = None
    if look.keep:
        features = read_safetensors(folder / "features.safetensors")["features"]
    return FeatureStatistics(
        look.network.id, look.network.name, load_statistics(folder / "statistics.safetensors"), features
    )
