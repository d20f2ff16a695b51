"""`dmdistill export`: a student as a folder that diffusers loads without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from dmdistill.commands.export.config import ExportConfig
from dmdistill.commands.export.latent import write_pipeline
from dmdistill.commands.export.pixel import write_custom
from dmdistill.io.atomic import atomic_folder, read_json
from dmdistill.io.errors import first_line, import_optional
from dmdistill.io.folders import check_new_folder
from dmdistill.models.cards import export_card
from dmdistill.models.load import load_model
from dmdistill.models.model import Student
from dmdistill.networks.diffusers_wrappers import DiffusersWrapper

__all__ = ["export"]


def export(config: ExportConfig) -> Path:
    """Write the folder, whole or not at all, and push it to the hub where asked. ValueError for what is no student."""
    check_new_folder(config.out, "choose another folder")
    import_optional("diffusers", "export", extra="diffusers")
    student = load_model(config.student)
    if not isinstance(student, Student):
        raise ValueError(f"{config.student} is a teacher; a student is exported")
    with atomic_folder(config.out) as temporary:
        use = write(student, temporary)
        card = export_card(student, use, compute_metrics(config.student))
        (temporary / "README.md").write_text(card, encoding="utf-8")
    console = Console(highlight=False)
    console.print(f"{student.name} for diffusers in {config.out}", soft_wrap=True, markup=False)
    if config.push_to_hub is not None:
        console.print(f"pushed to {push(config.out, config.push_to_hub)}", soft_wrap=True, markup=False)
    return config.out


def write(student: Student, folder: Path) -> str:
    """Fill an empty folder; answer with the code to use it: of diffusers' own pipeline where one fits, else of ours."""
    if isinstance(student.network, DiffusersWrapper) and (student.text is not None or student.autoencoder is not None):
        return write_pipeline(student, folder)
    return write_custom(student, folder)


def compute_metrics(name: str) -> dict[str, Any]:
    """The report of the run whose folder, or whose student's, this is; nothing where there is none."""
    run = Path(name).parent if Path(name).name == "student" else Path(name)
    file = run / "report.json"
    return read_json(file) if file.is_file() else {}


def push(folder: Path, name: str) -> str:
    """Upload to the hub as `name` (owner/repository), which is made where there is none. Answers with its address."""
    from huggingface_hub import HfApi

    try:
        address = HfApi().create_repo(name, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder)
    except Exception as error:  # its many kinds have no base of their own
        raise ValueError(f"{folder} is written, but was not pushed to {name}: {first_line(error)}") from None
    return str(address)
