"""`dmdistill distill`: a teacher becomes a one-step student."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from dmdistill.app.cards import student_card
from dmdistill.app.config import Distill
from dmdistill.app.evaluate import draw, measure, metrics, print_table, seconds_per_image
from dmdistill.app.pairs import pairs_of, with_solver
from dmdistill.app.report import draw_comparison, draw_curves
from dmdistill.app.run import Run
from dmdistill.core.dmd import DMD, Batch
from dmdistill.core.generator import Generator
from dmdistill.core.losses import WEIGHTS, Distance, pseudo_huber
from dmdistill.data.images import save_grid
from dmdistill.data.pairs import Pairs
from dmdistill.files import write_json
from dmdistill.metrics.judge import Judge, load_judge
from dmdistill.metrics.perceptual import load_lpips
from dmdistill.teachers.folder import load_model, load_teacher, save_model
from dmdistill.teachers.model import Student, Teacher
from dmdistill.training.health import Probe
from dmdistill.training.trainer import Trainer
from dmdistill.training.update import Update

__all__ = ["distill"]

POSITIVE = ("steps", "batch", "batch_reg", "fake_steps", "log_every", "evaluate_every", "sample_every", "save_every")
KEPT = ("network", "path", "denoiser", "shape", "classes", "licence", "judge")  # of the teacher's config.json


def distill(config: Distill) -> Student | None:
    """Distill, write the student to out/student, report, return it; None where it was interrupted."""
    check(config)
    teacher = with_solver(load_teacher(config.teacher), config.ode)
    run = Run(config.out, config, resume=config.resume is not None)
    torch.manual_seed(config.seed)
    teacher.to(run.device, run.precision)
    job = Job(config, teacher, run)
    if not job.trainer.fit(job.iterate, hooks=job.hooks, name="distilling"):
        run.say_how_to_resume("distill", job.trainer.step)
        return None
    student = job.student()
    save_model(config.out / "student", student, card=student_card(student, asdict(config)), dtype=run.storage)
    return report(config, job, run)


def check(config: Distill) -> None:
    """ValueError where settings contradict each other, before anything is written."""
    if config.lambda_reg < 0 or (config.lambda_end or 0) < 0:
        raise ValueError(f"--lambda-reg {config.lambda_reg} --lambda-end {config.lambda_end}, expected at least 0")
    if config.lambda_reg > 0 and config.pairs is None and config.pair_count < 1:
        raise ValueError(
            f"--lambda-reg {config.lambda_reg} needs pairs: give --pairs FOLDER or a --pair-count above 0, or set "
            "--lambda-reg 0 to distill without"
        )
    if config.lambda_reg == 0 and not config.match:
        raise ValueError("--lambda-reg 0 with --no-match leaves no loss: keep one of the two")
    for name in POSITIVE:
        if getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(config, name)}, expected at least 1")
    if config.distance == "lpips" and config.lpips_weights is None:
        raise ValueError("--distance lpips needs --lpips-weights FILE, a safetensors file of VGG16 and LPIPS")


class Job:
    """One distillation: the three networks, their data, and what is looked at on the way."""

    def __init__(self, config: Distill, teacher: Teacher, run: Run) -> None:
        self.config, self.teacher, self.run = config, teacher, run
        self.pairs = self.find_pairs() if config.lambda_reg > 0 else None
        self.judge = load_judge(teacher.judge, run.device) if teacher.judge else None
        self.generator = Generator(copy.deepcopy(teacher.denoiser)).requires_grad_(True)
        self.fake = copy.deepcopy(teacher.denoiser).requires_grad_(True)
        self.dmd = DMD(
            self.generator,
            teacher.guided,
            self.fake,
            rng=run.rng,
            distance=self.distance(),
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
            self.generator, lr=config.lr, steps=config.steps, halflives=config.halflives, **shared
        )
        self.update_fake = Update(self.fake, lr=config.lr_fake, steps=config.steps * config.fake_steps, **shared)
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

    def find_pairs(self) -> Pairs:
        if self.config.pairs is None:
            return pairs_of(
                self.teacher, self.config.out / "pairs", count=self.config.pair_count, seed=self.config.seed
            )
        pairs = Pairs(self.config.pairs)
        if pairs.shape != self.teacher.shape:
            raise ValueError(
                f"{self.config.pairs} holds images {pairs.shape}, {self.teacher.name}'s are {self.teacher.shape}"
            )
        return pairs

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
        start, end = self.config.lambda_reg, self.config.lambda_end
        self.dmd.lambda_reg = start if end is None else start + (end - start) * step / self.config.steps
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
        row = self.probe.measure(self.generator, self.teacher.guided, self.fake) if self.config.match else {}
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
            config={"kind": "student", "name": f"{teacher.name}-student", **kept, "distilled": jsonable(settings)},
        )


def report(config: Distill, job: Job, run: Run) -> Student:
    """Measure the stored student beside its teacher; write report.json, report.png and comparison.png."""
    student = load_model(str(config.out / "student"))
    assert isinstance(student, Student)
    student.to(run.device, run.precision)
    reports = [
        teacher_report(config, job),
        measure(student, images=config.report_images, batch=500, seed=config.seed + 3),
    ]
    seconds = {"distillation": job.trainer.seconds}
    if job.pairs is not None and job.pairs.seconds_per_image is not None:
        seconds["pairs"] = job.pairs.seconds_per_image * len(job.pairs)
    write_json(config.out / "report.json", {"teacher": reports[0], "student": reports[1], "seconds": seconds})
    draw_curves(config.out)
    draw_comparison(config.out / "comparison.png", job.teacher, student, reports)
    print_table(reports)
    run.say(f"distilled in {seconds['distillation'] / 60:.1f} min; student in {config.out / 'student'}")
    run.say(f"teacher and student side by side: {config.out / 'comparison.png'}; curves: {config.out / 'report.png'}")
    return student


def teacher_report(config: Distill, job: Job) -> dict[str, Any]:
    """The teacher's figures. Its images are those of the run's own pairs, and fresh ones where these are too few."""
    teacher, count = job.teacher, config.report_images
    own = job.pairs if job.pairs is not None and config.pairs is None else None
    kept = min(len(own), count) if own is not None else 0
    made = (own[range(i, min(i + 500, kept))][1].to(teacher.device) for i in range(0, kept, 500)) if own else iter(())
    fresh = draw(teacher, count - kept, batch=500, seed=config.seed + 3, name="drawing the teacher's images")
    return {
        "model": teacher.name,
        "evaluations_per_image": teacher.evaluations,
        "images": count,
        "seconds_per_image": seconds_per_image(teacher),
        "metrics": metrics(job.judge, itertools.chain(made, fresh)) if job.judge else {},
    }


def jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    return value if isinstance(value, int | float | str | list | tuple | None) else str(value)
