"""`dmdistill ui`: a local page of a student beside its teacher, or of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmdistill.commands.options import check
from dmdistill.commands.ui.config import UiConfig
from dmdistill.commands.ui.model_page import add_model
from dmdistill.commands.ui.models import load_pair
from dmdistill.commands.ui.packages import load_package
from dmdistill.commands.ui.run_page import add_run
from dmdistill.commands.ui.server import listen, serve

__all__ = ["build_page", "ui"]


def ui(config: UiConfig) -> None:
    """Serve the page until Ctrl-C.

    ValueError where gradio is missing, where the address cannot be listened at, and for an unknown model.
    """
    check(config)
    with listen(config.host, config.port) as listening:
        serve(build_page(config), listening)


def build_page(config: UiConfig) -> Any:
    """Return the page as gradio.Blocks: of a model, of a run, or of both where the run has a student."""
    gr = load_package("gradio")
    folder = Path(config.model)
    is_run = any((folder / name).is_file() for name in ("config.toml", "metrics.jsonl"))
    is_model = not is_run or any((folder / kind / "config.json").is_file() for kind in ("student", "teacher"))
    pair = load_pair(config) if is_model else None
    with gr.Blocks(title=f"dmdistill: {config.model}", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        if is_run:
            with gr.Tab(f"Run {folder.resolve().name}"):
                add_run(page, folder)
        if pair is not None:
            with gr.Tab(f"Images of {pair.main.name}"):
                add_model(page, pair)
    return page
