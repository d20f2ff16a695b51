"""Placeholders for data where only its shapes matter: pairs and real images of noise, prompts of zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmdistill.data.conditions import Conditions
from dmdistill.data.prompt_embeddings import Prompts, PromptSet
from dmdistill.models.model import Teacher

__all__ = ["PlaceholderImages", "PlaceholderPairs", "PlaceholderPrompts"]


@dataclass(frozen=True)
class PlaceholderPairs:
    """Noise in place of a teacher's pairs: `count` of them."""

    teacher: Teacher
    count: int

    def __len__(self) -> int:
        return self.count

    def rows(self, step: int, size: int) -> list[int]:
        """Return the numbers of a batch's pairs."""
        return list(range(min(size, self.count)))

    def __getitem__(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        size = len(rows)
        index = None if self.teacher.conditions is None else torch.zeros(size, dtype=torch.long)
        return torch.randn(size, *self.teacher.shape), torch.randn(size, *self.teacher.shape), index


@dataclass(frozen=True)
class PlaceholderImages:
    """Noise in place of real images, or of their latents, with the teacher's conditions."""

    teacher: Teacher

    @property
    def conditions(self) -> Conditions | None:
        """The teacher's conditions."""
        return self.teacher.conditions

    def __len__(self) -> int:
        return 1

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        index = None if self.conditions is None else torch.zeros(len(rows), dtype=torch.long)
        return torch.randn(len(rows), *self.teacher.shape), index


@dataclass(frozen=True)
class PlaceholderPrompts:
    """Zeros in place of a set's embeddings: without data nobody knows which prompt an index means."""

    prompts: PromptSet

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, index: Tensor) -> Prompts:
        """Return embeddings of the set's shapes."""
        shapes = {name: row.shape for name, row in self.prompts.empty.items()}
        empty = {name: index.new_zeros(shape, dtype=torch.float32) for name, shape in shapes.items()}
        rows = {name: index.new_zeros(len(index), *shape[1:], dtype=torch.float32) for name, shape in shapes.items()}
        return Prompts(rows, empty)
