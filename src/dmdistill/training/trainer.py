"""Training loop: logging, checkpoints, interruption and exact resuming around any algorithm's iteration."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dmdistill.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from dmdistill.io.console import say
from dmdistill.io.errors import first_line
from dmdistill.training.checkpoints import Checkpoints, read_checkpoint, read_shards
from dmdistill.training.device import is_machine_error
from dmdistill.training.metrics_log import MetricsLog
from dmdistill.training.nonfinite import NonFiniteError, OutputMonitor
from dmdistill.training.optimizer import NetworkOptimizer
from dmdistill.training.progress import Work, progress_bar
from dmdistill.training.sharded_state import split_shards
from dmdistill.training.signals import StopEvent, interrupt_event, interrupt_if_closed

__all__ = ["Stateful", "Trainer"]

Iteration = Callable[[int], Mapping[str, Tensor]]
Hook = Callable[[int], Mapping[str, float]]
Hooks = Sequence[tuple[int, Hook]]  # with the interval of each, in steps

FAILED = 1000  # above the number of any signal


class Stateful(Protocol):
    """Object whose state is part of a training checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """State, of tensors, numbers, strings, lists and dicts."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a state."""
        ...


class Trainer:
    """Training loop over `iterate`, with a log, checkpoints, and exact resuming after any step.

    Args:
        folder: the run's folder; metrics.jsonl and checkpoints/ are written there.
        steps: total number of steps, those before a resume included.
        updates: optimizer of each trained network, by name.
        rng: generator of every random draw of the run.
        log_every: steps between two rows of the log.
        save_every: steps between two checkpoints.
        keep: number of checkpoints that stay on disk.
        processes: processes that train together. All take the same steps and read the same files; rank 0 writes.
        output_monitor: finds the network with a non-finite output, where a loss or gradient is not finite.

    Attributes:
        step: number of steps done.
        seconds: of training so far, those before a resume included.
        stop_signal: number of the signal that ended training early, in whichever process; 0 for none.
        logger: a `Logger` that gets each row of the log too, or None.
        stateful: further objects whose state each checkpoint saves, by name.
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
        processes: ProcessGroup = SINGLE_PROCESS,
        output_monitor: OutputMonitor | None = None,
    ) -> None:
        self.folder, self.steps, self.updates, self.rng, self.processes = folder, steps, updates, rng, processes
        self.log_every, self.save_every, self.seed = log_every, save_every, rng.initial_seed()
        self.output_monitor = output_monitor
        self.logger: Any = None
        self.stateful: dict[str, Stateful] = {}
        self.step = 0
        self.seconds = 0.0
        self.stop_signal = 0
        self.sums: dict[str, Tensor] = {}  # of the losses since the last row of the log
        self.counts: dict[str, int] = {}  # of the steps in each of these sums
        self.metrics_log = MetricsLog(folder)
        self.checkpoints = Checkpoints(folder, keep=keep)
        self.check_finite_until = save_every

    def restore(self) -> bool:
        """Load the newest undamaged checkpoint; return whether there is one.

        Call it once everything whose state is to be restored is registered, before `fit`. ValueError, naming the file,
        if the checkpoint is that of another kind of run, or if all are damaged; and where the run has taken more steps.
        """
        restored = self.load()
        if self.step > self.steps:
            raise ValueError(f"--steps {self.steps}: the run has taken {self.step} steps, give {self.step} or more")
        self.check_finite_until = 0 if restored else self.check_finite_until
        return restored

    def fit(self, iterate: Iteration, *, hooks: Hooks = (), name: str, work: Work = float) -> bool:
        """Train until `steps` are done; return False if training ended early, after a checkpoint.

        That is so after a signal (see `stop_signals`), and if stdout is closed, as by `dmdistill distill | head`.

        Args:
            iterate: takes the index of a step, trains the networks, returns the step's losses; the log has their means.
            hooks: (interval in steps, function of the steps done): called at each interval and after the last step;
                the metrics that it returns join the log.
            name: of the progress bar.
            work: of the first so many steps, in any unit, for the ETA.
        """
        self.processes.on_main(self.metrics_log.truncate)
        single = self.processes.world_size == 1
        bar = progress_bar(name, self.steps, start=self.step, work=work)
        with interrupt_event(single=single) as interrupted, bar as progress:
            try:
                completed = self.train(iterate, hooks, interrupted, interrupt_if_closed(progress, interrupted))
            except BaseException:
                self.checkpoints.wait_quietly()
                raise
            self.checkpoints.wait_together(self.processes)
        return completed

    def train(self, iterate: Iteration, hooks: Hooks, interrupted: StopEvent, progress: Callable[..., None]) -> bool:
        """Run the loop itself; its last checkpoint may still be being written when it returns."""
        self.started = time.perf_counter() - self.seconds
        while self.step < self.steps:
            self.advance(iterate)
            self.stop_signal = self.received_signal(interrupted)
            stop = self.stop_signal > 0 and self.step < self.steps
            due = [hook for every, hook in hooks if self.is_due(every)]
            log, save = self.is_due(self.log_every), stop or self.is_due(self.save_every)
            if (due or log or save) and not self.is_finite():
                self.rewind()
                continue
            metrics: dict[str, float] = {}
            for hook in due:
                metrics |= hook(self.step)
            self.seconds = time.perf_counter() - self.started
            if metrics or log:
                self.log(metrics, progress)
            else:
                progress(self.step)
            if save:
                self.save()
            if stop:
                return False
        return True

    def advance(self, iterate: Iteration) -> None:
        """Take one step. NonFiniteError if it is checked and a loss or gradient is not finite."""
        for update in self.updates.values():
            update.check_finite = self.check_finite
        if self.output_monitor is not None:
            self.output_monitor.start(enabled=self.check_finite)
        try:
            losses = iterate(self.step)
        except FloatingPointError as error:
            found = self.output_monitor.describe(self.processes) if self.output_monitor is not None else ""
            saved = self.checkpoints.steps()  # this step is half done: other networks may have been updated in it
            state = f". {self.checkpoints.folder} has the state after step {saved[-1]}" if saved else ""
            raise NonFiniteError(
                f"step {self.step}: {error}{found}{state}; a lower learning rate or a longer warm-up usually helps"
            ) from error
        self.step += 1
        for key, value in losses.items():
            self.sums[key] = self.sums.get(key, 0) + value
            self.counts[key] = self.counts.get(key, 0) + 1

    @property
    def check_finite(self) -> bool:
        """Whether the present step waits for the device to check that every loss and gradient is finite.

        True until there is a checkpoint to return to. From then on a step only records on the device whether it met
        NaN or infinity, and that record is read before anything is logged, measured or saved. If something was not
        finite the run returns to its last checkpoint and repeats the steps with the check, to stop at the very one.
        """
        return self.step < self.check_finite_until

    def is_finite(self) -> bool:
        """Whether every loss and gradient so far was finite; waits for the device."""
        return not any(update.nonfinite.item() for update in self.updates.values())

    def is_due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and after the last, happens now."""
        return self.step == self.steps or self.step % every == 0

    def received_signal(self, interrupted: StopEvent) -> int:
        """Return a signal that a process has received, 0 for none: all learn of it after the same step.

        OSError if a checkpoint failed.
        """
        number = self.processes.all_max(FAILED if self.checkpoints.failed else interrupted.number)
        if number == FAILED:
            self.checkpoints.wait_together(self.processes)
        return number

    def rewind(self) -> None:
        """Return to the last checkpoint, to repeat the steps since with the check. NonFiniteError if there is none."""
        self.check_finite_until = self.step
        self.print(f"a value is not finite in the steps before {self.step}: returning to the last checkpoint")
        if not self.load():
            raise NonFiniteError(
                f"step {self.step} or shortly before: a value is not finite, and no checkpoint is left"
            )
        self.processes.on_main(self.metrics_log.truncate)
        self.started = time.perf_counter() - self.seconds

    def log(self, metrics: Mapping[str, float], progress: Callable[..., None]) -> None:
        """Log the mean losses and last gradient norms since the last row, with these metrics; show the losses."""
        losses = {key: value.item() / self.counts[key] for key, value in self.sums.items()}
        norms = {}
        for name, update in self.updates.items():
            if update.gradient_norm is not None:
                norms[f"gradient_{name}"] = update.gradient_norm.item()
                update.gradient_norm = None
        self.processes.on_main(lambda: self.write_row({**losses, **norms, **metrics}))
        self.sums, self.counts = {}, {}
        progress(self.step, losses)

    def write_row(self, row: Mapping[str, float]) -> None:
        """Append a row to the log and hand it to the logger."""
        self.metrics_log.append({"step": self.step, "seconds": round(self.seconds, 3), **row})
        if self.logger is not None:
            self.logger.log_metrics(self.step, row)

    def save(self) -> None:
        """Write a checkpoint, once the disk has the log up to here, which is not written again."""
        self.processes.on_main(self.metrics_log.flush)
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "sums": self.sums,
            "counts": self.counts,
            "rng": self.rng.get_state(),
            "log": self.metrics_log.checksum,
            "updates": {name: update.state_dict() for name, update in self.updates.items()},
            "stateful": {name: one.state_dict() for name, one in self.stateful.items()},
        }
        state["updates"] = split_shards(state["updates"], shards := {})
        if shards:
            self.checkpoints.write_shards(self.step, state, shards)
        else:
            self.processes.on_main(lambda: self.checkpoints.write(self.step, state))

    def load(self) -> bool:
        """Return to the newest checkpoint; False if there is none. ValueError if it is another run's."""
        file, state = self.read_newest() or (None, {})
        if file is None:
            return False
        try:
            if set(state["updates"]) != set(self.updates):
                raise ValueError(f"{file} holds {sorted(state['updates'])}, this run trains {sorted(self.updates)}")
            self.step, self.seconds = state["step"], state["seconds"]
            self.sums, self.counts = state["sums"], state["counts"]
            self.restore_rng(state["rng"])
            self.metrics_log.checksum = state["log"]
            for name, update in self.updates.items():
                part = state["updates"][name], file, state, f"/{name}/"
                update.load_state_dict(read_shards(*part, update.tensor_like, self.processes))
            for name, one in self.stateful.items():  # some communicate: in the same order in every process
                if name in state["stateful"]:
                    one.load_state_dict(state["stateful"][name])
        except (KeyError, TypeError, RuntimeError) as error:
            if is_machine_error(error):
                raise
            raise ValueError(f"{file} is of another kind of run ({first_line(error)}): remove it to go on") from None
        return True

    def restore_rng(self, state: Tensor) -> None:
        """Return to a state of the random draws; those on another kind of device begin anew, from seed and step."""
        if len(state) == len(self.rng.get_state()):
            self.rng.set_state(state)
        else:
            self.rng.manual_seed(self.seed + self.step)
            self.print(f"the checkpoint is of another kind of device: from step {self.step} on random draws are others")

    def read_newest(self) -> tuple[Path, dict[str, Any]] | None:
        """Newest undamaged checkpoint and its state: rank 0 finds it, the others read the same file."""
        newest: list[tuple[Path, dict[str, Any]]] = []

        def find() -> Path | None:
            newest.extend(filter(None, [self.checkpoints.newest(say=self.print)]))
            return newest[0][0] if newest else None

        file = self.processes.on_main(find)
        if file is None:
            return None
        return newest[0] if newest else (file, read_checkpoint(file, verify_shards=False))

    def print(self, text: str) -> None:
        """Print one line for the user."""
        say(text)
