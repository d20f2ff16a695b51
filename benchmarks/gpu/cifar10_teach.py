"""A teacher of CIFAR-10, in calls of a few minutes each, on one machine or on several in turn.

    python benchmarks/gpu/cifar10_teach.py --data DATA --store STORE --out OUT --seconds 520 [-- FLAGS OF TEACH]

STORE/teacher is the run: begun where there is none, gone on with where there is one, or where STORE/teacher.light is
what an earlier machine left of it. OUT gets what has to leave the machine: teacher.json (steps, images per second,
memory), the log, the newest samples, and the parts of the finished teacher's folder or, before that, of its light file.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from lease import compute, ending_after, rate, steps_of
from light_checkpoint import pack_run, unpack_run
from parcels import split

from dmdistill.commands.cli import main as dmdistill
from dmdistill.commands.presets import with_run
from dmdistill.commands.teach.config import TeachConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "store", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=520)
    parser.add_argument("--mib", type=float, default=15, help="of a part at most")
    parser.add_argument("flags", nargs="*", help="of dmdistill teach, for a run that begins")
    asked = parser.parse_args()
    run, light = asked.store / "teacher", asked.store / "teacher.light"
    if not (run / "config.toml").is_file() and light.is_file():
        print(f"going on from step {unpack_run(light, run)}")
    before = steps_of(run)
    begun = (run / "config.toml").is_file()
    flags = ["--resume", run, "--data", asked.data] if begun else ["--data", asked.data, "--out", run]
    with ending_after(asked.seconds):
        dmdistill(["teach", *([] if begun else ["--preset", "cifar10-small"]), *map(str, flags), *asked.flags])
    report(run, asked.out, before=before, mib=asked.mib)


def report(run: Path, out: Path, *, before: int, mib: float) -> None:
    """Write what has to leave the machine."""
    out.mkdir(parents=True, exist_ok=True)
    found = rate(run, since=before)
    config = with_run(TeachConfig(), run)
    if "steps_per_second" in found:
        found["images_per_second"] = round(found["steps_per_second"] * config.batch, 1)
    finished = (run / "teacher" / "config.json").is_file()
    about = {"step": steps_of(run), "of": config.steps, "finished": finished, **found, **compute()}
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
