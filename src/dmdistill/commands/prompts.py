"""Prompts given to a command become what its model can be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from dmdistill.data.prompt_embeddings import encode_prompts
from dmdistill.data.prompt_files import read_prompts
from dmdistill.io.folders import cache_folder
from dmdistill.models.model import Model
from dmdistill.training.progress import track

__all__ = ["with_prompt_texts", "with_prompts"]

AnyModel = TypeVar("AnyModel", bound=Model)
CPU = torch.device("cpu")


def with_prompts(
    model: AnyModel,
    source: str | None,
    folder: Path | None = None,
    *,
    device: torch.device = CPU,
    most: int | None = None,
) -> AnyModel:
    """The model, told the prompts of `source` (see `read_prompts`); a model that is told no text as it is.

    folder: for the encoded prompts, the cache's where None. device: to encode on. most: how many are wanted, of the
    first; all where None.

    ValueError where a source is missing, or given to a model that is told no text.
    """
    if source is not None:
        check_text(model, f"--prompts {source}")
        return with_prompt_texts(model, read_prompts(source)[:most], folder, device=device)
    if model.text is not None and model.conditions is None:
        raise ValueError(f"{model.name} is told prompts: give --prompts FILE, a .txt of one a line, a .csv or .parquet")
    return model


def with_prompt_texts(
    model: AnyModel, texts: Sequence[str], folder: Path | None = None, *, device: torch.device = CPU
) -> AnyModel:
    """The model, told these prompts. Its text encoder is released after encoding."""
    check_text(model, f"--prompt {texts[0]!r}")
    assert model.text is not None
    encoder = model.text.to(device)
    try:
        told = encode_prompts(texts, encoder, folder or cache_folder() / "prompts", track=track)
    finally:
        encoder.release()
    return replace(model, conditions=told)


def check_text(model: Model, given: str) -> None:
    if model.text is None:
        told = f"is told {model.conditions}" if model.conditions is not None else "is unconditional"
        raise ValueError(f"{given} for {model.name}, which {told}: it takes no prompts")
