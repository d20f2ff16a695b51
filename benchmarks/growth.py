"""How processor time and peak memory grow.

That is of a step with the batch, the resolution, the parameters and the processes, of making pairs with their number,
and of an evaluation with the images.

    nice python benchmarks/growth.py --out growth.jsonl --plot growth.png
    nice python benchmarks/growth.py --out growth.jsonl --batch 1 8 --resolution 16 32

Each row is measured in a process of its own, with one thread, and appended to a file: rows that are there are kept, so
that an interrupted measurement is resumed. Processor time does not count what other processes take of a busy machine.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from matplotlib.figure import Figure
from resident import peak_resident_size, resident_size, run_json
from step_cases import randomize

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.evaluate.command import evaluate
from dmdistill.commands.evaluate.config import EvaluateConfig
from dmdistill.commands.options import ComputeOptions
from dmdistill.commands.pairs.command import make_teacher_pairs
from dmdistill.commands.plan.dry_run import DryRun, dry_run
from dmdistill.commands.presets import from_preset
from dmdistill.core.denoisers import EDMDenoiser
from dmdistill.core.schedules import EDM
from dmdistill.data.conditions import LabelSpace
from dmdistill.models.model import Teacher
from dmdistill.networks.song_unet import SongUNet

BASE = {"batch": 8, "resolution": 16, "channels": 24}
AXES = {
    "batch": [1, 2, 8, 32, 128, 512],
    "resolution": [16, 32, 64, 128],
    "channels": [24, 48, 96, 192, 292],
    "processes": [1, 2, 4],
    "pairs": [500, 2000, 8000],
    "images": [500, 2000, 8000],
}
TOTAL_BATCH = 32  # of the processes together
Rows = list[dict[str, float]]


def build_teacher(resolution: int, channels: int) -> Teacher:
    """Build a U-Net without attention, whose parameters are about 700 channels^2."""
    shape: dict[str, Any] = {"channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": ()}
    network = SongUNet(
        img_resolution=resolution, in_channels=3, out_channels=3, label_dim=10, model_channels=channels, **shape
    )
    labels = LabelSpace(tuple("0123456789"))
    denoiser = EDMDenoiser(randomize(network), EDM())
    return Teacher(name="growth", denoiser=denoiser, shape=(3, resolution, resolution), conditions=labels)


def timed_step(run: DryRun) -> float:
    """Return the processor seconds of a step with every update."""
    started = time.process_time()
    run.iterate(run.config.steps - 1)
    return time.process_time() - started


def measure(batch: int, resolution: int, channels: int, repeats: int = 2) -> dict[str, float]:
    """Measure steps of `distill` with as many pairs as generated images."""
    torch.set_num_threads(1)
    teacher = build_teacher(resolution, channels)
    compute = ComputeOptions(device="cpu", precision="fp32", threads=1)
    config = from_preset(DistillConfig, "fashion", teacher="growth", batch=1, batch_reg=1, compute=compute)
    before = resident_size()
    with dry_run(config, teacher, device=torch.device("cpu"), precision=None, data=True, ledger=False) as run:
        timed_step(run)
        run.resize(batch=batch, batch_reg=batch)
        seconds = min(timed_step(run) for _ in range(repeats))
    parameters = sum(weight.numel() for weight in teacher.denoiser.parameters())
    return {"seconds": seconds, "bytes": peak_resident_size() - before, "parameters": parameters}


def measure_processes(processes: int) -> dict[str, float]:
    """Measure a step of DMD2 by torchrun, a fixed batch divided among the processes: seconds of all of them together.

    It is the difference of a long and a short run, so that starting them does not count.
    """
    flags = f"--teacher fashion --guidance 1 --method dmd2 --fake-steps 1 --batch {TOTAL_BATCH} --threads 1"
    flags += " --device cpu --precision fp32 --report-images 0 --sample-every 1000 --evaluate-images 2"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]

    def seconds_of(steps: int) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with TemporaryDirectory() as folder:
            run = ["dmdistill", "distill", *flags.split(), f"--steps={steps}", f"--out={folder}/run"]
            subprocess.run([*command, *run], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    seconds = (seconds_of(22) - seconds_of(2)) / 20
    return {"seconds": seconds, "bytes": 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}


def measure_pairs(pairs: int) -> dict[str, float]:
    """Measure making so many pairs by two steps of Heun's method."""
    torch.set_num_threads(1)
    teacher = replace(build_teacher(BASE["resolution"], BASE["channels"]), steps=2)
    before, started = resident_size(), time.process_time()
    with TemporaryDirectory() as folder:
        make_teacher_pairs(teacher, Path(folder) / "pairs", count=pairs, seed=0)
    return {"seconds": time.process_time() - started, "bytes": peak_resident_size() - before}


