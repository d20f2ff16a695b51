"""A one-step student of CIFAR-10's teacher, in calls of a few minutes each on one machine.

    python benchmarks/gpu/cifar10_distill.py --store STORE --out OUT --seconds 520 [--preset cifar10-small-5to1]
        [--reference DATA] [-- FLAGS OF DISTILL]

STORE/teacher is the teacher's folder, STORE/lpips_vgg16.safetensors the weights of LPIPS. Pairs are made first, in
STORE/pairs, and serve both presets; what is missing of them is made by the next call. STORE/PRESET is the run. With
--reference the best state by FID becomes the student. OUT gets distill.json (steps per second, seconds of the pairs,
memory), the log, the newest samples, and the parts of the finished student's folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

from lease import compute, ending_after, rate, steps_of
from parcels import split

from dmdistill.commands.cli import main as dmdistill
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.pairs.config import PairsConfig
from dmdistill.commands.presets import from_preset, with_run
from dmdistill.data.pairs import open_pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("store", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--preset", default="cifar10-small")
    parser.add_argument("--reference", help="real images, or EDM's statistics of them")
    parser.add_argument("--seconds", type=float, default=520)
    parser.add_argument("--mib", type=float, default=15, help="of a part at most")
    parser.add_argument(
        "--pairs", nargs="*", default=[], help="flags of dmdistill pairs, without their dashes: count=100"
    )
    parser.add_argument("flags", nargs="*", help="of dmdistill distill, for a run that begins")
    asked = parser.parse_args()
    began = time.perf_counter()
    make_pairs(asked)
    left = asked.seconds - (time.perf_counter() - began)
    run = asked.store / asked.preset
    before = steps_of(run)
    if left > 0:
        with ending_after(left):
            distill(asked, run)
    report(asked, run, before=before)


def make_pairs(asked: argparse.Namespace) -> None:
    """Those of the preset, or what is missing of them."""
    flags = [f"--{flag}" for flag in asked.pairs]
    folders = ["--teacher", str(asked.store / "teacher"), "--out", str(asked.store / "pairs")]
    dmdistill(["pairs", "--preset", asked.preset, *folders, *flags])


def distill(asked: argparse.Namespace, run: Path) -> None:
    if (run / "checkpoints").is_dir():
        dmdistill(["distill", "--resume", str(run), *asked.flags])
        return
    shutil.rmtree(run, ignore_errors=True)  # what was stopped before its first step has nothing to go on with
    given = {"teacher": "teacher", "pairs": "pairs", "lpips-weights": "lpips_vgg16.safetensors"}
    flags = [word for name, file in given.items() for word in (f"--{name}", str(asked.store / file))]
    flags += ["--reference", asked.reference] if asked.reference else []
    dmdistill(["distill", "--preset", asked.preset, "--out", str(run), *flags, *asked.flags])


def report(asked: argparse.Namespace, run: Path, *, before: int) -> None:
    """Write what has to leave the machine."""
    asked.out.mkdir(parents=True, exist_ok=True)
    pairs = open_pairs(asked.store / "pairs")
    begun = (run / "config.toml").is_file()
    config = with_run(DistillConfig(), run) if begun else from_preset(DistillConfig, asked.preset)
    about = {
        "preset": asked.preset,
        "step": steps_of(run),
        "of": config.steps,
        "finished": (run / "student" / "config.json").is_file(),
        **rate(run, since=before),
        "pairs": len(pairs),
        "seconds_per_pair": pairs.seconds_per_image,
        "evaluations_per_pair": 2 * from_preset(PairsConfig, asked.preset).ode.solver_steps - 1,
        **compute(),
    }
    (asked.out / "distill.json").write_text(json.dumps(about, indent=2) + "\n")
    if (run / "metrics.jsonl").is_file():
        shutil.copyfile(run / "metrics.jsonl", asked.out / "metrics.jsonl")
    for picture in sorted((run / "samples").glob("*.png"))[-1:]:
        shutil.copyfile(picture, asked.out / "samples.png")
    if about["finished"]:
        split(run / "student", asked.out, mib=asked.mib)
    print(json.dumps(about, indent=2))


if __name__ == "__main__":
    main()
