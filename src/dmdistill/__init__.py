"""dmdistill: a pretrained diffusion model becomes a one-step generator by distribution matching distillation.

The public names load on first use, so that `import dmdistill` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmdistill.commands.distill.command import distill as distill
    from dmdistill.commands.distill.config import DistillConfig as DistillConfig
    from dmdistill.commands.evaluate.command import evaluate as evaluate
    from dmdistill.commands.evaluate.config import EvaluateConfig as EvaluateConfig
    from dmdistill.commands.pairs.command import pairs as pairs
    from dmdistill.commands.pairs.config import PairsConfig as PairsConfig
    from dmdistill.commands.presets import from_preset as from_preset
    from dmdistill.commands.teach.command import teach as teach
    from dmdistill.commands.teach.config import TeachConfig as TeachConfig
    from dmdistill.core.dmd import DMD as DMD
    from dmdistill.data.image_tensors import save_grid as save_grid
    from dmdistill.models.load import load_model as load_model
    from dmdistill.models.load import load_teacher as load_teacher

__version__ = "0.1.0"

MODULES = {
    "DMD": "core.dmd",
    "DistillConfig": "commands.distill.config",
    "EvaluateConfig": "commands.evaluate.config",
    "PairsConfig": "commands.pairs.config",
    "TeachConfig": "commands.teach.config",
    "distill": "commands.distill.command",
    "evaluate": "commands.evaluate.command",
    "from_preset": "commands.presets",
    "load_model": "models.load",
    "load_teacher": "models.load",
    "pairs": "commands.pairs.command",
    "save_grid": "data.image_tensors",
    "teach": "commands.teach.command",
}

__all__ = [
    "DMD",
    "DistillConfig",
    "EvaluateConfig",
    "PairsConfig",
    "TeachConfig",
    "distill",
    "evaluate",
    "from_preset",
    "load_model",
    "load_teacher",
    "pairs",
    "save_grid",
    "teach",
]


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module 'dmdistill' has no attribute {name!r}")
    module = importlib.import_module(f"dmdistill.{MODULES[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return [*globals(), *MODULES]
