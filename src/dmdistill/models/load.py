"""Models by name: ours, EDM's, those of diffusers, and your own."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import torch

from dmdistill.io.atomic import read_json
from dmdistill.io.errors import did_you_mean, import_optional
from dmdistill.io.weights import bundled, check_weights, load_weights
from dmdistill.models.diffusers_pipeline import is_diffusers, load_diffusers
from dmdistill.models.edm_checkpoint import read_edm
from dmdistill.models.edm_zoo import NAMES, download_checkpoint, summary
from dmdistill.models.folder import build_model, load_folder
from dmdistill.models.model import Model, Student, Teacher
from dmdistill.models.python_function import is_python_function, load_python_function
from dmdistill.networks.lora import add_lora

__all__ = ["absolute_name", "display_name", "load_model", "load_teacher"]

BASE = ("network", "schedule", "denoiser", "shape")  # of config.json: what adapters must find in their teacher


def load_model(name: str, *, teacher: Teacher | None = None) -> Model:
    """A teacher or a student, frozen, by

    - the name of one that is bundled, or that EDM's authors published
    - the folder of a model, or of the run that made it
    - a checkpoint of EDM's (.pkl)
    - a folder or a hub id (owner/name) of diffusers
    - package.module:function, which answers with a `Teacher`.

    A student of a teacher that is not of our networks, and one that is stored as adapters, is built on its teacher:
    `teacher`, whose frozen weights adapters then share, or the one that its config.json names.

    ValueError, saying what was found, for an unknown name and for missing, truncated or foreign files.
    """
    model = find(name, teacher)
    model.denoiser.eval().requires_grad_(False)
    return model


def load_teacher(name: str) -> Teacher:
    """`load_model`, for teachers only."""
    model = load_model(name)
    if not isinstance(model, Teacher):
        raise ValueError(f"{name} is a student; a teacher is wanted here")
    return model


def find(name: str, teacher: Teacher | None) -> Model:
    if name in bundled():
        return load_folder(bundled()[name])
    if name in NAMES:
        return load_edm(download_checkpoint(name))
    path = Path(name)
    if path.is_file() and path.suffix == ".pkl":
        return load_edm(path)
    for folder in (path, path / "student", path / "teacher"):
        if is_diffusers(folder):
            return load_diffusers(str(folder))
        if (folder / "config.json").is_file():
            return load_ours(folder, teacher)
    if path.exists():
        raise ValueError(f"{name} holds no config.json, student/ or teacher/: not a model's folder or run")
    if is_python_function(name):
        return load_python_function(name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and path.suffix != ".pkl":
        try:
            return load_diffusers(name)
        except ValueError as error:
            if path.parent.is_dir():  # owner/name of the hub looks just like a path
                raise ValueError(f"there is no folder {name}, and as a name of the hub: {error}") from None
            raise
    raise unknown(name)


def load_ours(folder: Path, teacher: Teacher | None) -> Model:
    """A model's folder. One that describes no network of its own, or adapters, is built on its teacher."""
    file = folder / "config.json"
    config = read_json(file)
    if not isinstance(config, dict) or not config.get("lora" if config.get("network") else "teacher"):
        return load_folder(folder)
    student = build_on_teacher(config, file, teacher)
    load_weights(folder / "model.safetensors", student.network)
    return student


def build_on_teacher(config: dict[str, Any], file: Path, teacher: Teacher | None) -> Student:
    """A student that is all its teacher's but for the weights, which are still to be filled."""
    name = config.get("teacher")
    try:
        if config.get("lora"):
            import_optional("peft", str(file), extra="diffusers")
        base = teacher or load_teacher(str(name))
        if odd := [key for key in BASE if base.config.get(key) != config.get(key)]:
            raise ValueError(f"{base.name} is another model: its {odd[0]} differs")
        lora = config.get("lora")
        denoiser = add_lora(base.denoiser, **lora) if lora else copy.deepcopy(base.denoiser)
        about = {"licence": base.licence, "feature_extractor": base.feature_extractor, "config": config}
        told = {"conditions": base.conditions, "autoencoder": base.autoencoder, "text": base.text}
        return Student(name=config["name"], denoiser=denoiser, shape=base.shape, **told, **about)
    except (LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: a student of the teacher {name!r}, which is needed: {error}") from None


def absolute_name(name: str) -> str:
    """What a model can be loaded by from anywhere on this machine: a path becomes absolute, another name stays."""
    return str(Path(name).resolve()) if name not in bundled() and Path(name).exists() else name


def display_name(name: str) -> str:
    """A model's name for others to read: of a path of this machine the last part, another name as it is."""
    return Path(name).name if Path(name).is_absolute() else name


def load_edm(file: Path) -> Model:
    """A teacher from EDM's checkpoint, whose sizes are compared before any memory is asked for."""
    config, weights = read_edm(file)
    with torch.device("meta"):
        sketch = build_model(config, file).network
    check_weights({name: weights[name] for name in weights if not name.endswith(".resample_filter")}, sketch, file)
    model = build_model(config, file)
    try:
        model.network.load_state_dict(weights)  # which compares the filters with the network's own
    except RuntimeError as error:
        raise ValueError(f"{file} is not of this network: {' '.join(str(error).split())[:300]}") from None
    return model


def unknown(name: str) -> ValueError:
    known = [
        name for name, folder in bundled().items() if read_json(folder / "config.json")["kind"] != "feature_extractor"
    ]
    hint = did_you_mean(name, [*known, *NAMES]) or "."
    places = (
        "the folder of a model or run, a checkpoint of EDM (.pkl), a folder or hub id of diffusers, module:function"
    )
    return ValueError(f"unknown model {name!r}{hint} Known: {', '.join([*known, summary(), places])}")
