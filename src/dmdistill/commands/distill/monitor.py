"""What is looked at while a student learns: samples, health, the Frechet distance of its averages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dmdistill.commands.distill.diagnostics import Probe
from dmdistill.commands.distill.validation_metric import ValidationMetric
from dmdistill.commands.evaluate.generated_images import batch_ranges, generate_images
from dmdistill.data.image_tensors import save_grid
from dmdistill.metrics.frechet import Moments, frechet_distance
from dmdistill.training.best_checkpoint import BestCheckpoint
from dmdistill.training.checkpoints import map_tensors

if TYPE_CHECKING:
    from dmdistill.commands.distill.setup import Job

__all__ = ["Watch"]

FIGURE = "frechet_"  # before the name of an average, in metrics.jsonl


class Watch:
    """Looks at a job, always by the same noise, and keeps its best state.

    judge: whose features measure the images, None for none.
    """

    def __init__(self, job: Job, feature_extractor: ValidationMetric | None) -> None:
        self.job, self.feature_extractor = job, feature_extractor
        self.best = BestCheckpoint(job.trainer)
        device = job.run.device
        rng = torch.Generator(device).manual_seed(job.config.seed + 1)
        z, cond = job.teacher.sample_inputs(min(128, job.many), rng=rng)
        self.probe = Probe(z, cond, torch.randn(z.shape, generator=rng, device=device))

    @property
    def hooks(self) -> list[tuple[int, Callable[[int], dict[str, float]]]]:
        return [(self.job.config.sample_every, self.look), (self.job.config.evaluate_every, self.evaluate)]

    @torch.no_grad()
    def look(self, step: int) -> dict[str, float]:
        """A grid of the newest average's images of the probe's noise."""
        job = self.job
        grid = self.candidates()[-1][1](self.probe.z, self.probe.cond)[:64]
        images = job.teacher.decode(grid)
        if job.run.processes.is_main:
            file = job.config.out / "samples" / f"step-{step:06d}.png"
            save_grid(file, images, columns=8)
            if job.trainer.logger is not None:
                job.trainer.logger.log_image(step, file)
        return {}

    def evaluate(self, step: int) -> dict[str, float]:
        """Health, and the Frechet distance of each average of the generator."""
        job = self.job
        row = self.probe.measure(job.generator, job.teacher.guided_denoiser, job.fake) if job.dmd.match else {}
        if self.feature_extractor is not None:
            for name, generator in self.candidates():
                row[FIGURE + name] = figure = self.frechet(self.feature_extractor, generator)
                self.best.update(step, name, figure, partial(self.weights, generator))
        return row

    def candidates(self) -> list[tuple[str, nn.Module]]:
        """The generator's averages by name, or the generator itself where none is kept."""
        averages = self.job.update_generator.emas
        return [(f"ema{a.halflife:g}", a.network) for a in averages] or [("raw", self.job.generator)]

    @torch.no_grad()
    def frechet(self, feature_extractor: ValidationMetric, generator: nn.Module) -> float:
        """Of as many images as are measured, of which each process draws some."""
        config, processes = self.job.config, self.job.run.processes
        told = {"batch": self.job.many, "seed": config.seed + 2, "share": processes.split}
        drawn = generate_images(self.job.teacher, config.evaluate_images, generate=generator, **told)
        own = feature_extractor.moments(drawn)
        if processes.world_size > 1:
            self.keep_pace(generator)
            own = sum(processes.all_gather(Moments() + own), Moments())
        return frechet_distance(own.statistics(), feature_extractor.reference)

    def keep_pace(self, generator: nn.Module) -> None:
        """Call a sharded network as often as the others do who had a batch more to draw: all gather it together."""
        job, processes = self.job, self.job.run.processes
        batches = batch_ranges(job.config.evaluate_images, job.many)
        if job.parallel.is_sharded and len(processes.split(batches)) * processes.world_size < len(batches):
            generator(self.probe.z, self.probe.cond)

    def chosen(self) -> tuple[str, int, dict[str, Tensor]]:
        """The average that becomes the student, its step and its weights: the best, or that of the last step."""
        names = dict(self.candidates())
        name, step = list(names)[-1], self.job.trainer.step
        if self.job.config.keep == "best" and self.best.step:
            return self.best.name, self.best.step, self.best.weights()
        if self.feature_extractor is not None:
            feature_extractor = self.feature_extractor
            name = min(names, key=lambda one: self.frechet(feature_extractor, names[one]))
        return name, step, self.weights(names[name])

    def weights(self, generator: nn.Module) -> dict[str, Tensor]:
        """Those of the generator or an average of it, all of them where they are sharded, for the first process."""
        job = self.job
        return map_tensors(job.parallel.full_tensor, job.update_generator.weights(generator))
