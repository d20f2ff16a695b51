"""The page of a model: what to generate, and a student's images beside its teacher's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from dmdistill.commands.ui.models import ModelPair, Result
from dmdistill.commands.ui.packages import add_picture, load_package
from dmdistill.data.image_tensors import make_grid
from dmdistill.models.model import Model

__all__ = ["add_model", "caption", "picture"]

WIDTH = 480  # pixels of a grid, which small images are magnified to
EVERY_CLASS = "every class in turn"
PATH = (
    "The solver's path of the first image, from noise on the left to the image on the right. Above, what the solver "
    "has, x_t, scaled to one brightness; below, the clean image that the teacher estimates from it, mu(x_t)."
)


def add_model(page: Any, pair: ModelPair) -> None:
    """Add the inputs and the images of a model to a page of gradio, which generates on load and on every change."""
    gr = load_package("gradio")
    model, most = pair.main, 64 if pair.main.autoencoder is None else 16
    with gr.Row():
        condition = add_condition(model)
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
        count = gr.Slider(1, most, value=min(16, most), step=1, label="Images", elem_id="count")
        last = pair.student.evaluations if pair.student is not None else 1
        steps = gr.Slider(1, max(last, 2), value=last, step=1, label="Student's steps", visible=last > 1)
    with gr.Row():
        run = gr.Button("Generate", variant="primary", elem_id="generate")
        another = gr.Button("Next seed", elem_id="next-seed")
    shown = []
    with gr.Row(equal_height=False):
        for kind in ("student", "teacher") if pair.student is not None else ("teacher",):
            with gr.Column():
                shown.append(gr.Markdown(elem_id=f"{kind}-time"))
                shown.append(add_picture(kind, f"{kind}-images"))
    gr.Markdown(PATH)
    path = add_picture("teacher, solver's path", "path")

    def generate(condition: Any, seed: int | None, count: int, steps: int) -> Iterator[tuple[Any, ...]]:
        try:
            yield from respond(pair, condition, 0 if seed is None else seed, count=count, steps=min(steps, last))
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None

    changes = [condition.submit if model.text is not None else condition.change]
    changes += [one.change for one in (seed, count, steps)]
    inputs, outputs = [condition, seed, count, steps], [*shown, path]
    options: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "minimal"}
    triggers = [run.click, *changes, *([page.load] if model.text is None else [])]
    gr.on(triggers, generate, inputs, outputs, api_name="generate", trigger_mode="always_last", **options)
    another.click(lambda seed: (seed or 0) + 1, seed, seed, queue=False, api_visibility="private")


def add_condition(model: Model) -> Any:
    """Add the choice of a class, or a prompt, or nothing visible for an unconditional model."""
    gr = load_package("gradio")
    if model.text is not None:
        return gr.Textbox(label="Prompt", placeholder="words, then Enter", elem_id="condition")
    names = getattr(model.conditions, "names", ())
    classes = [(name, number) for number, name in enumerate(names)]
    return gr.Dropdown(
        [(EVERY_CLASS, -1), *classes], value=-1, label="Class", visible=bool(classes), elem_id="condition"
    )


def respond(
    pair: ModelPair, condition: str | int | None, seed: int, *, count: int, steps: int
) -> Iterator[tuple[Any, ...]]:
    """Yield what the page shows: first the student's time and images, then the teacher's too, and its path.

    ValueError for inputs that the models cannot have.
    """
    inputs = pair.draw(None if condition == -1 else condition, count=count, seed=seed)
    shown: list[Any] = []
    student = pair.generate_student(inputs, steps=steps) if pair.student is not None else None
    if student is not None:
        shown = [caption("Student", student), picture(student.images)]
        yield *shown, "**Teacher**: generating ...", None, None
    teacher = pair.generate_teacher(inputs)
    faster = f", {teacher.seconds / student.seconds:.0f} times as long" if student is not None else ""
    assert teacher.path is not None
    path = make_picture(teacher.path, columns=len(teacher.path) // 2, width=2 * WIDTH)
    yield *shown, caption("Teacher", teacher) + faster, picture(teacher.images), path


def caption(title: str, result: Result) -> str:
    """Return the time and the evaluations of a result, in Markdown."""
    count = len(result.images)
    each = f"{result.evaluations} evaluation{'s' if result.evaluations > 1 else ''} per image"
    images = f"{count} image{'s' if count > 1 else ''}"
    return f"**{title}**: {images} in {1e3 * result.seconds:.0f} ms, {each}"


def picture(images: Tensor) -> Any:
    """Join images to a grid that is about square."""
    return make_picture(images, columns=math.ceil(math.sqrt(len(images))), width=WIDTH)


def make_picture(images: Tensor, *, columns: int, width: int) -> Any:
    """Join images to a grid of about a width in pixels, or wider for large ones."""
    return make_grid(images, columns=columns, zoom=max(1, round(width / (columns * (images.shape[3] + 1)))))
