"""A run of four steps of each method of the family."""

import pytest

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.options import change
from dmdistill.commands.presets import from_method
from helpers.configs import CPU, small_distillation

FEW = {"student_steps": 3}
RUNS = {
    "dmd2": ("dmd2", {}),
    "dmd2-sde": ("dmd2", FEW),
    "dmd2-ode": ("dmd2", {**FEW, "transition": "ode"}),
    "dmd2-times": ("dmd2", {"student_timesteps": (40.0, 1.5)}),
    "dmd2-gan": ("dmd2", {"data": True, "r1": 1.0}),
    "dmd2-gan-lora": ("dmd2", {"data": True, "lora_student": 2, "lora_fake": 2, "ida": 0.1}),
    "dmd2-guided": ("dmd2", {"ida": 0.03, "real_guidance": (1.5, 3.0), "guidance_cap": 1.0}),
    "dmd2-from-data": ("dmd2", {**FEW, "data": True, "student_inputs": "data", "gan_from": 2}),
    "dmd2-on-teacher": ("dmd2", {"data": True, "discriminator": "teacher"}),
    "f-distill": ("f-distill", {"data": True}),
    "f-distill-fake": ("f-distill", {"data": True, "discriminator": "fake", "divergence": "kl", "ratio_ema": 0.5}),
    "sid": ("sid", {}),
    "sida": ("sida", {"data": True, "generator_from": 1, "gan_from": 2, "clip_value_fake": 1e-3}),
    "decoupled": ("decoupled-dmd", {"guidance": 3.0}),
    "decoupled-few": ("decoupled-dmd", {**FEW, "guidance": 3.0}),
}
"""A name -> the method, and its options; `data` stands for a folder of real images."""

SHORT = ("steps", "batch", "log_every", "sample_every", "evaluate_every", "report_images", "save_every", "warmup")


def method_run(name, teacher, images, out, **changes):
    """The configuration of a run of `RUNS`, with other options; it skips a test that needs a package it lacks."""
    method, options = RUNS[name]
    if "lora_fake" in options:
        pytest.importorskip("peft")
    small = small_distillation(steps=4, batch=4, save_every=2, evaluate_every=2, ema_halflives=(2.0,), compute=CPU)
    own = from_method(DistillConfig, method, teacher=str(teacher), out=out, fake_steps=2)
    groups = [small, small.optimizer, small.logging, small.evaluation, small.checkpoint]
    values = {key: getattr(group, key) for group in groups for key in SHORT if hasattr(group, key)}
    options = options | ({"data": str(images)} if options.get("data") else {}) | changes
    own_values = {"ema_halflives": (2.0,), "lr": 1e-3, "lr_fake": 1e-3, "compute": CPU}
    return change(own, **values | own_values | options)
