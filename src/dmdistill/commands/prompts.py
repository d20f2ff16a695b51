"""Prompts on the command line, encoded as conditions of a text-to-image model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from dmdistill.data.prompt_embeddings import encode_texts
from dmdistill.data.prompt_files import read_prompts
from dmdistill.models.model import Model
from dmdistill.training.progress import track_rows

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
    """Return a text-to-image model with the prompts of a file as its conditions, and any other model as it is.

    Args:
        model: the model.
        source: of the prompts, see `read_prompts`.
        folder: for the encoded prompts; in the cache where None.
        device: to encode on.
        most: how many prompts are used, from the first; all where None.

    Raises:
        ValueError: a text-to-image model has no source, or another model has one.
    """
    if source is not None:
        check_text(model, f"--prompts {source}")
        return with_prompt_texts(model, read_prompts(source)[:most], folder, device=device)
    if model.text is not None and model.conditions is None:
        own = model.config.get("distilled", {}).get("prompts")
        hint = f"; it was distilled with --prompts {own}" if own else ""
        raise ValueError(
            f"{model.name} is a text-to-image model: give --prompts FILE, a .txt of one prompt a line, .csv or "
            f".parquet{hint}"
        )
    return model


def with_prompt_texts(
    model: AnyModel, texts: Sequence[str], folder: Path | None = None, *, device: torch.device = CPU
) -> AnyModel:
    """Return a text-to-image model with these prompts as its conditions. Its text encoder is released afterwards.

    Args:
        model: the model.
        texts: the prompts.
        folder: for the encoded prompts; in the cache where None.
        device: to encode on.
    """
    check_text(model, f"--prompt {texts[0]!r}")
    assert model.text is not None
    return replace(model, conditions=encode_texts(texts, model.text, folder, device=device, track=track_rows))


def check_text(model: Model, given: str) -> None:
    """Raise a ValueError where a model takes no prompts."""
    if model.text is None:
        kind = f"is conditioned on {model.conditions}" if model.conditions is not None else "is unconditional"
        raise ValueError(f"{given} for {model.name}, which {kind}: it takes no prompts")
