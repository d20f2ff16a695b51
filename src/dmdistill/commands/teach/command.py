"""`dmdistill teach`: train a teacher by denoising score matching."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import torch

from dmdistill.commands.presets import check_at_least, check_numbers, check_positive, check_shares, flag_of
from dmdistill.commands.run_folder import RunFolder
from dmdistill.commands.teach.config import TeachConfig
from dmdistill.commands.teach.recipes import LESSONS
from dmdistill.core.denoisers import Denoiser
from dmdistill.core.losses import denoising_loss
from dmdistill.data.image_tensors import LabelledImages, save_grid
from dmdistill.data.seeds import derive_seed
from dmdistill.data.training_set import TrainingSet, load_labelled
from dmdistill.models.cards import teacher_card
from dmdistill.models.model import Teacher
from dmdistill.training.loggers import logging_to, require_logger
from dmdistill.training.optimizer import NetworkOptimizer
from dmdistill.training.trainer import Trainer

__all__ = ["teach"]


def teach(config: TeachConfig) -> Teacher | None:
    """Train, write the teacher to out/teacher, return it; None where it was interrupted."""
    check_numbers(config)
    check_at_least(config, 1, "steps", "batch", "log_every", "save_every")
    check_at_least(config, 1, *(f"network.{name}" for name in ("model_channels", "channel_mult", "num_blocks")))
    check_at_least(config, 1, "network.group_channels", "network.patch_size")
    check_at_least(config, 0, "warmup", "weight_decay", "sample_every")
    check_positive(config, "lr", "clip", "halflife", "p_std")
    check_shares(config, "betas", "network.dropout")
    for name in ("label_dropout", "augment"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{flag_of(name)} {getattr(config, name)}, expected a probability, 0 to 1")
    require_logger(config.log_to)
    data = load_labelled(config.data)
    with RunFolder(config.out, config, resume=config.resume is not None) as run:
        return train(config, data, run)


def train(config: TeachConfig, data: LabelledImages, run: RunFolder) -> Teacher | None:
    """Everything after the checks."""
    torch.manual_seed(config.seed)
    lesson = LESSONS[config.kind](config)
    teacher = lesson.new_teacher(data)
    run.begin()
    teacher.to(run.device, run.precision)
    denoiser = teacher.denoiser.train()
    examples = TrainingSet(data, rng=run.rng, augmentation=lesson.augmentation, label_dropout=config.label_dropout)
    update = update_of(denoiser, config)
    taught = replace(teacher, denoiser=cast(Denoiser, update.emas[0].network.eval()))
    if config.compile:
        denoiser.net.compile()
    trainer = Trainer(
        config.out,
        steps=config.steps,
        updates={"teacher": update},
        rng=run.rng,
        log_every=config.log_every,
        save_every=config.save_every,
    )
    if config.resume is not None:
        trainer.restore()

    def iterate(step: int) -> dict[str, torch.Tensor]:
        if config.network.dropout:  # torch's own generator draws it: a resumed run is to draw the same
            torch.manual_seed(derive_seed(config.seed, step))
        x, cond = examples.draw(config.batch)
        t = lesson.sample_t(config.batch, rng=run.rng)
        loss = denoising_loss(denoiser, x, t, torch.randn(x.shape, generator=run.rng, device=run.device), cond)
        update(loss)
        return {"loss": loss.detach()}

    def look(step: int) -> dict[str, float]:
        file = config.out / "samples" / f"step-{step:06d}.png"
        draw_grid(taught, file, seed=config.seed)
        if trainer.logger is not None:
            trainer.logger.log_image(step, file)
        return {}

    hooks = [(config.sample_every, look)] if config.sample_every else []
    with logging_to(trainer, config.log_to, asdict(config)):
        done = trainer.fit(iterate, hooks=hooks, name="teaching")
    if not done:
        run.say_how_to_resume("teach", trainer.step)
        return None
    lesson.save(config.out / "teacher", taught, card=teacher_card(taught, asdict(config)), dtype=run.storage)
    picture = config.out / "samples" / "teacher.png"
    draw_grid(taught, picture, seed=config.seed)
    run.say(f"teacher in {config.out / 'teacher'}, samples in {picture}")
    return taught


def update_of(denoiser: Denoiser, config: TeachConfig) -> NetworkOptimizer:
    """What moves the teacher: AdamW, a rate that falls to zero, one average."""
    return NetworkOptimizer(
        denoiser,
        name="teacher",
        lr=config.lr,
        steps=config.steps,
        betas=config.betas,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        decay=True,
        clip=config.clip,
        halflives=[config.halflife],
    )


def draw_grid(teacher: Teacher, file: Path, *, seed: int) -> None:
    """A picture of forty of its images, of each class in turn."""
    rng = torch.Generator(teacher.device).manual_seed(seed)
    z, _ = teacher.sample_noise(40, rng=rng)
    classes = len(teacher.conditions or [None])
    save_grid(file, teacher.images(z, teacher.condition(torch.arange(40) % classes)), columns=10)
