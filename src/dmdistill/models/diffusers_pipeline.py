"""Teachers of the diffusers library: a pipeline's folder or hub id becomes network, path, codec and text encoder.

Only safetensors are read and no code from a folder or from the hub is run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from dmdistill.data.conditions import LabelSpace
from dmdistill.io.atomic import read_json
from dmdistill.io.errors import first_line, import_optional
from dmdistill.models.autoencoder import VAE
from dmdistill.models.diffusers_scheduler import read_schedule
from dmdistill.models.diffusers_text import PipelineText
from dmdistill.models.model import Teacher
from dmdistill.networks.diffusers_wrappers import ADAPTERS, DiffusersWrapper, Flux, UNet2DCondition

__all__ = [
    "METADATA_FILE",
    "is_diffusers",
    "load_autoencoder",
    "load_diffusers",
    "read_index",
    "read_scheduler_config",
    "resolve_folder",
]

METADATA_FILE = "dmdistill.json"  # name, classes, licence and judge, for which diffusers has no place
NETWORKS = ("unet", "transformer")  # where a pipeline keeps what we distill
FLUX_SIZE = 128  # latents on a side of the image that Flux's pipeline makes; its configuration names none
FILES = [
    "README.md",
    "*.json",
    "*.txt",
    "*.model",
    "diffusion_pytorch_model*.safetensors",
    "*/diffusion_pytorch_model*.safetensors",
    "*/model*.safetensors",
]


def is_diffusers(folder: Path) -> bool:
    """Whether the folder holds a pipeline of diffusers, or one of its networks."""
    return (folder / "model_index.json").is_file() or "_class_name" in config_of(folder)


def load_diffusers(source: str) -> Teacher:
    """A teacher from a pipeline's folder, a network's folder with scheduler/ in it, or a hub id (owner/name).

    ValueError, naming the component, where one is missing, unknown or of a kind that cannot be distilled.
    """
    folder = resolve_folder(source)
    where, network_class = find_network(folder)
    if network_class not in ADAPTERS:
        raise ValueError(f"{where} is a {network_class}, expected one of {', '.join(ADAPTERS)}")
    network = ADAPTERS[network_class](load_part(where, network_class)).eval().requires_grad_(False)
    autoencoder = load_pipeline_autoencoder(folder)
    if isinstance(network, UNet2DCondition) and autoencoder is not None:
        network.pixels = 2 ** (len(autoencoder.model.config["block_out_channels"]) - 1)  # type: ignore[index, arg-type]
    shape = shape_of(network, autoencoder)
    schedule = read_schedule(read_scheduler_config(folder), tokens=shape[1] * shape[2] // 4)
    about = about_of(folder)
    name = about.get("name") or (folder.name if Path(source).exists() else source)
    source = str(folder.resolve()) if Path(source).exists() else source
    return Teacher(
        name=name,
        denoiser=schedule.denoiser(network, schedule.schedule).eval(),
        shape=shape,
        conditions=classes_of(network, folder, about.get("classes")),
        autoencoder=autoencoder,
        text=text_of(folder),
        solver=schedule.solver,
        steps=schedule.steps,
        licence=about.get("licence") or licence_of(folder),
        feature_extractor=about.get("feature_extractor"),
        config={"kind": "teacher", **about, "name": name, "source": source},
    )


def find_network(folder: Path) -> tuple[Path, str]:
    """The folder and the class of the network."""
    if name := config_of(folder).get("_class_name"):
        return folder, name
    index = read_json(folder / "model_index.json")
    for part in NETWORKS:
        if isinstance(index.get(part), list) and index[part][1] is not None:
            if not (folder / part / "config.json").is_file():
                raise ValueError(f"{folder} holds no {part}/config.json, which its model_index.json names")
            return folder / part, index[part][1]
    raise ValueError(f"{folder / 'model_index.json'} names no network: none of {', '.join(NETWORKS)}")


def load_part(folder: Path, name: str) -> Any:
    """One component: a class of diffusers, fp32, from safetensors alone."""
    diffusers = import_optional("diffusers", str(folder), extra="diffusers")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds no .safetensors: other weight files can run code and are not read")
    try:
        return getattr(diffusers, name).from_pretrained(
            folder, use_safetensors=True, torch_dtype=torch.float32, low_cpu_mem_usage=False, local_files_only=True
        )
    except (AttributeError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} cannot be loaded as a {name}: {first_line(error)}") from None


def load_autoencoder(source: str) -> VAE:
    """An autoencoder alone, AutoencoderTiny or AutoencoderKL: its folder or hub id."""
    folder = resolve_folder(source)
    name = config_of(folder).get("_class_name", "of no known kind")
    if name not in ("AutoencoderTiny", "AutoencoderKL"):
        raise ValueError(f"{source} is {name}, expected an AutoencoderTiny or an AutoencoderKL")
    return vae_of(load_part(folder, name))


def vae_of(model: Any) -> VAE:
    if model.config.get("latents_mean") is not None:
        raise ValueError("its autoencoder has latents_mean: latents that are scaled by channel are not supported")
    return VAE(model, scale=model.config.get("scaling_factor") or 1.0, shift=model.config.get("shift_factor") or 0.0)


def load_pipeline_autoencoder(folder: Path) -> VAE | None:
    """The autoencoder of a latent model; None in pixel space."""
    config = config_of(folder / "vae")
    if not config:
        if "vae" in read_index(folder):
            raise ValueError(f"{folder} holds no vae/config.json, which its model_index.json names")
        return None
    return vae_of(load_part(folder / "vae", config["_class_name"]))


def read_scheduler_config(folder: Path) -> dict[str, Any]:
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        raise ValueError(
            f"{folder} holds no scheduler/scheduler_config.json, so neither its noise schedule nor what its network "
            "predicts is known: put the scheduler's config there"
        )
    return read_json(file)


def shape_of(network: DiffusersWrapper, autoencoder: VAE | None) -> tuple[int, int, int]:
    """C H W that the network makes; a Flux names no size, its pipeline makes FLUX_SIZE of latents."""
    config = network.model.config
    size = FLUX_SIZE if isinstance(network, Flux) else config.sample_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = config.in_channels // 4 if isinstance(network, Flux) else config.in_channels
    made = autoencoder.model.config["latent_channels"] if autoencoder is not None else channels  # type: ignore[index]
    if channels != made:
        raise ValueError(f"the network takes {channels} channels, its autoencoder makes {made}: no text-to-image model")
    return channels, int(height), int(width)


def about_of(folder: Path) -> dict[str, Any]:
    """What the folder's dmdistill.json says; nothing where there is none. ValueError where it is of another form."""
    file = folder / METADATA_FILE
    about = read_json(file) if file.is_file() else {}
    if not isinstance(about, dict) or not all(isinstance(name, str) for name in about.get("classes") or []):
        raise ValueError(
            f'{file}: expected {{"name": "...", "classes": ["...", ...], "licence": "...", "feature_extractor": ...}}'
        )
    return {key: about[key] for key in ("name", "classes", "licence", "feature_extractor") if about.get(key)}


