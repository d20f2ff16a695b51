"""Models of the diffusers library: network, noise schedule, autoencoder and text encoder from a folder or hub id.

Only safetensors are read, and no code from a folder or from the hub is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dmdistill.data.conditions import LabelSpace
from dmdistill.io.atomic import read_safetensors
from dmdistill.io.errors import first_line
from dmdistill.io.weights import copy_weights
from dmdistill.models.autoencoder import VAE
from dmdistill.models.config_json import check_memory
from dmdistill.models.diffusers_components import build_sketch, load_component, load_lazily, load_pipeline_autoencoder
from dmdistill.models.diffusers_folder import (
    METADATA_FILE,
    read_component_config,
    read_index,
    read_licence,
    read_metadata,
    read_scheduler_config,
    resolve_folder,
)
from dmdistill.models.diffusers_scheduler import Schedule, read_schedule
from dmdistill.models.diffusers_text import PipelineText
from dmdistill.models.folder import build_model
from dmdistill.models.image_size import ImageSize, check_fixed_size, latent_shape
from dmdistill.models.model import Model, Student, Teacher
from dmdistill.networks.diffusers_wrappers import WRAPPERS, DiffusersWrapper, UNet2DCondition

__all__ = ["load_diffusers"]

NETWORKS = ("unet", "transformer")  # the components of a pipeline that can be distilled
FLUX_SIZE = 128  # latents on a side of the images that Flux's pipeline makes; its config names no size
SUPPORTED = {  # class of a network: option of its config: values with which it has no inputs but those of its wrapper
    "UNet2DModel": {"class_embed_type": (None,)},
    "UNet2DConditionModel": {
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "addition_embed_type": (None, "text_time"),
        "encoder_hid_dim_type": (None,),
    },
}
OTHER_INPUT = "is not supported: the network has an input besides image, time, class and prompt"
LEARNED_VARIANCE = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel")  # which may predict it, too


def load_diffusers(source: str, *, size: ImageSize | None = None, lazy: bool = False) -> Model:
    """Load a teacher from a pipeline's folder, a network's with scheduler/ in it, a single file or a hub id.

    A student that `dmdistill export` wrote is a student again.

    Args:
        source: the name of the folder, file or repository.
        size: of the images, of a pipeline of latents; None for that of the network's training or of the student.
        lazy: leave the weights in their files where that can be, for a network that is going to be sharded.

    Raises:
        ValueError: naming the component, where one is missing, unknown, damaged or of a kind that cannot be distilled,
            and for a size that the network cannot have.
    """
    folder = resolve_folder(source)
    metadata = read_metadata(folder)
    if "network" in metadata:
        model = load_exported_network(folder, metadata)
        check_fixed_size(model, size)
        return model
    if size is not None:
        metadata["image_size"] = list(size)
    teacher = load_pipeline(source, folder, metadata, lazy=lazy)
    if metadata.get("kind") == "student":
        return Student.from_teacher(teacher, teacher.denoiser, teacher.config)
    return teacher


def load_exported_network(folder: Path, config: dict[str, Any]) -> Model:
    """Load an exported student whose network is this package's own; the source in the folder is not run."""
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = {name.removeprefix("net."): tensor for name, tensor in read_safetensors(file).items()}
    model = build_model(config, weights, config_file=folder / METADATA_FILE, weights_file=file)
    copy_weights(weights, model.network)
    return model


