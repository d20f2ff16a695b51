"""`dmdistill convert`: a checkpoint as a model folder, LPIPS' weights as one file, or Fashion-MNIST with captions."""

from __future__ import annotations

from pathlib import Path

from dmdistill.commands.convert.config import ConvertConfig
from dmdistill.commands.options import check
from dmdistill.commands.run_folder import DTYPES
from dmdistill.data.fashion_captions import write_captioned_images, write_captions
from dmdistill.data.training_set import load_labelled_images
from dmdistill.io.atomic import atomic_write
from dmdistill.io.console import say
from dmdistill.io.folders import cache_folder, new_folder
from dmdistill.metrics.lpips_weights import FILE, load_lpips, make_lpips
from dmdistill.models.cards import teacher_card
from dmdistill.models.folder import save_model
from dmdistill.models.load import load_teacher

__all__ = ["convert"]


def convert(config: ConvertConfig) -> None:
    """Write model.safetensors, config.json and README.md into `config.out`, all of them or none; or one file.

    ValueError for a model of another package's network, and for a folder or file that already exists.
    """
    check(config)
    if config.model == "lpips":
        return convert_lpips(config.out or cache_folder() / FILE, config)
    assert config.out is not None  # says the check
    if config.model == "fashion-captions":
        return convert_captions(config.out, config.data)
    return convert_teacher(config.out, config)


def convert_lpips(file: Path, config: ConvertConfig) -> None:
    """Write LPIPS' weights, and read them again, which names those that are not the published ones."""
    if file.exists():
        raise ValueError(f"{file} already exists: LPIPS is there, or remove it")
    make_lpips(file, vgg16=config.vgg16, heads=config.heads)
    load_lpips(file.absolute())
    use = "found by all commands" if config.out is None else f"give it by --lpips-weights {file}"
    say(f"LPIPS: {file.stat().st_size / 1e6:.1f} MB of weights in {file}, {use}")


def convert_captions(file: Path, source: str) -> None:
    """Write images with captions, or the captions only."""
    if file.exists():
        raise ValueError(f"{file} already exists: choose another file, or remove it")
    train = not source.endswith(":test")
    data = load_labelled_images(Path(source.removesuffix(":test")), train=train)
    if data.name != "fashion":
        raise ValueError(f"--data {source}: expected Fashion-MNIST, whose classes the captions name")
    if file.suffix == ".zip":
        write_captioned_images(file, data)
    else:
        with atomic_write(file) as temporary:
            temporary.write_text("".join(f"{text}\n" for text in write_captions(data)), encoding="utf-8")
    say(f"{len(data)} captions{' with their images' if file.suffix == '.zip' else ''} in {file}")


def convert_teacher(out: Path, config: ConvertConfig) -> None:
    """Write a teacher's folder."""
    with new_folder(out) as folder:
        teacher = load_teacher(config.model)
        if "network" not in teacher.config:
            raise ValueError(f"{config.model} has a network of another package, which needs no conversion")
        card = teacher_card(teacher, {"converted_from": config.model, "save_dtype": config.save_dtype})
        save_model(folder, teacher, card=card, dtype=DTYPES[config.save_dtype])
    megabytes = (out / "model.safetensors").stat().st_size / 1e6
    say(f"{teacher.name}: {megabytes:.1f} MB of {config.save_dtype} weights, with config.json and README.md, in {out}")
