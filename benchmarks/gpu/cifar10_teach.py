"""A teacher of CIFAR-10, in calls of a few minutes each, on one computer or on several in turn.

    python benchmarks/gpu/cifar10_teach.py --data DATA --store STORE --out OUT --seconds 520 [-- FLAGS OF TEACH]

STORE/teacher is the run: it is resumed if it exists, or from STORE/teacher.light, which an earlier computer wrote.
OUT gets what has to be copied from the computer: teacher.json (steps, images per second,
memory), the log, the newest samples, and the parts of the finished teacher's folder or, before that, of its light file.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from lease import compute, last_step, rate, stop_after
from light_checkpoint import pack_run, unpack_run
from parcels import split

from dmdistill.commands.cli import main as dmdistill
from dmdistill.commands.presets import from_run
from dmdistill.commands.teach.config import TeachConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "store", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=520)
    parser.add_argument("--mib", type=float, default=15, help="largest size of a part")
    parser.add_argument("flags", nargs="*", help="of dmdistill teach, for a run that begins")
    options = parser.parse_args()
    run, light = options.store / "teacher", options.store / "teacher.light"
    if not (run / "config.toml").is_file() and light.is_file():
        print(f"resuming from step {unpack_run(light, run)}")
    before = last_step(run)
    exists = (run / "config.toml").is_file()
    flags = ["--resume", run, "--data", options.data] if exists else ["--data", options.data, "--out", run]
    with stop_after(options.seconds):
        dmdistill(["teach", *([] if exists else ["--preset", "cifar10-small"]), *map(str, flags), *options.flags])
    report(run, options.out, before=before, mib=options.mib)


def report(run: Path, out: Path, *, before: int, mib: float) -> None:
    """Write what has to be copied from the computer."""
    out.mkdir(parents=True, exist_ok=True)
    found = rate(run, since=before)
    config = from_run(TeachConfig, run)
    if "steps_per_second" in found:
        found["images_per_second"] = round(found["steps_per_second"] * config.batch, 1)
    finished = (run / "teacher" / "config.json").is_file()
    about = {"step": last_step(run), "of": config.steps, "finished": finished, **found, **compute()}
    (out / "teacher.json").write_text(json.dumps(about, indent=2) + "\n")
    shutil.copyfile(run / "metrics.jsonl", out / "metrics.jsonl")
    for picture in sorted((run / "samples").glob("*.png"))[-1:]:
        shutil.copyfile(picture, out / "samples.png")
    if finished:
        split(run / "teacher", out, mib=mib)
    else:
        pack_run(run, out / "teacher.light")
        split(out / "teacher.light", out / "parts", mib=mib)
        (out / "teacher.light").unlink()
    print(json.dumps(about, indent=2))


if __name__ == "__main__":
    main()
