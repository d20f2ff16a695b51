"""Where a run's figures go beside metrics.jsonl: TensorBoard, Weights & Biases, trackio; none is a default."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from dmdistill.files import first_line, written_whole
from dmdistill.training.trainer import Trainer

__all__ = ["Logger", "TensorBoard", "Tracker", "logged", "need_logger"]


class Logger(Protocol):
    """Takes what a run has to show."""

    def figures(self, step: int, row: Mapping[str, float]) -> None:
        """A row of metrics.jsonl."""
        ...

    def picture(self, step: int, file: Path) -> None:
        """A grid of samples, a .png."""
        ...

    def close(self) -> None:
        """The run is over, or interrupted."""
        ...


class TensorBoard:
    """Event files in the run's tensorboard/. step: of the run so far; what was written after it is dropped."""

    def __init__(self, folder: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def figures(self, step: int, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, file: Path) -> None:
        with Image.open(file) as image:
            self.writer.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class Tracker:
    """A run of Weights & Biases, or of trackio, whose functions have the same names.

    A resumed run goes on with its own. name: of the package. config: what was asked for, shown beside the run.
    ValueError where the package does not begin.
    """

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        self.package: Any = importlib.import_module(name)
        run = f"{folder.name}-{identity_of(folder)}"
        own = {"id": run, "dir": str(folder)} if name == "wandb" else {}
        try:
            self.package.init(project="dmdistill", name=run, config=dict(config), resume="allow", **own)
        except Exception as error:  # each package has its own
            raise ValueError(
                f"--log-to {name}: {name} did not begin ({first_line(error)}). Log in to it, set WANDB_MODE=offline "
                f"for Weights & Biases, or leave --log-to out: metrics.jsonl has every figure"
            ) from None

    def figures(self, step: int, row: Mapping[str, float]) -> None:
        self.package.log(dict(row), step=step)

    def picture(self, step: int, file: Path) -> None:
        self.package.log({"samples": self.package.Image(str(file))}, step=step)

    def close(self) -> None:
        self.package.finish()


def identity_of(folder: Path) -> str:
    """What a tracker knows the run in this folder by, also after it was moved."""
    file = folder / "tracker-id"
    if not file.exists():
        with written_whole(file) as temporary:
            temporary.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
    return file.read_text(encoding="utf-8")


def need_logger(name: str | None) -> None:
    """ValueError, saying how to install it, where the package of a logger is missing."""
    if name is None:
        return
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"--log-to {name} needs {name} ({error}): pip install 'dmdistill[{name}]'") from None


@contextmanager
def logged(trainer: Trainer, name: str | None, config: Mapping[str, Any]) -> Iterator[None]:
    """Inside, the trainer's rows go to the logger of this name too; to metrics.jsonl alone where there is none."""
    if name is None:
        yield
        return
    folder = trainer.folder
    trainer.logger = TensorBoard(folder, step=trainer.step) if name == "tensorboard" else Tracker(name, folder, config)
    try:
        yield
    finally:
        trainer.logger.close()
        trainer.logger = None
