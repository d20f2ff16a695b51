"""Latency, throughput and memory of models, measured together so that their ratios can be trusted."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from dmdistill.commands.bench.timers import Clock, Workload, find_best_batch, time_in_rounds
from dmdistill.models.model import Model, Student
from dmdistill.training.device import is_out_of_memory

__all__ = ["BenchmarkCase", "compare", "compile_case"]


@dataclass(frozen=True)
class BenchmarkCase:
    """A model to time, and whether its network is eager or compiled."""

    model: Model
    mode: str = "eager"

    @property
    def kind(self) -> str:
        """The role of the model: student or teacher."""
        return "student" if isinstance(self.model, Student) else "teacher"

    def workload(self, batch: int) -> Workload:
        """Return a function that generates a batch of images from noise drawn in advance."""
        z, cond = self.model.sample_inputs(batch, rng=torch.Generator(self.model.device).manual_seed(0))
        return lambda: self.model.images(z, cond)


def compile_case(model: Model) -> BenchmarkCase:
    """Compile the network of a copy of the model, which shares its weights.

    ValueError where torch.compile fails, for example without a C++ compiler.
    """
    network = torch.compile(model.network, dynamic=False)
    denoiser = copy.deepcopy(model.denoiser, {id(model.network): network})
    case = BenchmarkCase(replace(model, denoiser=denoiser), "compiled")
    try:
        case.workload(1)()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split()).partition(" Set TORCH")[0][:200]
        raise ValueError(f"--compile: torch.compile fails on {model.name}: {reason}") from None
    return case


def compare(cases: list[BenchmarkCase], clock: Clock, *, repeats: int, max_batch: int) -> dict[str, Any]:
    """Measure every case at batch 1 and at its best batch size.

    The best batch size is that of the eager network; the compiled one is measured at the same. Returns
    {"tried": seconds per image by kind and batch size, "rows": latency of every case, then throughput of every case}.
    """
    best, tried = {}, {}
    for case in cases:
        if case.kind not in best:
            best[case.kind], tried[case.kind] = find_best_batch(case.workload, clock, max_batch=max_batch)
    latency = measure_rows("latency", [(case, 1) for case in cases], clock, repeats=repeats)
    throughput = measure_rows("throughput", [(case, best[case.kind]) for case in cases], clock, repeats=repeats)
    return {"tried": tried, "rows": latency + throughput}


def measure_rows(
    measure: str, entries: list[tuple[BenchmarkCase, int]], clock: Clock, *, repeats: int
) -> list[dict[str, Any]]:
    """Time all cases, each at its batch size, in the same rounds. Speed-ups are over the first one."""
    works = {i: case.workload(batch) for i, (case, batch) in enumerate(entries)}
    timings = time_in_rounds(works, clock, repeats=repeats, name=f"timing {measure}")
    baseline = timings[0].median / entries[0][1]
    return [
        {
            "measure": measure,
            "kind": case.kind,
            "model": case.model.name,
            "mode": case.mode,
            "evaluations_per_image": case.model.evaluations,
            "batch": batch,
            "seconds": asdict(timings[i]),
            "images_per_second": batch / timings[i].median,
            "speedup": baseline * batch / timings[i].median,
            "memory_bytes": peak_memory(case.model, works[i]),
        }
        for i, (case, batch) in enumerate(entries)
    ]


def peak_memory(model: Model, work: Workload) -> int | None:
    """Return the bytes of the weights and of all that a workload allocates at its peak on a GPU; None elsewhere."""
    if model.device.type != "cuda":
        return None
    parts = [model.network, *([model.autoencoder] if isinstance(model.autoencoder, nn.Module) else [])]
    weights = sum(tensor.nbytes for part in parts for tensor in part.state_dict().values())
    torch.cuda.synchronize(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    work()
    torch.cuda.synchronize(model.device)
    return weights + torch.cuda.max_memory_allocated(model.device) - before
