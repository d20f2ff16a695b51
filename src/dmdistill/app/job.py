"""One distillation in the making."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict

import torch
from torch import Tensor, nn

from dmdistill.app.config import Distill
from dmdistill.app.pairs import pairs_of, teacher_id
from dmdistill.app.run import Run
from dmdistill.core.dmd import DMD, Batch
from dmdistill.core.generator import Generator
from dmdistill.core.losses import WEIGHTS, Distance, pseudo_huber
from dmdistill.data.images import save_grid
from dmdistill.data.pairs import Pairs
from dmdistill.metrics.judge import Judge, load_judge
from dmdistill.metrics.perceptual import load_lpips
from dmdistill.teachers.model import Student, Teacher
from dmdistill.training.health import Probe
from dmdistill.training.trainer import Trainer
from dmdistill.training.update import Update

__all__ = ["Job"]

KEPT = ("network", "path", "denoiser", "shape", "classes", "licence", "judge")  # of the teacher's config.json


class Job:
    """One distillation: the three networks, their data, and what is looked at on the way."""

    def __init__(self, config: Distill, teacher: Teacher, run: Run) -> None:
        self.config, self.teacher, self.run = config, teacher, run
        self.judge = load_judge(teacher.judge, run.device) if teacher.judge else None
        distance = self.distance()
        given = self.given_pairs()
        run.begin()
        self.pairs = (given or self.own_pairs()) if config.lambda_reg > 0 else None
        self.generator = Generator(copy.deepcopy(teacher.denoiser)).requires_grad_(True)
        self.fake = copy.deepcopy(teacher.denoiser).requires_grad_(True)
        self.dmd = DMD(
            self.generator,
            teacher.guided,
            self.fake,
            rng=run.rng,
            distance=distance,
            lambda_reg=config.lambda_reg,
            match=config.match,
            low=config.low,
            high=config.high,
            weight=WEIGHTS[config.weight],
        )
        shared = {
            "betas": config.betas,
            "weight_decay": config.weight_decay,
            "warmup": config.warmup,
            "decay": config.decay,
            "clip": config.clip,
        }
        self.update_generator = Update(
            self.generator, name="generator", lr=config.lr, steps=config.steps, halflives=config.halflives, **shared
        )
        self.match_step = int(config.match_from * config.steps) if config.lambda_reg > 0 else 0
        fake_updates = (config.steps - self.match_step) * config.fake_steps
        self.update_fake = Update(self.fake, name="fake score", lr=config.lr_fake, steps=fake_updates, **shared)
        updates = {"generator": self.update_generator} | ({"fake": self.update_fake} if config.match else {})
        self.trainer = Trainer(
            config.out,
            steps=config.steps,
            updates=updates,
            rng=run.rng,
            log_every=config.log_every,
            save_every=config.save_every,
            resume=config.resume is not None,
        )
        rng = torch.Generator(run.device).manual_seed(config.seed + 1)
        z, cond = teacher.noise(128, rng=rng)
        self.probe = Probe(z, cond, torch.randn(z.shape, generator=rng, device=run.device))

    def given_pairs(self) -> Pairs | None:
        """Those of --pairs. ValueError where they are not of this teacher's kind of image."""
        if self.config.pairs is None:
            return None
        pairs, teacher = Pairs(self.config.pairs), self.teacher
        made, wanted = pairs.settings, teacher_id(teacher)
        classes = len(teacher.labels) if teacher.labels else 0
        if (pairs.shape, pairs.classes) != (teacher.shape, classes):
            raise ValueError(
                f"{self.config.pairs} holds images {pairs.shape} of {pairs.classes} classes, {teacher.name}'s are "
                f"{teacher.shape} of {classes}"
            )
        if (made.teacher, made.guidance) != (wanted, teacher.guidance):
            raise ValueError(
                f"{self.config.pairs} holds pairs of {made.teacher} with guidance {made.guidance}, this run's teacher "
                f"is {wanted} with guidance {teacher.guidance}"
            )
        return pairs

    def own_pairs(self) -> Pairs:
        config = self.config
        return pairs_of(self.teacher, config.out / "pairs", count=config.pair_count, seed=config.seed)

    def distance(self) -> Distance:
        if self.config.distance == "huber" or self.config.lpips_weights is None:
            return pseudo_huber
        lpips = load_lpips(self.config.lpips_weights).to(self.run.device)

        def distance(x: Tensor, y: Tensor) -> Tensor:
            precision = self.run.precision
            with torch.autocast(x.device.type, precision or torch.bfloat16, enabled=precision is not None):
                return lpips(x, y)

        return distance

    def iterate(self, step: int) -> dict[str, Tensor]:
        """One iteration of Algorithm 1, with this step's weight of the regression."""
        self.dmd.match = self.config.match and step >= self.match_step
        left = 1 + (self.config.lambda_end - 1) * step / self.config.steps
        self.dmd.lambda_reg = self.config.lambda_reg * left
        return self.dmd.step(self.batch(step), self.update_generator, self.update_fake)

    def batch(self, step: int) -> Batch:
        config, rng, device = self.config, self.run.rng, self.run.device
        z, cond = self.teacher.noise(config.batch, rng=rng)
        z_ref = y_ref = cond_ref = z_fake = cond_fake = None
        if self.pairs is not None:
            z_ref, y_ref, cond_ref = self.pairs.batch(step, config.batch_reg)
            z_ref, y_ref, cond_ref = z_ref.to(device), y_ref.to(device), cond_ref.to(device) if cond_ref else None
        if config.fake_steps > 1:
            z_fake, cond_fake = self.teacher.noise((config.fake_steps - 1) * config.batch, rng=rng)
        return Batch(z, cond, z_ref, y_ref, cond_ref, z_fake, cond_fake)

    @property
    def hooks(self) -> list[tuple[int, Callable[[int], dict[str, float]]]]:
        return [(self.config.sample_every, self.look), (self.config.evaluate_every, self.evaluate)]

    def look(self, step: int) -> dict[str, float]:
        """A grid of the newest average's images of the probe's noise."""
        grid = self.candidates()[-1][1](self.probe.z, self.probe.cond)
        save_grid(self.config.out / "samples" / f"step-{step:06d}.png", grid[:64], columns=8)
        return {}

    def evaluate(self, step: int) -> dict[str, float]:
        """Health, and the Frechet distance of each average of the generator."""
        row = self.probe.measure(self.generator, self.teacher.guided, self.fake) if self.dmd.match else {}
        if self.judge is not None:
            for name, generator in self.candidates():
                row[f"frechet_{name}"] = self.frechet(self.judge, generator)
        return row

    def candidates(self) -> list[tuple[str, nn.Module]]:
        """The generator's averages by name, or the generator itself where none is kept."""
        averages = self.update_generator.averages
        return [(f"ema{a.halflife:g}", a.network) for a in averages] or [("raw", self.generator)]

    @torch.no_grad()
    def frechet(self, judge: Judge, generator: nn.Module) -> float:
        return judge.distance(self.images_of(generator))

    def images_of(self, generator: nn.Module) -> Iterator[Tensor]:
        rng = torch.Generator(self.run.device).manual_seed(self.config.seed + 2)
        for start in range(0, self.config.evaluate_images, 500):
            n = min(500, self.config.evaluate_images - start)
            yield generator(*self.teacher.noise(n, rng=rng))

    def student(self) -> Student:
        """The best average, by Frechet distance where there is a judge, else the longest."""
        candidates = self.candidates()
        name, best = candidates[-1]
        if self.judge is not None:
            judge = self.judge
            name, best = min(candidates, key=lambda candidate: self.frechet(judge, candidate[1]))
        self.generator.load_state_dict(best.state_dict())
        teacher = self.teacher
        settings = {"teacher": teacher.name, "average": name, **asdict(self.config)}
        kept = {key: teacher.config.get(key) for key in KEPT}
        return Student(
            name=f"{teacher.name}-student",
            denoiser=self.generator.denoiser.eval().requires_grad_(False),
            shape=teacher.shape,
            labels=teacher.labels,
            licence=teacher.licence,
            judge=teacher.judge,
            config={"kind": "student", "name": f"{teacher.name}-student", **kept, "distilled": settings},
        )
