"""Models as folders: model.safetensors, config.json, README.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dmdistill.core.denoisers import EDMDenoiser
from dmdistill.core.schedules import EDM
from dmdistill.core.solvers import evaluations
from dmdistill.data.conditions import LabelSpace
from dmdistill.io.atomic import atomic_write, read_json, write_json
from dmdistill.io.weights import load_weights, save_weights
from dmdistill.models.model import Model, Student, Teacher
from dmdistill.networks.dhariwal_unet import DhariwalUNet
from dmdistill.networks.song_unet import SongUNet

__all__ = [
    "build_model",
    "load_folder",
    "save_model",
]

CLASSES = {cls.__name__: cls for cls in (SongUNet, DhariwalUNet, EDM, EDMDenoiser)}


def load_folder(folder: Path) -> Model:
    """The model of a folder. ValueError, naming the file, where one is missing, cut short or of something else."""
    model = build_model(read_json(folder / "config.json"), folder / "config.json")
    load_weights(folder / "model.safetensors", model.network)
    return model


def build_model(config: Any, file: Path) -> Model:
    """The model that a config.json, of this file, describes, its weights still to come."""
    if not isinstance(config, dict) or config.get("kind") not in ("teacher", "student"):
        raise ValueError(f"{file} describes no teacher or student of dmdistill")
    try:
        check_values(config)
        denoiser = build(config["denoiser"], net=build(config["network"]), schedule=build(config["schedule"]))
        classes = config.get("classes")
        fields = {
            "name": config["name"],
            "denoiser": denoiser,
            "shape": tuple(config["shape"]),
            "conditions": LabelSpace(tuple(classes)) if classes else None,
            "licence": config.get("licence", "unknown"),
            "feature_extractor": config.get("feature_extractor"),
            "config": config,
        }
        if config["kind"] == "teacher":
            fields |= {key: config[key] for key in ("solver", "steps", "guidance")}
            evaluations(config["solver"], config["steps"])  # a KeyError where no such solver is
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{file} cannot be used: {error!r}") from None
    return Teacher(**fields) if config["kind"] == "teacher" else Student(**fields)


def check_values(config: dict[str, Any]) -> None:
    """ValueError where a number in a config.json is none that it could be."""
    sizes = config["shape"]
    if not (isinstance(sizes, list) and len(sizes) == 3 and all(type(size) is int and size > 0 for size in sizes)):
        raise ValueError(f"shape {sizes!r}, expected [C, H, W]")
    classes, known = config.get("classes") or [], config["network"].get("label_dim", 0)
    if classes and known and len(classes) != known:
        raise ValueError(f"{len(classes)} classes, the network knows {known}")
    if config["kind"] == "teacher":
        steps, guidance = config["steps"], config["guidance"]
        if type(steps) is not int or steps < 1:
            raise ValueError(f"steps {steps!r}, expected an integer above 0")
        if type(guidance) not in (int, float) or guidance < 0:
            raise ValueError(f"guidance {guidance!r}, expected a number of at least 0")


def save_model(folder: Path, model: Model, *, card: str, dtype: torch.dtype = torch.float32) -> None:
    """Write the three files. Weights are stored in `dtype`; loading gives fp32 again."""
    save_weights(folder / "model.safetensors", model.network, dtype=dtype)
    write_json(folder / "config.json", model.config)
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")


def build(spec: dict[str, Any], **parts: Any) -> Any:
    """An object of a class we know from {"class": name, argument: value, ...}. No other class is ever made."""
    arguments = {key: value for key, value in spec.items() if key != "class"}
    if spec["class"] not in CLASSES:
        raise TypeError(f"unknown class {spec['class']!r}, known: {', '.join(CLASSES)}")
    return CLASSES[spec["class"]](**parts, **arguments)
