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
from dmdistill.app.drawn import at_once, blocks, draw
from dmdistill.app.judging import Judging, judge_of
from dmdistill.app.pairs import pairs_of, teacher_id
from dmdistill.app.run import Run
from dmdistill.app.start import ALIKE, start_of, teacher_name
from dmdistill.core.denoisers import Condition, Denoiser
from dmdistill.core.dmd import DMD, Batch
from dmdistill.core.generator import Generator
from dmdistill.core.losses import WEIGHTS, Distance, pseudo_huber
from dmdistill.data.images import save_grid
from dmdistill.data.pairs import Pairs
from dmdistill.metrics.frechet import Moments, frechet_distance, moments_of
from dmdistill.metrics.perceptual import load_lpips
from dmdistill.networks.checkpointing import CHECKPOINTING
from dmdistill.teachers.diffusers import load_autoencoder
from dmdistill.teachers.lora import adapters, add_lora, merge_lora
from dmdistill.teachers.model import Model, Student, Teacher
from dmdistill.training.best import Best
from dmdistill.training.checkpoints import of_tensors
from dmdistill.training.health import Probe
from dmdistill.training.parallel import UNDIVIDED, Parallel
from dmdistill.training.parts import InParts, portion
from dmdistill.training.trainer import Trainer
from dmdistill.training.update import Update

__all__ = ["Job"]

KEPT = (*ALIKE, "licence", "judge")  # of the teacher's config.json
FIGURE = "frechet_"  # before the name of an average, in metrics.jsonl


