"""Publish a teacher and its students: fp16 or bf16 weights, model cards with their metrics, no path of this computer.

    python benchmarks/release.py --teacher MODEL --student MODEL [5to1=MODEL ...] --name NAME --out FOLDER
        [--reports TEACHER.json STUDENT.json ...]

FOLDER/NAME, FOLDER/NAME-student and FOLDER/NAME-5to1 load by these names where $DMDISTILL_MODELS is FOLDER. The reports
are files of `dmdistill evaluate --json`. How much rounding changes the images is measured and printed.
"""

from __future__ import annotations

import argparse
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dmdistill.io.atomic import read_json
from dmdistill.models.cards import public_settings, quality_table, student_card, teacher_card
from dmdistill.models.folder import save_model
from dmdistill.models.load import load_model
from dmdistill.models.model import Model, Student, Teacher

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def release(
    teacher: Teacher,
    students: dict[str, Student],
    out: Path,
    *,
    name: str,
    settings: dict[str, Any],
    reports: list[Path],
    dtype: str,
) -> dict[str, float]:
    """Write the folders of a teacher and its students; return the largest change of a pixel by rounding, for each.

    Args:
        teacher: teacher to publish.
        students: its students, by what follows the teacher's name in theirs.
        out: folder to write to.
        name: name of the teacher.
        settings: of the teacher's training, for its card.
        reports: files of metrics of the teacher and of the students, in this order.
        dtype: of the weights, a key of `DTYPES`.
    """
    teacher = replace(teacher, name=name, config=teacher.config | {"name": name})
    models: dict[str, Model] = {name: teacher}
    cards = {name: teacher_card(teacher, settings)}
    for suffix, student in students.items():
        own, distilled = f"{name}-{suffix}", student.config.get("distilled", {})
        published = public_settings(distilled) | {"teacher": name}
        config = student.config | {"name": own, "distilled": published}
        models[own] = student = replace(student, name=own, config=config)
        cards[own] = student_card(student, published)
    rows = [read_json(file) | {"model": own} for own, file in zip(models, reports, strict=False)]
    changes = {}
    for own, model in models.items():
        save_model(out / own, model, card=cards[own] + quality_table(rows), dtype=DTYPES[dtype])
        changes[own] = largest_change(model, load_model(str(out / own)))
    return changes


def largest_change(model: Model, stored: Model) -> float:
    """Return the largest difference of a pixel, in [0, 2], over 8 images."""
    z, cond = model.sample_inputs(8, rng=torch.Generator().manual_seed(0))
    return (model.images(z, cond) - stored.images(z, cond)).abs().max().item()


def run_settings(model: str) -> dict[str, Any]:
    """Read the settings of the run that a model's folder is in; {} if it is in none."""
    files = [folder / "config.toml" for folder in (Path(model), Path(model).parent)]
    file = next((file for file in files if file.is_file()), None)
    return tomllib.loads(file.read_text(encoding="utf-8")) if file else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("teacher", "name"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--student", nargs="+", required=True, metavar="[NAME=]MODEL")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reports", type=Path, nargs="*", default=[])
    parser.add_argument("--dtype", choices=DTYPES, default="fp16")
    parser.add_argument("--most", type=float, default=60, help="largest size of the folder, in megabytes")
    options = parser.parse_args()
    teacher = load_model(options.teacher)
    assert isinstance(teacher, Teacher), f"{options.teacher} is no teacher"
    students: dict[str, Student] = {}
    for word in options.student:
        suffix, path = word.split("=", 1) if "=" in word else ("student", word)
        student = load_model(path)
        assert isinstance(student, Student), f"{path} is no student"
        students[suffix] = student
    given = {"settings": run_settings(options.teacher), "reports": options.reports, "dtype": options.dtype}
    for name, most in release(teacher, students, options.out, name=options.name, **given).items():
        change = f"{options.dtype} changes a pixel by {127.5 * most:.2g} of 255 at most, over 8 images"
        print(f"{options.out / name}: {change}")
    megabytes = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file()) / 1e6
    print(f"{megabytes:.1f} MB in all")
    if megabytes > options.most:
        raise SystemExit(f"{options.out} takes {megabytes:.1f} MB, expected at most {options.most}")


if __name__ == "__main__":
    main()
