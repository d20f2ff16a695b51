"""dmdistill: a pretrained diffusion model becomes a one-step generator by distribution matching distillation.

The public names load on first use, so that `import dmdistill` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmdistill.app.config import Distill as Distill
    from dmdistill.app.config import Evaluate as Evaluate
    from dmdistill.app.config import MakePairs as MakePairs
    from dmdistill.app.config import Teach as Teach
    from dmdistill.app.distill import distill as distill
    from dmdistill.app.evaluate import evaluate as evaluate
    from dmdistill.app.pairs import pairs as pairs
    from dmdistill.app.settings import from_preset as from_preset
    from dmdistill.app.teach import teach as teach
    from dmdistill.core.dmd import DMD as DMD
    from dmdistill.data.images import save_grid as save_grid
    from dmdistill.teachers.load import load_model as load_model
    from dmdistill.teachers.load import load_teacher as load_teacher

__version__ = "0.1.0"

MODULES = {
    "DMD": "core.dmd",
    "Distill": "app.config",
    "Evaluate": "app.config",
    "MakePairs": "app.config",
    "Teach": "app.config",
    "distill": "app.distill",
    "evaluate": "app.evaluate",
    "from_preset": "app.settings",
    "load_model": "teachers.load",
    "load_teacher": "teachers.load",
    "pairs": "app.pairs",
    "save_grid": "data.images",
    "teach": "app.teach",
}

__all__ = [
    "DMD",
    "Distill",
    "Evaluate",
    "MakePairs",
    "Teach",
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
