"""Folders and hub repositories of diffusers: their configs, checked before any library reads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dmdistill.io.atomic import read_json
from dmdistill.io.checksums import pop_checksum
from dmdistill.io.errors import first_line, import_optional
from dmdistill.models.config_json import SAMPLING_KEYS, check_sampling_keys, read_object
from dmdistill.models.single_file import is_single_file, single_file_folder

__all__ = [
    "METADATA_FILE",
    "PARTS",
    "TEXTS",
    "is_diffusers",
    "read_component_config",
    "read_index",
    "read_licence",
    "read_metadata",
    "read_scheduler_config",
    "resolve_folder",
    "weights_files",
    "weights_variant",
]

METADATA_FILE = "dmdistill.json"  # entries of our config.json, for which diffusers has no place
TEXTS = ("kind", "name", "licence", "feature_extractor")  # of that file
PARTS = ("network", "schedule", "denoiser", "shape")  # of that file, where the network is none of diffusers'
DOWNLOADS = [
    *("README.md", "*.json", "*.txt", "*.model"),
    *("diffusion_pytorch_model*.safetensors", "*/diffusion_pytorch_model*.safetensors", "*/model*.safetensors"),
]
WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(?:\.(\w+))?(?:-\d+-of-\d+)?(?:\.(\w+))?\.safetensors")


def is_diffusers(folder: Path) -> bool:
    """Return whether a folder holds a pipeline of diffusers, or one of its networks."""
    file = folder / "config.json"
    if (folder / "model_index.json").is_file() or not file.is_file():
        return (folder / "model_index.json").is_file()
    config = read_json(file)
    return isinstance(config, dict) and "_class_name" in config


def resolve_folder(source: str) -> Path:
    """Return the folder of a folder's name, of a single file, which is converted, or a hub id, which is downloaded."""
    if is_single_file(source):
        return single_file_folder(Path(source))
    return Path(source) if Path(source).exists() else download(source)


def download(source: str) -> Path:
    """Download a hub repository's configs and safetensors; those of half precision where there are no others."""
    hub = import_optional("huggingface_hub", source, extra="diffusers")
    folder = Path()
    try:
        for ignored in (["*.fp16.*", "*.non_ema.*"], ["*.non_ema.*"]):
            folder = Path(hub.snapshot_download(source, allow_patterns=DOWNLOADS, ignore_patterns=ignored))
            if any(folder.rglob("diffusion_pytorch_model*.safetensors")):
                break
    except Exception as error:  # its errors have no base class of their own
        raise ValueError(
            f"{source} cannot be downloaded from the hub: {first_line(error)}. A local folder can be given instead"
        ) from None
    return folder


def read_component_config(folder: Path) -> dict[str, Any]:
    """Read the config.json of a component; an empty dict if it is missing."""
    config = read_object(folder / "config.json")
    if not isinstance(config.get("_class_name", ""), str):
        raise ValueError(f"{folder / 'config.json'}: _class_name is {config['_class_name']!r:.100}, expected a text")
    return config


def read_index(folder: Path) -> dict[str, Any]:
    """Read model_index.json, without the components that are left out; an empty dict if it is missing."""
    index = read_object(folder / "model_index.json")
    return {name: value for name, value in index.items() if value != [None, None]}


def read_scheduler_config(folder: Path) -> dict[str, Any]:
    """Read the scheduler's config. ValueError if it is missing."""
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        if (folder.parent / "model_index.json").is_file():
            raise ValueError(f"{folder} is a component of the pipeline {folder.parent}: give that folder instead")
        raise ValueError(
            f"{folder} holds no scheduler/scheduler_config.json, so neither its noise schedule nor what its network "
            "predicts is known: put the scheduler's config there"
        )
    return read_object(file)


def read_metadata(folder: Path) -> dict[str, Any]:
    """Read dmdistill.json: teacher or student, its name, classes, licence and feature extractor, all of them optional.

    Of a teacher it may have the guidance scale. Of an exported student it has the times and the transition if there
    are several steps, size and embedded guidance where they are not the usual ones, and the network's entries if the
    network is this package's own.
    """
    file = folder / METADATA_FILE
    metadata = read_object(file)
    pop_checksum(metadata, file)
    classes = metadata.get("classes") or []
    texts = [metadata[key] for key in TEXTS if metadata.get(key)]
    if not (
        isinstance(classes, list) and all(isinstance(text, str) and text.isprintable() for text in [*classes, *texts])
    ) or metadata.get("kind", "teacher") not in ("teacher", "student"):
        raise ValueError(
            f'{file}: expected {{"kind": "teacher" or "student", "name": "...", "classes": ["...", ...], '
            '"licence": "...", "feature_extractor": "..."}'
        )
    try:
        check_sampling_keys(metadata)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return {
        key: metadata[key]
        for key in (*TEXTS, "classes", *SAMPLING_KEYS, *PARTS)
        if metadata.get(key) not in (None, "", [])
    }


def read_licence(folder: Path) -> str:
    """Read the licence from the header of the folder's model card."""
    file = folder / "README.md"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    header = text.partition("\n---")[0] if text.startswith("---") else ""
    fields = dict(re.findall(r"^(license|license_name): *[\"']?([\w.+-]+)", header, re.MULTILINE))
    return fields.get("license_name") or fields.get("license", "unknown")


def weights_variant(folder: Path) -> str | None:
    """Return which variant of a component's safetensors to read: None where there is the usual one, else e.g. "fp16".

    ValueError where there are no safetensors.
    """
    usable = [variant for variant in file_variants(folder).values() if variant != "non_ema"]
    if not usable:
        raise ValueError(f"{folder} holds no .safetensors: other weight files can run code and are not read")
    return None if None in usable else usable[0]


def weights_files(folder: Path) -> list[Path]:
    """List the files of the variant of a component's safetensors that is read. ValueError where there are none."""
    variant = weights_variant(folder)
    return [file for file, other in file_variants(folder).items() if other == variant]


def file_variants(folder: Path) -> dict[Path, str | None]:
    """Return the variant of each file of a component's weights, None for the usual one."""
    files = {file: WEIGHTS.fullmatch(file.name) for file in sorted(folder.glob("*.safetensors"))}
    return {file: match[1] or match[2] for file, match in files.items() if match}
