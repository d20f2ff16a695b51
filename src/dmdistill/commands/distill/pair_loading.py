"""The pairs of a distillation: those of --pairs, or its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.evaluate.generated_images import sampling_batch_size
from dmdistill.commands.pairs.command import make_teacher_pairs
from dmdistill.commands.run_folder import RunFolder
from dmdistill.data.pairs import PairDataset, open_pairs
from dmdistill.models.model import Teacher

__all__ = ["make_own_pairs", "open_given_pairs"]


def open_given_pairs(config: DistillConfig, teacher: Teacher, fingerprint: str) -> PairDataset | None:
    """Open the pairs of --pairs; None where none are given or wanted.

    ValueError where they are of images of another shape, of other conditions, or of another teacher or guidance.
    """
    folder = config.pair_set.pairs
    if folder is None or config.regression.lambda_reg == 0:
        return None
    pairs, conditions = open_pairs(folder), str(teacher.conditions or "none")
    settings = pairs.settings
    if (pairs.shape, settings.conditions) != (teacher.shape, conditions):
        raise ValueError(
            f"--pairs {folder} holds images {pairs.shape}, conditions: {settings.conditions}; {teacher.name}'s are "
            f"{teacher.shape}, conditions: {conditions}"
        )
    expected = (fingerprint, teacher.guidance)
    if (settings.teacher, settings.guidance) != expected:
        raise ValueError(
            f"--pairs {folder} holds pairs of {settings.teacher} at guidance {settings.guidance:g}, expected "
            f"{expected[0]} at {expected[1]:g}"
        )
    return pairs


def make_own_pairs(
    config: DistillConfig,
    teacher: Teacher,
    fingerprint: str,
    run: RunFolder,
    load: Callable[[], Teacher],
    network_device: torch.device,
) -> PairDataset:
    """Make the run's own pairs, in its folder.

    Args:
        config: how many, and the seed.
        teacher: the teacher.
        fingerprint: the teacher's.
        run: its folder and device.
        load: loads the teacher whole, for pairs that are missing, where this one's weights stay in their files.
        network_device: where the teacher's network goes afterwards.
    """

    def load_whole() -> Teacher:
        if teacher.device.type != "meta":
            return teacher
        return replace(load(), conditions=teacher.conditions).to(run.device, run.precision)

    teacher.to(run.device, run.precision)
    count, seed = config.pair_set.pair_count, config.seed
    folder = config.out / "pairs"
    options = {
        "count": count,
        "seed": seed,
        "batch": sampling_batch_size(teacher, config.batch),
        "processes": run.processes,
        "fingerprint": fingerprint,
    }
    pairs = make_teacher_pairs(teacher, folder, **options, device=run.device, load=load_whole)
    teacher.to(run.device, run.precision, network_device=network_device)
    if run.device.type == "cuda":
        torch.cuda.empty_cache()  # for shards, and for what NCCL takes
    return pairs