def load_pipeline(source: str, folder: Path, metadata: dict[str, Any], *, lazy: bool) -> Teacher:
    """Load the folder of a source as a teacher."""
    network_folder, class_name = find_network(folder)
    sketch = build_sketch(network_folder, class_name)
    shape = read_shape(sketch.config, class_name, network_folder / "config.json")
    autoencoder = load_pipeline_autoencoder(folder)
    if size := metadata.get("image_size"):
        options = {"autoencoder": autoencoder, "class_name": class_name, "config": sketch.config}
        shape = latent_shape(shape, (size[0], size[1]), **options, folder=network_folder)
    distilled = metadata.get("kind") == "student"
    schedule = read_folder_schedule(folder, tokens=shape[1] * shape[2] // 4, distilled=distilled)
    check_forward(sketch, class_name, shape, network_folder)
    model = load_lazily(network_folder, class_name) if lazy else None
    model = drop_guidance_embedding(model or load_component(network_folder, class_name), network_folder / "config.json")
    network = WRAPPERS[class_name](model).eval().requires_grad_(False)
    network.time_scale = schedule.time_scale
    if "embedded_guidance" in metadata:
        network.guidance = metadata["embedded_guidance"]
    if autoencoder is not None:
        match_autoencoder(network, autoencoder, shape)
    path = Path(source).resolve() if Path(source).exists() else None
    name = metadata.get("name") or (source if path is None else path.stem if path.is_file() else path.name)
    config = {"kind": "teacher", **metadata, "name": name, "source": source if path is None else str(path)}
    return Teacher(
        name=name,
        denoiser=schedule.denoiser(network, schedule.schedule).eval(),
        shape=shape,
        conditions=read_classes(network, folder, metadata.get("classes")),
        autoencoder=autoencoder,
        text=find_text_encoder(folder),
        solver=schedule.solver,
        steps=schedule.steps,
        guidance=metadata.get("guidance", 1.0),
        clipping=schedule.clipping,
        licence=metadata.get("licence") or read_licence(folder),
        feature_extractor=metadata.get("feature_extractor"),
        config=config,
    )


def drop_guidance_embedding(model: Any, file: Path) -> Any:
    """Take away the embedding of guidance, with weights of zero, that exported students have.

    ValueError, naming the file of the config, for one with weights, as consistency models have it.
    """
    if model.config.get("time_cond_proj_dim") is not None:
        weight = model.time_embedding.cond_proj.weight
        if weight.is_meta:
            with model.stored_weights.open() as read:
                weight = read("time_embedding.cond_proj.weight")
        if weight.any():
            raise ValueError(f"{file}: time_cond_proj_dim {model.config.time_cond_proj_dim!r} {OTHER_INPUT}")
        model.time_embedding.cond_proj = None
        model.register_to_config(time_cond_proj_dim=None)
    return model


def find_network(folder: Path) -> tuple[Path, str]:
    """Return the folder and the class of the network. ValueError if it is missing or cannot be distilled."""
    network_folder, class_name = folder, read_component_config(folder).get("_class_name")
    if class_name is None:
        index = read_index(folder)
        name = next((name for name in NETWORKS if name in index), None)
        if name is None:
            raise ValueError(f"{folder / 'model_index.json'} names no network: none of {', '.join(NETWORKS)}")
        network_folder = folder / name
        if not (network_folder / "config.json").is_file():
            raise ValueError(f"{folder} holds no {name}/config.json, which its model_index.json names")
        class_name = index[name][1] if isinstance(index[name], list) and len(index[name]) == 2 else None
    if class_name not in list(WRAPPERS):
        raise ValueError(f"{network_folder} is a {class_name!r:.200}, expected one of {', '.join(WRAPPERS)}")
    return network_folder, class_name


def read_shape(config: Any, class_name: str, file: Path) -> tuple[int, int, int]:
    """Read (C, H, W) of a network's samples. ValueError, naming the file, where config and wrapper disagree."""
    for option, supported in SUPPORTED.get(class_name, {}).items():
        if config.get(option) not in supported:
            raise ValueError(f"{file}: {option} {config[option]!r} {OTHER_INPUT}")
    if class_name == "FluxTransformer2DModel":
        return config["in_channels"] // 4, FLUX_SIZE, FLUX_SIZE
    channels, out_channels, size = config["in_channels"], config.get("out_channels"), config["sample_size"]
    if out_channels not in (None, channels) and not (out_channels == 2 * channels and class_name in LEARNED_VARIANCE):
        raise ValueError(
            f"{file}: in_channels {channels!r} and out_channels {out_channels!r}: expected as many, or twice as many "
            "out where a variance is learned"
        )
    sides = list(size) if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"{file}: sample_size is {size!r}, expected the size of its images: an integer or [H, W]")
    halvings = len(config["block_out_channels"]) - 1 if class_name == "UNet2DModel" else 0
    if any(side % 2**halvings for side in sides):
        raise ValueError(
            f"{file}: sample_size {size!r} cannot be halved {halvings} times, which is what its network does"
        )
    return channels, sides[0], sides[1]


def read_folder_schedule(folder: Path, *, tokens: int, distilled: bool) -> Schedule:
    """Read the noise schedule of a folder. ValueError, naming the file, for a scheduler that is not supported."""
    scheduler = read_scheduler_config(folder)
    try:
        return read_schedule(scheduler, tokens=tokens, distilled=distilled)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def check_forward(sketch: Any, class_name: str, shape: tuple[int, int, int], folder: Path) -> None:
    """Evaluate a network without text on the meta device. ValueError, naming its folder, where that fails."""
    check_memory(0, shape)
    if class_name not in ("UNet2DModel", "DiTTransformer2DModel"):
        return
    has_classes = class_name == "DiTTransformer2DModel" or sketch.config["num_class_embeds"]
    with torch.device("meta"):
        x, t, label = torch.zeros(1, *shape), torch.zeros(1), torch.zeros(1, dtype=torch.long)
    try:
        with torch.no_grad():
            sketch.eval()(x, t, class_labels=label if has_classes else None, return_dict=False)
    except Exception as error:  # whatever the library raises
        shown = " x ".join(map(str, shape))
        raise ValueError(f"{folder} cannot be evaluated on a sample of {shown}: {first_line(error)}") from None


def match_autoencoder(network: DiffusersWrapper, autoencoder: VAE, shape: tuple[int, int, int]) -> None:
    """Raise ValueError where an autoencoder has other latents than the network; tell XL's network the image size."""
    config: Any = autoencoder.model.config
    if shape[0] != config["latent_channels"]:
        raise ValueError(
            f"the network takes {shape[0]} channels, its autoencoder makes {config['latent_channels']}: a model for "
            "inpainting or editing, expected one that generates images from noise"
        )
    if isinstance(network, UNet2DCondition):
        network.pixels = autoencoder.image_shape((1, 1, 1))[1]


def read_classes(network: DiffusersWrapper, folder: Path, names: list[str] | None) -> LabelSpace | None:
    """Read the names of the classes; the network's last class has none where it means none, as guidance needs."""
    if not network.classes:
        return None
    if names and len(names) not in (network.classes, network.classes - 1):
        raise ValueError(
            f"{folder / METADATA_FILE} names {len(names)} classes, the network knows {network.classes}: expected as "
            "many, or one less where its last class means none"
        )
    known = read_index(folder).get("id2label")
    known = known if isinstance(known, dict) else {}
    return LabelSpace(tuple(names or (str(known.get(str(i), f"class {i}")) for i in range(network.classes))))


def find_text_encoder(folder: Path) -> PipelineText | None:
    """Return the text encoder of a pipeline; None for a pipeline without. ValueError where a part of it is missing."""
    parts = [part for part in read_index(folder) if part.startswith(("tokenizer", "text_encoder"))]
    if "tokenizer" not in parts:
        return None
    if missing := [part for part in parts if not (folder / part).is_dir()]:
        raise ValueError(f"{folder} holds no {missing[0]}/, which its model_index.json names")
    return PipelineText(folder)
