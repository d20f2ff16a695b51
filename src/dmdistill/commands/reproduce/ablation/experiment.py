"""Distillations of one teacher with changed settings, at equal compute, and the quality of their students.

Every variant is distilled with several seeds, from the same pairs. Finished students are kept, so that an interrupted
experiment continues when the same command is run again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmdistill.commands.distill.command import distill
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.initialization import load_start
from dmdistill.commands.distill.real_data import load_real_images
from dmdistill.commands.evaluate.generated_images import generate_images
from dmdistill.commands.options import flag_name, option_values
from dmdistill.commands.pairs.command import make_teacher_pairs
from dmdistill.commands.presets import from_preset, from_run
from dmdistill.commands.reproduce.ablation.equal_compute import count_operations, match_compute
from dmdistill.commands.reproduce.config import ReproduceConfig
from dmdistill.commands.run_folder import setup_compute
from dmdistill.commands.solver_options import with_solver_options
from dmdistill.data.image_tensors import to_uint8
from dmdistill.data.pairs import PairDataset
from dmdistill.data.real_images import RealImages
from dmdistill.metrics.classifier_features import ClassifierFeatures, load_classifier_features
from dmdistill.metrics.frechet import Moments, frechet_distance
from dmdistill.metrics.precision_recall import precision_recall
from dmdistill.models.load import load_model, load_teacher
from dmdistill.models.model import Model, Teacher
from dmdistill.training.metrics_log import read_metrics

__all__ = ["Experiment", "prepare_experiment"]

REFERENCE_IMAGES = 2000  # of precision and recall: the teacher's, apart from the pairs, or real ones
STUDENT_IMAGES = 5000


@dataclass(frozen=True)
class Experiment:
    """Variants of one distillation, and how their students are measured.

    Attributes:
        full: settings of the first row, whose compute all have.
        operations: of its training, and of making its pairs where the others have none.
        teacher: on its device.
        feature_extractor: the classifier whose features compare images.
        teacher_pairs: the pairs that every row learns from that learns from pairs.
        teacher_features: of the teacher's images that are not in the pairs, N D.
        reference_features: of the images that precision and recall refer to, N D: the teacher's, or real ones.
        out: output folder; a student lies in out/VARIANT/seed-N/student.
    """

    full: DistillConfig
    operations: float
    teacher: Teacher
    feature_extractor: ClassifierFeatures
    teacher_pairs: PairDataset
    teacher_features: Tensor
    reference_features: Tensor
    out: Path

    def at_equal_compute(self, settings: DistillConfig) -> DistillConfig:
        """Return the settings with as many steps as take the compute of the first row."""
        return match_compute(settings, self.operations)

    def student_metrics(self, settings: DistillConfig, name: str, seed: int) -> dict[str, float | None]:
        """Measure the student of one variant and seed; distill it first, or resume, unless it is finished."""
        folder = self.out / name / f"seed-{seed}"
        settings = replace(settings, out=folder, seed=seed)
        if started := (folder / "config.toml").exists():
            settings = replace(settings, resume=folder)
            check_same_options(from_run(DistillConfig, folder), settings)
        if not (started and (folder / "student").exists()):
            distill(settings)
        images = generate_images(self.load_student(name, seed), STUDENT_IMAGES, batch=500, seed=1)
        measured = self.metrics(extract_features(self.feature_extractor, images))
        return measured | {"minutes": read_metrics(folder)[-1]["seconds"] / 60}

    def load_student(self, name: str, seed: int) -> Model:
        """Load a finished student onto the teacher's device."""
        student = load_model(str(self.out / name / f"seed-{seed}" / "student"))
        student.to(self.teacher.device, self.teacher.denoiser.precision)
        return student

    def teacher_metrics(self) -> dict[str, float | None]:
        """Measure all of the teacher's images; precision and recall are None where they refer to itself."""
        pair_features = extract_features(self.feature_extractor, iterate_images(self.teacher_pairs))
        measured = self.metrics(torch.cat([self.teacher_features, pair_features]))
        if self.reference_features is self.teacher_features:
            measured |= {"precision": None, "recall": None}
        return measured | {"minutes": None}

    def metrics(self, features: Tensor) -> dict[str, float | None]:
        """Measure images by their features, N D: Frechet distance, precision and recall."""
        precision, recall = precision_recall(features[:REFERENCE_IMAGES], self.reference_features)
        return {"frechet": self.distance(features), "precision": precision, "recall": recall}

    def distance(self, features: Tensor) -> float:
        """Return the Frechet distance of a set of features to those of the real images."""
        moments = Moments()
        moments.add(features)
        return frechet_distance(moments.statistics(), self.feature_extractor.reference)


def prepare_experiment(config: ReproduceConfig, preset: str) -> Experiment:
    """Load the teacher and its feature extractor and make the teacher's images.

    Args:
        config: the options of the command.
        preset: of the first row.

    ValueError where `config.start` is not a student of the teacher, before any image is made.
    """
    device, precision = setup_compute(config.compute)
    changes: dict[str, Any] = {"compute": config.compute, "start": config.start}
    changes |= {name: value for name in ("steps", "guidance") if (value := getattr(config, name)) is not None}
    full = from_preset(DistillConfig, preset, pairs=config.out / "pairs", **changes)
    teacher = with_solver_options(load_teacher(full.teacher), full.ode)
    load_start(full, teacher)
    real_images = None if config.data is None else load_real_images(config.data, teacher, device=device)
    teacher.to(device, precision)
    feature_extractor = load_classifier_features(str(teacher.feature_extractor), device)
    pairs = make_teacher_pairs(teacher, config.out / "pairs", count=full.pair_set.pair_count, seed=0)
    reference = make_teacher_pairs(teacher, config.out / "reference", count=REFERENCE_IMAGES, seed=1)
    features = extract_features(feature_extractor, iterate_images(reference))
    references = features if real_images is None else extract_real_features(feature_extractor, real_images)
    operations = count_operations(full, pairs=real_images is not None)
    return Experiment(full, operations, teacher, feature_extractor, pairs, features, references, config.out)


def check_same_options(earlier: DistillConfig, config: DistillConfig) -> None:
    """Raise a ValueError, naming the first difference, where a run was started with other options than these.

    Where it runs is no difference.
    """
    old, new = option_values(earlier), option_values(config)
    ignored = {"device", "precision", "threads", "pairs", "preset"}
    for name in new:
        if name not in ignored and old[name] != new[name]:
            flag = flag_name(name)
            raise ValueError(
                f"{config.out} was run with {flag} {old[name]}, now {flag} {new[name]}: choose another --out"
            )


def extract_features(feature_extractor: ClassifierFeatures, images: Iterable[Tensor]) -> Tensor:
    """Return the features of images, given batch by batch, B C H W in about [-1, 1]: N D."""
    return torch.cat([feature_extractor(to_uint8(batch)) for batch in images])


def extract_real_features(feature_extractor: ClassifierFeatures, images: RealImages) -> Tensor:
    """Return the features of randomly chosen real images, N D."""
    count = min(REFERENCE_IMAGES, len(images))
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
    return extract_features(feature_extractor, (images[part][0] for part in rows.split(500)))


def iterate_images(pairs: PairDataset, size: int = 500) -> Iterator[Tensor]:
    """Yield the images of pairs in batches."""
    for start in range(0, len(pairs), size):
        yield pairs[range(start, min(start + size, len(pairs)))][1]
