"""Conditions of a model: class labels here, prompts in `prompt_embeddings`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from dmdistill.core.denoisers import Condition
from dmdistill.io.errors import did_you_mean

__all__ = ["Conditions", "LabelSpace", "Labels", "TextEncoder"]


class Conditions(Protocol):
    """Everything that a model can be conditioned on, numbered from 0: its classes, or a list of prompts."""

    def __len__(self) -> int: ...

    def __str__(self) -> str:
        """Describe the conditions in words that tell them from others: pairs made under others do not fit."""
        ...

    def select(self, index: Tensor) -> Condition:
        """Return the conditions of these numbers, integers (B,), on their device. ValueError if one is out of range."""
        ...


class TextEncoder(Protocol):
    """Encoder of prompts into the tensors that condition a network."""

    @property
    def id(self) -> str:
        """Identity of the encoder: two of one id encode alike."""
        ...

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Encode prompts: tensors by the names that the network's adapter takes, each B ..., on the CPU."""
        ...

    def empty(self) -> dict[str, Tensor]:
        """Encode the null prompt of classifier-free guidance: the same tensors, each 1 ..."""
        ...

    def to(self, device: torch.device) -> Self:
        """Encode on this device from now on."""
        ...

    def release(self) -> None:
        """Free the encoder's memory; prompts that are encoded later load it again."""
        ...


@dataclass(frozen=True)
class Labels:
    """Class labels, one per sample.

    Attributes:
        one_hot: (B, classes), fp32; a row of zeros is the null label of classifier-free guidance.
    """

    one_hot: Tensor

    def null(self) -> Self:
        """Return as many null labels."""
        return type(self)(torch.zeros_like(self.one_hot))

    def concat(self, other: Self) -> Self:
        """Return these labels followed by others."""
        return type(self)(torch.cat([self.one_hot, other.one_hot]))

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(self.one_hot[rows])

    def __len__(self) -> int:
        return len(self.one_hot)

    def to(self, device: torch.device) -> Self:
        """Return the labels on a device."""
        return type(self)(self.one_hot.to(device))

    def drop(self, probability: float, *, rng: torch.Generator) -> Self:
        """Replace each label by the null label with this probability: a network learns both branches of guidance."""
        keep = torch.rand(len(self), 1, generator=rng, device=rng.device) >= probability
        return type(self)(self.one_hot * keep)


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a model.

    Attributes:
        names: of the classes, in the order of their labels.
    """

    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        """Return the number and names of the classes; of more than 20 only the first three and the last name."""
        few = self.names if len(self) <= 20 else (*self.names[:3], "...", self.names[-1])
        return f"{len(self)} classes: {', '.join(few)}"

    def number(self, label: int | str) -> int:
        """Return the number of a class that is given by its number or its name. ValueError for an unknown one."""
        known = {name.casefold(): number for number, name in enumerate(self.names)}
        known |= {str(number): number for number in range(len(self))}
        number = known.get(str(label).strip().casefold())
        if number is None:
            hint = did_you_mean(str(label), self.names)
            raise ValueError(f"no class {label}, expected 0 to {len(self) - 1} or a name of {self}{hint}")
        return number

    def select(self, index: Tensor) -> Labels:
        """Return labels by number. They are checked on the CPU only: on another device that would be to wait for it."""
        if index.device.type == "cpu" and (odd := set(index.tolist()) - set(range(len(self)))):
            raise ValueError(f"labels from {min(odd)} to {max(odd)}, expected 0 to {len(self) - 1}")
        return Labels((index[:, None] == torch.arange(len(self), device=index.device)).float())
