"""Model cards: what a model is, how it was trained, and the code to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from dmdistill.core.denoisers import EDMDenoiser
from dmdistill.core.schedules import EDM, VP, Flow
from dmdistill.metrics.classifier_features import ClassifierFeatures
from dmdistill.models.load import display_name
from dmdistill.models.model import Model, Student, Teacher

__all__ = [
    "class_names",
    "classifier_card",
    "describe_distillation",
    "export_card",
    "quality_table",
    "student_card",
    "teacher_card",
]

LICENCES = (  # as the hub names them
    *("unknown", "mit", "apache-2.0", "openrail", "openrail++", "creativeml-openrail-m", "bigscience-openrail-m"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "bsd-3-clause"),
)

UNPUBLISHED = ("resume", "device", "threads", "log_every", "log_to", "sample_every", "save_every", "keep")
"""Options that change no weight, and are left out of the settings of a card."""

METHODS = {
    "dmd": "distribution matching distillation (DMD; Yin et al., CVPR 2024)",
    "dmd2": "DMD2 (Yin et al., NeurIPS 2024)",
    "f-distill": "f-distill (Xu et al., 2025)",
    "sid": "score identity distillation (SiD; Zhou et al., ICML 2024)",
    "sida": "adversarial score identity distillation (SiDA; Zhou et al., ICLR 2025)",
    "decoupled-dmd": "decoupled DMD (Liu et al., 2025)",
}
"""The methods by the names of --method, with their papers."""

TIMES = {EDM: "noise level{} sigma =", VP: "timestep{}", Flow: "share{} of noise"}
"""What a time of a noise schedule is, with a place for the s of several."""

TRANSITIONS = {"sde": "fresh noise", "ode": "the predicted noise"}

PYTHON_USE = """```python
from dmdistill import load_model, save_grid

model = load_model("path/to/this/folder")
images = model(count=64, seed=0)
save_grid("images.png", images, columns=8)
```"""

MOST_CLASSES = 20  # that a card lists

GIVEN_TIMES = re.compile(r"\b(timesteps|sigmas)=")  # in the call of a pipeline

TEXT_USE = """```python
from dmdistill import load_model, save_grid

model = load_model("path/to/this/folder")
save_grid("image.png", model("a red square", seed=0), columns=1)
```

The same on the command line: `dmdistill sample path/to/this/folder --prompt "a red square"`."""


def teacher_card(teacher: Teacher, settings: dict[str, Any]) -> str:
    """Return the card of a teacher, in Markdown.

    Args:
        teacher: that it describes.
        settings: of its training, all of which it lists.
    """
    kind = "with EDM preconditioning" if isinstance(teacher.denoiser, EDMDenoiser) else "of diffusers"
    text = f"A diffusion model {kind}, sampled by {teacher.solver} in {teacher.steps} steps"
    guidance = f" at guidance scale {teacher.guidance:g}" if teacher.guidance != 1 else ""
    return model_card(teacher, f"{text}{guidance} ({teacher.evaluations} network evaluations per image).", settings)


def student_card(student: Student, settings: dict[str, Any]) -> str:
    """Return the card of a student, in Markdown.

    Args:
        student: that it describes.
        settings: of its distillation, all of which it lists.
    """
    text = f"{describe_steps(student)}, distilled {describe_distillation(settings)}"
    if rank := settings["lora_student"]:
        text += f". This folder holds LoRA weights of rank {rank} for that teacher, which is needed as well"
    elif "teacher" in student.config:
        text += ". This folder holds the network only: that teacher is needed as well"
    return model_card(student, f"{text}.", settings)


def describe_distillation(settings: dict[str, Any]) -> str:
    """Say from which teacher, by which method and in which run a student was distilled, by the settings of the run.

    Settings without a method are of DMD, which was the only one at first.
    """
    settings = public_settings(settings)
    method = settings.get("method", "dmd")
    named = METHODS.get(method, f"the method {method!r} of its author's own")
    if method == "dmd" and not settings.get("match", True):
        named = "regression on the teacher's noise-image pairs"
    run = f", in the run {str(settings['out'])!r}" if settings.get("out") else ""
    return f"from the teacher {settings.get('teacher', 'unknown')!r} by {named}{run}"


def describe_steps(student: Student) -> str:
    """Say what a student is: a generator of one or of several steps, and at which times where not the last only."""
    count, several = student.evaluations, "s" if student.evaluations > 1 else ""
    text = f"An image generator of {count} steps" if several else "A one-step image generator"
    at = ""
    if student.timesteps not in ((), (student.denoiser.schedule.t_max,)):
        schedule, times = student.denoiser.schedule, ", ".join(f"{time:g}" for time in student.timesteps)
        kind = next((words for kind, words in TIMES.items() if isinstance(schedule, kind)), "time{}")
        between = f", with {TRANSITIONS[student.transition]} between them" if several else ""
        at = f"; its network is evaluated at the {kind.format(several)} {times}{between}"
    return f"{text} ({count} network evaluation{several} per image{at})"


def model_card(model: Model, summary: str, settings: dict[str, Any]) -> str:
    """Return the card of a teacher or a student."""
    channels, height, width = model.shape
    images = f"{'Images' if model.autoencoder is None else 'Latents'}: {height} x {width}"
    conditions = "prompts" if model.text is not None else model.conditions
    return f"""---
license: {model.licence.lower()}
library_name: dmdistill
{task_lines(model)}
---

# {model.name}

