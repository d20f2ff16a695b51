"""Feature extraction of a set of images, block by block, by one process or several.

A network always gets images 0 ... 63, 64 ... 127 and so on together, in whatever batches they are generated: its
results change with the batch in the last bits. Processes share such groups, so that several compute what one would.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Sequence

import torch

from dmdistill.commands.evaluate.generated_images import batch_ranges
from dmdistill.commands.evaluate.partial_results import PartialResults
from dmdistill.data.image_sources import ImageSource
from dmdistill.distributed.process_group import ProcessGroup
from dmdistill.metrics.accumulate import FeatureAccumulator
from dmdistill.metrics.extraction import Extraction
from dmdistill.metrics.frechet import Moments
from dmdistill.training.progress import progress_bar

__all__ = ["extract_features"]

GROUP = 64  # images that a network gets at once


def extract_features(
    source: ImageSource,
    count: int,
    extractions: Sequence[Extraction],
    *,
    batch: int,
    processes: ProcessGroup,
    name: str,
) -> list[FeatureAccumulator]:
    """Extract features of the first `count` images; return each extraction's sums of all processes, on the first one.

    An interrupted extraction is resumed, to the same digits. The other processes get [].

    Args:
        source: the images.
        count: how many of them.
        extractions: one for each network.
        batch: images generated or read at once.
        processes: which share the images.
        name: of the progress bar, which the first process shows.
    """
    size = GROUP * math.ceil(batch / GROUP)
    blocks = processes.split(batch_ranges(count, size))
    partial = PartialResults(extractions, lambda: [source.digest(), count, size, processes.rank, processes.world_size])
    start = partial.resume()
    bar = contextlib.nullcontext(lambda _: None)
    if processes.is_main:
        bar = progress_bar(name, sum(map(len, blocks)), start=sum(map(len, blocks[:start])))
    with bar as advance:
        for done, block in enumerate(blocks[start:], start + 1):
            images = torch.cat([source.images(rows) for rows in split_evenly(block, batch)])
            for i in range(0, len(images), GROUP):  # fewer than the block where damaged ones are skipped
                group = images[i : i + GROUP]
                for extraction in extractions:
                    extraction.add(group, block[i : i + len(group)])
                advance(sum(map(len, blocks[: done - 1])) + i + len(group))
            partial.save(done)
    for accumulator in (extraction.accumulator for extraction in extractions):
        accumulator.merge()
        accumulator.moments = Moments() + accumulator.moments  # to the CPU: sums of a GPU would come back on that GPU
    shares = processes.gather([extraction.accumulator for extraction in extractions])
    partial.remove()
    return [functools.reduce(operator.add, share) for share in zip(*shares, strict=True)]


def split_evenly(rows: range, most: int) -> list[range]:
    """Split into as few ranges of at most `most` as possible, of nearly equal sizes."""
    parts = math.ceil(len(rows) / most)
    return [rows[len(rows) * i // parts : len(rows) * (i + 1) // parts] for i in range(parts)]
