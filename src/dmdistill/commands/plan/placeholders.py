"""What stands for data where only its shapes count: pairs of noise, prompts of zeros."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmdistill.data.pairs import PairDataset
from dmdistill.data.prompt_embeddings import Prompts, PromptSet
from dmdistill.models.model import Teacher

__all__ = ["BlankPrompts", "NoisePairs"]


class NoisePairs(PairDataset):
    """Pairs of a teacher's shapes, of noise alone."""

    def __init__(self, teacher: Teacher, count: int) -> None:
        self.teacher, self.count = teacher, count

    def __len__(self) -> int:
        return self.count

    def rows(self, step: int, size: int) -> list[int]:
        return list(range(min(size, self.count)))

    def __getitem__(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        size = len(rows)
        index = None if self.teacher.conditions is None else torch.zeros(size, dtype=torch.long)
        return torch.randn(size, *self.teacher.shape), torch.randn(size, *self.teacher.shape), index


class BlankPrompts(PromptSet):
    """Prompts of a set's shapes, whatever their number: without data nobody knows which one is asked for."""

    def __init__(self, prompts: PromptSet) -> None:
        super().__init__(prompts.texts, prompts.shards, prompts.empty, rows=prompts.rows)

    def select(self, index: Tensor) -> Prompts:
        empty = {name: index.new_zeros(row.shape, dtype=torch.float32) for name, row in self.empty.items()}
        told = {name: index.new_zeros(len(index), *row.shape[1:], dtype=torch.float32) for name, row in empty.items()}
        return Prompts(told, empty)