{summary} {model.num_parameters / 1e6:.2f} M parameters. {images}, \
{channels} channel{"s" if channels > 1 else ""}.{f" Conditioned on {conditions}." if conditions else ""}

{PYTHON_USE if model.text is None else TEXT_USE}

## Settings

{settings_block(settings)}"""


def task_lines(model: Model) -> str:
    """Return the lines of a card's header on what a model does. The hub has no task of images by class, but any tag."""
    if model.text is not None:
        return "pipeline_tag: text-to-image"
    if model.conditions is not None:
        return "tags:\n- class-conditional-image-generation"
    return "pipeline_tag: unconditional-image-generation"


def settings_block(settings: dict[str, Any]) -> str:
    """Return settings as a folded block of TOML, without those that have no value or change no weight."""
    values = {key: value for key, value in public_settings(settings).items() if key not in UNPUBLISHED}
    lines = [
        f"{key} = {json.dumps(value, default=str)}" for key, value in values.items() if value not in (None, "", (), [])
    ]
    return "\n".join(
        [f"<details><summary>{len(lines)} settings</summary>", "", "```toml", *lines, "```", "", "</details>", ""]
    )


def export_card(student: Student, use: str, report: dict[str, Any]) -> str:
    """Return the card of an exported student, in Markdown.

    Args:
        student: that was exported.
        use: lines of Python that sample images with it, with a place for {folder}.
        report: of its distillation, of which the card shows the metrics; may be empty.
    """
    settings = public_settings(student.config.get("distilled") or {})
    teacher = settings.get("teacher", "unknown")
    base = f"base_model: {teacher}\n" if re.fullmatch(r"[\w.-]+/[\w.-]+", str(teacher)) else ""
    kind = "LoRA weights, distilled" if "load_lora_weights" in use else "distilled"
    given = "\nThe scheduler does not hold these times, so every call gives them.\n" if GIVEN_TIMES.search(use) else ""
    return f"""---
{licence_lines(student.licence)}
library_name: diffusers
{task_lines(student)}
{base}---

# {student.name}

{describe_steps(student)}: {kind} {describe_distillation(settings)}
with dmdistill. Licence of the weights, as of the teacher's: {student.licence}.

```python
{use.replace("{folder}", "this folder, or its name on the hub")}
```
{given}{class_lines(student)}{quality_table([report[who] for who in ("teacher", "student") if who in report])}
## Settings of the distillation

{settings_block(settings)}"""


def class_names(model: Model) -> list[str]:
    """Return the names of a model's classes by their numbers; [] without classes, and for classes without names."""
    names: list[str] = list(getattr(model.conditions, "names", ()))
    return names if names != [f"class {number}" for number in range(len(names))] else []


def class_lines(model: Model) -> str:
    """Return the numbers and names of a model's classes, of many only some, as a paragraph; "" without classes."""
    if model.text is not None or model.conditions is None:
        return ""
    count, names = len(model.conditions), class_names(model)
    if not names:
        return f"\nClasses: the numbers from 0 to {count - 1}, which have no names.\n"
    listed = [f"{number} {name}" for number, name in enumerate(names)]
    if count > MOST_CLASSES:
        listed[MOST_CLASSES - 1 : -1] = ["..."]
    return f"\nClasses: {', '.join(listed)}.\n"


def licence_lines(licence: str) -> str:
    """Return the licence's lines of a card's header: the hub takes the licences that it knows, and \"other\"."""
    name = licence.lower()
    return (
        f"license: {name}" if name in LICENCES else f"license: other\nlicense_name: {re.sub(r'[^a-z0-9.]+', '-', name)}"
    )


def quality_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table of a teacher's and its students' metrics; an empty text for no rows."""
    if not rows:
        return ""
    names = list(rows[0]["metrics"])
    titles = ["model", "evaluations per image", *names, "ms per image"]
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    for row in rows:
        metrics = [f"{row['metrics'][name]:.4g}" for name in names]
        cells = [row["model"], str(row["evaluations_per_image"]), *metrics, f"{1e3 * row['seconds_per_image']:.4g}"]
        lines.append("| " + " | ".join(cells) + " |")
    measured = f"Of {rows[-1]['images']} images each.\n\n" if names else ""
    return "\n## Quality\n\n{}{}\n".format(measured, "\n".join(lines))


def public_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings to publish, with absolute paths reduced to their last part."""
    paths = {key: display_name(str(value)) for key, value in settings.items() if isinstance(value, str | PurePath)}
    return settings | paths


def classifier_card(extractor: ClassifierFeatures, metrics: dict[str, Any], settings: dict[str, Any]) -> str:
    """Return the card of a classifier that serves as feature extractor, in Markdown.

    Args:
        extractor: that it describes.
        metrics: its accuracy, the number of test images, and their Frechet distance to the training images.
        settings: of its training, all of which it lists.
    """
    return f"""---
license: mit
library_name: dmdistill
pipeline_tag: image-classification
---

# {extractor.name}

A small residual classifier. Its {extractor.classifier.num_features} pooled features define the Frechet distance that
`dmdistill evaluate` reports as `frechet_{extractor.name}`. It is not FID, and comparable with nothing else.

Accuracy {metrics["accuracy"]:.2%} on the {metrics["test_images"]} test images. reference.safetensors describes the
{extractor.reference.count} training images; the test images' own distance to them is
{metrics["frechet_test_images"]:.4g}, which is as good as generated images could be expected to be.

## Settings

{settings_block(settings)}"""
