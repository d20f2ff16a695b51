"""What a model can be told: class labels here, prompts in `prompts`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from dmdistill.core.denoisers import Condition

__all__ = ["Conditions", "LabelSpace", "Labels", "TextEncoder"]


class Conditions(Protocol):
    """All that a model can be told, numbered from 0: its classes, or a list of prompts."""

    def __len__(self) -> int: ...

    def __str__(self) -> str:
        """In a few words that tell one from another: pairs made under one do not serve another."""
        ...

    def select(self, index: Tensor) -> Condition:
        """Those of these numbers, integers (B,), on index's device. ValueError where there is no such number."""
        ...


class TextEncoder(Protocol):
    """Turns prompts into what a network is told."""

    @property
    def id(self) -> str:
        """Tells one encoder from another: two of one id encode alike."""
        ...

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Tensors by the names that the network's adapter asks for, each B ..., on the CPU."""
        ...

    def empty(self) -> dict[str, Tensor]:
        """The same of the null prompt, which guidance leads away from, each 1 ..."""
        ...

    def to(self, device: torch.device) -> Self:
        """Where to encode from now on."""
        ...

    def release(self) -> None:
        """Free the memory that encoding took; what is encoded later is loaded anew."""
        ...


@dataclass(frozen=True)
class Labels:
    """One class per sample: `one_hot` is (B, classes), fp32; a row of zeros is a sample told no class."""

    one_hot: Tensor

    def null(self) -> Self:
        return type(self)(torch.zeros_like(self.one_hot))

    def concat(self, other: Self) -> Self:
        return type(self)(torch.cat([self.one_hot, other.one_hot]))

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(self.one_hot[rows])

    def __len__(self) -> int:
        return len(self.one_hot)

    def to(self, device: torch.device) -> Self:
        return type(self)(self.one_hot.to(device))

    def dropped(self, probability: float, *, rng: torch.Generator) -> Self:
        """Each sample's class forgotten with this probability: how a network learns the null branch of guidance."""
        keep = torch.rand(len(self), 1, generator=rng, device=rng.device) >= probability
        return type(self)(self.one_hot * keep)


@dataclass(frozen=True)
class LabelSpace:
    """The classes a model knows, by name."""

    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        """The names; of very many only the first and the last."""
        few = self.names if len(self) <= 20 else (*self.names[:3], "...", self.names[-1])
        return f"{len(self)} classes: {', '.join(few)}"

    def select(self, index: Tensor) -> Labels:
        """Of numbers on another device than the CPU it believes that they are classes: to look would be to wait."""
        if index.device.type == "cpu" and (odd := set(index.tolist()) - set(range(len(self)))):
            raise ValueError(f"labels from {min(odd)} to {max(odd)}, expected 0 to {len(self) - 1}")
        return Labels((index[:, None] == torch.arange(len(self), device=index.device)).float())
