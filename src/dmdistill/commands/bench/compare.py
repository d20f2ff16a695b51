"""Models timed against each other, and each against its own bare network."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from dmdistill.commands.bench.timers import Clock, Spread, Work, best_batch, in_rounds
from dmdistill.models.model import Model, Student
from dmdistill.training.device import out_of_memory

__all__ = ["Candidate", "compare", "compiled"]


@dataclass(frozen=True)
class Candidate:
    """A model, and whether its network is eager or compiled."""

    model: Model
    way: str = "eager"

    @property
    def kind(self) -> str:
        return "student" if isinstance(self.model, Student) else "teacher"

    def draws(self, batch: int) -> Work:
        """The work of making images of noise that lies ready."""
        z, cond = self.model.sample_inputs(batch, rng=torch.Generator(self.model.device).manual_seed(0))
        return lambda: self.model.images(z, cond)


def compiled(model: Model) -> Candidate:
    """The model with its network compiled, once for each batch.

    ValueError where torch.compile cannot do it, for want of a compiler say.
    """
    network = torch.compile(model.network, dynamic=False)
    twin = replace(model, denoiser=copy.deepcopy(model.denoiser, {id(model.network): network}))  # one set of weights
    contestant = Candidate(twin, "compiled")
    try:
        contestant.draws(1)()
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        why = " ".join(str(error).split()).partition(" Set TORCH")[0][:200]
        raise ValueError(f"--compile: torch.compile fails on {model.name}: {why}") from None
    return contestant


def compare(contestants: list[Candidate], clock: Clock, *, repeats: int, most: int) -> dict[str, Any]:
    """{"tried": seconds per image by kind and batch, "rows": of latency, then of throughput}.

    The best batch is found with the eager network; the compiled one is timed at the same.
    """
    best, tried = {}, {}
    for one in contestants:
        if one.kind not in best:
            best[one.kind], tried[one.kind] = best_batch(one.draws, clock, most=most)
    latency = rows("latency", [(one, 1) for one in contestants], clock, repeats=repeats)
    throughput = rows("throughput", [(one, best[one.kind]) for one in contestants], clock, repeats=repeats)
    return {"tried": tried, "rows": latency + throughput}


def rows(measure: str, entries: list[tuple[Candidate, int]], clock: Clock, *, repeats: int) -> list[dict[str, Any]]:
    """One row for each contestant at its batch, all timed in the same rounds."""
    works: dict[tuple[int, str], Work] = {}
    for i, (one, batch) in enumerate(entries):
        works[i, "images"] = one.draws(batch)
        if (bare := bare_work(one.model, works[i, "images"])) is not None:
            works[i, "network"] = bare
    timed = in_rounds(works, clock, repeats=repeats, name=f"timing {measure}")
    first = timed[0, "images"].median / entries[0][1]
    return [
        {
            "measure": measure,
            "kind": one.kind,
            "model": one.model.name,
            "way": one.way,
            "evaluations_per_image": one.model.evaluations,
            **figures(timed[i, "images"], timed.get((i, "network")), batch, first),
            "memory_bytes": peak_memory(one.model, works[i, "images"]),
        }
        for i, (one, batch) in enumerate(entries)
    ]


def figures(images: Spread, network: Spread | None, batch: int, first: float) -> dict[str, Any]:
    """Of the seconds of a call, ours and the bare network's, and the first row's seconds per image."""
    return {
        "batch": batch,
        "seconds": asdict(images),
        "images_per_second": batch / images.median,
        "times_faster": first * batch / images.median,
        "network_seconds": asdict(network) if network is not None else None,
        "overhead": images.median / network.median - 1 if network is not None else None,
    }


def bare_work(model: Model, draw: Work) -> Work | None:
    """The passes of the network and of the codec that `draw` makes, with nothing of ours around them.

    None where the denoiser asks no network.
    """
    passes = record(model, draw)
    if not passes:
        return None
    first = passes[0]  # the others are of its shapes: only their number counts
    latents = torch.zeros(len(draw()), *model.shape, device=model.device)  # type: ignore[arg-type]

    @torch.no_grad()
    def work() -> None:
        kind = model.device.type
        with torch.autocast(kind, first.precision or torch.bfloat16, enabled=first.precision is not None):
            for _ in passes:
                model.network(*first.arguments, **first.named)
        model.decode(latents)

    return work


@dataclass(frozen=True)
class Pass:
    """One call of a network: with what, and the dtype of autocast, None where that is off."""

    arguments: tuple[Any, ...]
    named: dict[str, Any]
    precision: torch.dtype | None


def record(model: Model, work: Work) -> list[Pass]:
    """The passes of a model's network in its work; all but the first stand for their number alone."""
    passes: list[Pass] = []
    kind = model.device.type

    def note(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        passes.append(passes[0] if passes else Pass(arguments, named, precision))

    handle = model.network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        work()
    finally:
        handle.remove()
    return passes


def peak_memory(model: Model, work: Work) -> int | None:
    """Bytes of a model's weights and, at the most, of all that its work takes on a GPU; None elsewhere."""
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
