"""Where a run's figures go beside metrics.jsonl: TensorBoard, Weights & Biases, trackio; none is a default."""

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


class Logger(Protocol):
    """Takes what a run has to show."""

    def log_metrics(self, step: int, row: Mapping[str, float]) -> None:
        """A row of metrics.jsonl."""
        ...

    def log_image(self, step: int, file: Path) -> None:
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

    def log_metrics(self, step: int, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            self.writer.add_scalar(name, value, step)

    def log_image(self, step: int, file: Path) -> None:
        with Image.open(file) as image:
            self.writer.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class Tracker:
    """A run of Weights & Biases, or of trackio, whose functions have the same names.

    A resumed run goes on with its own, also where its folder was renamed. No step is sent twice: tracker.json in the
    folder has the run's name and the last steps of which each package was sent figures and samples.
    name: of the package. config: what was asked for, shown beside the run.
    ValueError where the package does not begin.
    """

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        self.package: Any = importlib.import_module(name)
        self.file = folder / "tracker.json"
        new = {"run": f"{folder.name}-{uuid.uuid4().hex[:8]}"}
        self.known: dict[str, Any] = read_json(self.file) if self.file.exists() else new
        self.sent: dict[str, int] = self.known.setdefault(name, {})
        write_json(self.file, self.known)
        run = self.known["run"]
        own = {"id": run, "dir": str(folder)} if name == "wandb" else {}
        try:
            with without_stdin():
                self.package.init(project="dmdistill", name=run, config=dict(config), resume="allow", **own)
        except Exception as error:  # each package has its own
            raise ValueError(
                f"--log-to {name}: {name} did not begin ({first_line(error)}). {HELP[name]}, "
                f"or leave --log-to out: metrics.jsonl has every figure"
            ) from None

    def log_metrics(self, step: int, row: Mapping[str, float]) -> None:
        self.send("metrics", step, row)

    def log_image(self, step: int, file: Path) -> None:
        self.send("samples", step, {"samples": self.package.Image(str(file))})

    def send(self, kind: str, step: int, content: Mapping[str, Any]) -> None:
        """Unless it was sent before."""
        if step > self.sent.get(kind, 0):
            self.package.log(dict(content), step=step)
            self.sent[kind] = step
            write_json(self.file, self.known)

    def close(self) -> None:
        self.package.finish()


HELP = {
    "wandb": "Log in by `wandb login`, set WANDB_MODE=offline",
    "trackio": "Unset TRACKIO_SPACE_ID and TRACKIO_SERVER_URL to keep the run on this machine",
}


@contextmanager
def without_stdin() -> Iterator[None]:
    """Inside, no package finds a terminal to ask for a password at: a run would wait there for ever."""
    terminal = sys.stdin
    with open(os.devnull, encoding="utf-8") as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = terminal


def require_logger(name: str | None) -> None:
    """ValueError, saying what to do, where a logger's package is missing or, online, knows no account."""
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
