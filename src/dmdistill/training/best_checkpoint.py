"""The best state of a run so far, by a figure that is measured on the way: the less the better.

    FOLDER/checkpoints/best-00000250.safetensors    its weights; its figure is in metrics.jsonl

The best states that the kept checkpoints knew stay beside it, so that a run that goes on from one of them has the
best of its own past, and nothing of a future that it may not meet again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from dmdistill.io.atomic import read_safetensors, write_safetensors
from dmdistill.training.trainer import Trainer, read_metrics

__all__ = ["BestCheckpoint"]


class BestCheckpoint:
    """Keeps the weights of the best step, and forgets what came after the step that the run goes on from.

    Args:
        trainer: of the run, which is at that step.
        prefix: of the figures' names in metrics.jsonl.

    Attributes:
        step, name, figure: of the best so far; 0, "" and infinity where there is none.
    """

    def __init__(self, trainer: Trainer, *, prefix: str) -> None:
        self.trainer, self.prefix = trainer, prefix
        self.folder = trainer.folder / "checkpoints"
        self.figure, self.step, name = trainer.processes.on_main(self.find)
        self.name = name.removeprefix(prefix)

    def find(self) -> tuple[float, int, str]:
        """The figure, step and its name, of the best until the step that the run goes on from; no other file stays."""
        for step in self.steps():
            if step > self.trainer.step:
                self.file(step).unlink()
        known = [row for row in read_metrics(self.trainer.folder) if row["step"] in self.steps()]
        found = [(row[name], int(row["step"]), name) for row in known for name in row if name.startswith(self.prefix)]
        return min(found, key=lambda one: one[:2], default=(math.inf, 0, self.prefix))

    def offer(self, step: int, name: str, figure: float, weights: Callable[[], dict[str, Tensor]]) -> None:
        """Keep this state where it is better than all before. weights: asked only then, of every process."""
        if not figure < self.figure:
            return
        self.figure, self.step, self.name = figure, step, name
        found = weights()
        self.trainer.processes.on_main(lambda: self.write(found))

    def write(self, weights: dict[str, Tensor]) -> None:
        write_safetensors(self.file(self.step), weights)
        for old in set(self.steps()) - self.needed():
            self.file(old).unlink()

    def weights(self) -> dict[str, Tensor]:
        return read_safetensors(self.file(self.step))

    def needed(self) -> set[int]:
        """The best step, and those that were best when a checkpoint was written that is still there."""
        saved = self.trainer.checkpoints.steps()
        return {self.step} | {max((step for step in self.steps() if step <= one), default=self.step) for one in saved}

    def steps(self) -> list[int]:
        return [int(file.stem.removeprefix("best-")) for file in self.folder.glob("best-*.safetensors")]

    def file(self, step: int) -> Path:
        return self.folder / f"best-{step:08d}.safetensors"
