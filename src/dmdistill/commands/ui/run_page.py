"""The page of a run: health verdict, what is left, curves, and its sample grids as a film. It follows the run."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from dmdistill.commands.ui.packages import add_picture, load_package
from dmdistill.commands.ui.run_view import RunView

__all__ = ["add_run"]

SECONDS = 5.0  # between two looks at the run's files


def add_run(page: Any, folder: Path) -> None:
    """Add the state of a run to a page of gradio, which looks at the run's files again every few seconds."""
    gr = load_package("gradio")
    view = RunView(folder)
    seen = gr.State()
    with gr.Row():
        left = gr.Textbox(label="Progress", elem_id="progress", interactive=False)
        verdict = gr.Textbox(label="Health", elem_id="verdict", interactive=False, lines=2, scale=2)
    with gr.Row(equal_height=False):
        with gr.Column():
            gr.Markdown("The sample grids, always from the same noise, as a film")
            film = add_picture("film", "film")
        with gr.Column():
            title = gr.Markdown("One sample grid", elem_id="grid-title")
            grid = add_picture("sample grid", "grid")
            frame = gr.Slider(1, 2, value=1, step=1, label="Number of the sample grid", elem_id="frame")
    curves = add_picture("curves", "curves")
    with gr.Accordion("All figures", open=False):
        figures = gr.HTML(elem_id="figures")

    def look(seen: Any) -> Any:
        version = view.version()
        if version == seen:
            return gr.skip()
        status, count = view.status(), len(view.grids())
        moving = [gr.skip()] * 4  # so that the film does not begin anew, nor the slider leave the grid that it shows
        if seen is None or seen[0] != version[0]:
            slider = gr.Slider(maximum=max(count, 2), value=max(count, 1), interactive=count > 1)
            moving = [view.film(), *show(count), slider]
        return version, status.progress, status.verdict, *moving, view.curves(), table(status.rows)

    def show(number: int) -> tuple[str, str | None]:
        grids = view.grids()
        if not grids:
            return "No sample grid yet", None
        file = grids[min(max(number, 1), len(grids)) - 1]
        return f"The sample grid of step {int(file.stem.removeprefix('step-'))}", str(file)

    outputs = [seen, left, verdict, film, title, grid, frame, curves, figures]
    options: dict[str, Any] = {"concurrency_id": "run", "show_progress": "hidden", "api_visibility": "private"}
    gr.on([page.load, gr.Timer(SECONDS).tick], look, seen, outputs, **options)
    frame.input(show, frame, [title, grid], **options)


def table(rows: dict[str, str]) -> str:
    """Return names and texts as a table in HTML."""
    lines = (f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in rows.items())
    return f'<table class="rows">{"".join(lines)}</table>'
