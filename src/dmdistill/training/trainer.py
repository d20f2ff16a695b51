"""The loop around an algorithm's iteration: log, checkpoints, interruption, exact resume."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from dmdistill.distributed.data_parallel import Parallelism
from dmdistill.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from dmdistill.io.atomic import atomic_write, flush_to_disk
from dmdistill.io.errors import describe_write_errors, first_line
from dmdistill.training.checkpoints import Checkpoints, of_tensors, read
from dmdistill.training.nonfinite import NonFiniteError, OutputMonitor
from dmdistill.training.optimizer import NetworkOptimizer
from dmdistill.training.progress import progress_bar
from dmdistill.training.signals import interrupt_event

__all__ = ["Trainer", "read_metrics"]

Hook = Callable[[int], Mapping[str, float]]


class Trainer:
    """Runs `iterate` for a number of steps and keeps everything that is needed to go on after any of them.

    Args:
        folder: of the run: metrics.jsonl and checkpoints/ are written there.
        steps: in all, those before a resume included.
        updates: the networks in training, by name, with their optimisers, schedules and averages.
        rng: the generator of every random draw of the run.
        log_every, save_every: in steps. keep: how many checkpoints stay.
        resume: go on from the newest whole checkpoint in `folder`, from the start where the run ended before its first.
        processes: that train together. All take the same steps and read the same files; the first one writes.
        output_monitor: names the network of a non-finite output, where a loss or gradient is not finite.
    """

    def __init__(
        self,
        folder: Path,
        *,
        steps: int,
        updates: Mapping[str, NetworkOptimizer],
        rng: torch.Generator,
        log_every: int = 50,
        save_every: int = 500,
        keep: int = 2,
        resume: bool = False,
        processes: ProcessGroup = SINGLE_PROCESS,
        output_monitor: OutputMonitor | None = None,
    ) -> None:
        self.folder, self.steps, self.updates, self.rng, self.processes = folder, steps, updates, rng, processes
        self.log_every, self.save_every = log_every, save_every
        self.output_monitor = output_monitor
        self.logger: Any = None  # a `Logger` that takes the rows too
        self.step = 0
        self.seconds = 0.0
        self.sums: dict[str, Tensor] = {}  # of the losses since the last line of the log, over `count` steps
        self.counts: dict[str, int] = {}
        self.checkpoints = Checkpoints(folder, keep=keep)
        self.careful_until = 0 if resume and self.load() else save_every
        processes.on_main(lambda: truncate_metrics(self.log_file, self.step))

    @property
    def log_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    def fit(
        self, iterate: Callable[[int], Mapping[str, Tensor]], *, hooks: Sequence[tuple[int, Hook]] = (), name: str
    ) -> bool:
        """Call iterate(step) until `steps` are done; False where Ctrl-C or SIGTERM ended it early, after a save.

        iterate: returns the step's losses, which are averaged over each log interval.
        hooks: (every so many steps, and after the last; a call whose figures join the log).
        """
        alone = self.processes.world_size == 1
        with interrupt_event(alone=alone) as interrupted, progress_bar(name, self.steps, start=self.step) as show:
            try:
                done = self.go(iterate, hooks, interrupted, show)
            except BaseException:
                self.checkpoints.settle()
                raise
            self.processes.on_main(self.checkpoints.wait)
        return done

    def go(
        self,
        iterate: Callable[[int], Mapping[str, Tensor]],
        hooks: Sequence[tuple[int, Hook]],
        interrupted: Event,
        show: Callable[..., None],
    ) -> bool:
        """The loop itself; what it saves last may still be being written when it ends."""
        self.began = time.perf_counter() - self.seconds
        while self.step < self.steps:
            self.advance(iterate)
            last = self.step == self.steps
            stops = self.agree(interrupted) and not last
            logs, saves = last or self.step % self.log_every == 0, last or self.step % self.save_every == 0
            due = [hook for every, hook in hooks if last or self.step % every == 0]
            if (due or logs or saves or stops) and not self.sound():
                self.go_back()
                continue
            row: dict[str, float] = {}
            for hook in due:
                row |= hook(self.step)
            self.seconds = time.perf_counter() - self.began
            if row or logs:
                means = {key: value.item() / self.counts[key] for key, value in self.sums.items()}
                moved = {name: update for name, update in self.updates.items() if update.count}
                norms = {f"gradient_{name}": update.gradient_norm.item() for name, update in moved.items()}
                self.processes.on_main(partial(self.log, means | norms | row))
                self.sums, self.counts = {}, {}
                show(self.step, means)
            if saves or stops:
                self.save()
            if stops:
                return False
        return True

    def agree(self, interrupted: Event) -> bool:
        """Whether a process was told to stop: then all do, after the same step. OSError where a save has failed."""
        news = self.processes.all_max(2 if self.checkpoints.failed else int(interrupted.is_set()))
        if news == 2:
            self.processes.on_main(self.checkpoints.wait)
        return news == 1

    def advance(self, iterate: Callable[[int], Mapping[str, Tensor]]) -> None:
        """One step. NonFiniteError, after a save, where it is careful and a loss or gradient is not finite."""
        for update in self.updates.values():
            update.careful = self.careful
        if self.output_monitor is not None:
            self.output_monitor.start(enabled=self.careful)
        try:
            losses = iterate(self.step)
        except FloatingPointError as error:
            self.save()
            raise NonFiniteError(
                f"step {self.step}: {error}{self.nonfinite_output()}. The last good state is in "
                f"{self.checkpoints.folder}; a lower learning rate or a longer warm-up usually helps"
            ) from error
        self.step += 1
        for key, value in losses.items():
            self.sums[key] = self.sums.get(key, 0) + value
            self.counts[key] = self.counts.get(key, 0) + 1

    def nonfinite_output(self) -> str:
        """Say which network of which process returned NaN or infinity first, for a message; "" where none did."""
        found = self.output_monitor.finding if self.output_monitor is not None else None
        for rank, finding in enumerate(self.processes.all_gather(found)):
            if finding is not None:
                return f": {finding}" + (f" (process {rank})" if self.processes.world_size > 1 else "")
        return ""

    @property
    def careful(self) -> bool:
        """Whether the step in hand waits for the device to see that all is finite.

        That is so until there is a checkpoint to go back to. Then steps only note on the device what they met; it is
        looked at before anything is logged, measured or saved. If something was not finite the run goes back to the
        last checkpoint and takes the same steps carefully, so that it stops at the very one, and can say why.
        """
        return self.step < self.careful_until

    def sound(self) -> bool:
        """Whether every loss and gradient so far was finite. Waits for the device."""
        return not any(update.bad.item() for update in self.updates.values())

    def go_back(self) -> None:
        self.careful_until = self.step
        self.say(f"not all was finite in the steps before {self.step}: going back to the last checkpoint to see where")
        if not self.load():
            raise NonFiniteError(f"step {self.step} or shortly before: not all is finite, and no checkpoint is left")
        self.processes.on_main(lambda: truncate_metrics(self.log_file, self.step))
        self.began = time.perf_counter() - self.seconds

    def log(self, row: Mapping[str, float]) -> None:
        with describe_write_errors(self.log_file), self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, "seconds": round(self.seconds, 3), **row}) + "\n")
        if self.logger is not None:
            self.logger.figures(self.step, row)

    def save(self) -> None:
        """Write checkpoints/step-N.pt, once the disk has the log up to here: it is not written again."""
        flush_to_disk(self.log_file)
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "sums": self.sums,
            "counts": self.counts,
            "rng": self.rng.get_state(),
            "updates": {name: update.state_dict() for name, update in self.updates.items()},
        }
        state = of_tensors(Parallelism(self.processes).full_tensor, state)
        self.processes.on_main(lambda: self.checkpoints.write(self.step, state))

    def load(self) -> bool:
        """Go back to the newest checkpoint; False where there is none. ValueError where it is another run's."""
        if (found := self.newest()) is None:
            return False
        file, state = found
        try:
            if set(state["updates"]) != set(self.updates):
                raise ValueError(f"{file} holds {sorted(state['updates'])}, this run trains {sorted(self.updates)}")
            self.step, self.seconds = state["step"], state["seconds"]
            self.sums, self.counts = state["sums"], state["counts"]
            self.rng.set_state(state["rng"])
            for name, update in self.updates.items():
                update.load_state_dict(state["updates"][name])
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{file} is of another kind of run ({first_line(error)}): remove it to go on") from None
        return True

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest whole checkpoint and its state: the first process finds it, the others read the same."""
        found: list[tuple[Path, dict[str, Any]]] = []

        def find() -> Path | None:
            if newest := self.checkpoints.newest(say=self.say):
                found.append(newest)
            return newest[0] if newest else None

        file = self.processes.on_main(find)
        if file is None:
            return None
        return found[0] if found else (file, read(file))

    def say(self, text: str) -> None:
        Console(highlight=False).print(text, soft_wrap=True, markup=False)


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl; a last one that a killed run left unfinished is none.

    ValueError, naming the line, where one is no row.
    """
    file = folder / "metrics.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return [read_row(line, f"{file}, line {i}") for i, line in enumerate(lines, 1)]


def read_row(line: bytes, where: str) -> dict[str, float]:
    try:
        row = json.loads(line)
        if not isinstance(row["step"], int):
            raise ValueError(f"step {row['step']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where}, is damaged ({first_line(error)}): remove that line to go on without it") from None
    return row


def truncate_metrics(file: Path, step: int) -> None:
    """Drop the rows after `step`: a resumed run writes them again."""
    rows = [row for row in read_metrics(file.parent) if row["step"] <= step]
    with atomic_write(file) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
