"""dmdistill turns a pretrained diffusion model into a one-step generator by distribution matching distillation.

The public names load on first use, so that `import dmdistill` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmdistill.commands.bench.command import bench as bench
    from dmdistill.commands.bench.config import BenchConfig as BenchConfig
    from dmdistill.commands.distill.command import distill as distill
    from dmdistill.commands.distill.config import DistillConfig as DistillConfig
    from dmdistill.commands.evaluate.command import evaluate as evaluate
    from dmdistill.commands.evaluate.config import EvaluateConfig as EvaluateConfig
    from dmdistill.commands.export.command import export as export
    from dmdistill.commands.export.config import ExportConfig as ExportConfig
    from dmdistill.commands.options import change as change
    from dmdistill.commands.pairs.command import pairs as pairs
    from dmdistill.commands.pairs.config import PairsConfig as PairsConfig
    from dmdistill.commands.plan.command import plan as plan
    from dmdistill.commands.plan.config import PlanConfig as PlanConfig
    from dmdistill.commands.presets import from_preset as from_preset
    from dmdistill.commands.presets import preset_names as preset_names
    from dmdistill.commands.prompts import with_prompt_texts as with_prompt_texts
    from dmdistill.commands.sample.command import sample as sample
    from dmdistill.commands.sample.config import SampleConfig as SampleConfig
    from dmdistill.commands.teach.command import teach as teach
    from dmdistill.commands.teach.config import TeachConfig as TeachConfig
    from dmdistill.core.critics import DiscriminatorLoss as DiscriminatorLoss
    from dmdistill.core.critics import FakeScore as FakeScore
    from dmdistill.core.denoisers import Condition as Condition
    from dmdistill.core.denoisers import Denoiser as Denoiser
    from dmdistill.core.denoisers import EDMDenoiser as EDMDenoiser
    from dmdistill.core.denoisers import EpsDenoiser as EpsDenoiser
    from dmdistill.core.denoisers import FlowDenoiser as FlowDenoiser
    from dmdistill.core.denoisers import GuidedDenoiser as GuidedDenoiser
    from dmdistill.core.denoisers import VDenoiser as VDenoiser
    from dmdistill.core.denoisers import X0Denoiser as X0Denoiser
    from dmdistill.core.divergences import DIVERGENCES as DIVERGENCES
    from dmdistill.core.divergences import DensityRatioWeight as DensityRatioWeight
    from dmdistill.core.generators import Generator as Generator
    from dmdistill.core.generators import MultiStep as MultiStep
    from dmdistill.core.generators import OneStep as OneStep
    from dmdistill.core.losses import Estimates as Estimates
    from dmdistill.core.methods import decoupled_dmd as decoupled_dmd
    from dmdistill.core.methods import dmd as dmd
    from dmdistill.core.methods import dmd2 as dmd2
    from dmdistill.core.methods import regression as regression
    from dmdistill.core.methods import sid as sid
    from dmdistill.core.noise import NoiseSource as NoiseSource
    from dmdistill.core.noise import RandomNoise as RandomNoise
    from dmdistill.core.objective import Objective as Objective
    from dmdistill.core.samples import Batch as Batch
    from dmdistill.core.samples import Samples as Samples
    from dmdistill.core.schedules import EDM as EDM
    from dmdistill.core.schedules import VP as VP
    from dmdistill.core.schedules import Flow as Flow
    from dmdistill.core.schedules import NoiseSchedule as NoiseSchedule
    from dmdistill.core.solvers import ddim as ddim
    from dmdistill.core.solvers import dpmpp as dpmpp
    from dmdistill.core.solvers import heun as heun
    from dmdistill.core.solvers import pndm as pndm
    from dmdistill.core.terms import Adversarial as Adversarial
    from dmdistill.core.terms import DistributionMatching as DistributionMatching
    from dmdistill.core.terms import GuidanceAugmentation as GuidanceAugmentation
    from dmdistill.core.terms import Regression as Regression
    from dmdistill.core.terms import ScoreIdentity as ScoreIdentity
    from dmdistill.core.terms import Term as Term
    from dmdistill.core.times import LogNormalTimes as LogNormalTimes
    from dmdistill.core.times import UniformTimes as UniformTimes
    from dmdistill.data.conditions import LabelSpace as LabelSpace
    from dmdistill.data.image_tensors import save_grid as save_grid
    from dmdistill.models.load import load_model as load_model
    from dmdistill.models.load import load_teacher as load_teacher
    from dmdistill.models.model import Student as Student
    from dmdistill.models.model import Teacher as Teacher
    from dmdistill.training.optimizer import NetworkOptimizer as NetworkOptimizer
    from dmdistill.training.trainer import Trainer as Trainer

__version__ = "0.1.0"

MODULES = {
    "commands.bench.command": ["bench"],
    "commands.bench.config": ["BenchConfig"],
    "commands.distill.command": ["distill"],
    "commands.distill.config": ["DistillConfig"],
    "commands.evaluate.command": ["evaluate"],
    "commands.evaluate.config": ["EvaluateConfig"],
    "commands.export.command": ["export"],
    "commands.export.config": ["ExportConfig"],
    "commands.options": ["change"],
    "commands.pairs.command": ["pairs"],
    "commands.pairs.config": ["PairsConfig"],
    "commands.plan.command": ["plan"],
    "commands.plan.config": ["PlanConfig"],
    "commands.presets": ["from_preset", "preset_names"],
    "commands.prompts": ["with_prompt_texts"],
    "commands.sample.command": ["sample"],
    "commands.sample.config": ["SampleConfig"],
    "commands.teach.command": ["teach"],
    "commands.teach.config": ["TeachConfig"],
    "core.critics": ["DiscriminatorLoss", "FakeScore"],
    "core.denoisers": [
        "Condition",
        "Denoiser",
        "EDMDenoiser",
        "EpsDenoiser",
        "FlowDenoiser",
        "GuidedDenoiser",
        "VDenoiser",
        "X0Denoiser",
    ],
    "core.generators": ["Generator", "MultiStep", "OneStep"],
    "core.losses": ["Estimates"],
    "core.methods": ["decoupled_dmd", "dmd", "dmd2", "regression", "sid"],
    "core.divergences": ["DIVERGENCES", "DensityRatioWeight"],
    "core.noise": ["NoiseSource", "RandomNoise"],
    "core.times": ["LogNormalTimes", "UniformTimes"],
    "core.objective": ["Objective"],
    "core.samples": ["Batch", "Samples"],
    "core.schedules": ["EDM", "VP", "Flow", "NoiseSchedule"],
    "core.solvers": ["ddim", "dpmpp", "heun", "pndm"],
    "core.terms": [
        "Adversarial",
        "DistributionMatching",
        "GuidanceAugmentation",
        "Regression",
        "ScoreIdentity",
        "Term",
    ],
    "data.conditions": ["LabelSpace"],
    "data.image_tensors": ["save_grid"],
    "models.load": ["load_model", "load_teacher"],
    "models.model": ["Student", "Teacher"],
    "training.optimizer": ["NetworkOptimizer"],
    "training.trainer": ["Trainer"],
}
HOMES = {name: module for module, names in MODULES.items() for name in names}

__all__ = sorted(HOMES)  # pyright: ignore[reportUnsupportedDunderAll]  the names imported above, for type checkers


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'dmdistill' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dmdistill.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *HOMES]
