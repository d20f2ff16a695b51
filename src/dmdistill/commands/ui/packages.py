"""The packages of the extra `ui`: gradio, and what it brings along."""

from __future__ import annotations

import os
from typing import Any

from dmdistill.io.errors import import_optional

__all__ = ["add_picture", "load_package"]


def load_package(name: str) -> Any:
    """Import gradio, which then reports to nobody, or a package that it brings. ValueError where it is missing."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # which gradio reads when it is imported
    return import_optional(name, "dmdistill ui", extra="ui")


def add_picture(label: str, name: str) -> Any:
    """Add a picture that can be downloaded, as a PNG, and enlarged."""
    gr = load_package("gradio")
    options = {"show_label": False, "elem_classes": "pixels", "buttons": ["download", "fullscreen"]}
    return gr.Image(label=label, elem_id=name, format="png", interactive=False, **options)
