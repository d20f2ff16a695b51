"""`dmdistill teach`: train a teacher by denoising score matching."""

from __future__ import annotations

from dataclasses import asdict

import torch

from dmdistill.app.cards import teacher_card
from dmdistill.app.config import Teach
from dmdistill.app.lessons import LESSONS
from dmdistill.app.run import Run
from dmdistill.app.settings import check_at_least, check_numbers, check_positive, check_shares
from dmdistill.core.losses import denoising_loss
from dmdistill.data.conditions import LabelSpace
from dmdistill.data.images import ImageSet, load_fashion_mnist, save_grid, to_floats
from dmdistill.teachers.model import Teacher
from dmdistill.training.loggers import logged, need_logger
from dmdistill.training.trainer import Trainer
from dmdistill.training.update import Update

__all__ = ["teach"]


def teach(config: Teach) -> Teacher | None:
    """Train, write the teacher to out/teacher, return it; None where it was interrupted."""
    check_numbers(config)
    check_at_least(config, 1, "steps", "batch", "log_every", "save_every")
    check_at_least(config, 1, *(f"network.{name}" for name in ("model_channels", "channel_mult", "num_blocks")))
    check_at_least(config, 1, "network.group_channels", "network.patch_size")
    check_at_least(config, 0, "warmup", "weight_decay")
    check_positive(config, "lr", "clip", "halflife", "p_std")
    check_shares(config, "betas")
    if not 0 <= config.label_dropout <= 1:
        raise ValueError(f"--label-dropout {config.label_dropout}, expected 0 to 1")
    need_logger(config.log_to)
    data = load_fashion_mnist(config.data)
    with Run(config.out, config, resume=config.resume is not None) as run:
        return train(config, data, run)


def train(config: Teach, data: ImageSet, run: Run) -> Teacher | None:
    """Everything after the checks."""
    torch.manual_seed(config.seed)
    lesson = LESSONS[config.kind](config)
    teacher = lesson.new_teacher(data)
    run.begin()
    teacher.to(run.device, run.precision)
    denoiser = teacher.denoiser.train()
    images, labels = data.images.to(run.device), data.labels.to(run.device)
    update = Update(
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
    trainer = Trainer(
        config.out,
        steps=config.steps,
        updates={"teacher": update},
        rng=run.rng,
        log_every=config.log_every,
        save_every=config.save_every,
        resume=config.resume is not None,
    )

    def iterate(step: int) -> dict[str, torch.Tensor]:
        rows = torch.randint(len(images), (config.batch,), generator=run.rng, device=run.device)
        x = to_floats(images[rows])
        cond = LabelSpace(data.names).select(labels[rows]).dropped(config.label_dropout, rng=run.rng)
        t = lesson.sample_t(config.batch, rng=run.rng)
        loss = denoising_loss(denoiser, x, t, torch.randn(x.shape, generator=run.rng, device=run.device), cond)
        update(loss)
        return {"loss": loss.detach()}

    with logged(trainer, config.log_to, asdict(config)):
        done = trainer.fit(iterate, name="teaching")
    if not done:
        run.say_how_to_resume("teach", trainer.step)
        return None
    teacher.denoiser.load_state_dict(update.averages[0].network.state_dict())
    denoiser.eval().requires_grad_(False)
    lesson.save(config.out / "teacher", teacher, card=teacher_card(teacher, asdict(config)), dtype=run.storage)
    z, cond = teacher.noise(40, rng=run.rng)
    save_grid(config.out / "samples" / "teacher.png", teacher.images(z, cond), columns=10)
    run.say(f"teacher in {config.out / 'teacher'}, samples in {config.out / 'samples' / 'teacher.png'}")
    return teacher
