"""Experiment loggers beside metrics.jsonl: TensorBoard, Weights & Biases, trackio; none by default."""

from __future__ import annotations

import importlib
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from dmdistill.io.atomic import read_json, write_json
from dmdistill.io.errors import first_line, import_optional
from dmdistill.training.trainer import Trainer

__all__ = ["Logger", "TensorBoard", "Tracker", "logging_to", "require_logger"]


HELP = {
    "wandb": "Log in by `wandb login`, set WANDB_MODE=offline",
    "trackio": "Unset TRACKIO_SPACE_ID and TRACKIO_SERVER_URL to keep the run on this computer",
}


class Logger(Protocol):
    """Receiver of a run's metrics and samples."""

    def log_metrics(self, step: int, row: Mapping[str, float]) -> None:
        """Log the metrics of a row of metrics.jsonl."""
        ...

    def log_image(self, step: int, file: Path) -> None:
        """Log a PNG file, a grid of samples."""
        ...

    def close(self) -> None:
        """Finish, after the run or its interruption."""
        ...


class TensorBoard:
    """Event files for TensorBoard, in the run's folder tensorboard/.

    Args:
        folder: the run's folder.
        step: last step of the run so far; events after it are dropped.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def log_metrics(self, step: int, row: Mapping[str, float]) -> None:
        """Write one scalar event per metric."""
        for name, value in row.items():
            self.writer.add_scalar(name, value, step)

    def log_image(self, step: int, file: Path) -> None:
        """Write an image event."""
        with Image.open(file) as image:
            self.writer.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left and close the file."""
        self.writer.close()


class Tracker:
    """A run of Weights & Biases or trackio, whose functions have the same names.

    A resumed run continues its own, also if its folder was renamed. No step is sent twice: tracker.json in the folder
    holds the run's name and, for each package, the last steps whose metrics and samples were sent. ValueError if the
    package cannot start.

    Args:
        name: of the package, "wandb" or "trackio".
        folder: the run's folder.
        config: settings to show beside the run.
    """

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        self.package: Any = importlib.import_module(name)
        self.file = folder / "tracker.json"
        new = {"run": f"{folder.name}-{uuid.uuid4().hex[:8]}"}
        self.state: dict[str, Any] = read_json(self.file) if self.file.exists() else new
        self.sent: dict[str, int] = self.state.setdefault(name, {})
        write_json(self.file, self.state)
        run = self.state["run"]
        own = {"id": run, "dir": str(folder)} if name == "wandb" else {}
        try:
            with without_stdin():
                self.package.init(project="dmdistill", name=run, config=dict(config), resume="allow", **own)
        except Exception as error:  # each package has its own
            raise ValueError(
                f"--log-to {name}: {name} did not start ({first_line(error)}). {HELP[name]}, "
                f"or leave --log-to out: metrics.jsonl has every metric"
            ) from None

    def log_metrics(self, step: int, row: Mapping[str, float]) -> None:
        """Send the metrics of a step, once."""
        self.send("metrics", step, row)

    def log_image(self, step: int, file: Path) -> None:
        """Send the samples of a step, once."""
        self.send("samples", step, {"samples": self.package.Image(str(file))})

    def send(self, kind: str, step: int, content: Mapping[str, Any]) -> None:
        """Send content of a kind, unless that step's was sent before."""
        if step > self.sent.get(kind, 0):
            self.package.log(dict(content), step=step)
            self.sent[kind] = step
            write_json(self.file, self.state)

    def close(self) -> None:
        """Finish the run and send what is left."""
        self.package.finish()


@contextmanager
def without_stdin() -> Iterator[None]:
    """Hide the terminal within the block: a package that prompts for a password would wait there for ever."""
    terminal = sys.stdin
    with open(os.devnull, encoding="utf-8") as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = terminal


def require_logger(name: str | None) -> None:
    """Check that a logger's package is installed and has an account. ValueError, with the remedy, if not."""
    if name is None:
        return
    package = import_optional(name, f"--log-to {name}", extra=name)
    if name == "wandb" and package.setup().settings.mode not in ("offline", "disabled"):
        try:
            with without_stdin():
                package.login(verify=False)
        except Exception as error:  # of its own kind
            raise ValueError(f"--log-to wandb: {first_line(error).rstrip('.')}; or set WANDB_MODE=offline") from None


@contextmanager
def logging_to(trainer: Trainer, name: str | None, config: Mapping[str, Any]) -> Iterator[None]:
    """Attach a logger to the trainer within the block.

    Args:
        trainer: the run's trainer, at the step from which it continues.
        name: "tensorboard", "wandb" or "trackio"; None for no logger.
        config: settings to show beside the run.
    """
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
