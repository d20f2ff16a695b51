"""A run as one light file, to be resumed on another computer: 4 bytes a parameter instead of 16.

A checkpoint of `Trainer` holds, in fp32, each network's weights, its EMAs and AdamW's two moments. Of tensors with two
dimensions or more a light file keeps, and loses:

    weights          fp16: rounded by at most 1 part in 2048 (below 6e-5 by 3e-8)
    EMAs             one byte: the difference to the weights, in 127ths of the largest in each output channel
    second moments   one byte: their logarithm, in eighths of an octave, 31 octaves down from the largest of a tensor
    first moments    nothing: they start at zero and are complete again after a few 1/(1 - beta1) steps

All else, the smaller tensors, counts, random generator, settings, metrics, stays as it is; the best weights of a
distillation are left out. A run resumed from a light file is no longer the same bit for bit.
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

__all__ = ["compress", "decompress", "pack_run", "unpack_run"]

TEXTS = ("config.toml", "metrics.jsonl")  # of a run's folder
EIGHTHS = 8  # of an octave, in which second moments are counted


def pack_run(folder: Path, file: Path) -> int:
    """Write a run's newest checkpoint as a light file; return its step. ValueError if there is no checkpoint."""
    missing = next((name for name in TEXTS if not (folder / name).is_file()), None)
    newest = None if missing else Checkpoints(folder, keep=1).newest(say=print)
    if newest is None:
        raise ValueError(f"{folder} has no {missing or 'checkpoint'}: it is no run, or has not saved yet")
    state = newest[1] | {"updates": {name: compress(one) for name, one in newest[1]["updates"].items()}, "stateful": {}}
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in TEXTS}
    with atomic_write(file) as temporary:
        torch.save({"texts": texts, "state": state}, temporary)
    return state["step"]


def unpack_run(file: Path, folder: Path) -> int:
    """Write the folder of a run that `Trainer` can resume; return its step. ValueError for other files."""
    check_new_folder(folder, "choose another folder")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        state = content["state"]
        state |= {"updates": {name: decompress(one) for name, one in state["updates"].items()}}
        texts = {name: str(content["texts"][name]) for name in TEXTS}
    except Exception as error:  # torch raises many kinds at foreign bytes
        raise ValueError(f"{file} is no light file of a run, or is damaged ({first_line(error)})") from None
    with exclusive_folder(folder):
        Checkpoints(folder, keep=1, background=False).write(state["step"], state)
        for name, text in texts.items():
            with atomic_write(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    return state["step"]


def compress(update: dict[str, Any]) -> dict[str, Any]:
    """Compress each large tensor in the state of a `NetworkOptimizer`."""
    network = {name: to_half(tensor) for name, tensor in update["network"].items()}
    emas = [{name: to_difference(tensor, network[name]) for name, tensor in ema.items()} for ema in update["emas"]]
    moments = {index: compress_moments(one) for index, one in update["optimizer"]["state"].items()}
    return update | {"network": network, "emas": emas, "optimizer": update["optimizer"] | {"state": moments}}


def decompress(update: dict[str, Any]) -> dict[str, Any]:
    """Return a compressed state of a `NetworkOptimizer` to fp32."""
    network = {name: to_full(tensor) for name, tensor in update["network"].items()}
    emas = [{name: add_difference(tensor, network[name]) for name, tensor in ema.items()} for ema in update["emas"]]
    moments = {index: decompress_moments(one) for index, one in update["optimizer"]["state"].items()}
    return update | {"network": network, "emas": emas, "optimizer": update["optimizer"] | {"state": moments}}


def is_large(tensor: Tensor) -> bool:
    """Whether a tensor is compressed at all."""
    return tensor.ndim > 1 and tensor.dtype == torch.float32


def to_half(tensor: Tensor) -> Tensor:
    """Round a tensor to fp16, if it is large and no value overflows."""
    if not is_large(tensor) or tensor.abs().amax() > torch.finfo(torch.float16).max:
        return tensor
    return tensor.half()


def to_full(tensor: Tensor) -> Tensor:
    """Undo `to_half`."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def to_difference(average: Tensor, weights: Tensor) -> Any:
    """Encode an EMA by its difference to the weights: (scale per output channel, int8 multiples of it)."""
    if not is_large(average):
        return average
    gap = average - weights.float()
    scale = gap.flatten(1).abs().amax(1).reshape(-1, *[1] * (gap.ndim - 1)) / 127
    return scale, (gap / scale.clamp(min=torch.finfo(torch.float32).tiny)).round().to(torch.int8)


def add_difference(average: Any, weights: Tensor) -> Tensor:
    """Undo `to_difference`."""
    if isinstance(average, Tensor):
        return average
    scale, multiples = average
    return weights + scale * multiples


def compress_moments(state: dict[str, Any]) -> dict[str, Any]:
    """Drop the first moment of AdamW's state; encode the second as (largest, codes), code 255 being the largest."""
    if not is_large(square := state["exp_avg_sq"]):
        return state
    largest = square.max()
    octaves = largest.log2() - square.log2()  # infinite if there was never a gradient
    codes = torch.where(square > 0, (255 - EIGHTHS * octaves).round().clamp(1, 255), 0)
    return {"step": state["step"], "exp_avg_sq": (largest, codes.to(torch.uint8))}


def decompress_moments(state: dict[str, Any]) -> dict[str, Any]:
    """Undo `compress_moments`; the first moment is zero."""
    if isinstance(state["exp_avg_sq"], Tensor):
        return state
    largest, codes = state["exp_avg_sq"]
    square = torch.where(codes > 0, largest * ((codes.float() - 255) / EIGHTHS).exp2(), 0)
    return {"step": state["step"], "exp_avg": torch.zeros_like(square), "exp_avg_sq": square}
