"""What is measured during a distillation: sample grids, diagnostics, the Frechet distance of the generator's EMAs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.diagnostics import BINS, Probe, fake_lag
from dmdistill.commands.distill.setup import Distillation
from dmdistill.commands.distill.validation_metric import ValidationMetric
from dmdistill.commands.evaluate.generated_images import batch_ranges, generate_images
from dmdistill.core.generators import Generator
from dmdistill.core.samples import Samples
from dmdistill.data.image_tensors import save_grid
from dmdistill.metrics.frechet import Moments, frechet_distance
from dmdistill.training.best_checkpoint import BestCheckpoint
from dmdistill.training.checkpoints import map_tensors
from dmdistill.training.trainer import Trainer

__all__ = ["TEACHER_IMAGES", "Monitor", "build_probe"]

TEACHER_IMAGES = 16  # of its solver: as many evaluations as a step or two of DMD2
ROW = 8  # images of a row of a sample grid
SHOWN = 64  # images of a sample grid
PREFIX = "frechet_"  # before the name of an EMA, in metrics.jsonl


def build_probe(distillation: Distillation, *, seed: int, images: int) -> Probe:
    """Draw the noise that all diagnostics of a run use.

    Args:
        distillation: its teacher decides shapes and conditions.
        seed: of the noise.
        images: how many.
    """
    rng = torch.Generator(distillation.rng.device).manual_seed(seed)
    z, cond = distillation.teacher.sample_inputs(images, rng=rng)
    eps = torch.randn(z.shape, generator=rng, device=rng.device)
    return Probe(z, cond, eps, latents=distillation.teacher.autoencoder is not None)


class Monitor:
    """Measures a distillation, always with the same noise, and keeps its best state.

    Args:
        config: the options. distillation: its networks. trainer: its training loop, not restored yet.
        metric: by which states are compared; None for none.
        batch: images generated at once.
    """

    def __init__(
        self,
        config: DistillConfig,
        distillation: Distillation,
        trainer: Trainer,
        metric: ValidationMetric | None,
        *,
        batch: int,
    ) -> None:
        self.config, self.distillation, self.trainer, self.metric = config, distillation, trainer, metric
        self.batch, self.processes = batch, distillation.parallel.processes
        self.best = BestCheckpoint(trainer)
        self.probe = build_probe(distillation, seed=config.seed + 1, images=min(128, batch))

    @property
    def hooks(self) -> list[tuple[int, Callable[[int], dict[str, float]]]]:
        """The trainer's hooks: how many steps apart, and what is done."""
        return [
            (self.config.logging.sample_every, self.save_samples),
            (self.config.evaluation.evaluate_every, self.evaluate),
        ]

    @torch.no_grad()
    def save_start(self) -> Path | None:
        """Save samples/start.png: rows of the teacher's images, each above the untrained student's of that noise.

        Return the file; None where there are NaN, and in all processes but the first.
        """
        images = self.teacher_images.x
        columns = min(ROW, len(images))
        own = self.candidates()[-1][1].sample(*self.probe.first(len(images)))
        pairs = torch.stack([images, own])[:, : len(images) // columns * columns].unflatten(1, (-1, columns))
        grid = self.distillation.teacher.decode(pairs.transpose(0, 1).flatten(0, 2))
        if not (self.processes.is_main and grid.isfinite().all()):  # training names the network with NaN, and the time
            return None
        file = self.config.out / "samples" / "start.png"
        save_grid(file, grid, columns=columns)
        return file

    @torch.no_grad()
    def save_samples(self, step: int) -> dict[str, float]:
        """Save a sample grid of the last EMA."""
        x = self.candidates()[-1][1].sample(*self.probe.first(SHOWN))
        if self.processes.is_main:
            images = self.distillation.teacher.decode(x)
            file = self.config.out / "samples" / f"step-{step:06d}.png"
            save_grid(file, images, columns=ROW)
            if self.trainer.logger is not None:
                self.trainer.logger.log_image(step, file)
        return {}

    def evaluate(self, step: int) -> dict[str, float]:
        """Measure the run's health and the Frechet distance of each EMA; keep the best weights."""
        run = self.distillation
        row = self.measure_health() if run.phases.matching else {}
        if self.metric is not None:
            for name, distance in self.distances(self.metric).items():
                row[PREFIX + name] = distance
                self.best.update(step, name, distance, partial(self.weights, dict(self.candidates())[name]))
        return row

    def distances(self, metric: ValidationMetric) -> dict[str, float]:
        """Measure each EMA by its name; of those that are still equal only the first."""
        optimizer, found = self.distillation.optimizers["generator"], {}
        young = {f"ema{ema.halflife:g}" for ema in optimizer.emas if ema.is_capped(optimizer.count)}
        for name, generator in self.candidates():
            equal = next((found[other] for other in found if {name, other} <= young), None)
            found[name] = self.frechet(metric, generator) if equal is None else equal
        return found

    def measure_health(self) -> dict[str, float]:
        """Measure the networks, with a discriminator on real images, and compare them with the teacher."""
        run, discriminator = self.distillation, self.distillation.objectives.networks.discriminator
        images = run.batches.reference_images(len(self.probe.z)) if discriminator is not None else None
        row = self.probe.measure(run.generator, run.real, run.fake, discriminator, images)
        losses = [row[f"fake_loss_{i}"] for i in range(BINS)]
        return row | self.teacher_figures | {"fake_lag": fake_lag(losses, self.teacher_figures["teacher_loss"])}

    @cached_property
    def teacher_images(self) -> Samples:
        """The teacher's images of the first noise of the probe, made by its solver."""
        z, cond = self.probe.first(TEACHER_IMAGES)
        return Samples(self.distillation.teacher.generate(z, cond), cond, len(z))

    @cached_property
    def teacher_figures(self) -> dict[str, float]:
        """The figures of images of the teacher's distribution: of the run's data, else of a few of its own."""
        run, probe = self.distillation, self.probe
        images = run.batches.reference_images(len(probe.z))
        return probe.measure_teacher(run.teacher.denoiser, self.teacher_images if images is None else images)

    def candidates(self) -> list[tuple[str, Generator]]:
        """Return the generator's EMAs by name, or the generator itself without EMAs."""
        emas = self.distillation.optimizers["generator"].emas
        averages: list[Any] = [(f"ema{ema.halflife:g}", ema.network) for ema in emas]
        return averages or [("raw", self.distillation.generator)]

    @torch.no_grad()
    def frechet(self, metric: ValidationMetric, generator: Generator) -> float:
        """Measure a generator: each process generates some of the images, the first one computes the distance."""
        count, seed = self.config.evaluation.evaluate_images, self.config.seed + 2
        images = generate_images(
            self.distillation.teacher,
            count,
            generate=generator.sample,
            batch=self.batch,
            seed=seed,
            share=self.processes.split,
        )
        own = Moments() + metric.moments(images)  # on the CPU
        self.call_as_often(generator)
        moments = sum(self.processes.gather(own), Moments())
        return self.processes.on_main(lambda: frechet_distance(moments.statistics(), metric.reference))

    def call_as_often(self, generator: Generator) -> None:
        """Call a sharded network once more where other processes had one more batch: all gather weights together."""
        batches = batch_ranges(self.config.evaluation.evaluate_images, self.batch)
        own = len(self.processes.split(batches))
        if self.distillation.parallel.is_sharded and own * self.processes.world_size < len(batches):
            generator.sample(self.probe.z, self.probe.cond)

    def choose(self) -> tuple[str, int, dict[str, Tensor]]:
        """Return the EMA that becomes the student, its step and its weights: the best, or that of the last step."""
        candidates = dict(self.candidates())
        name = list(candidates)[-1]
        if self.config.evaluation.keep == "best" and self.best.step:
            return self.best.name, self.best.step, self.best.weights()
        if self.metric is not None:
            distances = self.distances(self.metric)
            name = min(distances, key=lambda key: distances[key])
        return name, self.trainer.step, self.weights(candidates[name])

    def weights(self, generator: Generator) -> dict[str, Tensor]:
        """Return the trained weights of the generator or of an EMA, complete where they are sharded."""
        run = self.distillation
        return map_tensors(run.parallel.full_tensor, run.optimizers["generator"].weights(generator))
