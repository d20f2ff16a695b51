"""`dmdistill reproduce`: the paper's figures and tables, at a size that two cores can do."""

from __future__ import annotations

import importlib
import tempfile
from typing import Any

from dmdistill.app.config import Reproduce
from dmdistill.app.settings import check_at_least

__all__ = ["EXPERIMENTS", "reproduce"]

EXPERIMENTS = {"fig3": "figure3", "fig4": "figure4", "ablation": "ablation", "weighting": "ablation"}
"""What can be reproduced -> the module below dmdistill.app with the function of that name: configuration -> table."""


def reproduce(config: Reproduce) -> dict[str, Any]:
    """Run one experiment, which writes its picture and table below config.out, and return its table.

    ValueError where a number cannot be, OSError where nothing can be written, both before anything is computed.
    """
    check_at_least(config, 1, "seeds")
    if config.steps is not None:
        check_at_least(config, 1, "steps")
    config.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=config.out):  # minutes of work should not end at a folder that takes no file
        pass
    module = importlib.import_module(f"dmdistill.app.{EXPERIMENTS[config.what]}")
    return getattr(module, config.what)(config)
