"""Reference images: their features, which are extracted once by each network and cached by content."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dmdistill.commands.evaluate.feature_extraction import extract_features
from dmdistill.data.image_sources import ImageSource, is_model_or_run, open_images
from dmdistill.distributed.process_group import ProcessGroup
from dmdistill.io.atomic import read_safetensors, write_safetensors
from dmdistill.io.folders import cache_folder
from dmdistill.metrics.accumulate import CAPACITY, FeatureStatistics
from dmdistill.metrics.extraction import FeatureExtraction
from dmdistill.metrics.features import FeatureExtractor
from dmdistill.metrics.frechet import Statistics, load_edm_statistics, load_statistics, save_statistics

__all__ = ["Reference", "open_reference", "reference_features"]


@dataclass(frozen=True)
class Reference:
    """What generated images are compared with: images, or statistics of Inception's features from a file."""

    name: str
    source: ImageSource | None
    statistics: Statistics | None = None

    @property
    def count(self) -> int | None:
        """Number of images, where it is known."""
        return len(self.source) if self.source is not None else None


def open_reference(name: str, *, side: int | None = None, skip_corrupt: bool = False) -> Reference:
    """Open EDM's statistics (.npz) or a set of images. ValueError where it is neither, or the folder of a model or run.

    Args:
        name: of a file or folder.
        side: see `open_images`.
        skip_corrupt: see `open_images`.
    """
    path = Path(name).expanduser()
    if path.suffix == ".npz":
        return Reference(name, None, load_edm_statistics(path))
    if is_model_or_run(path):
        raise ValueError(f"--reference {name} is the folder of a model or run, expected real images, or model:{name}")
    return Reference(name, open_images(name, side=side, skip_corrupt=skip_corrupt))


def reference_features(
    reference: Reference,
    extractions: Sequence[FeatureExtraction],
    *,
    batch: int,
    processes: ProcessGroup,
    say: Callable[[str], None],
) -> list[FeatureStatistics]:
    """Return each network's features of the reference on the first process, [] on the others.

    They are read from the cache, or extracted and cached.

    Args:
        reference: the images, or statistics of Inception's features.
        extractions: one for each network, without images yet.
        batch: images read or generated at once.
        processes: which share the extraction.
        say: prints a line about the cache.
    """
    source = reference.source
    if source is None:
        assert reference.statistics is not None
        return [FeatureStatistics(one.extractor.id, one.extractor.name, reference.statistics) for one in extractions]
    folders = [cache_entry(source, one.extractor) for one in extractions] if processes.is_main else []
    cached = [load_cached(*entry, say) for entry in zip(folders, extractions, strict=False)]
    missing = processes.broadcast([entry is None for entry in cached])
    if any(missing):
        name = f"extracting features of {reference.name}"
        todo = [one for one, absent in zip(extractions, missing, strict=True) if absent]
        new = iter(extract_features(source, len(source), todo, batch=batch, processes=processes, name=name))
        for i, folder in enumerate(folders):
            if missing[i]:
                cached[i] = features = next(new).statistics()
                save(folder, features)
    elif processes.is_main and extractions:
        say(f"the features of {reference.name} are cached in {cache_folder() / 'features'}")
    return [entry for entry in cached if entry is not None]


def cache_entry(source: ImageSource, extractor: FeatureExtractor) -> Path:
    """Name the folder of one content, network and capacity."""
    words = f"{source.digest()[:32]}-{extractor.id}-{CAPACITY}"
    return cache_folder() / "features" / re.sub(r"[^\w.-]", "_", words)


def load_cached(folder: Path, extraction: FeatureExtraction, say: Callable[[str], None]) -> FeatureStatistics | None:
    """Read one entry; None where it is missing, or damaged, which is said."""
    files = [folder / f"{name}.safetensors" for name in ("statistics", "features")[: 1 + extraction.store_features]]
    try:
        if not all(file.is_file() for file in files):
            return None
        statistics = load_statistics(files[0])
        features = read_safetensors(files[1])["features"] if extraction.store_features else None
        if features is not None and features.shape != (min(statistics.count or 0, CAPACITY), len(statistics.mean)):
            raise ValueError(f"{files[1]} has features of another set")
    except (OSError, ValueError, LookupError) as error:
        say(f"the cached features cannot be used and are extracted again: {error}")
        return None
    return FeatureStatistics(extraction.extractor.id, extraction.extractor.name, statistics, features)


def save(folder: Path, features: FeatureStatistics) -> None:
    """Write one entry. A cache that cannot be written is no error: it saves time and nothing else."""
    with suppress(OSError):
        if features.features is not None:
            write_safetensors(folder / "features.safetensors", {"features": features.features})
        save_statistics(folder / "statistics.safetensors", features.statistics)