class Job:
    """One distillation: the three networks, their data, and what is looked at on the way.

    parallel: how a batch is divided, many: how many images are drawn at once, where not as the configuration says.
    """

    def __init__(
        self,
        config: Distill,
        teacher: Teacher,
        run: Run,
        *,
        parallel: Parallel | None = None,
        many: int | None = None,
    ) -> None:
        self.config, self.teacher, self.run = config, teacher, run
        self.parallel = parallel or Parallel(run.processes, config.accumulate, config.strategy)
        self.many = many or at_once(teacher, config.batch)
        self.judge = judge_of(config.reference, teacher, device=run.device, processes=run.processes, say=run.say)
        distance = self.distance()
        given = self.given_pairs()
        self.generator = self.first_generator()
        self.fake = self.trained_copy(config.lora_fake)
        run.begin()
        self.pairs = (given or self.own_pairs()) if config.lambda_reg > 0 else None
        if self.pairs is not None and len(self.pairs) < config.batch_reg:
            self.parallel.check("the number of pairs", len(self.pairs))
        shared = {
            "parallel": self.parallel,
            "betas": config.betas,
            "weight_decay": config.weight_decay,
            "warmup": config.warmup,
            "decay": config.decay,
            "clip": config.clip,
        }
        self.match_step = int(config.match_from * config.steps) if config.lambda_reg > 0 else 0
        self.follow_step = min(self.match_step, int(config.fake_from * config.steps))
        self.regress_end = int(config.regress_until * config.steps)
        fake_updates = self.match_step - self.follow_step + (config.steps - self.match_step) * config.fake_steps
        self.update_fake = Update(self.fake, name="fake score", lr=config.lr_fake, steps=fake_updates, **shared)
        self.update_generator = Update(
            self.generator,
            name="generator",
            lr=config.lr,
            steps=config.steps,
            restart=self.match_step if config.rewarm else 0,
            halflives=config.halflives,
            **shared,
        )
        if not (self.parallel.sharded or config.lora_student or config.lora_fake):
            teacher.ready()
        self.parallel.spread(teacher.denoiser)
        if config.compile:
            for denoiser in (self.generator.denoiser, self.fake, teacher.denoiser):
                denoiser.net.compile(dynamic=False)  # in its place: names of weights stay
        self.dmd = self.algorithm(
            rng=run.rng,
            distance=distance,
            lambda_reg=config.lambda_reg,
            match=config.match,
            match_pairs=config.match_pairs,
            low=config.low,
            high=config.high,
            weight=WEIGHTS[config.weight],
        )
        updates = {"generator": self.update_generator} | ({"fake": self.update_fake} if config.match else {})
        self.trainer = Trainer(
            config.out,
            steps=config.steps,
            updates=updates,
            rng=run.rng,
            log_every=config.log_every,
            save_every=config.save_every,
            resume=config.resume is not None,
            processes=run.processes,
        )
        self.best = Best(self.trainer, prefix=FIGURE)
        rng = torch.Generator(run.device).manual_seed(config.seed + 1)
        z, cond = teacher.noise(min(128, self.many), rng=rng)
        self.probe = Probe(z, cond, torch.randn(z.shape, generator=rng, device=run.device))

    def algorithm(self, **settings: Any) -> DMD:
        """Algorithm 1 of the three networks, as they are called in training."""
        parallel = self.parallel
        generator, fake = self.generator, self.fake
        if parallel == UNDIVIDED:
            return DMD(generator, self.teacher.guided, fake, **settings)
        generator, fake = parallel.called(generator), parallel.called(fake)
        return InParts(generator, self.teacher.guided, fake, parallel=parallel, **settings)

    def first_generator(self) -> Generator:
        """The teacher, or the student of --start."""
        denoiser = self.trained_copy(self.config.lora_student)
        if (start := start_of(self.config, self.teacher)) is not None:
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
        CHECKPOINTING[self.config.checkpointing](copied.net)
        return copied

    @property
    def teacher_name(self) -> str:
        """What the teacher is loaded by, where it was found."""
        return teacher_name(self.config, self.teacher)

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
        """Drawn by the whole teacher, on the device: it goes there for as long, if it is to be sharded."""
        config, run = self.config, self.run
        teacher = self.teacher.to(run.device, run.precision)
        made = {"count": config.pair_count, "seed": config.seed, "batch": self.many}
        pairs = pairs_of(teacher, config.out / "pairs", **made, processes=run.processes)
        teacher.to(run.device, run.precision, home=self.parallel.home(run.device))
        return pairs

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

    def iterate(self, step: int) -> dict[str, Tensor]:
        """One iteration of Algorithm 1, with this step's weight of the regression."""
        self.dmd.careful = self.trainer.careful
        self.dmd.match = self.config.match and step >= self.match_step
        self.dmd.follow = self.config.match and step >= self.follow_step
        left = 1 + (self.config.lambda_end - 1) * step / self.config.steps
        self.dmd.lambda_reg = self.config.lambda_reg * left
        return self.dmd.step(self.batch(step), self.update_generator, self.update_fake)

    def batch(self, step: int) -> Batch:
        """What this process takes of a step's batch."""
        config, device = self.config, self.run.device
        z, cond = self.noise()
        z_ref = y_ref = cond_ref = z_fake = cond_fake = None
        if self.pairs is not None and step < self.regress_end:
            z_ref, y_ref, index = self.some_pairs(self.pairs, step)
            z_ref, y_ref, cond_ref = z_ref.to(device), y_ref.to(device), self.teacher.condition(index)
        if config.fake_steps > 1 and self.dmd.match:
            z_fake, cond_fake = self.noise(batches=config.fake_steps - 1)
        return Batch(z, cond, z_ref, y_ref, cond_ref, z_fake, cond_fake)

    def noise(self, *, batches: int = 1) -> tuple[Tensor, Condition | None]:
        """Noise and conditions of so many batches: the whole is drawn, and of each this process's portion taken."""
        processes, sizes = self.run.processes, batches * [self.config.batch]
        drawn = self.teacher.draw(sum(sizes), rng=self.run.rng)
        z, index = (portion(one, sizes, processes.rank, processes.count) for one in drawn)
        return z, self.teacher.condition(index)

    def some_pairs(self, pairs: Pairs, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """This process's portion of a step's pairs."""
        processes, size = self.run.processes, self.config.batch_reg
        if processes.count == 1:
            return pairs.batch(step, size)
        rows = pairs.rows(step, size)
        return pairs[portion(rows, [len(rows)], processes.rank, processes.count)]

    @property
    def hooks(self) -> list[tuple[int, Callable[[int], dict[str, float]]]]:
        return [(self.config.sample_every, self.look), (self.config.evaluate_every, self.evaluate)]

    @torch.no_grad()
    def look(self, step: int) -> dict[str, float]:
        """A grid of the newest average's images of the probe's noise."""
        grid = self.candidates()[-1][1](self.probe.z, self.probe.cond)[:64]
        images = self.teacher.decode(grid)
        if self.run.processes.first:
            file = self.config.out / "samples" / f"step-{step:06d}.png"
            save_grid(file, images, columns=8)
            if self.trainer.logger is not None:
                self.trainer.logger.picture(step, file)
        return {}

    def evaluate(self, step: int) -> dict[str, float]:
        """Health, and the Frechet distance of each average of the generator, always of the same noise."""
        row = self.probe.measure(self.generator, self.teacher.guided, self.fake) if self.dmd.match else {}
        if self.judge is not None:
            for name, generator in self.candidates():
                row[FIGURE + name] = figure = self.frechet(self.judge, generator)
                self.best.offer(step, name, figure, partial(self.weights, generator))
        return row

    def candidates(self) -> list[tuple[str, nn.Module]]:
        """The generator's averages by name, or the generator itself where none is kept."""
        averages = self.update_generator.averages
        return [(f"ema{a.halflife:g}", a.network) for a in averages] or [("raw", self.generator)]

    @torch.no_grad()
    def frechet(self, judge: Judging, generator: nn.Module) -> float:
        """Of as many images as are measured, of which each process draws some."""
        config, processes = self.config, self.run.processes
        told = {"batch": self.many, "seed": config.seed + 2, "share": processes.share}
        drawn = draw(self.teacher, config.evaluate_images, generate=generator, **told)
        own = moments_of(judge.features, drawn)
        if processes.count > 1:
            self.keep_pace(generator)
            own = sum(processes.exchanged(Moments() + own), Moments())
        return frechet_distance(own.statistics(), judge.reference)

    def keep_pace(self, generator: nn.Module) -> None:
        """Call a sharded network as often as the others do who had a batch more to draw: all gather it together."""
        processes, batches = self.run.processes, blocks(self.config.evaluate_images, self.many)
        if self.parallel.sharded and len(processes.share(batches)) * processes.count < len(batches):
            generator(self.probe.z, self.probe.cond)

    def student(self, again: Callable[[], Teacher]) -> Student:
        """The best average of the run, or of its last step, by Frechet distance where there is a judge.

        again: the teacher anew, for when it was sharded. All processes must ask; the first gets the student.
        """
        name, step, weights = self.chosen()
        if self.run.processes.first:
            if self.parallel.sharded:
                self.teacher = again()
                self.generator = self.first_generator()
            self.update_generator.load_weights(self.generator, weights)
        return self.described(name, step)

    def described(self, name: str, step: int) -> Student:
        """The generator as the student that it became, by this average, at this step."""
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

    def chosen(self) -> tuple[str, int, dict[str, Tensor]]:
        """The average that becomes the student, its step and its weights."""
        names = dict(self.candidates())
        name, step = list(names)[-1], self.trainer.step
        if self.config.keep == "best" and self.best.step:
            return self.best.name, self.best.step, self.best.weights()
        if self.judge is not None:
            judge = self.judge
            name = min(names, key=lambda one: self.frechet(judge, names[one]))
        return name, step, self.weights(names[name])

    def weights(self, generator: nn.Module) -> dict[str, Tensor]:
        """Those of the generator or an average of it, all of them where they are sharded, for the first process."""
        return of_tensors(self.parallel.gathered, self.update_generator.weights(generator))
