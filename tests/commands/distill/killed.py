"""Kills runs at random moments until they are done. A program: torch is loaded once, each start of a run is a fork.

    python killed.py TEACHER FOLDER RUNS SEED

Writes to stdout, as JSON: the digest of a run that is not killed; of each killed run, once or twice, where that
was, the temporary files that it left in the end, and the digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch._dynamo  # which optimizers load, in every fork anew

from dmdistill.commands.distill import report
from dmdistill.commands.distill.command import distill
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.setup import Distillation
from dmdistill.commands.options import change
from helpers.configs import small_distillation
from helpers.runs import logged_values, skip_figures, student_bytes

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate")  # of Python's audit: all that touches a file
KINDS = ("event", "time", "step")


def settings(teacher: str, out: Path) -> DistillConfig:
    """Pairs, six steps, three checkpoints, sample grids, measurements and a best state."""
    sizes = {"pair_count": 9, "batch": 3, "batch_reg": 2, "evaluate_images": 20, "report_images": 4, "solver_steps": 2}
    options = {"ema_halflives": (2.0,), "evaluate_every": 1, "save_every": 2, "lr": 0.02}
    return small_distillation(teacher=teacher, out=out, **sizes, **options)


def run_in_fork(config: DistillConfig, before: Callable[[], None]) -> tuple[int, float]:
    """Start or resume a run in a fork.

    Returns the signal that ended it, 0 where it was done, and its CPU seconds.
    """
    if pid := os.fork():
        _, status, used = os.wait4(pid, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"the run failed: {config.out}"
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, used.ru_utime + used.ru_stime
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a run prints is no part of the output
        before()
        started = (config.out / "config.toml").exists()
        distill(change(config, resume=config.out if started else None))
        code = 0
    finally:
        os._exit(code)


def at_event(folder: Path, nth: int) -> Callable[[], None]:
    """Die at the n-th touch of a file in the folder."""
    count = [0]

    def hook(event: str, arguments: tuple) -> None:
        if event in EVENTS and str(arguments[0]).startswith(str(folder)):
            count[0] += 1
            if count[0] == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    return lambda: sys.addaudithook(hook)


def in_step(step: int, seconds: float) -> Callable[[], None]:
    """Die so many seconds after the beginning of a step."""
    iterate = Distillation.iterate

    def deadly(self: Distillation, now: int) -> dict[str, torch.Tensor]:
        if now == step:
            after(seconds)()
        return iterate(self, now)

    return lambda: setattr(Distillation, "iterate", deadly)


def after(seconds: float) -> Callable[[], None]:
    """Die after so many seconds of the CPU, whatever is going on: by the kernel, as Python does not handle SIGPROF."""
    return lambda: signal.setitimer(signal.ITIMER_PROF, max(seconds, 1e-4))  # type: ignore[return-value]


def skip_output() -> None:
    """Leave out curves, pictures, timings and tables: they take most of a run this small."""
    patch = pytest.MonkeyPatch()
    skip_figures(patch)
    patch.setattr(report, "print_comparison", lambda *_, **__: None)


def digest(folder: Path) -> str:
    """Hash all that a resumed run must make again: the student, and the log but for the clock."""
    return hashlib.sha256(student_bytes(folder) + json.dumps(logged_values(folder)).encode()).hexdigest()


def measure(config: DistillConfig) -> tuple[int, float]:
    """Run without a kill: how often it touches a file, and its CPU seconds."""
    reading, writing = os.pipe()

    def count() -> None:
        def hook(event: str, arguments: tuple) -> None:
            if event in EVENTS and str(arguments[0]).startswith(str(config.out)):
                os.write(writing, b".")

        sys.addaudithook(hook)

    number, seconds = run_in_fork(config, count)
    assert number == 0
    os.close(writing)
    return len(os.read(reading, 1 << 20)), seconds


def kill(config: DistillConfig, kind: str, moment: float, complete: tuple[int, float]) -> str:
    """Kill at a touch of a file, at a time, or in a step. Returns what, where, and the signal, 0 where it was done."""
    events, seconds = complete
    before = {
        "event": at_event(config.out, 1 + int(moment * events)),
        "time": after(moment * seconds),
        "step": in_step(int(moment * config.steps), moment * seconds / 50),
    }[kind]
    return f"{kind} {moment:.2f}: signal {run_in_fork(config, before)[0]}"


def main(teacher: str, folder: str, runs: int, seed: int) -> None:
    """Each kind of kill in turn, at moments spread over the full run; every second run is killed again."""
    skip_output()
    complete = settings(teacher, Path(folder) / "complete")
    size = measure(complete)
    rng, killed = random.Random(seed), []
    for i in range(runs):
        config = settings(teacher, Path(folder) / f"killed-{i}")
        moment = (i + rng.random()) / runs
        kills = [kill(config, KINDS[i % 3], moment, size)]
        if i % 2:
            kills.append(kill(config, KINDS[rng.randrange(3)], rng.random() * (1 - moment), size))
        assert run_in_fork(config, lambda: None)[0] == 0
        left = [str(file) for file in config.out.rglob("*") if file.name.startswith(".")]
        killed.append({"kills": kills, "digest": digest(config.out), "left": left})
    json.dump({"size": size, "complete": digest(complete.out), "killed": killed}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
