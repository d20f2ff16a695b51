"""Model cards: what a model is, how it was made, and the code to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from dmdistill.core.denoisers import EDMDenoiser
from dmdistill.metrics.classifier_features import ClassifierFeatures
from dmdistill.models.load import display_name
from dmdistill.models.model import Model, Student, Teacher

__all__ = ["classifier_card", "export_card", "quality", "shown", "student_card", "teacher_card"]

LICENCES = (  # of the hub's names
    *("unknown", "mit", "apache-2.0", "openrail", "openrail++", "creativeml-openrail-m", "bigscience-openrail-m"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "bsd-3-clause"),
)

HERE = "path/to/this/folder"  # in a card's code: a name is that of a bundled model, which this is not

USE = """```python
import torch
from dmdistill import load_model, save_grid

model = load_model("{folder}")
images = model.images(*model.sample_inputs(64, rng=torch.Generator().manual_seed(0)))
save_grid("images.png", images, columns=8)
```"""

USE_TEXT = """```
dmdistill sample {folder} --prompt "a red square"
```"""


def teacher_card(teacher: Teacher, settings: dict[str, Any]) -> str:
    """Markdown: what the teacher is, and every setting of its training."""
    kind = "with EDM preconditioning" if isinstance(teacher.denoiser, EDMDenoiser) else "of diffusers"
    text = f"A diffusion model {kind}, sampled by {teacher.solver} in {teacher.steps} steps"
    return card(teacher, f"{text} ({teacher.evaluations} network evaluations per image).", settings)


def student_card(student: Student, settings: dict[str, Any]) -> str:
    """Markdown: what the student is, and every setting of its distillation."""
    text = (
        "A one-step image generator (1 network evaluation per image), distilled by distribution matching "
        f"distillation (Yin et al., CVPR 2024) from the teacher {settings['teacher']!r}"
    )
    if rank := settings["lora_student"]:
        text += f". What is stored are adapters of rank {rank} to the weights of that teacher, which is needed as well"
    return card(student, f"{text}.", settings)


def card(model: Model, summary: str, settings: dict[str, Any]) -> str:
    parameters = sum(p.numel() for p in model.network.parameters())
    channels, height, width = model.shape
    told = f"Conditioned on {model.conditions}." if model.conditions is not None else ""
    return f"""---
license: {model.licence.lower()}
library_name: dmdistill
pipeline_tag: {"unconditional-image-generation" if model.text is None else "text-to-image"}
---

# {model.name}

{summary} {parameters / 1e6:.2f} M parameters. Images: {height} x {width}, {channels} channel(s). {told}

{(USE if model.text is None else USE_TEXT).format(folder=HERE)}

## Settings

```json
{json.dumps({key: shown(value) for key, value in settings.items()}, indent=2, default=str)}
```
"""


def export_card(student: Student, use: str, report: dict[str, Any]) -> str:
    """Markdown of an exported student: what it is, where it comes from, how good it is, the code that draws with it."""
    settings = {key: shown(value) for key, value in (student.config.get("distilled") or {}).items()}
    teacher = settings.get("teacher", "unknown")
    base = f"base_model: {teacher}\n" if re.fullmatch(r"[\w.-]+/[\w.-]+", str(teacher)) else ""
    kind = "adapters to the weights of" if "load_lora_weights" in use else "distilled from"
    return f"""---
{licence_lines(student.licence)}
library_name: diffusers
pipeline_tag: {"text-to-image" if student.text is not None else "unconditional-image-generation"}
{base}---

# {student.name}

A one-step image generator (1 network evaluation per image): {kind} the teacher {teacher!r}, by distribution matching
distillation (Yin et al., CVPR 2024) with dmdistill. Licence of the weights, as of the teacher's: {student.licence}.

```python
{use.format(folder="this folder, or its name on the hub")}
```
{quality([report[who] for who in ("teacher", "student") if who in report])}
## Settings of the distillation

```json
{json.dumps(settings, indent=2, default=str)}
```
"""


def licence_lines(licence: str) -> str:
    """For the head of a card: the hub refuses a licence that it does not know, unless it is called other."""
    name = licence.lower()
    return (
        f"license: {name}" if name in LICENCES else f"license: other\nlicense_name: {re.sub(r'[^a-z0-9.]+', '-', name)}"
    )


def quality(rows: Sequence[dict[str, Any]]) -> str:
    """A table of what was measured of a teacher and its students; nothing where nothing was."""
    if not rows:
        return ""
    names = list(rows[0]["metrics"])
    titles = ["model", "evaluations per image", *names, "ms per image"]
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    for row in rows:
        figures = [f"{row['metrics'][name]:.4g}" for name in names]
        cells = [row["model"], str(row["evaluations_per_image"]), *figures, f"{1e3 * row['seconds_per_image']:.4g}"]
        lines.append("| " + " | ".join(cells) + " |")
    measured = f"Of {rows[-1]['images']} images each.\n\n" if names else ""
    return "\n## Quality\n\n{}{}\n".format(measured, "\n".join(lines))


def shown(value: Any) -> Any:
    """A setting for others to read: paths of this machine by their last part."""
    return display_name(str(value)) if isinstance(value, str | PurePath) else value


def classifier_card(extractor: ClassifierFeatures, figures: dict[str, Any], settings: dict[str, Any]) -> str:
    """Markdown: how good the judge is, and what its distances mean."""
    return f"""---
license: mit
library_name: dmdistill
pipeline_tag: image-classification
---

# {extractor.name}

A small residual classifier. Its {extractor.classifier.num_features} pooled features define the Frechet distance that
`dmdistill evaluate` reports as `frechet_{extractor.name}`. It is not FID, and comparable with nothing else.

Accuracy {figures["accuracy"]:.2%} on the {figures["test_images"]} test images. reference.safetensors describes the
{extractor.reference.count} training images; the test images' own distance to them is
{figures["frechet_test_images"]:.4g}, which is as good as generated images could be expected to be.

## Settings

```json
{json.dumps(settings, indent=2, default=str)}
```
"""
