"""One distillation in the making."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

from dmdistill.commands.distill.batches import batch_of
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.initialization import ALIKE, built_on, start_of, teacher_name
from dmdistill.commands.distill.monitor import Watch
from dmdistill.commands.distill.schedule import Course
from dmdistill.commands.distill.validation_metric import load_validation_metric
from dmdistill.commands.evaluate.generated_images import sampling_batch_size
from dmdistill.commands.pairs.command import make_teacher_pairs
from dmdistill.commands.run_folder import RunFolder
from dmdistill.core.denoisers import Denoiser
from dmdistill.core.dmd import DMD
from dmdistill.core.generators import Generator
from dmdistill.core.losses import WEIGHTS, Distance, pseudo_huber
from dmdistill.core.samples import Batch
from dmdistill.data.pairs import PairDataset, open_pairs
from dmdistill.distributed.data_parallel import NOT_PARALLEL, Parallelism, parallelism
from dmdistill.metrics.lpips import load_lpips
from dmdistill.models.diffusers_pipeline import load_autoencoder
from dmdistill.models.model import Student, Teacher, fingerprint
from dmdistill.networks.activation_checkpointing import CHECKPOINTING
from dmdistill.networks.lora import adapter_weights, add_lora, merge_lora
from dmdistill.training.microbatches import InParts
from dmdistill.training.optimizer import NetworkOptimizer
from dmdistill.training.trainer import Trainer

__all__ = ["Job"]

KEPT = (*ALIKE, "licence", "feature_extractor")  # of the teacher's config.json


class Job:
    """One distillation: the three networks, their data, and how they move.

    parallel: how a batch is divided, many: how many images are drawn at once, where not as the configuration says.
    """

    def __init__(
        self,
        config: DistillConfig,
        teacher: Teacher,
        run: RunFolder,
        *,
        parallel: Parallelism | None = None,
        many: int | None = None,
    ) -> None:
        self.config, self.teacher, self.run, self.course = config, teacher, run, Course(config)
        self.parallel = parallel or parallelism(run.processes, config.accumulate, config.strategy)
        self.many = many or sampling_batch_size(teacher, config.batch)
        feature_extractor = load_validation_metric(
            config.reference, teacher, device=run.device, processes=run.processes, say=run.say
        )
        distance = self.distance()
        given = self.given_pairs()
        self.generator = self.first_generator()
        self.fake = self.trained_copy(config.lora_fake)
        run.begin()
        self.pairs = (given or self.own_pairs()) if config.lambda_reg > 0 else None
        if self.pairs is not None and len(self.pairs) < config.batch_reg:
            self.parallel.check_divisible("the number of pairs", len(self.pairs))
        self.update_generator, self.update_fake = self.updates()
        self.settle()
        self.dmd = self.algorithm(distance)
        moved = {"generator": self.update_generator} | ({"fake": self.update_fake} if config.match else {})
        self.trainer = Trainer(
            config.out,
            steps=config.steps,
            updates=moved,
            rng=run.rng,
            log_every=config.log_every,
            save_every=config.save_every,
            processes=run.processes,
        )
        self.watch = Watch(self, feature_extractor)
        if config.resume is not None:
            self.trainer.restore()

    def updates(self) -> tuple[NetworkOptimizer, NetworkOptimizer]:
        """Of the generator and of the fake score, which is made first: sharded, it is whole no more beside averages."""
        config, course = self.config, self.course
        shared = {
            "parallel": self.parallel,
            "betas": config.betas,
            "weight_decay": config.weight_decay,
            "warmup": config.warmup,
            "decay": config.decay,
            "clip": config.clip,
        }
        fake = NetworkOptimizer(self.fake, name="fake score", lr=config.lr_fake, steps=course.fake_updates, **shared)
        generator = NetworkOptimizer(
            self.generator,
            name="generator",
            lr=config.lr,
            steps=config.steps,
            restart=course.match_step if config.rewarm else 0,
            halflives=config.halflives,
            **shared,
        )
        return generator, fake

    def settle(self) -> None:
        """Networks take the form in which they work: weights of the teacher cast or sharded, passes compiled."""
        config, teacher = self.config, self.teacher
        if not (self.parallel.is_sharded or config.lora_student or config.lora_fake):
            teacher.cast_weights()
        self.parallel.shard(teacher.denoiser)
        if config.compile:
            for denoiser in (self.generator.denoiser, self.fake, teacher.denoiser):
                denoiser.net.compile(dynamic=False)  # in its place: names of weights stay

    def algorithm(self, distance: Distance) -> DMD:
        """Algorithm 1 of the three networks, as they are called in training."""
        config, parallel = self.config, self.parallel
        settings = {
            "rng": self.run.rng,
            "distance": distance,
            "lambda_reg": config.lambda_reg,
            "match": config.match,
            "match_pairs": config.match_pairs,
            "low": config.low,
            "high": config.high,
            "weight": WEIGHTS[config.weight],
        }
        generator, fake = self.generator, self.fake
        if parallel == NOT_PARALLEL:
            return DMD(generator, self.teacher.guided_denoiser, fake, **settings)
        generator, fake = parallel.wrap(generator), parallel.wrap(fake)
        return InParts(generator, self.teacher.guided_denoiser, fake, parallel=parallel, **settings)

    def first_generator(self) -> Generator:
        """The teacher, or the student of --start."""
        denoiser = self.trained_copy(self.config.lora_student)
        if (start := start_of(self.config, self.teacher)) is not None:
            if self.config.lora_student:
                denoiser.load_state_dict(adapter_weights(start.denoiser), strict=False)
            else:
                denoiser.load_state_dict(merge_lora(start.denoiser).state_dict())
        return Generator(denoiser)

    def trained_copy(self, rank: int) -> Denoiser:
        """The teacher, to be trained: all of it, or adapters of this rank to weights that are the teacher's own."""
        denoiser = self.teacher.denoiser
        copied = add_lora(denoiser, rank=rank) if rank else copy.deepcopy(denoiser).requires_grad_(True)
        CHECKPOINTING[self.config.checkpointing](copied.net)
        return copied

    def given_pairs(self) -> PairDataset | None:
        """Those of --pairs. ValueError where they are not of this teacher's kind of image."""
        if self.config.pairs is None:
            return None
        pairs, teacher = open_pairs(self.config.pairs), self.teacher
        made, wanted = pairs.settings, fingerprint(teacher)
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

    def own_pairs(self) -> PairDataset:
        """Drawn by the whole teacher, on the device: it goes there for as long, if it is to be sharded."""
        config, run = self.config, self.run
        teacher = self.teacher.to(run.device, run.precision)
        made = {"count": config.pair_count, "seed": config.seed, "batch": self.many}
        pairs = make_teacher_pairs(teacher, config.out / "pairs", **made, processes=run.processes)
        teacher.to(run.device, run.precision, network_device=self.parallel.build_device(run.device))
        if run.device.type == "cuda":
            torch.cuda.empty_cache()  # for shares, and for what NCCL takes
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
        """One iteration of Algorithm 1, by what the course has for this step."""
        course = self.course
        self.dmd.careful = self.trainer.check_finite
        self.dmd.match, self.dmd.follow = course.matches(step), course.follows(step)
        self.dmd.lambda_reg = course.lambda_reg(step)
        return self.dmd.step(self.batch(step), self.update_generator, self.update_fake)

    def batch(self, step: int) -> Batch:
        """What this process takes of a step's batch."""
        pairs = self.pairs if self.course.regresses(step) else None
        fresh = self.config.fake_steps - 1 if self.dmd.match else 0
        return batch_of(self.config, self.teacher, self.run, step, pairs=pairs, fresh=fresh)

    def student(self, *, again: Callable[[], Teacher]) -> Student:
        """The best average of the run, or of its last step, by Frechet distance where there is a judge.

        again: the teacher anew, for when it was sharded; the student is then where that one is. All processes must ask;
        the first gets the student.
        """
        name, step, weights = self.watch.chosen()
        if self.run.processes.is_main:
            if self.parallel.is_sharded:
                self.teacher = again()
                self.generator = self.first_generator()
            self.update_generator.load_weights(self.generator, weights)
        return self.described(name, step)

    def described(self, name: str, step: int) -> Student:
        """The generator as the student that it became, by this average, at this step."""
        config, teacher = self.config, self.teacher
        settings = {"average": name, "step": step, **asdict(config), "teacher": teacher_name(config, teacher)}
        about = {"kind": "student", "name": f"{teacher.name}-student"}
        kept = {key: teacher.config.get(key) for key in KEPT}
        return Student(
            name=about["name"],
            denoiser=self.generator.denoiser.eval().requires_grad_(False),
            shape=teacher.shape,
            conditions=teacher.conditions,
            autoencoder=teacher.autoencoder,
            text=teacher.text,
            licence=teacher.licence,
            feature_extractor=teacher.feature_extractor,
            config={**about, **kept, **built_on(config, teacher), "distilled": settings},
        )
