"""A teacher and its students as a folder to publish: fp16 or bf16 weights, cards with figures, no path of this machine.

    python benchmarks/release.py --teacher MODEL --student MODEL [5to1=MODEL ...] --name NAME --out FOLDER
        [--figures TEACHER.json STUDENT.json ...]

FOLDER/NAME, FOLDER/NAME-student and FOLDER/NAME-5to1 load by these names where $DMDISTILL_MODELS is FOLDER. The figures
are what `dmdistill evaluate --json` wrote. What rounding changes in the images is measured and printed.
"""

from __future__ import annotations

import argparse
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dmdistill.io.atomic import read_json
from dmdistill.models.cards import quality, shown, student_card, teacher_card
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
    taught: dict[str, Any],
    figures: list[Path],
    dtype: str,
) -> dict[str, float]:
    """Write all of them; answers with the largest change of a pixel, in [0, 2], over 8 images of each.

    students: by what stands behind the teacher's name. figures: of the teacher, then of them in this order.
    """
    teacher = replace(teacher, name=name, config=teacher.config | {"name": name})
    named: dict[str, Model] = {name: teacher}
    cards = {name: teacher_card(teacher, taught)}
    for one, student in students.items():
        own, distilled = f"{name}-{one}", student.config.get("distilled", {})
        settings = {key: shown(value) for key, value in distilled.items()} | {"teacher": name}
        named[own] = published = replace(
            student, name=own, config=student.config | {"name": own, "distilled": settings}
        )
        cards[own] = student_card(published, settings)
    rows = [read_json(file) | {"model": own} for own, file in zip(named, figures, strict=False)]
    changes = {}
    for one, model in named.items():
        save_model(out / one, model, card=cards[one] + quality(rows), dtype=DTYPES[dtype])
        changes[one] = change(model, load_model(str(out / one)))
    return changes


def change(model: Model, stored: Model) -> float:
    z, cond = model.sample_inputs(8, rng=torch.Generator().manual_seed(0))
    return (model.images(z, cond) - stored.images(z, cond)).abs().max().item()


def settings_of(model: str) -> dict[str, Any]:
    """Of the run that the teacher is in; nothing where it is in none."""
    file = next(
        (at / "config.toml" for at in (Path(model), Path(model).parent) if (at / "config.toml").is_file()), None
    )
    return tomllib.loads(file.read_text(encoding="utf-8")) if file else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("teacher", "name"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--student", nargs="+", required=True, metavar="[NAME=]MODEL")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figures", type=Path, nargs="*", default=[])
    parser.add_argument("--store", choices=DTYPES, default="fp16")
    parser.add_argument("--most", type=float, default=60, help="megabytes that the folder may take")
    asked = parser.parse_args()
    teacher = load_model(asked.teacher)
    assert isinstance(teacher, Teacher), f"{asked.teacher} is no teacher"
    students: dict[str, Student] = {}
    for word in asked.student:
        name, path = word.split("=", 1) if "=" in word else ("student", word)
        student = load_model(path)
        assert isinstance(student, Student), f"{path} is no student"
        students[name] = student
    given = {"taught": settings_of(asked.teacher), "figures": asked.figures, "dtype": asked.store}
    for name, most in release(teacher, students, asked.out, name=asked.name, **given).items():
        print(f"{asked.out / name}: {asked.store} changes a pixel by {127.5 * most:.2g} of 255 at most, over 8 images")
    megabytes = sum(file.stat().st_size for file in asked.out.rglob("*") if file.is_file()) / 1e6
    print(f"{megabytes:.1f} MB in all")
    if megabytes > asked.most:
        raise SystemExit(f"{asked.out} takes {megabytes:.1f} MB, expected at most {asked.most}")


if __name__ == "__main__":
    main()
