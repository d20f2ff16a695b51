"""The final report of a run: its student measured beside its teacher, and pictures of both and of the run's curves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.pictures import draw_comparison, draw_curves
from dmdistill.commands.distill.validation_metric import reference_side
from dmdistill.commands.evaluate.command import measure
from dmdistill.commands.evaluate.config import EvaluateConfig
from dmdistill.commands.evaluate.generated_images import GeneratedImages
from dmdistill.commands.evaluate.inputs import open_evaluation
from dmdistill.commands.evaluate.tables import print_comparison
from dmdistill.data.image_tensors import to_uint8
from dmdistill.data.pairs import PairDataset
from dmdistill.io.atomic import write_json
from dmdistill.io.checksums import add_checksum
from dmdistill.models.model import Student, Teacher

__all__ = ["draw_comparison", "draw_curves", "write_report"]


def write_report(
    config: DistillConfig,
    teacher: Teacher,
    student: Student,
    pairs: PairDataset | None,
    *,
    batch: int,
    seconds: float,
    say: Callable[[str], None],
) -> None:
    """Measure student and teacher as `dmdistill evaluate` does; write report.json, report.png and comparison.png.

    Args:
        config: of the run.
        teacher: on its device.
        student: on its device.
        pairs: the run's, or None. Those that the run made are used as the teacher's images.
        batch: images generated at once.
        seconds: that the distillation took.
        say: prints a line.
    """
    count = config.evaluation.report_images
    reference = config.evaluation.reference
    side = reference_side(teacher) if reference is not None else None
    settings = EvaluateConfig(
        str(config.out), reference=reference, images=count, batch=batch, side=side, seed=config.seed + 3
    )
    teacher_images = TeacherImages(
        GeneratedImages(teacher, count, seed=settings.seed), pairs if config.pair_set.pairs is None else None
    )
    reports = []
    for model, source in ((teacher, teacher_images), (student, None)):
        precision = model.denoiser.precision
        reports.append(measure(open_evaluation(settings, model.device, precision, model=model, source=source)))
    durations = {"distillation": seconds}
    if pairs is not None and pairs.seconds_per_image is not None:
        durations["pairs"] = pairs.seconds_per_image * len(pairs)
    results = {"teacher": reports[0], "student": reports[1], "seconds": durations}
    write_json(config.out / "report.json", add_checksum(results))
    draw_curves(config.out)
    draw_comparison(config.out / "comparison.png", {"teacher": teacher, "student": student}, batch=batch)
    print_comparison(reports)
    say(f"distilled in {seconds / 60:.1f} min")
    say(f"teacher and student side by side: {config.out / 'comparison.png'}; curves: {config.out / 'report.png'}")


class TeacherImages:
    """The `ImageSource` of a teacher's images: those of pairs first, which are there already, then generated ones.

    Args:
        generated: as many as are needed without pairs.
        pairs: of the same teacher, or None.
    """

    def __init__(self, generated: GeneratedImages, pairs: PairDataset | None) -> None:
        self.generated, self.pairs, self.name = generated, pairs, generated.name

    @property
    def shape(self) -> tuple[int, int, int]:
        """C H W of every image."""
        return self.generated.shape

    def __len__(self) -> int:
        return len(self.generated)

    def digest(self) -> str:
        """Hash everything that decides the images."""
        pairs = asdict(self.pairs.settings) if self.pairs is not None else None
        return hashlib.sha256(json.dumps([self.generated.digest(), pairs], default=str).encode()).hexdigest()

    @torch.no_grad()
    def images(self, rows: range) -> Tensor:
        """Return the images of these numbers: uint8, B C H W."""
        paired = len(self.pairs) if self.pairs is not None else 0
        stored, rest = range(rows.start, min(rows.stop, paired)), range(max(rows.start, paired), rows.stop)
        images = []
        if self.pairs is not None and stored:
            teacher = self.generated.model
            images.append(to_uint8(teacher.decode(self.pairs[stored][1].to(teacher.device))).cpu())
        if rest:
            images.append(self.generated.images(range(rest.start - paired, rest.stop - paired)).cpu())
        return torch.cat(images)
