"""How the cost of a step grows with the batch, the resolution and the parameters: processor time and peak memory.

    nice python benchmarks/growth.py --out growth.jsonl
    nice python benchmarks/growth.py --out growth.jsonl --batch 1 8 64 512 --resolution 16 128 --channels 24 96 292

Each row is measured in a process of its own, with one thread, and appended to a file: rows that are there are kept, so
that an interrupted measurement is resumed. Processor time does not count what other processes take of a busy machine.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from resident import peak_resident_size, resident_size, run_json
from step_cases import randomize

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.options import ComputeOptions
from dmdistill.commands.plan.dry_run import DryRun, dry_run
from dmdistill.commands.presets import from_preset
from dmdistill.core.denoisers import EDMDenoiser
from dmdistill.core.schedules import EDM
from dmdistill.data.conditions import LabelSpace
from dmdistill.models.model import Teacher
from dmdistill.networks.song_unet import SongUNet

BASE = {"batch": 8, "resolution": 16, "channels": 24}
AXES = {"batch": [1, 2, 8, 32], "resolution": [16, 32, 64], "channels": [24, 48, 96]}  # as far as minutes go
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
    return BASE | {axis: value}


def print_tables(rows: Rows, axes: dict[str, list[int]]) -> None:
    """Print a table of each axis; the exponent is that of the power law between two neighbouring rows."""
    for axis, values in axes.items():
        print(f"\n| {axis} | parameters, M | ms of a step | exponent | peak memory, MB |\n|---|---|---|---|---|")
        found = [next(row for row in rows if row.items() >= change_setting(axis, value).items()) for value in values]
        slopes = [slope(a, b, "parameters" if axis == "channels" else axis) for a, b in pairwise(found)]
        for row, exponent in zip(found, ["", *(f"{one:.2f}" for one in slopes)], strict=True):
            figures = (
                f"{row['parameters'] / 1e6:.1f} | {1e3 * row['seconds']:.0f} | {exponent} | {row['bytes'] / 1e6:.0f}"
            )
            print(f"| {row[axis]} | {figures} |")


def slope(a: dict[str, float], b: dict[str, float], axis: str) -> float:
    """Return the exponent of the power law through the times of two rows."""
    return math.log(b["seconds"] / a["seconds"]) / math.log(b[axis] / a[axis])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("growth.jsonl"), help="file of the rows")
    for axis, values in AXES.items():
        parser.add_argument(f"--{axis}", type=int, nargs="+", default=values)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(**json.loads(options.one))))
    else:
        axes = {axis: getattr(options, axis) for axis in AXES}
        print_tables(measure_missing(options.out, axes), axes)
