"""One teacher under four parameterisations, distilled alike: are the students alike?

    python benchmarks/parameterisations.py OUT

distills each function of examples/parameterisations.py from the same seed, and the first once more from another seed,
to show what one run differs from the next. Runs that are finished stay; the table is printed and kept in
OUT/table.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dmdistill import Distill, distill, from_preset
from dmdistill.app.config import Machine
from dmdistill.files import read_json, write_json

SETTINGS = {
    "pair_count": 1000,
    "steps": 240,
    "match_from": 0.75,
    "rewarm": True,
    "evaluate_every": 240,
    "evaluate_images": 1000,
    "report_images": 2000,
    "sample_every": 240,
}
RUNS = [("edm", 0), ("edm", 1), ("eps", 0), ("v", 0), ("velocity", 0)]


def frechet(kind: str, seed: int, out: Path) -> tuple[float, float]:
    """Of teacher and student, over 2,000 images in the judge's features."""
    run = out / f"{kind}-{seed}"
    if not (run / "report.json").exists():
        teacher = f"examples.parameterisations:{kind}"
        distill(
            from_preset(Distill, "fashion", teacher=teacher, out=run, seed=seed, machine=Machine(threads=1), **SETTINGS)
        )
    report = read_json(run / "report.json")
    return tuple(next(iter(report[model]["metrics"].values())) for model in ("teacher", "student"))  # type: ignore[return-value]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    table, rows = Table("parameterisation", "seed", "teacher", "student"), []
    for kind, seed in RUNS:
        teacher, student = frechet(kind, seed, out)
        rows.append({"parameterisation": kind, "seed": seed, "teacher": teacher, "student": student})
        table.add_row(kind, str(seed), f"{teacher:.3f}", f"{student:.3f}")
    write_json(out / "table.json", rows)
    Console().print(table)
