"""The folder of a run, its device and its random draws: what `teach` and `distill` share."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Self

import torch

from dmdistill.commands.options import ComputeOptions, flag_name, option_values, resolve_paths
from dmdistill.commands.presets import write_config
from dmdistill.distributed.process_group import SINGLE_PROCESS, ProcessGroup, local_device
from dmdistill.io.atomic import atomic_write
from dmdistill.io.console import say
from dmdistill.io.folders import check_new_folder, exclusive_folder, removed_if_useless
from dmdistill.training.device import choose_device, choose_precision, reuse_memory
from dmdistill.training.signals import TrainingStopped
from dmdistill.training.trainer import Trainer

__all__ = ["DTYPES", "OptionsCheck", "RunFolder", "open_run", "setup_compute"]

SOURCES = ("teacher", "prompts", "start", "pairs", "reference", "lpips_weights", "decoder", "data")  # what a run reads
MAY_CHANGE = {  # in a resumed run: what leaves its meaning, and names of sources, which may have moved
    *("out", "resume", "preset", "steps", "phase_steps", "lr", "lr_fake", "grad_clip", *SOURCES),
    *("accumulate", "strategy", "sharding_group", "offload_teacher", "checkpointing", "compile", "device", "precision"),
    "threads",
    *("log_every", "log_to", "sample_every", "save_every", "save_dtype", "evaluate_every", "report_images", "keep"),
}
UNREPORTED = ("out", "resume", "phase_steps")  # the last is said in words, with the phases
KEPT = ("pairs",)  # of a run that failed: they may have taken hours
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}  # of --save-dtype


def setup_compute(compute: ComputeOptions) -> tuple[torch.device, torch.dtype | None]:
    """Set a CPU's threads and allocator, and a GPU's TF32 and cuDNN's benchmark mode, which come with bf16 only.

    Returns the device and the precision.
    """
    compute.check()
    if compute.threads:
        torch.set_num_threads(compute.threads)
    device = choose_device(compute.device)
    if device.type == "cpu":
        reuse_memory()
    precision = choose_precision(compute.precision, device)
    torch.set_float32_matmul_precision("highest" if precision is None else "high")
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = precision is not None
    return device, precision


class OptionsCheck:
    """Compares the options of a resumed run with those of its checkpoints, which save them.

    Args:
        config: the options.
        say: prints a line about those that changed and may.
    """

    def __init__(self, config: Any, say: Callable[[str], None]) -> None:
        self.values: dict[str, Any] = json.loads(json.dumps(option_values(config), default=str))
        self.say = say

    def state_dict(self) -> dict[str, Any]:
        """Return the options."""
        return self.values

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raise a ValueError, naming the flag, where an option changed that may not."""
        changed = [name for name in self.values if name in state and state[name] != self.values[name]]
        texts = {name: f"{flag_name(name)} {self.values[name]}, before {state[name]}" for name in changed}
        if refused := [text for name, text in texts.items() if name not in MAY_CHANGE]:
            raise ValueError(f"--resume: {'; '.join(refused)}: a run keeps these options, give the first or start anew")
        if reported := [text for name, text in texts.items() if name not in UNREPORTED]:
            self.say(f"resumed with other options: {'; '.join(reported)}")


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, its processes, its device and the generator of its random draws.

    The folder is made by `lock`, once all options are known to be good. From then on until the end of a `with` block
    this process holds its lock, or the first of the processes that train together, which is the one that writes. A new
    run that fails before its first result, as where a step does not fit in memory, leaves only pairs that are done.
    """

    folder: Path
    config: Any
    processes: ProcessGroup
    device: torch.device
    precision: torch.dtype | None
    rng: torch.Generator
    locks: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.locks.__exit__(*error)

    def lock(self) -> None:
        """Make and lock the folder; write config.toml of a new run. ValueError where another process has the lock."""
        self.processes.on_main(self.make)

    def make(self) -> None:
        """Make and lock the folder, in the process that writes."""
        if self.config.resume is None:
            self.locks.enter_context(removed_if_useless(self.folder, self.has_results, kept=KEPT))
        self.locks.enter_context(exclusive_folder(self.folder))
        if self.config.resume is None:
            self.write_config()

    def restore(self, trainer: Trainer) -> None:
        """Load the newest checkpoint of a run that is resumed; its options are in config.toml once they are accepted.

        ValueError where an option changed that may not: then config.toml stays as it was.
        """
        if self.config.resume is not None:
            trainer.restore()
            self.processes.on_main(self.write_config)

    def write_config(self) -> None:
        """Write config.toml."""
        with atomic_write(self.folder / "config.toml") as temporary:
            write_config(self.config, temporary)

    def has_results(self) -> bool:
        """Whether the run, or a part of it in a folder of its own, has a checkpoint, or it has a row of its log."""
        log = self.folder / "metrics.jsonl"
        checkpoints = (self.folder.glob(f"{part}checkpoints/step-*") for part in ("", "*/"))
        return any(map(any, checkpoints)) or (log.is_file() and log.stat().st_size > 0)

    def print(self, text: str) -> None:
        """Print a line."""
        say(text)

    def print_resume_command(self, command: str, done: str) -> None:
        """Print what was done and the command that resumes the run."""
        self.print(f"{done}; resume with: dmdistill {command} --resume {shlex.quote(str(self.folder))}")

    def stop(self, command: str, trainer: Trainer) -> NoReturn:
        """Print how to resume training that a signal has ended. Raises TrainingStopped."""
        self.print_resume_command(command, f"stopped after step {trainer.step}, saved")
        raise TrainingStopped(trainer.stop_signal)


def open_run(config: Any, processes: ProcessGroup = SINGLE_PROCESS) -> RunFolder:
    """Check a run's folder and choose its device; nothing is written.

    Args:
        config: of `teach` or `distill`.
        processes: that train together.

    Raises:
        ValueError: the folder of a new run exists, or that of a run to resume does not; the device cannot be used.
    """
    processes.on_main(lambda: check_folder(config.out, resume=config.resume is not None))
    compute = dataclasses.replace(config.compute, device=local_device(config.compute.device))
    device, precision = setup_compute(compute)
    rng = torch.Generator(device).manual_seed(config.seed)
    return RunFolder(config.out, resolve_paths(config, *SOURCES), processes, device, precision, rng)


def check_folder(folder: Path, *, resume: bool) -> None:
    """Raise a ValueError where there is nothing to resume, or something that a new run would overwrite."""
    if resume and not folder.is_dir():
        raise ValueError(f"--resume {folder}: there is no such folder, expected that of a run")
    if not resume:
        made = KEPT if (folder / "pairs" / "pairs.json").is_file() else ()  # of a run that failed after them
        check_new_folder(
            folder, f"choose another --out, or resume it by --resume {shlex.quote(str(folder))}", allowed=made
        )
