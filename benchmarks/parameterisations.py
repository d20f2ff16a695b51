"""One teacher under four parameterisations, distilled alike: are the students alike?

    python benchmarks/parameterisations.py OUT [--own-pairs]

distills each function of examples/parameterisations.py from the same seed, and the first once more from another seed,
to show how much runs differ. All use the same pairs, those of v's teacher, unless --own-pairs lets each one's solver
make its own, on its own grid. Finished runs are not repeated; the table is printed and written to OUT/table.json.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dmdistill import DistillConfig, distill, from_preset, load_model, load_teacher
from dmdistill.commands.evaluate.generated_images import generate_images
from dmdistill.commands.options import ComputeOptions
from dmdistill.commands.pairs.command import make_teacher_pairs
from dmdistill.commands.run_folder import setup_compute
from dmdistill.data.image_tensors import to_uint8
from dmdistill.io.atomic import read_json, write_json
from dmdistill.metrics.classifier_features import load_classifier_features
from dmdistill.metrics.frechet import accumulate_moments, frechet_distance
from dmdistill.models.fingerprint import fingerprint

PAIRS = 1000
SETTINGS = {
    "pair_count": PAIRS,
    "steps": 240,
    "match_from": 0.75,
    "rewarm": True,
    "evaluate_every": 240,
    "evaluate_images": 1000,
    "report_images": 0,
    "sample_every": 240,
}
RUNS = [("edm", 0), ("edm", 1), ("eps", 0), ("v", 0), ("velocity", 0)]


def student(kind: str, seed: int, out: Path, *, own_pairs: bool) -> float:
    """Distill a student; return its Frechet distance, over 2,000 images in the features of the bundled classifier."""
    run, teacher = out / f"{kind}-{seed}", f"examples.parameterisations:{kind}"
    if not (run / "student").exists():
        pairs = None if own_pairs else shared_pairs(teacher, out)
        given = {"teacher": teacher, "pairs": pairs, "seed": seed, "compute": ComputeOptions(threads=1)}
        distill(from_preset(DistillConfig, "fashion", out=run, **given, **SETTINGS))
    model = load_model(str(run / "student"))
    feature_extractor = load_classifier_features("fashion-classifier", model.device)
    images = map(to_uint8, generate_images(model, 2000, batch=500, seed=3))
    return frechet_distance(accumulate_moments(feature_extractor, images).statistics(), feature_extractor.reference)


def shared_pairs(teacher: str, out: Path) -> Path:
    """Make the pairs of v's teacher and copy them as this one's: all four are one network with the same ODE."""
    pairs, maker = out / "pairs", load_teacher("examples.parameterisations:v")
    maker.to(*setup_compute(ComputeOptions(threads=1)))
    make_teacher_pairs(maker, pairs, count=PAIRS, seed=0, batch=100)
    named = shutil.copytree(pairs, out / f"pairs-{teacher.rpartition(':')[2]}", dirs_exist_ok=True)
    settings = read_json(pairs / "pairs.json") | {"teacher": fingerprint(load_teacher(teacher))}
    write_json(named / "pairs.json", {name: value for name, value in settings.items() if name != "crc32"})
    return named


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One teacher under four parameterisations, distilled alike.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--own-pairs", action="store_true")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent.parent))
    table, rows = Table("parameterisation", "seed", "Frechet distance"), []
    for kind, seed in RUNS:
        distance = student(kind, seed, arguments.out, own_pairs=arguments.own_pairs)
        rows.append({"parameterisation": kind, "seed": seed, "frechet": distance})
        table.add_row(kind, str(seed), f"{distance:.3f}")
    write_json(arguments.out / "table.json", rows)
    Console().print(table)
