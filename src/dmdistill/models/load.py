"""Models by name: bundled ones, EDM's, those of diffusers, and your own."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

from dmdistill.distributed.stored_weights import StoredWeights
from dmdistill.io.atomic import read_json
from dmdistill.io.checksums import note_unverified
from dmdistill.io.errors import did_you_mean, import_optional
from dmdistill.io.weights import bundled_models, load_weights
from dmdistill.models.config_json import check_student, read_config
from dmdistill.models.diffusers_folder import is_diffusers
from dmdistill.models.diffusers_pipeline import load_diffusers
from dmdistill.models.edm_checkpoint import load_edm
from dmdistill.models.edm_zoo import NAMES, download_checkpoint, summary
from dmdistill.models.folder import load_folder
from dmdistill.models.image_size import ImageSize, check_fixed_size
from dmdistill.models.model import Model, Student, Teacher
from dmdistill.models.python_function import is_python_function, load_python_function
from dmdistill.models.single_file import is_single_file
from dmdistill.networks.casting import widen_weights
from dmdistill.networks.lora import add_lora

__all__ = ["SHARED_KEYS", "absolute_name", "display_name", "load_model", "load_teacher"]

SHARED_KEYS = ("network", "schedule", "denoiser", "shape")  # of config.json: alike in a student and its teacher
LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers names it
WEIGHTS_ONLY = (".ckpt", ".pt", ".pth", ".bin")
FORMS = (
    "the folder of a model or run, a checkpoint of EDM (.pkl) or Stable Diffusion (.safetensors), a folder or hub id "
    "of diffusers, module:function"
)


def load_model(
    name: str, *, teacher: Teacher | None = None, size: ImageSize | None = None, lazy: bool = False
) -> Model:
    """Load a teacher or a student, frozen and in evaluation mode.

    Args:
        name: of a bundled model, one that EDM's authors published, or one in the folder models/ or
            $DMDISTILL_MODELS; the folder of a model or of the run that made it; a checkpoint of EDM (.pkl) or of
            Stable Diffusion (.safetensors); a folder or a hub id (owner/name) of diffusers; or
            `package.module:function`, a function that returns a `Teacher`.
        teacher: that a student is built on if its folder holds LoRA weights only, or a network that is not ours;
            None for the one that its config.json names.
        size: (height, width) of the images in pixels, of a latent model of diffusers; None for the model's own.
        lazy: leave the network on the meta device and its weights in their safetensors, from which `Sharder`
            reads them. Where they are in no such files, the network is loaded as ever.

    Raises:
        ValueError: for an unknown name, and for missing, truncated, damaged or foreign files, which it names.
    """
    model = find_model(in_models_folder(name), teacher, size, lazy=lazy)
    check_fixed_size(model, size)
    model.denoiser.eval().requires_grad_(False)
    return model


def load_teacher(name: str, *, size: ImageSize | None = None, lazy: bool = False) -> Teacher:
    """Load a teacher by a name, and of a size, that `load_model` takes. ValueError where it is a student's."""
    model = load_model(name, size=size, lazy=lazy)
    if not isinstance(model, Teacher):
        raise ValueError(f"{name} is a student, expected a teacher: give the model that it was distilled from")
    return model


