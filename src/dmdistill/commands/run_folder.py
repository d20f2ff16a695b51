"""A command's run: its folder, its machine, its random draws, its words."""

from __future__ import annotations

import dataclasses
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from rich.console import Console

from dmdistill.commands.options import ComputeOptions
from dmdistill.commands.presets import to_toml
from dmdistill.distributed.process_group import SINGLE_PROCESS, ProcessGroup, local_device
from dmdistill.io.atomic import atomic_write
from dmdistill.io.folders import check_new_folder, exclusive_folder
from dmdistill.training.device import choose_device, choose_precision

__all__ = ["RunFolder", "setup_compute"]


def setup_compute(compute: ComputeOptions) -> tuple[torch.device, torch.dtype | None]:
    """Set threads and, with bf16, the fast ways of computing; answer with device and precision."""
    most = 8 * (os.cpu_count() or 1)  # of very many torch ends the process without a word
    if not 0 <= compute.threads <= most:
        raise ValueError(f"--threads {compute.threads}, expected 1 to {most}, or 0 for all")
    if compute.threads:
        torch.set_num_threads(compute.threads)
    device = choose_device(compute.device)
    precision = choose_precision(compute.precision, device)
    if precision is not None:  # then fp32 is for sums; asked for fp32, nothing is rounded to TF32
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    return device, precision


def check_folder(folder: Path, *, resume: bool) -> None:
    """ValueError where there is nothing to resume, or something that a new run would overwrite."""
    if resume and not folder.is_dir():
        raise ValueError(f"{folder} does not exist: nothing to resume")
    if not resume:
        check_new_folder(folder, f"choose another --out, or resume it by --resume {folder}")


class RunFolder:
    """What teach and distill share.

    The folder must be new, unless the run is resumed. It is made by `begin`, once all that was given is known to be
    good; config.toml in it says what was asked for. From then on until the end of a `with` it is this process's alone,
    or that of the processes at work together, of which the first one writes.
    """

    def __init__(
        self, folder: Path, config: Any, *, resume: bool = False, processes: ProcessGroup = SINGLE_PROCESS
    ) -> None:
        processes.on_main(lambda: check_folder(folder, resume=resume))
        self.folder, self.config, self.processes, self.held = folder, config, processes, ExitStack()
        self.console = Console(highlight=False)
        compute = dataclasses.replace(config.compute, device=local_device(config.compute.device))
        self.device, self.precision = setup_compute(compute)
        self.rng = torch.Generator(self.device).manual_seed(config.seed)
        self.storage = {"fp32": torch.float32, "fp16": torch.float16}[config.store]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.held.close()

    def begin(self) -> None:
        """Make the folder, or find it again. ValueError where another run's process is at work in it."""
        self.processes.on_main(self.take)

    def take(self) -> None:
        self.held.enter_context(exclusive_folder(self.folder))
        with atomic_write(self.folder / "config.toml") as temporary:
            temporary.write_text(to_toml(dataclasses.asdict(self.config)), encoding="utf-8")

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False)

    def say_how_to_resume(self, command: str, step: int) -> None:
        self.say(f"stopped after step {step}, saved; go on with: dmdistill {command} --resume {self.folder}")
