"""A run in one light file, to go on with on another machine: 4 bytes a parameter in place of 16.

A checkpoint of `Trainer` holds, in fp32, each network's weights, its averages and AdamW's two moments. Of tensors with
two dimensions or more a light file keeps, and loses:

    weights          fp16: rounded by at most 1 part in 2048 (below 6e-5 by 3e-8)
    averages         one byte: the difference to the weights, in 127ths of the largest in each output channel
    second moments   one byte: their logarithm, in eighths of an octave, 31 octaves down from the largest of a tensor
    first moments    nothing: they start at zero and are full again after a few 1/(1 - beta1) steps

All else, the smaller tensors, counts, random generator, settings, metrics, is kept as it is; the best state of a
distillation is not. A run that goes on from a light file is no longer the same bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmdistill.io.atomic import atomic_write
from dmdistill.io.errors import first_line
from dmdistill.io.folders import check_new_folder, exclusive_folder
from dmdistill.training.checkpoints import Checkpoints

__all__ = ["lightened", "pack_run", "restored", "unpack_run"]

TEXTS = ("config.toml", "metrics.jsonl")  # of a run's folder
EIGHTHS = 8  # of an octave, in which second moments are counted


def pack_run(folder: Path, file: Path) -> int:
    """Write a run's newest state as a light file; answers with its step. ValueError where the run has no checkpoint."""
    missing = next((name for name in TEXTS if not (folder / name).is_file()), None)
    found = None if missing else Checkpoints(folder, keep=1).newest(say=print)
    if found is None:
        raise ValueError(f"{folder} has no {missing or 'checkpoint'}: it is no run, or has not saved yet")
    state: dict[str, Any] = found[1] | {"updates": {name: lightened(one) for name, one in found[1]["updates"].items()}}
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in TEXTS}
    with atomic_write(file) as temporary:
        torch.save({"texts": texts, "state": state}, temporary)
    return state["step"]


def unpack_run(file: Path, folder: Path) -> int:
    """Make the folder of a run that `Trainer` can go on with; answers with its step. ValueError for other files."""
    check_new_folder(folder, "choose another folder")
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
        texts, state = found["texts"], found["state"]
        state |= {"updates": {name: restored(one) for name, one in state["updates"].items()}}
        written = {name: str(texts[name]) for name in TEXTS}
    except Exception as error:  # torch has many ways of stumbling over foreign bytes
        raise ValueError(f"{file} is no light file of a run, or is damaged ({first_line(error)})") from None
    with exclusive_folder(folder):
        Checkpoints(folder, keep=1).write(state["step"], state)
        for name, text in written.items():
            with atomic_write(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    return state["step"]


def lightened(update: dict[str, Any]) -> dict[str, Any]:
    """The state of an `Update` with little left of each large tensor."""
    network = {name: half(tensor) for name, tensor in update["network"].items()}
    averages = [
        {name: difference(tensor, network[name]) for name, tensor in average.items()} for average in update["averages"]
    ]
    moments = {index: light_moments(one) for index, one in update["optimiser"]["state"].items()}
    return update | {"network": network, "averages": averages, "optimiser": update["optimiser"] | {"state": moments}}


def restored(update: dict[str, Any]) -> dict[str, Any]:
    """The state of an `Update`, all of it in fp32 again."""
    network = {name: full(tensor) for name, tensor in update["network"].items()}
    averages = [
        {name: added(tensor, network[name]) for name, tensor in average.items()} for average in update["averages"]
    ]
    moments = {index: full_moments(one) for index, one in update["optimiser"]["state"].items()}
    return update | {"network": network, "averages": averages, "optimiser": update["optimiser"] | {"state": moments}}


def is_large(tensor: Tensor) -> bool:
    return tensor.ndim > 1 and tensor.dtype == torch.float32


def half(tensor: Tensor) -> Tensor:
    """In fp16, where it is large and fits."""
    if not is_large(tensor) or tensor.abs().amax() > torch.finfo(torch.float16).max:
        return tensor
    return tensor.half()


def full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def difference(average: Tensor, weights: Tensor) -> Any:
    """An average of weights: (scales, steps of them from the weights), one scale per output channel."""
    if not is_large(average):
        return average
    gap = average - weights.float()
    scale = gap.flatten(1).abs().amax(1).reshape(-1, *[1] * (gap.ndim - 1)) / 127
    return scale, (gap / scale.clamp(min=torch.finfo(torch.float32).tiny)).round().to(torch.int8)


def added(average: Any, weights: Tensor) -> Tensor:
    if isinstance(average, Tensor):
        return average
    scale, steps = average
    return weights + scale * steps


def light_moments(state: dict[str, Any]) -> dict[str, Any]:
    """AdamW's state of one parameter, without the first moment; of the second (largest, codes): 255 is the largest."""
    if not is_large(square := state["exp_avg_sq"]):
        return state
    most = square.max()
    octaves = most.log2() - square.log2()  # infinite where there was never a gradient
    codes = torch.where(square > 0, (255 - EIGHTHS * octaves).round().clamp(1, 255), 0)
    return {"step": state["step"], "exp_avg_sq": (most, codes.to(torch.uint8))}


def full_moments(state: dict[str, Any]) -> dict[str, Any]:
    if isinstance(state["exp_avg_sq"], Tensor):
        return state
    most, codes = state["exp_avg_sq"]
    square = torch.where(codes > 0, most * ((codes.float() - 255) / EIGHTHS).exp2(), 0)
    return {"step": state["step"], "exp_avg": torch.zeros_like(square), "exp_avg_sq": square}
