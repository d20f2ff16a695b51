"""Models as folders: model.safetensors, config.json, README.md."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmdistill.core.denoisers import Denoiser, EDMDenoiser
from dmdistill.core.schedules import EDM
from dmdistill.data.conditions import LabelSpace
from dmdistill.distributed.stored_weights import StoredWeights, parameters_on_meta
from dmdistill.io.atomic import atomic_write, read_safetensors, write_json
from dmdistill.io.checksums import add_checksum, note_unverified
from dmdistill.io.errors import first_line
from dmdistill.io.weights import check_weights, copy_weights, save_weights
from dmdistill.models.config_json import check_arguments, check_config, check_memory, read_config
from dmdistill.models.model import Model, Student, Teacher
from dmdistill.networks.dhariwal_unet import DhariwalUNet
from dmdistill.networks.layers import is_filter
from dmdistill.networks.parameter_budget import build_on_meta
from dmdistill.networks.song_unet import SongUNet

__all__ = ["build_model", "load_folder", "save_model"]

CLASSES = {  # by the key of config.json: no other class is built
    "network": (SongUNet, DhariwalUNet),
    "schedule": (EDM,),
    "denoiser": (EDMDenoiser,),
}
FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def load_folder(folder: Path, *, lazy: bool = False) -> Model:
    """Load a model's folder. ValueError, naming the file, where one is missing, cut short or of something else.

    Args:
        folder: of the model.
        lazy: leave the weights in their file, for a network that is going to be sharded.
    """
    config_file, weights_file = folder / "config.json", folder / "model.safetensors"
    config, weights = read_config(config_file), read_safetensors(weights_file)
    with parameters_on_meta() if lazy else nullcontext():
        model = build_model(config, weights, config_file=config_file, weights_file=weights_file)
    copy_weights(weights, model.network)
    StoredWeights(dict.fromkeys(weights, weights_file)).attach(model.network)
    note_unverified(config_file, weights_file)
    return model


def build_model(config: dict[str, Any], weights: dict[str, Tensor], *, config_file: Path, weights_file: Path) -> Model:
    """Build the model that a config describes, with fresh weights, once it is known that the given ones will fit.

    Sizes are compared before any memory is taken. ValueError, naming the file, where config and weights are not of one
    network, or do not fit in this computer's memory.
    """
    elements = sum(tensor.numel() for tensor in weights.values())
    try:
        check_config(config)
        check_memory(elements, config["shape"])
        with build_on_meta(len(weights)):
            sketch = build_denoiser(config)
    except FAILURES as error:
        raise ValueError(f"{config_file} cannot be used: {first_line(error)}") from None
    check_weights({name: weights[name] for name in weights if not is_filter(name)}, sketch.net, weights_file)
    fields = {key: config[key] for key in ("name", "licence", "feature_extractor") if config.get(key)}
    fields |= {"denoiser": build_denoiser(config), "shape": tuple(config["shape"]), "config": config}
    if config.get("classes"):
        fields["conditions"] = LabelSpace(tuple(config["classes"]))
    if config["kind"] == "student":
        steps = {"timesteps": tuple(config.get("timesteps", ())), "transition": config.get("transition", "sde")}
        return Student(**fields, **steps)
    return Teacher(**fields, **{key: config[key] for key in ("solver", "steps", "guidance")})


def build_denoiser(config: dict[str, Any]) -> Denoiser:
    """Build the denoiser of a config on a fresh network."""
    network, schedule = build_part(config, "network"), build_part(config, "schedule")
    return build_part(config, "denoiser", network, schedule)


def build_part(config: dict[str, Any], key: str, *parts: Any) -> Any:
    """Build the object under a key of config.json, {"class": name, argument: value, ...}, of a class for that key."""
    spec = config.get(key)
    known = {kind.__name__: kind for kind in CLASSES[key]}
    name = spec.get("class") if isinstance(spec, dict) else None
    if not isinstance(spec, dict) or not isinstance(name, str) or name not in known:
        raise ValueError(f"{key} is {spec!r:.200}, expected an object whose class is one of {', '.join(known)}")
    arguments = {argument: value for argument, value in spec.items() if argument != "class"}
    check_arguments(known[name], arguments)
    return known[name](*parts, **arguments)


def save_model(folder: Path, model: Model, *, card: str, dtype: torch.dtype = torch.float32) -> None:
    """Write the three files of a model's folder.

    Args:
        folder: to write in.
        model: whose network and config are written.
        card: the README.md.
        dtype: of the stored weights; loading gives fp32 again.
    """
    save_weights(folder / "model.safetensors", model.network, dtype=dtype)
    write_json(folder / "config.json", add_checksum(model.config))
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
