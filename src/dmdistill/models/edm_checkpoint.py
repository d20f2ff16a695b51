"""Checkpoints of EDM (Karras et al. 2022): pickles, read as the config.json and the weights of a teacher."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

from torch import Tensor

from dmdistill.data.cifar10 import CLASSES as CIFAR10
from dmdistill.io.restricted_unpickler import Record
from dmdistill.io.safe_pickle import read_pickle
from dmdistill.models.edm_zoo import NAMES
from dmdistill.models.folder import build_model
from dmdistill.models.model import Model

__all__ = ["load_edm", "read_edm"]

LICENCE = "CC-BY-NC-SA-4.0"  # of all weights that EDM's authors published

DEFAULTS = {  # arguments of EDM's networks that a checkpoint may leave out, where ours may have another default
    "SongUNet": {"model_channels": 128, "channel_mult": [1, 2, 2, 2], "num_blocks": 4, "attn_resolutions": [16]},
    "DhariwalUNet": {
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "num_blocks": 3,
        "attn_resolutions": [32, 16, 8],
    },
}
IMPLIED = {  # arguments that our networks have by default: they need not be in config.json
    "augment_dim": 0,
    "channel_mult_emb": 4,
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": [1, 1],
}
MAX_NAME, MAX_LIST, MAX_CLASSES = 200, 16, 40_000


def load_edm(file: Path) -> Model:
    """Load a teacher from a checkpoint of EDM. ValueError, naming the file, where it is none that can be used."""
    config, weights = read_edm(file)
    model = build_model(config, weights, config_file=file, weights_file=file)
    try:
        model.network.load_state_dict(weights)  # which compares the resampling filters with the network's
    except RuntimeError as error:
        raise ValueError(f"{file} is not of this network: {' '.join(str(error).split())[:300]}") from None
    return model


def read_edm(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a checkpoint of EDM's preconditioning: the content of a config.json, and the network's weights by name.

    ValueError, naming the file, for other preconditionings, other networks, and files that are no such checkpoint.
    """
    data = read_pickle(file)
    try:
        precond = data["ema"]
        if precond.kind != "EDMPrecond":
            raise ValueError(f"it holds a {precond.kind[:40]!r}; only EDMPrecond, EDM's own training, can be used")
        model = precond.state["_modules"]["model"]
        weights = read_state_dict(model)
        return make_config(file, data, precond.state, read_arguments(model, len(weights))), weights
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        why = error if type(error) is ValueError else f"it holds no model under 'ema' ({type(error).__name__}: {error})"
        raise ValueError(f"{file} is no checkpoint of EDM: {' '.join(str(why).split())[:300]}") from None


def make_config(file: Path, data: dict[str, Any], precond: dict[str, Any], network: dict[str, Any]) -> dict[str, Any]:
    """Make the config.json of a teacher. The range of sigma is that of EDM's sampler, 0.002 to 80."""
    resolution, channels, classes = (network[key] for key in ("img_resolution", "in_channels", "label_dim"))
    if not all(type(number) is int for number in (resolution, channels, classes)):
        raise ValueError(f"resolution {resolution!r}, channels {channels!r}, classes {classes!r} are no integers")
    if not 0 <= classes <= MAX_CLASSES:
        raise ValueError(f"it has {classes} classes, expected 0 to {MAX_CLASSES}")
    if type(precond["sigma_data"]) not in (int, float) or not 0 < precond["sigma_data"] < 1e6:
        raise ValueError(f"its sigma_data is {reprlib.repr(precond['sigma_data'])}, expected a number above 0")
    path = (data.get("dataset_kwargs") or {}).get("path")
    cifar10 = classes == 10 and ("cifar10" in file.stem or (isinstance(path, str) and "cifar10" in path))
    return {
        "kind": "teacher",
        "name": file.stem,
        "network": network,
        "schedule": {"class": "EDM", "sigma_min": 0.002, "sigma_max": 80.0},
        "denoiser": {"class": "EDMDenoiser", "sigma_data": float(precond["sigma_data"])},
        "shape": [channels, resolution, resolution],
        "classes": list(CIFAR10) if cifar10 else [f"class {index}" for index in range(classes)],
        "solver": "heun",
        "steps": 18 if resolution <= 32 else 256 if classes else 40,  # what EDM's authors recommend
        "guidance": 1.0,
        "licence": LICENCE if file.stem in NAMES else "unknown",
        "feature_extractor": None,
    }


def read_arguments(model: Record, tensors: int) -> dict[str, Any]:
    """Read the arguments of a network, for our class of that name; without dropout, of features or of labels."""
    if model.kind not in DEFAULTS:
        raise ValueError(f"its network is a {model.kind[:40]!r}, known: {', '.join(DEFAULTS)}")
    if model.state["_init_args"] != ():
        raise ValueError("its network was built with positional arguments")
    given = {**DEFAULTS[model.kind], **model.state["_init_kwargs"]}
    network = {name: plain(name, value) for name, value in given.items() if name != "label_dropout"}
    network = {name: value for name, value in network.items() if name not in IMPLIED or value != IMPLIED[name]}
    if network["num_blocks"] * len(network["channel_mult"]) > tensors:
        raise ValueError("its network has more blocks than weights")
    return {"class": None} | network | {"dropout": 0.0, "class": model.kind}


def plain(name: str, value: Any) -> Any:
    """Return a number, a word, or a short list of numbers; ValueError for anything else."""
    if type(value) in (list, tuple) and len(value) <= MAX_LIST:
        if all(type(item) in (int, float) for item in value):
            return list(value)
    elif type(value) in (int, float, bool) or (type(value) is str and len(value) <= MAX_NAME):
        return value
    raise ValueError(
        f"its network's {name[:40]!r} is a {type(value).__name__}, expected a number, a word or a short list of numbers"
    )


def read_state_dict(model: Record) -> dict[str, Tensor]:
    """Read the state dict of a pickled module, each module and tensor once."""
    state: dict[str, Tensor] = {}
    visited: set[int] = set()
    todo: list[tuple[str, Record]] = [("", model)]
    while todo:
        prefix, module = todo.pop()
        tensors = module.state["_parameters"] | module.state["_buffers"]
        hidden = module.state.get("_non_persistent_buffers_set", ())
        named = {name: tensor for name, tensor in tensors.items() if tensor is not None and name not in hidden}
        children = {name: child for name, child in module.state["_modules"].items() if child is not None}
        for name, value in [*named.items(), *children.items()]:
            if len(prefix) + len(name) > MAX_NAME or id(value) in visited:
                raise ValueError("a module or tensor of its network is inside itself, or there twice")
            visited.add(id(value))
        if not all(type(tensor) is Tensor for tensor in named.values()):
            raise ValueError("a weight of its network is no tensor")
        state |= {prefix + name: tensor for name, tensor in named.items()}
        todo += [(f"{prefix}{name}.", child) for name, child in children.items()]
    return state
