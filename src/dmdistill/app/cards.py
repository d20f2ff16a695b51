"""Model cards: what a model is, how it was made, and the code to use it."""

from __future__ import annotations

import json
from typing import Any

from dmdistill.metrics.judge import Judge
from dmdistill.teachers.model import Model, Student, Teacher

__all__ = ["judge_card", "student_card", "teacher_card"]

USE = """```python
import torch
from dmdistill import load_model, save_grid

model = load_model("{folder}")
images = model.images(*model.noise(64, rng=torch.Generator().manual_seed(0)))
save_grid("images.png", images, columns=8)
```"""


def teacher_card(teacher: Teacher, settings: dict[str, Any]) -> str:
    """Markdown: what the teacher is, and every setting of its training."""
    text = f"A diffusion model with EDM preconditioning, sampled by {teacher.solver} in {teacher.steps} steps"
    return card(teacher, f"{text} ({teacher.evaluations} network evaluations per image).", settings)


def student_card(student: Student, settings: dict[str, Any]) -> str:
    """Markdown: what the student is, and every setting of its distillation."""
    text = (
        "A one-step image generator (1 network evaluation per image), distilled by distribution matching "
        f"distillation (Yin et al., CVPR 2024) from the teacher {settings['teacher']!r}"
    )
    return card(student, f"{text}.", settings)


def card(model: Model, summary: str, settings: dict[str, Any]) -> str:
    parameters = sum(p.numel() for p in model.network.parameters())
    channels, height, width = model.shape
    classes = f"Conditioned on {len(model.labels)} classes: {', '.join(model.labels.names)}." if model.labels else ""
    return f"""---
license: {model.licence.lower()}
library_name: dmdistill
pipeline_tag: unconditional-image-generation
---

# {model.name}

{summary} {parameters / 1e6:.2f} M parameters. Images: {height} x {width}, {channels} channel(s). {classes}

{USE.format(folder=model.name)}

## Settings

```json
{json.dumps(settings, indent=2, default=str)}
```
"""


def judge_card(judge: Judge, figures: dict[str, Any], settings: dict[str, Any]) -> str:
    """Markdown: how good the judge is, and what its distances mean."""
    return f"""---
license: mit
library_name: dmdistill
pipeline_tag: image-classification
---

# {judge.name}

A small residual classifier. Its {judge.classifier.num_features} pooled features define the Frechet distance that
`dmdistill evaluate` reports as `frechet_{judge.name}`. It is not FID, and comparable with nothing else.

Accuracy {figures["accuracy"]:.2%} on the {figures["test_images"]} test images. reference.safetensors describes the
{judge.reference.count} training images; the test images' own distance to them is {figures["frechet_test_images"]:.4g},
which is as good as generated images could be expected to be.

## Settings

```json
{json.dumps(settings, indent=2, default=str)}
```
"""
