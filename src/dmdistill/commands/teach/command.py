"""`dmdistill teach`: train a teacher by denoising score matching."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from dmdistill.commands.options import check, option_values
from dmdistill.commands.run_folder import DTYPES, OptionsCheck, RunFolder, open_run
from dmdistill.commands.teach.config import TeachConfig
from dmdistill.commands.teach.recipes import Batches, DDPMRecipe, EDMRecipe, Recipe
from dmdistill.commands.teach.text_to_image import StableDiffusionRecipe
from dmdistill.core.denoisers import Denoiser
from dmdistill.core.losses import denoising_loss
from dmdistill.data.image_tensors import LabelledImages, save_grid
from dmdistill.data.seeds import derive_seed
from dmdistill.data.training_set import load_labelled_images
from dmdistill.models.cards import teacher_card
from dmdistill.models.model import Teacher
from dmdistill.training.loggers import logging_to, require_logger
from dmdistill.training.optimizer import NetworkOptimizer
from dmdistill.training.trainer import Trainer

__all__ = ["teach"]

RECIPES: dict[str, type[Recipe]] = {"edm": EDMRecipe, "ddpm": DDPMRecipe, "stable-diffusion": StableDiffusionRecipe}


def teach(config: TeachConfig) -> Teacher:
    """Train a teacher, write it to out/teacher, return it. TrainingStopped where a signal ended training early."""
    check(config)
    require_logger(config.output.log_to)
    of_text = config.kind == "stable-diffusion"
    data = load_labelled_images(config.data, side=config.augmentation.side, captions=of_text)
    with open_run(config) as run:
        run.print(describe_data(config.data, data))
        torch.manual_seed(config.seed)
        recipe = RECIPES[config.kind](config)
        teacher = recipe.new_teacher(data)
        run.lock()
        return train(config, recipe, teacher.to(run.device, run.precision), data, run)


def describe_data(source: Path, data: LabelledImages) -> str:
    """Say what was found: how many images, of which shape and of how many classes."""
    classes = f"{len(data.names)} classes" if data.names else "no classes: the teacher is unconditional"
    classes = f"{len(set(data.captions))} different captions" if data.captions else classes
    return f"--data {source}: {len(data)} images of {' x '.join(map(str, data.images.shape[1:]))}, {classes}"


def train(config: TeachConfig, recipe: Recipe, teacher: Teacher, data: LabelledImages, run: RunFolder) -> Teacher:
    """Train a new teacher and write its EMA."""
    images = recipe.training_set(teacher, data, run)
    denoiser = teacher.denoiser.train()
    optimizer = build_optimizer(denoiser, config)
    averaged = replace(teacher, denoiser=cast(Denoiser, optimizer.emas[0].network.eval()))
    if config.optimizer.compile:
        denoiser.net.compile()
    output = config.output
    trainer = Trainer(
        config.out,
        steps=config.steps,
        updates={"teacher": optimizer},
        rng=run.rng,
        log_every=output.log_every,
        save_every=output.save_every,
    )
    trainer.stateful["options"] = OptionsCheck(run.config, run.print)
    run.restore(trainer)
    iteration = Iteration(config, recipe, denoiser, optimizer, images, run.rng)
    hooks = [(output.sample_every, SampleHook(averaged, trainer, config.seed))] if output.sample_every else []
    with logging_to(trainer, output.log_to, option_values(config)):
        done = trainer.fit(iteration, hooks=hooks, name="training the teacher")
    if not done:
        run.stop("teach", trainer)
    card = teacher_card(averaged, option_values(config))
    taught = recipe.save(config.out / "teacher", averaged, card=card, dtype=DTYPES[output.save_dtype])
    file = config.out / "samples" / "teacher.png"
    save_samples(averaged, file, seed=config.seed)
    run.print(f"teacher in {config.out / 'teacher'}, samples in {file}")
    return taught


@dataclass(frozen=True)
class Iteration:
    """One step of denoising score matching."""

    config: TeachConfig
    recipe: Recipe
    denoiser: Denoiser
    optimizer: NetworkOptimizer
    images: Batches
    rng: torch.Generator

    def __call__(self, step: int) -> dict[str, Tensor]:
        """Update the network on a batch. Returns the loss."""
        if self.config.network.dropout:  # drawn by torch's own generator: a resumed run must draw the same
            torch.manual_seed(derive_seed(self.config.seed, step))
        x, cond = self.images.draw(self.config.batch)
        t = self.recipe.sample_t(self.config.batch, rng=self.rng)
        eps = torch.randn(x.shape, generator=self.rng, device=self.rng.device)
        loss = denoising_loss(self.denoiser, x, t, eps, cond)
        self.optimizer(loss)
        return {"loss": loss.detach()}


@dataclass(frozen=True)
class SampleHook:
    """Saves a sample grid of the EMA, for the trainer to call."""

    teacher: Teacher
    trainer: Trainer
    seed: int

    def __call__(self, step: int) -> dict[str, float]:
        """Save samples/step-N.png."""
        file = self.trainer.folder / "samples" / f"step-{step:06d}.png"
        save_samples(self.teacher, file, seed=self.seed)
        if self.trainer.logger is not None:
            self.trainer.logger.log_image(step, file)
        return {}


def build_optimizer(denoiser: Denoiser, config: TeachConfig) -> NetworkOptimizer:
    """Build AdamW with a cosine learning-rate schedule and one EMA."""
    options = config.optimizer
    return NetworkOptimizer(
        denoiser,
        name="teacher",
        lr=options.lr,
        steps=config.steps,
        betas=options.betas,
        weight_decay=options.weight_decay,
        warmup=options.warmup,
        decay=True,
        clip=options.grad_clip,
        halflives=[options.ema_halflife],
    )


def save_samples(teacher: Teacher, file: Path, *, seed: int) -> None:
    """Save a grid of forty images, of each class in turn, or of captions at equal distances."""
    rng = torch.Generator(teacher.device).manual_seed(seed)
    z, _ = teacher.sample_noise(40, rng=rng)
    conditions = len(teacher.conditions or [None])
    index = torch.arange(40) * max(conditions // 40, 1) % conditions
    save_grid(file, teacher.images(z, teacher.condition(index)), columns=10)
