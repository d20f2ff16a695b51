"""Class labels as conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LabelSpace", "Labels"]


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

    def labels(self, index: Tensor) -> Labels:
        """index: integers (B,) in [0, classes). ValueError outside."""
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise ValueError(f"labels from {int(index.min())} to {int(index.max())}, expected 0 to {len(self) - 1}")
        return Labels(F.one_hot(index.long(), len(self)).float())

    def draw(self, n: int, *, rng: torch.Generator) -> Labels:
        """n labels, uniform over the classes, on rng's device."""
        index = torch.randint(len(self), (n,), generator=rng, device=rng.device)
        return Labels(F.one_hot(index, len(self)).float())