def find_model(name: str, teacher: Teacher | None, size: ImageSize | None, *, lazy: bool) -> Model:
    """Load what a name stands for."""
    if name in bundled_models():
        folder = bundled_models()[name]
        is_pipeline = is_diffusers(folder)
        return load_diffusers(str(folder), size=size, lazy=lazy) if is_pipeline else load_folder(folder, lazy=lazy)
    if name in NAMES:
        return load_edm(download_checkpoint(name))
    path = Path(name)
    if path.is_file() and path.suffix == ".pkl":
        return load_edm(path)
    if is_single_file(name):
        return load_diffusers(name, size=size, lazy=lazy)
    for folder in (path, path / "student", path / "teacher"):
        if is_diffusers(folder):
            return load_diffusers(str(folder), size=size, lazy=lazy)
        if (folder / "config.json").is_file():
            return load_own_folder(folder, teacher, size, lazy=lazy)
    if (python := re.fullmatch(r"(.+)\.py(:\w+)?", name)) and Path(f"{python[1]}.py").is_file():
        parts = Path(python[1]).parts
        module = ".".join(parts) if not {"/", ".."} & {*parts} else parts[-1]
        raise ValueError(f"{name}: give {module}{python[2] or ':function'}, a function annotated `-> Teacher`")
    if path.exists():
        raise ValueError(f"{name} {describe_path(path)}")
    if is_python_function(name):
        return load_python_function(name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and path.suffix != ".pkl":
        try:
            return load_diffusers(name, size=size, lazy=lazy)
        except ValueError as error:
            if path.parent.is_dir():  # owner/name of the hub looks just like a path
                hint = did_you_mean(name, neighbours(path))
                raise ValueError(f"there is no folder {name}, and {error}{hint}") from None
            raise
    raise unknown_model(name)


def describe_path(path: Path) -> str:
    """Return what is wrong with a path as the name of a model, and what to give instead."""
    if path.suffix in WEIGHTS_ONLY:
        return (
            "is a file that can run code and is not read: expected .safetensors, or a folder, which diffusers writes "
            "for Stable Diffusion by StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    if not path.is_dir():
        return f"is a file of an unknown kind, expected {FORMS}"
    if (path / LORA_FILE).is_file():
        return "holds LoRA weights, for diffusers to load: give the folder of the student or run that was exported"
    if (path / "config.toml").is_file():
        return f"is the folder of a run that has no model yet: `dmdistill info {path}` says how far it is"
    if not any(path.iterdir()):
        return f"is an empty folder, expected {FORMS}"
    return "holds no config.json, student/ or teacher/: not the folder of a model or run"


def load_own_folder(folder: Path, teacher: Teacher | None, size: ImageSize | None, *, lazy: bool) -> Model:
    """Load a folder of ours; onto its teacher, where it holds LoRA weights or a network that is not ours."""
    file = folder / "config.json"
    config = read_config(file)
    if not config.get("lora" if config.get("network") else "teacher"):
        return load_folder(folder, lazy=lazy)
    if size is not None:
        config["image_size"] = list(size)
    student = build_on_teacher(config, file, teacher, lazy=lazy)
    weights_file = folder / "model.safetensors"
    load_weights(weights_file, student.network)
    if not config.get("lora"):
        StoredWeights(dict.fromkeys(student.network.state_dict(), weights_file)).attach(student.network)
    note_unverified(file, weights_file)
    return student


def build_on_teacher(config: dict[str, Any], file: Path, teacher: Teacher | None, *, lazy: bool) -> Student:
    """Build a student on its teacher, with the weights of the teacher, which adapters want in memory."""
    name, lora = config.get("teacher"), config.get("lora")
    try:
        check_student(config)
        if lora:
            import_optional("peft", str(file), extra="diffusers")
        size = config.get("image_size")
        base = teacher or load_teacher(str(name), size=(size[0], size[1]) if size else None, lazy=lazy and not lora)
        if other := [key for key in SHARED_KEYS if base.config.get(key) != config.get(key)]:
            raise ValueError(f"{base.name} is another model: its {other[0]} differs")
        denoiser = add_lora(base.denoiser, **lora) if lora else copy.deepcopy(base.denoiser)
        if not lora:
            widen_weights(denoiser.net)  # of a teacher that was cast for inference
        if "embedded_guidance" in config:
            denoiser.net.guidance = config["embedded_guidance"]
        return Student.from_teacher(base, denoiser, config)
    except (LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: a student of the teacher {name!r}, which is needed: {error}") from None


def absolute_name(name: str) -> str:
    """Return a name that loads the model from any working directory: a path becomes absolute, other names stay."""
    name = in_models_folder(name)
    return str(Path(name).resolve()) if name not in bundled_models() and Path(name).exists() else name


def in_models_folder(name: str) -> str:
    """Return models/NAME for the bare name of a folder in models/ that stands for nothing else; other names as is."""
    path = Path("models", name)
    is_known = name in bundled_models() or name in NAMES or Path(name).exists()
    return str(path) if Path(name).name == name and path.is_dir() and not is_known else name


def display_name(name: str) -> str:
    """Return a name to publish: the last part of an absolute path, other names as they are."""
    return Path(name).name if Path(name).is_absolute() else name


def unknown_model(name: str) -> ValueError:
    """Return the error for an unknown name, with the names that are known and the nearest of them."""
    path = Path(name)
    if path.suffix in {".pkl", ".safetensors", *WEIGHTS_ONLY} or len(path.parts) > 1:
        return ValueError(f"there is no file or folder {name}{did_you_mean(name, neighbours(path))}")
    models = [
        name
        for name, folder in bundled_models().items()
        if is_diffusers(folder) or read_json(folder / "config.json")["kind"] != "feature_extractor"
    ]
    in_models = [folder.name for folder in Path("models").glob("*")]
    if hint := did_you_mean(name, [*models, *NAMES, *neighbours(path), *in_models]):
        advice = "A model of the repository's folder models/ needs a checkout, or $DMDISTILL_MODELS"
        return ValueError(f"unknown model {name!r}{hint} {advice}")
    known = [
        *models,
        summary(),
        "a model of the repository's folder models/ (in a checkout, or by $DMDISTILL_MODELS)",
        FORMS,
    ]
    return ValueError(f"unknown model {name!r}. Known: {', '.join(known)}")


def neighbours(path: Path) -> list[str]:
    """Return the paths of what lies in a path's folder; nothing where there is no such folder."""
    try:
        return [str(path.with_name(other.name)) for other in path.parent.iterdir()]
    except (OSError, ValueError):
        return []
