"""Models as folders: model.safetensors, config.json, README.md."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmdistill.core.denoisers import EDMDenoiser
from dmdistill.core.paths import EDM
from dmdistill.core.solvers import evaluations
from dmdistill.data.conditions import LabelSpace
from dmdistill.files import read_json, read_safetensors, write_json, write_safetensors, written_whole
from dmdistill.networks.dhariwal import DhariwalUNet
from dmdistill.networks.song import SongUNet
from dmdistill.teachers.lora import adapters
from dmdistill.teachers.model import Model, Student, Teacher

__all__ = [
    "bundled",
    "check_weights",
    "described",
    "load_folder",
    "load_weights",
    "save_model",
    "save_weights",
]

CLASSES = {cls.__name__: cls for cls in (SongUNet, DhariwalUNet, EDM, EDMDenoiser)}


def bundled() -> dict[str, Path]:
    """The models inside the package, and those of the folder $DMDISTILL_MODELS, by name."""
    roots = [Path(str(resources.files("dmdistill"))) / "bundled"]
    if own := os.environ.get("DMDISTILL_MODELS"):
        roots.append(Path(own).expanduser())
    return {file.parent.name: file.parent for root in roots for file in sorted(root.glob("*/config.json"))}


def load_folder(folder: Path) -> Model:
    """The model of a folder. ValueError, naming the file, where one is missing, cut short or of something else."""
    model = described(read_json(folder / "config.json"), folder / "config.json")
    load_weights(folder / "model.safetensors", model.network)
    return model


def described(config: Any, file: Path) -> Model:
    """The model that a config.json, of this file, describes, its weights still to come."""
    if not isinstance(config, dict) or config.get("kind") not in ("teacher", "student"):
        raise ValueError(f"{file} describes no teacher or student of dmdistill")
    try:
        check_values(config)
        denoiser = build(config["denoiser"], net=build(config["network"]), path=build(config["path"]))
        classes = config.get("classes")
        fields = {
            "name": config["name"],
            "denoiser": denoiser,
            "shape": tuple(config["shape"]),
            "conditions": LabelSpace(tuple(classes)) if classes else None,
            "licence": config.get("licence", "unknown"),
            "judge": config.get("judge"),
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
    with written_whole(folder / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")


def save_weights(file: Path, network: nn.Module, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a network's weights, or its adapters alone where it has any, floats in `dtype`."""
    state = stored(network)
    write_safetensors(
        file, {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    )


def stored(network: nn.Module) -> dict[str, Tensor]:
    """What a file holds of a network: its adapters where it has any, else all its weights."""
    return adapters(network) or network.state_dict()


def load_weights(file: Path, network: nn.Module) -> None:
    """Fill a network from a safetensors file. ValueError where the file is missing, damaged or another network's."""
    weights = read_safetensors(file)
    check_weights(weights, network, file)
    fill(network, weights)


def check_weights(weights: dict[str, Tensor], network: nn.Module, file: Path) -> None:
    """ValueError, naming the file, where names or shapes are not the network's."""
    wanted = stored(network)
    if odd := sorted(weights.keys() ^ wanted.keys()):
        raise ValueError(f"{file} is not of this network: {len(odd)} names differ, first {odd[0]!r}")
    for name, tensor in weights.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"{file}: {name} is {tuple(tensor.shape)}, the network's is {tuple(wanted[name].shape)}")


def fill(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load weights of any precision into the network's."""
    wanted = stored(network)
    network.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in weights.items()}, strict=False)


def build(spec: dict[str, Any], **parts: Any) -> Any:
    """An object of a class we know from {"class": name, argument: value, ...}. No other class is ever made."""
    arguments = {key: value for key, value in spec.items() if key != "class"}
    if spec["class"] not in CLASSES:
        raise TypeError(f"unknown class {spec['class']!r}, known: {', '.join(CLASSES)}")
    return CLASSES[spec["class"]](**parts, **arguments)
