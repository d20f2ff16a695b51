"""The weights of a run at the best value of its validation metric.

    FOLDER/checkpoints/best-00000250.safetensors    weights; their value is in the training checkpoints

The best weights known to each training checkpoint on disk stay beside it, so that a run resumed from one of them has
the best of its own past and nothing of a future that it may not meet again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from dmdistill.io.atomic import read_safetensors, write_safetensors
from dmdistill.training.trainer import Trainer

__all__ = ["BestCheckpoint"]


class BestCheckpoint:
    """Best weights of a run by a validation metric; lower is better. The trainer's checkpoints save its state.

    Args:
        trainer: the run's trainer, not restored yet.

    Attributes:
        value: lowest value so far; infinity if there is none.
        step: training step of that value; 0 if there is none.
        name: name given with that value.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.folder = trainer.folder / "checkpoints"
        self.value, self.step, self.name = math.inf, 0, ""
        self.steps: list[int] = []  # every step whose weights are on disk
        trainer.stateful["best"] = self

    def update(self, step: int, name: str, value: float, weights: Callable[[], dict[str, Tensor]]) -> None:
        """Store a step's weights if its value is lower than all before.

        Args:
            step: training step.
            name: of the weights, for example of one of several averages.
            value: of the metric; NaN is never the best.
            weights: returns the weights; called only if they are stored, and then on every process.
        """
        if not value < self.value:
            return
        self.value, self.step, self.name = value, step, name
        tensors = weights()
        self.trainer.processes.on_main(lambda: write_safetensors(self.file(step), tensors))
        self.steps = sorted({*self.needed_steps(), step})
        self.trainer.processes.on_main(self.remove_others)

    def weights(self) -> dict[str, Tensor]:
        """Read the best weights. ValueError, naming the file, if they are missing or damaged."""
        return read_safetensors(self.file(self.step))

    def state_dict(self) -> dict[str, Any]:
        """Return value, step and name of the best, and every step whose weights are on disk."""
        return {"value": self.value, "step": self.step, "name": self.name, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to an earlier state: weights of later steps are removed, those of the best are verified."""
        self.value, self.step, self.name, self.steps = (state[key] for key in ("value", "step", "name", "steps"))
        if not self.trainer.processes.on_main(self.verify):
            self.value, self.step, self.name = math.inf, 0, ""

    def verify(self) -> bool:
        """Whether the best weights are on disk. ValueError, naming the file, if they are damaged."""
        self.remove_others()
        file = self.file(self.step)
        if self.step and not file.exists():
            self.trainer.print(f"{file} is missing: the best weights are looked for anew, from here on")
            return False
        try:
            if self.step:
                self.weights()
        except ValueError as error:
            raise ValueError(f"{error}; remove it to go on without the best weights so far") from None
        return True

    def remove_others(self) -> None:
        """Remove weights of every step but `steps`."""
        for file in {*self.folder.glob("best-*.safetensors")} - {self.file(step) for step in self.steps}:
            file.unlink()

    def needed_steps(self) -> set[int]:
        """List the steps that were the best when one of the training checkpoints on disk was written."""
        saved_steps = self.trainer.checkpoints.steps()
        return {max(earlier) for saved in saved_steps if (earlier := [step for step in self.steps if step <= saved])}

    def file(self, step: int) -> Path:
        """Return the weights file of a step."""
        return self.folder / f"best-{step:08d}.safetensors"
