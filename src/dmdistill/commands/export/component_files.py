"""The files of a pipeline's component, without code; weights of a variant, such as fp16, under their usual names."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from dmdistill.io.atomic import read_json, write_json
from dmdistill.models.diffusers_folder import weights_variant

__all__ = ["component_files", "copy_component"]

SUFFIXES = (".json", ".txt", ".model", ".safetensors")
WEIGHTS = re.compile(  # model.safetensors, model-00001-of-00002.fp16.safetensors, model.safetensors.index.fp16.json ...
    r"((?:diffusion_pytorch_)?model)(?:\.(\w+))?(-\d+-of-\d+)?(?:\.(\w+))?(\.safetensors)"
    r"(?:(\.index)(?:\.(?!json$)(\w+))?(\.json))?"
)


def component_files(folder: Path) -> dict[str, Path]:
    """Return a component's files by their usual names, with the variant of its weights that a pipeline loads."""
    variant = weights_variant(folder) if any(folder.glob("*.safetensors")) else None
    files = {}
    for file in sorted(folder.glob("*")):
        name, file_variant = split_variant(file.name)
        if file.suffix in SUFFIXES and file_variant in (variant, ""):
            files[name] = file
    return files


def split_variant(name: str) -> tuple[str, str | None]:
    """Return a file's usual name and the variant in its name, None for the usual weights, "" for other files."""
    if (match := WEIGHTS.fullmatch(name)) is None:
        return name, ""
    stem, first, shard, second, suffix, index, third, json = match.groups()
    return "".join(filter(None, (stem, shard, suffix, index, json))), first or second or third


def copy_component(source: Path, folder: Path) -> bool:
    """Copy a component, byte by byte but for names in an index. Returns whether there are any files."""
    files = component_files(source)
    for name, file in files.items():
        folder.mkdir(exist_ok=True)
        if name.endswith(".index.json"):
            index = read_json(file)
            index["weight_map"] = {key: split_variant(part)[0] for key, part in index["weight_map"].items()}
            write_json(folder / name, index)
        else:
            shutil.copyfile(file, folder / name)
    return bool(files)
