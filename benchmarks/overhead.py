"""The time that this package adds to the bare networks when it generates images.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py [fashion fashion-student ...] [--batch 1 16] [--repeats 10]

Generating images is timed beside the passes of the network and of the autoencoder that it makes, with nothing around
them: in rounds, each in its turn; medians.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from dmdistill.commands.bench.compare import BenchmarkCase
from dmdistill.commands.bench.timers import Clock, Spread, Workload, device_clock, time_in_rounds
from dmdistill.commands.options import ComputeOptions
from dmdistill.commands.run_folder import setup_compute
from dmdistill.models.load import load_model
from dmdistill.models.model import Model


@dataclass(frozen=True)
class NetworkCall:
    """One call of a network: its arguments, and the dtype of autocast, None where that is off."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    precision: torch.dtype | None


def record_calls(model: Model, work: Workload) -> list[NetworkCall]:
    """Record the calls of a model's network within a workload; the first one stands for all, which have its shapes."""
    calls: list[NetworkCall] = []
    kind = model.device.type

    def note(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        calls.append(calls[0] if calls else NetworkCall(arguments, keywords, precision))

    handle = model.network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        work()
    finally:
        handle.remove()
    return calls


def bare_workload(model: Model, generate: Workload) -> Workload | None:
    """Return the calls of the network and of the autoencoder in `generate` only; None without a network."""
    calls = record_calls(model, generate)
    if not calls:
        return None
    first = calls[0]
    latents = torch.zeros(len(generate()), *model.shape, device=model.device)  # type: ignore[arg-type]

    @torch.no_grad()
    def work() -> None:
        with torch.autocast(model.device.type, first.precision or torch.bfloat16, enabled=first.precision is not None):
            for _ in calls:
                model.network(*first.arguments, **first.keywords)
        model.decode(latents)

    return work


def measure_overhead(model: Model, batch: int, clock: Clock, *, repeats: int) -> dict[str, Spread]:
    """Time a batch of images and the bare networks in the same rounds. ValueError for a model without a network."""
    generate = BenchmarkCase(model).workload(batch)
    bare = bare_workload(model, generate)
    if bare is None:
        raise ValueError(f"{model.name} has no network to compare with")
    return time_in_rounds({"images": generate, "network": bare}, clock, repeats=repeats, name=f"timing {model.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["fashion", "fashion-student"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    device, precision = setup_compute(ComputeOptions(threads=options.threads))
    table = Table("model", "batch", "images, ms", "bare networks, ms", "overhead")
    for name in options.models:
        model = load_model(name).to(device, precision).cast_weights()
        for batch in options.batch:
            spread = measure_overhead(model, batch, device_clock(device), repeats=options.repeats)
            images, network = (spread[key].median for key in ("images", "network"))
            cells = [f"{1e3 * images:.4g}", f"{1e3 * network:.4g}", f"{images / network - 1:+.1%}"]
            table.add_row(model.name, str(batch), *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
