"""`dmdistill export`: a student as a folder that diffusers loads without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmdistill.commands.export.config import ExportConfig
from dmdistill.commands.export.latent import export_pipeline
from dmdistill.commands.export.pixel import export_pixel_pipeline
from dmdistill.commands.export.precision import choose_dtype
from dmdistill.commands.export.single_file import export_single_file
from dmdistill.commands.export.write_errors import describe_folder_errors
from dmdistill.io.atomic import read_json, write_json
from dmdistill.io.checksums import add_checksum, pop_checksum
from dmdistill.io.console import say
from dmdistill.io.errors import first_line, import_optional
from dmdistill.io.folders import new_folder
from dmdistill.models.cards import export_card
from dmdistill.models.config_json import STUDENT_KEYS
from dmdistill.models.diffusers_folder import METADATA_FILE, PARTS, TEXTS
from dmdistill.models.load import load_model
from dmdistill.models.model import Student
from dmdistill.networks.diffusers_wrappers import DiffusersWrapper

__all__ = ["export"]


def export(config: ExportConfig) -> Path:
    """Write the folder, in full or not at all, and upload it where `config.push_to_hub` is given. Returns the folder.

    Raises:
        ValueError: for a teacher, a student that diffusers cannot run, and a folder that already exists.
        OSError: the folder cannot be written.
    """
    import_optional("diffusers", "export", extra="diffusers")
    with new_folder(config.out) as folder:
        student = load_model(config.student)
        if not isinstance(student, Student):
            raise ValueError(f"{config.student} is a teacher, expected a student")
        with describe_folder_errors(config.out, folder):
            write_export(student, folder, config)
    form = "for diffusers" if config.format == "diffusers" else "as a single file"
    say(f"{student.name} {form} in {config.out}")
    say(f"how to load it: {config.out / 'README.md'}")
    if config.push_to_hub is not None:
        say(f"pushed to {push_to_hub(config.out, config.push_to_hub)}")
    return config.out


def write_export(student: Student, folder: Path, config: ExportConfig) -> None:
    """Write the model, by a pipeline class of diffusers where one fits, and its card into an empty folder."""
    latent = student.text is not None or student.autoencoder is not None
    write = export_pipeline if latent and isinstance(student.network, DiffusersWrapper) else export_pixel_pipeline
    write = write if config.format == "diffusers" else export_single_file
    code = write(student, folder, choose_dtype(config.save_dtype, student, config.student))
    card = export_card(student, code, read_report(config.student))
    (folder / "README.md").write_text(card, encoding="utf-8")
    keys = (*TEXTS, *STUDENT_KEYS) if isinstance(student.network, DiffusersWrapper) else (*TEXTS, *STUDENT_KEYS, *PARTS)
    entries = {key: student.config[key] for key in ("classes", *keys) if student.config.get(key)}
    write_json(folder / METADATA_FILE, add_checksum(entries))
    for file in filter(Path.is_file, folder.rglob("*")):  # safetensors' files are readable by their owner only
        file.chmod((folder / "README.md").stat().st_mode)


def read_report(name: str) -> dict[str, Any]:
    """Return the report of the run that a run's or a student's folder belongs to; empty without a report."""
    run = Path(name).parent if Path(name).name == "student" else Path(name)
    file = run / "report.json"
    report = read_json(file) if file.is_file() else {}
    if isinstance(report, dict):
        pop_checksum(report, file)
    return report


def push_to_hub(folder: Path, name: str) -> str:
    """Upload a folder to the hub as `name` (owner/repository), creating it where needed. Returns its address."""
    from huggingface_hub import HfApi

    try:
        address = HfApi().create_repo(name, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder)
    except Exception as error:  # huggingface_hub's errors have no common base
        raise ValueError(f"{folder} is written, but was not pushed to {name}: {first_line(error)}") from None
    return str(address)
