"""One distillation in the making."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dmdistill.app.config import Distill
from dmdistill.app.drawn import draw
from dmdistill.app.evaluate import at_once
from dmdistill.app.judging import Judging, judge_of
from dmdistill.app.pairs import pairs_of, teacher_id
from dmdistill.app.run import Run
from dmdistill.core.denoisers import Denoiser
from dmdistill.core.dmd import DMD, Batch
from dmdistill.core.generator import Generator
from dmdistill.core.losses import WEIGHTS, Distance, pseudo_huber
from dmdistill.data.images import save_grid
from dmdistill.data.pairs import Pairs
from dmdistill.metrics.perceptual import load_lpips
from dmdistill.networks.checkpointing import checkpoint_blocks
from dmdistill.teachers.diffusers import load_autoencoder
from dmdistill.teachers.load import lasting_name, load_model
from dmdistill.teachers.lora import adapters, add_lora, merge_lora
from dmdistill.teachers.model import Model, Student, Teacher
from dmdistill.training.best import Best
from dmdistill.training.health import Probe
from dmdistill.training.trainer import Trainer
from dmdistill.training.update import Update

__all__ = ["Job"]

ALIKE = ("network", "path", "denoiser", "shape", "classes")  # in the config.json of a teacher and its student
KEPT = (*ALIKE, "licence", "judge")  # of the teacher's config.json
FIGURE = "frechet_"  # before the name of an average, in metrics.jsonl


class Job:
    """One distillation: the three networks, their data, and what is looked at on the way."""

    def __init__(self, config: Distill, teacher: Teacher, run: Run) -> None:
        self.config, self.teacher, self.run = config, teacher, run
        self.many = at_once(teacher, config.batch)
        self.judge = judge_of(config.reference, teacher, device=run.device, say=run.say)
        distance = self.distance()
        given = self.given_pairs()
        self.generator = self.first_generator()
        run.begin()
        self.pairs = (given or self.own_pairs()) if config.lambda_reg > 0 else None
        self.fake = self.trained_copy(config.lora_fake)
        self.dmd = DMD(
            self.generator,
            teacher.guided,
            self.fake,
            rng=run.rng,
            distance=distance,
            lambda_reg=config.lambda_reg,
            match=config.match,
            match_pairs=config.match_pairs,
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
        self.match_step = int(config.match_from * config.steps) if config.lambda_reg > 0 else 0
        self.follow_step = min(self.match_step, int(config.fake_from * config.steps))
        self.regress_end = int(config.regress_until * config.steps)
        self.update_generator = Update(
            self.generator,
            name="generator",
            lr=config.lr,
            steps=config.steps,
            restart=self.match_step if config.rewarm else 0,
            halflives=config.halflives,
            **shared,
        )
        fake_updates = self.match_step - self.follow_step + (config.steps - self.match_step) * config.fake_steps
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
        self.best = Best(self.trainer, prefix=FIGURE)
        rng = torch.Generator(run.device).manual_seed(config.seed + 1)
        z, cond = teacher.noise(min(128, self.many), rng=rng)
        self.probe = Probe(z, cond, torch.randn(z.shape, generator=rng, device=run.device))

    def first_generator(self) -> Generator:
        """The teacher, or the student of --start. ValueError where that one is of another teacher's kind."""
        denoiser = self.trained_copy(self.config.lora_student)
        if self.config.start is not None:
            foreign = "network" not in self.teacher.config
            start = load_model(self.config.start, teacher=self.teacher if foreign else None)
            if foreign and start.config.get("teacher") != self.teacher_name:
                raise ValueError(f"--start {self.config.start} is not a student of the teacher {self.teacher_name}")
            if odd := [key for key in ALIKE if start.config.get(key) != self.teacher.config.get(key)]:
                raise ValueError(f"--start {self.config.start} is no student of {self.teacher.name}: {odd[0]} differs")
            if self.config.lora_student:
                self.check_adapters(start)
                denoiser.load_state_dict(adapters(start.denoiser), strict=False)
            else:
                denoiser.load_state_dict(merge_lora(start.denoiser).state_dict())
        return Generator(denoiser)

    def trained_copy(self, rank: int) -> Denoiser:
        """The teacher, to be trained: all of it, or adapters of this rank to weights that are the teacher's own."""
        denoiser = self.teacher.denoiser
        copied = add_lora(denoiser, rank=rank) if rank else copy.deepcopy(denoiser).requires_grad_(True)
        if self.config.checkpointing:
            checkpoint_blocks(copied.net)
        return copied

    @property
    def teacher_name(self) -> str:
        """What the teacher is loaded by, where it was found."""
        return self.teacher.config.get("source") or lasting_name(self.config.teacher)

    @property
    def built_on(self) -> dict[str, Any]:
        """What the config.json says of a student that needs its teacher to be loaded: adapters, networks not ours."""
        rank = self.config.lora_student
        teacher = {"teacher": self.teacher_name}
        if rank:
            return {"lora": {"rank": rank, "alpha": rank}, **teacher}
        return {} if "network" in self.teacher.config else teacher

    def check_adapters(self, start: Model) -> None:
        """ValueError where the student of --start has none of this run's form, or to other weights."""
        if odd := [key for key, value in self.built_on.items() if start.config.get(key) != value]:
            raise ValueError(
                f"--start {self.config.start} with --lora-student {self.config.lora_student}: expected a student of "
                f"{odd[0]} {self.built_on[odd[0]]!r}, its {odd[0]} is {start.config.get(odd[0])!r}; without "
                "--lora-student any student of this teacher will do"
            )

    def given_pairs(self) -> Pairs | None:
        """Those of --pairs. ValueError where they are not of this teacher's kind of image."""
        if self.config.pairs is None:
            return None
        pairs, teacher = Pairs(self.config.pairs), self.teacher
        made, wanted = pairs.settings, teacher_id(teacher)
        told = str(teacher.conditions or "none")
        if (pairs.shape, made.conditions) != (teacher.shape, told):
            raise ValueError(
                f"{self.config.pairs} holds images {pairs.shape}, conditions: {made.conditions}; {teacher.name}'s are "
                f"{teacher.shape}, conditions: {told}"
            )
        if (made.teacher, made.guidance) != (wanted, teacher.guidance):
            raise ValueError(
                f"{self.config.pairs} holds pairs of {made.teacher} with guidance {made.guidance}, this run's teacher "
                f"is {wanted} with guidance {teacher.guidance}"
            )
        return pairs

    def own_pairs(self) -> Pairs:
        config = self.config
        folder, batch = config.out / "pairs", self.many
        return pairs_of(self.teacher, folder, count=config.pair_count, seed=config.seed, batch=batch)

    def distance(self) -> Distance:
        if self.config.distance == "huber" or self.config.lpips_weights is None:
            return pseudo_huber
        lpips = load_lpips(self.config.lpips_weights, resize=self.config.lpips_side or None).to(self.run.device)
        decode = self.teacher.decode
        if self.config.decoder is not None:
            decode = load_autoencoder(self.config.decoder).to(self.run.device).decode

        def distance(x: Tensor, y: Tensor) -> Tensor:
            precision = self.run.precision
            with torch.autocast(x.device.type, precision or torch.bfloat16, enabled=precision is not None):
                with torch.no_grad():
                    y = decode(y)
                return lpips(decode(x), y)

        return distance

    def compile(self) -> None:
        """Compile the three networks, each for every size of batch that it meets; averages stay as they are."""
        for denoiser in (self.generator.denoiser, self.fake, self.teacher.denoiser):
            denoiser.net.compile(dynamic=False)

    def iterate(self, step: int) -> dict[str, Tensor]:
        """One iteration of Algorithm 1, with this step's weight of the regression."""
        self.dmd.careful = self.trainer.careful
        self.dmd.match = self.config.match and step >= self.match_step
        self.dmd.follow = self.config.match and step >= self.follow_step
        left = 1 + (self.config.lambda_end - 1) * step / self.config.steps
        self.dmd.lambda_reg = self.config.lambda_reg * left
        return self.dmd.step(self.batch(step), self.update_generator, self.update_fake)

    def batch(self, step: int) -> Batch:
        config, rng, device = self.config, self.run.rng, self.run.device
        z, cond = self.teacher.noise(config.batch, rng=rng)
        z_ref = y_ref = cond_ref = z_fake = cond_fake = None
        if self.pairs is not None and step < self.regress_end:
            z_ref, y_ref, index = self.pairs.batch(step, config.batch_reg)
            z_ref, y_ref, cond_ref = z_ref.to(device), y_ref.to(device), self.teacher.condition(index)
        if config.fake_steps > 1 and self.dmd.match:
            z_fake, cond_fake = self.teacher.noise((config.fake_steps - 1) * config.batch, rng=rng)
        return Batch(z, cond, z_ref, y_ref, cond_ref, z_fake, cond_fake)

    @property
    def hooks(self) -> list[tuple[int, Callable[[int], dict[str, float]]]]:
        return [(self.config.sample_every, self.look), (self.config.evaluate_every, self.evaluate)]

    @torch.no_grad()
    def look(self, step: int) -> dict[str, float]:
        """A grid of the newest average's images of the probe's noise."""
        grid = self.candidates()[-1][1](self.probe.z, self.probe.cond)[:64]
        file = self.config.out / "samples" / f"step-{step:06d}.png"
        save_grid(file, self.teacher.decode(grid), columns=8)
        if self.trainer.logger is not None:
            self.trainer.logger.picture(step, file)
        return {}

    def evaluate(self, step: int) -> dict[str, float]:
        """Health, and the Frechet distance of each average of the generator, always of the same noise."""
        row = self.probe.measure(self.generator, self.teacher.guided, self.fake) if self.dmd.match else {}
        if self.judge is not None:
            for name, generator in self.candidates():
                row[FIGURE + name] = figure = self.frechet(self.judge, generator)
                self.best.offer(step, name, figure, partial(self.update_generator.weights, generator))
        return row

    def candidates(self) -> list[tuple[str, nn.Module]]:
        """The generator's averages by name, or the generator itself where none is kept."""
        averages = self.update_generator.averages
        return [(f"ema{a.halflife:g}", a.network) for a in averages] or [("raw", self.generator)]

    @torch.no_grad()
    def frechet(self, judge: Judging, generator: nn.Module) -> float:
        config, many = self.config, self.many
        drawn = draw(self.teacher, config.evaluate_images, batch=many, seed=config.seed + 2, generate=generator)
        return judge.distance(drawn)

    def student(self) -> Student:
        """The best average of the run, or of its last step, by Frechet distance where there is a judge."""
        name, step = self.chosen()
        teacher = self.teacher
        settings = {"average": name, "step": step, **asdict(self.config), "teacher": self.teacher_name}
        about = {"kind": "student", "name": f"{teacher.name}-student"}
        kept = {key: teacher.config.get(key) for key in KEPT}
        return Student(
            name=about["name"],
            denoiser=self.generator.denoiser.eval().requires_grad_(False),
            shape=teacher.shape,
            conditions=teacher.conditions,
            codec=teacher.codec,
            text=teacher.text,
            licence=teacher.licence,
            judge=teacher.judge,
            config={**about, **kept, **self.built_on, "distilled": settings},
        )

    def chosen(self) -> tuple[str, int]:
        """Fill the generator with the weights that become the student; their average's name and their step."""
        names = dict(self.candidates())
        name, step = list(names)[-1], self.trainer.step
        if self.config.keep == "best" and self.best.step:
            self.update_generator.load_weights(self.generator, self.best.weights())
            return self.best.name, self.best.step
        if self.judge is not None:
            judge = self.judge
            name = min(names, key=lambda one: self.frechet(judge, names[one]))
        self.generator.load_state_dict(names[name].state_dict())
        return name, step