def classes_of(network: DiffusersWrapper, folder: Path, given: list[str] | None) -> LabelSpace | None:
    """The classes, by the names given; the network's last one has none where it means none, which guidance needs."""
    if not network.classes:
        return None
    if given:
        if len(given) not in (network.classes, network.classes - 1):
            raise ValueError(
                f"{folder / METADATA_FILE} names {len(given)} classes, the network knows {network.classes}: expected "
                "as many, "
                "or one less where its last class means none"
            )
        return LabelSpace(tuple(given))
    names = read_index(folder).get("id2label") or {}
    return LabelSpace(tuple(names.get(str(i), f"class {i}") for i in range(network.classes)))


def text_of(folder: Path) -> PipelineText | None:
    parts = [part for part in read_index(folder) if part.startswith(("tokenizer", "text_encoder"))]
    if "tokenizer" not in parts:
        return None
    if missing := [part for part in parts if not (folder / part).is_dir()]:
        raise ValueError(f"{folder} holds no {missing[0]}/, which its model_index.json names")
    return PipelineText(folder)


def licence_of(folder: Path) -> str:
    """What the folder's model card says, in its head."""
    file = folder / "README.md"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    head = text.partition("\n---")[0] if text.startswith("---") else ""
    found = dict(re.findall(r"^(license|license_name): *[\"']?([\w.+-]+)", head, re.MULTILINE))
    return found.get("license_name") or found.get("license", "unknown")


def config_of(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    config = read_json(file) if file.is_file() else {}
    return config if isinstance(config, dict) else {}


def read_index(folder: Path) -> dict[str, Any]:
    file = folder / "model_index.json"
    index = read_json(file) if file.is_file() else {}
    return {part: value for part, value in index.items() if value != [None, None]}


def resolve_folder(source: str) -> Path:
    """The folder of a folder or of a hub id."""
    return Path(source) if Path(source).exists() else download(source)


def download(source: str) -> Path:
    """A hub repository's configs and safetensors, from the cache or the network, checked by the hub's own hashes."""
    hub = import_optional("huggingface_hub", source, extra="diffusers")
    try:
        return Path(hub.snapshot_download(source, allow_patterns=FILES, ignore_patterns=["*.fp16.*", "*.non_ema.*"]))
    except Exception as error:  # its many kinds have no base of their own
        why = first_line(error)
        raise ValueError(f"{source} cannot be had from the hub: {why}. A folder of it would do, too") from None
