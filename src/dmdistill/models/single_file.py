"""Single files of Stable Diffusion 1, 2 and XL, with the key names of its first code, as folders of diffusers.

A file holds weights only. Configs and tokenizers come from a folder beside it that has its name, or else from the hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from dmdistill.io.errors import first_line, import_optional
from dmdistill.io.file_hashes import hash_files
from dmdistill.io.folders import new_folder, writable_cache_folder
from dmdistill.models.config_json import read_object
from dmdistill.models.quiet import quiet

__all__ = ["STUDENT_MARK", "V_MARK", "ZERO_SNR_MARK", "is_single_file", "single_file_folder"]

V_MARK, ZERO_SNR_MARK = "v_pred", "ztsnr"  # names of empty tensors in files whose network predicts v
STUDENT_MARK = "dmdistill_kind"  # in the metadata of a file that `dmdistill export` wrote
UNET = "model.diffusion_model."
PIPELINES = {  # how the names of a text encoder start: the pipeline
    "conditioner.embedders.1.": "StableDiffusionXLPipeline",
    "cond_stage_model.": "StableDiffusionPipeline",
}
HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}
CONFIG_FILES = {"scheduler": ["scheduler_config.json"], "tokenizer": ["tokenizer.json", "vocab.json"]}
NOT_IN_FILE = ("safety_checker", "feature_extractor", "image_encoder")
CONFIGS = ("*.json", "*/*.json", "*/*.txt", "*/*.model")


def is_single_file(source: str) -> bool:
    """Return whether the name of a model is that of a safetensors file."""
    return source.endswith(".safetensors") and Path(source).is_file()


def single_file_folder(file: Path) -> Path:
    """Return the folder of the pipeline in a file, which diffusers writes into the cache at the first use.

    The weights keep their precision, and the folder is written anew where the file or its configs change.

    Raises:
        ValueError: naming the file, where it is damaged, of another model, or an exported student; and where the
            configs are missing, which it says where to put.
    """
    pipeline_class, configs = read_pipeline_class(file), find_configs(file)
    parts = [part for pattern in CONFIGS for part in sorted(configs.glob(pattern))] if configs else []
    digest = hash_files([file, *parts])
    folder = writable_cache_folder("single-files") / f"{file.stem}-{digest[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.waiting")):
        if not folder.exists():
            with new_folder(folder) as new:
                convert(file, pipeline_class, configs, new)
    return folder


def find_configs(file: Path) -> Path | None:
    """Return the folder beside a file that has its name, if it is a pipeline's; else None."""
    folder = file.with_suffix("")
    return folder if (folder / "model_index.json").is_file() else None


def read_pipeline_class(file: Path) -> str:
    """Return the pipeline of a file, from the names of its tensors. ValueError where it is of none, or a student."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as tensors:
            names, metadata = list(tensors.keys()), tensors.metadata() or {}
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{file} is cut short, damaged or no safetensors file: {first_line(error)}") from None
    if STUDENT_MARK in metadata:
        raise ValueError(f"{file} is an exported student: give the folder of the student or run that was exported")
    found = next((start for start in PIPELINES if any(name.startswith(start) for name in names)), None)
    if found is None or not any(name.startswith(UNET) for name in names):
        raise ValueError(
            f"{file} is no checkpoint of Stable Diffusion 1, 2 or XL: expected a file with U-Net ({UNET}...), text "
            f"encoder ({' or '.join(f'{start}...' for start in PIPELINES)}) and autoencoder, or a folder of diffusers"
        )
    return PIPELINES[found]


def convert(file: Path, pipeline_class: str, configs: Path | None, folder: Path) -> None:
    """Write the pipeline of a file into an empty folder."""
    diffusers: Any = import_optional("diffusers", str(file), extra="diffusers")
    for library in ("transformers", "accelerate"):
        import_optional(library, str(file), extra="diffusers")
    parts: dict[str, Any] = dict.fromkeys(NOT_IN_FILE)
    if pipeline_class == "StableDiffusionPipeline":
        parts["requires_safety_checker"] = False
    if configs is not None:
        parts |= {"config": str(configs), "local_files_only": True}
        check_configs(configs, pipeline_class)
    try:
        with quiet("diffusers", "transformers"):
            kind = getattr(diffusers, pipeline_class)
            pipeline = kind.from_single_file(str(file), dtype=stored_dtype(file), **parts)
            check_complete(pipeline.components)
            follow_marks(pipeline.scheduler, file)
            pipeline.save_pretrained(folder)
    except Exception as error:  # whatever the libraries raise
        raise ValueError(f"{file} cannot be read as a {pipeline_class}: {explain(error, file, configs)}") from None


def stored_dtype(file: Path) -> torch.dtype:
    """Return the precision of a file whose floats all are half as long as usual; else fp32, which holds all of them."""
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        dtypes = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    floats = [dtype for dtype in dtypes if "F" in dtype]
    return HALVES.get(floats[0], torch.float32) if len(floats) == 1 else torch.float32


def check_configs(configs: Path, pipeline_class: str) -> None:
    """Raise ValueError where the configs beside a file are of another pipeline, implausible, or one of them is missing.

    Of a tokenizer without a vocabulary transformers would make one that knows no word.
    """
    index = read_object(configs / "model_index.json")
    if (found := index.get("_class_name")) != pipeline_class:
        raise ValueError(f"{configs} is of the class {found!r:.100}, the file beside it is a {pipeline_class}")
    for part in ("unet", "vae", "scheduler", *(name for name in index if name.startswith(("text_enc", "tokenizer")))):
        names = CONFIG_FILES.get(part.partition("_")[0], ["config.json"])
        if not any((configs / part / name).is_file() for name in names):
            raise ValueError(f"{configs / part} holds no {' and no '.join(names)}")
        if not part.startswith("tokenizer"):
            read_object(configs / part / names[0])


def check_complete(components: dict[str, Any]) -> None:
    """Raise ValueError for weights that the file did not have, which are still on the meta device."""
    for component, module in components.items():
        if isinstance(module, torch.nn.Module):
            missing = [name for name, parameter in module.named_parameters() if parameter.is_meta]
            if missing:
                raise ValueError(f"{len(missing)} weights of its {component} are missing, first {missing[0]!r}")


def follow_marks(scheduler: Any, file: Path) -> None:
    """Note in a scheduler's config what a file says of its network's prediction; the usual configs say the noise."""
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        marks = {V_MARK, ZERO_SNR_MARK} & {*tensors.keys()}
    if V_MARK in marks:
        scheduler.register_to_config(prediction_type="v_prediction")
    if ZERO_SNR_MARK in marks:
        scheduler.register_to_config(rescale_betas_zero_snr=True)


def explain(error: Exception, file: Path, configs: Path | None) -> str:
    """Return a failure's first line; where the configs had to come from the hub, with where to put them."""
    if isinstance(error, NotImplementedError):  # torch's, for weights that have no values
        return "some of its weights are missing"
    if configs is not None:
        return f"with the configs in {configs}, {first_line(error)}"
    return (
        f"a file has no configs and no tokenizer. Put those of its pipeline (model_index.json, scheduler/, tokenizer/ "
        f"and each config.json) into {file.with_suffix('')}, as they did not come from the hub: {first_line(error)}"
    )
