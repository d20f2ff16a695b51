"""Requests for images: prompts of a text-to-image model, labels of a class-conditional one, and a count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmdistill.data.conditions import Conditions, LabelSpace, TextEncoder

__all__ = ["Request", "read_request"]


@dataclass(frozen=True)
class Request:
    """Prompts, labels (None for none) and the number of images to generate."""

    prompts: Sequence[str] | None
    labels: Sequence[int] | None
    count: int

    def index(self, conditions: Conditions | None) -> Tensor | None:
        """Return the number of each image's condition, integers (count,): the request's labels, or all, in turn."""
        if conditions is None:
            return None
        choices = torch.tensor(self.labels or range(len(conditions)))
        return choices[torch.arange(self.count) % len(choices)]


def read_request(
    name: str,
    conditions: Conditions | None,
    text: TextEncoder | None,
    *,
    prompts: str | Sequence[str] | None,
    labels: int | str | Sequence[int | str] | None,
    count: int | None,
) -> Request:
    """Check prompts, labels and count for a model. ValueError, naming it, for missing, unknown or unsupported ones.

    Args:
        name: of the model.
        conditions: its classes, or prompts that it has already; None for none.
        text: its text encoder; None for a model without text.
        prompts: one or more, or None.
        labels: numbers or names of classes, one or more, or None.
        count: of images; None for one for each prompt or label, or one.
    """
    texts = [prompts] if isinstance(prompts, str) else prompts
    labels = [labels] if isinstance(labels, int | str) else labels
    given = labels if texts is None else texts
    count = (1 if given is None else len(given)) if count is None else count
    if count < 1:
        raise ValueError(f"{name}: {count} images, expected at least 1")
    numbers = None if labels is None else label_numbers(name, conditions, text, labels)
    if texts is not None:
        check_prompts(name, text, texts)
    elif text is not None and conditions is None:
        raise ValueError(f"{name} is a text-to-image model: give a prompt, as in model('a red square')")
    return Request(texts, numbers, count)


def check_prompts(name: str, text: TextEncoder | None, prompts: Sequence[str]) -> None:
    """Raise a ValueError where a model takes no prompts, or there is none, or one without words."""
    if text is None:
        raise ValueError(f"{name} is no text-to-image model: it takes no prompts")
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise ValueError(f"{name}: a prompt without words")


def label_numbers(
    name: str, conditions: Conditions | None, text: TextEncoder | None, labels: Sequence[int | str]
) -> list[int]:
    """Return the numbers of classes. ValueError where a model has no classes, or not these."""
    if not isinstance(conditions, LabelSpace):
        raise ValueError(f"{name} {'takes prompts' if text is not None else 'is unconditional'}: it takes no labels")
    try:
        return [conditions.number(label) for label in labels]
    except ValueError as error:
        raise ValueError(f"{name} has {error}") from None