def measure_evaluation(images: int) -> dict[str, float]:
    """Measure `dmdistill evaluate fashion-student`, what does not depend on the images included."""
    before, started = resident_size(), time.process_time()
    compute = ComputeOptions(device="cpu", precision="fp32", threads=1)
    evaluate(EvaluateConfig("fashion-student", images=images, compute=compute))
    return {"seconds": time.process_time() - started, "bytes": peak_resident_size() - before}


OTHERS: dict[str, Callable[..., dict[str, float]]] = {
    "processes": measure_processes,
    "pairs": measure_pairs,
    "images": measure_evaluation,
}


def measure_missing(out: Path, axes: dict[str, list[int]]) -> Rows:
    """Measure the rows that a file lacks, append each, and return all."""
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    for axis, values in axes.items():
        for value in values:
            setting = change_setting(axis, value)
            if not any(row.items() >= setting.items() for row in rows):
                rows.append(setting | run_json(__file__, "--one", json.dumps(setting), threads=1))
                with out.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    return rows


def change_setting(axis: str, value: int) -> dict[str, int]:
    """Return the base setting with another value of one axis."""
    return {axis: value} if axis in OTHERS else BASE | {axis: value}


def measure_setting(setting: dict[str, int]) -> dict[str, float]:
    """Measure a row."""
    other = next((OTHERS[axis] for axis in setting if axis in OTHERS), measure)
    return other(**setting)


def select_rows(rows: Rows, axis: str, values: list[int]) -> Rows:
    """Return the rows of one axis."""
    return [next(row for row in rows if row.items() >= change_setting(axis, value).items()) for value in values]


def print_table(rows: Rows, axes: dict[str, list[int]]) -> None:
    """Print a table of all axes; the exponent is that of the power law between two neighbouring rows."""
    print("| | parameters, M | ms | exponent | peak memory, MB |\n|---|---|---|---|---|")
    for axis, values in axes.items():
        found = select_rows(rows, axis, values)
        slopes = [slope(a, b, "parameters" if axis == "channels" else axis) for a, b in pairwise(found)]
        for row, exponent in zip(found, ["", *(f"{one:.2f}" for one in slopes)], strict=True):
            parameters = f"{row['parameters'] / 1e6:.1f}" if "parameters" in row else ""
            figures = f"{parameters} | {1e3 * row['seconds']:.0f} | {exponent} | {row['bytes'] / 1e6:.0f}"
            print(f"| {axis} {row[axis]} | {figures} |")


def slope(a: dict[str, float], b: dict[str, float], axis: str) -> float:
    """Return the exponent of the power law through the times of two rows."""
    return math.log(b["seconds"] / a["seconds"]) / math.log(b[axis] / a[axis])


def draw(file: Path, rows: Rows, axes: dict[str, list[int]]) -> None:
    """Draw seconds and memory over each axis, both logarithmic, beside the line of linear growth."""
    height = math.ceil(len(axes) / 3)
    figure = Figure(figsize=(10, 3 * height), layout="constrained")
    for panel, (axis, values) in zip(figure.subplots(height, 3).flat, axes.items(), strict=False):
        key = "parameters" if axis == "channels" else axis
        found = select_rows(rows, axis, values)
        x, power = [row[key] for row in found], 2 if axis == "resolution" else 0 if axis == "processes" else 1
        last = found[-1]["seconds"]
        panel.loglog(x, [row["seconds"] for row in found], "o-", label="seconds")
        panel.loglog(x, [last * (one / x[-1]) ** power for one in x], "k:", label="linear")
        panel.loglog(x, [row["bytes"] / 1e9 for row in found], "s-", label="peak memory, GB")
        panel.set_xticks(x, [f"{one / 1e6:.1f} M" if axis == "channels" else f"{one:g}" for one in x])
        panel.set_xticks([], minor=True)
        panel.set_ylim(bottom=panel.get_ylim()[0] / 2, top=panel.get_ylim()[1] * 2)
        panel.set_xlabel("pixels of a side" if axis == "resolution" else key)
    figure.axes[0].legend()
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("growth.jsonl"), help="file of the rows")
    parser.add_argument("--plot", type=Path, help="file of the plot")
    for axis, values in AXES.items():
        parser.add_argument(f"--{axis}", type=int, nargs="+", default=values)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure_setting(json.loads(options.one))))
    else:
        axes = {axis: getattr(options, axis) for axis in AXES}
        rows = measure_missing(options.out, axes)
        print_table(rows, axes)
        if options.plot:
            draw(options.plot, rows, axes)
