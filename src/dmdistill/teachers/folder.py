"""Models as folders: model.safetensors, config.json, README.md."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dmdistill.core.denoisers import EDMDenoiser
from dmdistill.core.paths import EDM
from dmdistill.core.solvers import evaluations
from dmdistill.data.conditions import LabelSpace
from dmdistill.files import read_json, read_safetensors, write_json, write_safetensors, written_whole
from dmdistill.networks.song import SongUNet
from dmdistill.teachers.model import Model, Student, Teacher

__all__ = ["bundled", "load_model", "load_teacher", "load_weights", "save_model", "save_weights"]

CLASSES = {cls.__name__: cls for cls in (SongUNet, EDM, EDMDenoiser)}


def bundled() -> dict[str, Path]:
    """The models inside the package, by name."""
    root = Path(str(resources.files("dmdistill"))) / "bundled"
    return {file.parent.name: file.parent for file in sorted(root.glob("*/config.json"))}


def load_model(name: str) -> Model:
    """A teacher or student: the name of a bundled one, its folder, or the folder of the run that made it.

    ValueError, saying what was found, for an unknown name and for missing, truncated or foreign files.
    """
    folder = find(name)
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("kind") not in ("teacher", "student"):
        raise ValueError(f"{folder / 'config.json'} describes no teacher or student of dmdistill")
    try:
        denoiser = build(config["denoiser"], net=build(config["network"]), path=build(config["path"]))
        classes = config.get("classes")
        fields = {
            "name": config["name"],
            "denoiser": denoiser,
            "shape": tuple(config["shape"]),
            "labels": LabelSpace(tuple(classes)) if classes else None,
            "licence": config.get("licence", "unknown"),
            "judge": config.get("judge"),
            "config": config,
        }
        if config["kind"] == "teacher":
            fields |= {key: config[key] for key in ("solver", "steps", "guidance")}
            evaluations(config["solver"], config["steps"])  # a KeyError where no such solver is
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} cannot be used: {error!r}") from None
    load_weights(folder / "model.safetensors", denoiser.net)
    denoiser.eval().requires_grad_(False)
    return Teacher(**fields) if config["kind"] == "teacher" else Student(**fields)


def load_teacher(name: str) -> Teacher:
    """`load_model`, for teachers only."""
    model = load_model(name)
    if not isinstance(model, Teacher):
        raise ValueError(f"{name} is a student; a teacher is wanted here")
    return model


def save_model(folder: Path, model: Model, *, card: str, dtype: torch.dtype = torch.float32) -> None:
    """Write the three files. Weights are stored in `dtype`; loading gives fp32 again."""
    save_weights(folder / "model.safetensors", model.network, dtype=dtype)
    write_json(folder / "config.json", model.config)
    with written_whole(folder / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")


def save_weights(file: Path, network: nn.Module, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a network's weights, floats in `dtype`."""
    state = network.state_dict()
    write_safetensors(
        file, {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    )


def load_weights(file: Path, network: nn.Module) -> None:
    """Fill a network from a safetensors file. ValueError where the file is missing, damaged or another network's."""
    weights = read_safetensors(file)
    wanted = network.state_dict()
    if odd := sorted(weights.keys() ^ wanted.keys()):
        raise ValueError(f"{file} is not of this network: {len(odd)} names differ, first {odd[0]!r}")
    for name, tensor in weights.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"{file}: {name} is {tuple(tensor.shape)}, the network's is {tuple(wanted[name].shape)}")
    network.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in weights.items()})


def find(name: str) -> Path:
    known = bundled()
    if name in known:
        return known[name]
    for folder in (Path(name), Path(name) / "student", Path(name) / "teacher"):
        if (folder / "config.json").is_file():
            return folder
    if Path(name).exists():
        raise ValueError(f"{name} holds no config.json, student/ or teacher/: not a model's folder or run")
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"unknown model {name!r}{hint} Known: {', '.join([*known, 'the folder of a model or run'])}")


def build(spec: dict[str, Any], **parts: Any) -> Any:
    """An object of a class we know from {"class": name, argument: value, ...}. No other class is ever made."""
    arguments = {key: value for key, value in spec.items() if key != "class"}
    if spec["class"] not in CLASSES:
        raise TypeError(f"unknown class {spec['class']!r}, known: {', '.join(CLASSES)}")
    return CLASSES[spec["class"]](**parts, **arguments)
