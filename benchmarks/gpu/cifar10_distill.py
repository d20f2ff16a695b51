"""A one-step student of CIFAR-10's teacher, in calls of a few minutes each on one computer.

    python benchmarks/gpu/cifar10_distill.py --store STORE --out OUT --seconds 520 [--preset cifar10-small-5to1]
        [--reference DATA] [-- FLAGS OF DISTILL]

STORE/teacher is the teacher's folder, STORE/lpips_vgg16.safetensors the weights of LPIPS. Pairs are made first, in
STORE/pairs, for both presets; the next call makes those that are missing. STORE/PRESET is the run. With
--reference the best weights by FID becomes the student. OUT gets distill.json (steps per second, seconds of the pairs,
memory), the log, the newest samples, and the parts of the finished student's folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

from lease import compute, last_step, rate, stop_after
from parcels import split

from dmdistill.commands.cli import main as dmdistill
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.pairs.config import PairsConfig
from dmdistill.commands.presets import from_preset, from_run
from dmdistill.data.pairs import open_pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("store", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--preset", default="cifar10-small")
    parser.add_argument("--reference", help="real images, or EDM's statistics of them")
    parser.add_argument("--seconds", type=float, default=520)
    parser.add_argument("--mib", type=float, default=15, help="largest size of a part")
    parser.add_argument(
        "--pairs", nargs="*", default=[], help="flags of dmdistill pairs, without their dashes: pair-count=100"
    )
    parser.add_argument("flags", nargs="*", help="of dmdistill distill, for a run that begins")
    options = parser.parse_args()
    start = time.perf_counter()
    make_pairs(options)
    left = options.seconds - (time.perf_counter() - start)
    run = options.store / options.preset
    before = last_step(run)
    if left > 0:
        with stop_after(left):
            distill(options, run)
    report(options, run, before=before)


def make_pairs(options: argparse.Namespace) -> None:
    """Make the preset's pairs, or those that are missing."""
    flags = [f"--{flag}" for flag in options.pairs]
    folders = ["--teacher", str(options.store / "teacher"), "--out", str(options.store / "pairs")]
    dmdistill(["pairs", "--preset", options.preset, *folders, *flags])


def distill(options: argparse.Namespace, run: Path) -> None:
    """Begin the run, or resume it."""
    if (run / "checkpoints").is_dir():
        dmdistill(["distill", "--resume", str(run), *options.flags])
        return
    shutil.rmtree(run, ignore_errors=True)  # it stopped before its first step: there is nothing to resume
    given = {"teacher": "teacher", "pairs": "pairs", "lpips-weights": "lpips_vgg16.safetensors"}
    flags = [word for name, file in given.items() for word in (f"--{name}", str(options.store / file))]
    flags += ["--reference", options.reference] if options.reference else []
    dmdistill(["distill", "--preset", options.preset, "--out", str(run), *flags, *options.flags])


def report(options: argparse.Namespace, run: Path, *, before: int) -> None:
    """Write what has to be copied from the computer."""
    options.out.mkdir(parents=True, exist_ok=True)
    pairs = open_pairs(options.store / "pairs")
    exists = (run / "config.toml").is_file()
    config = from_run(DistillConfig, run) if exists else from_preset(DistillConfig, options.preset)
    about = {
        "preset": options.preset,
        "step": last_step(run),
        "of": config.steps,
        "finished": (run / "student" / "config.json").is_file(),
        **rate(run, since=before),
        "pairs": len(pairs),
        "seconds_per_pair": pairs.seconds_per_image,
        "evaluations_per_pair": 2 * from_preset(PairsConfig, options.preset).ode.solver_steps - 1,
        **compute(),
    }
    (options.out / "distill.json").write_text(json.dumps(about, indent=2) + "\n")
    if (run / "metrics.jsonl").is_file():
        shutil.copyfile(run / "metrics.jsonl", options.out / "metrics.jsonl")
    for picture in sorted((run / "samples").glob("*.png"))[-1:]:
        shutil.copyfile(picture, options.out / "samples.png")
    if about["finished"]:
        split(run / "student", options.out, mib=options.mib)
    print(json.dumps(about, indent=2))


if __name__ == "__main__":
    main()
