"""Kills runs at random moments until they are done. A program: torch is loaded once, each life of a run is a fork.

    python killed.py TEACHER FOLDER RUNS SEED

Writes to stdout, as JSON: the digest of what a run left alone has made; of each run that was killed, once or twice,
where that was, what it left half-written in the end, and the digest.
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

import torch
import torch._dynamo  # which optimisers load, and every life anew

from dmdistill.commands.distill import command as distilling
from dmdistill.commands.distill import report as reporting
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.evaluate import command as evaluating
from dmdistill.commands.options import ComputeOptions, SolverOptions, change
from helpers.configs import configure

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate")  # of Python's audit: all that touches a file
KINDS = ("event", "time", "step")


def settings(teacher: str, out: Path) -> DistillConfig:
    """Pairs, six steps, three checkpoints, images, figures and the best state on the way."""
    return configure(
        DistillConfig,
        teacher=teacher,
        out=out,
        pair_count=9,
        steps=6,
        batch=3,
        batch_reg=2,
        warmup=2,
        ema_halflives=(2.0,),
        log_every=1,
        sample_every=3,
        evaluate_every=1,
        evaluate_images=20,
        report_images=4,
        save_every=2,
        lr=0.02,
        ode=SolverOptions(solver_steps=2),
        compute=ComputeOptions(device="cpu", precision="fp32", threads=1),
    )


def live(config: DistillConfig, before: Callable[[], None]) -> tuple[int, float]:
    """In a fork: begin the run, or go on with it, as a user would.

    Returns the signal that ended it, 0 where it was done, and its CPU seconds.
    """
    if pid := os.fork():
        _, status, used = os.wait4(pid, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"the run failed: {config.out}"
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, used.ru_utime + used.ru_stime
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a run says is no part of the answer
        before()
        there = (config.out / "config.toml").exists()
        distilling.distill(change(config, resume=config.out if there else None))
        code = 0
    finally:
        os._exit(code)


def at_event(folder: Path, nth: int) -> Callable[[], None]:
    """Die at the n-th touch of a file in the folder."""
    seen = [0]

    def hook(event: str, arguments: tuple) -> None:
        if event in EVENTS and str(arguments[0]).startswith(str(folder)):
            seen[0] += 1
            if seen[0] == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    return lambda: sys.addaudithook(hook)


def in_step(step: int, seconds: float) -> Callable[[], None]:
    """Die so many seconds after the beginning of a step."""
    iterate = distilling.Job.iterate

    def deadly(self: distilling.Job, now: int) -> dict[str, torch.Tensor]:
        if now == step:
            after(seconds)()
        return iterate(self, now)

    return lambda: setattr(distilling.Job, "iterate", deadly)


def after(seconds: float) -> Callable[[], None]:
    """Die after so many seconds of the CPU, whatever is going on: by the kernel, as Python does not handle SIGPROF."""
    return lambda: signal.setitimer(signal.ITIMER_PROF, max(seconds, 1e-4))  # type: ignore[return-value]


def quietly() -> None:
    """Without curves, timings and words: they take most of a run this small."""
    for name in ("draw_curves", "draw_comparison", "print_comparison"):
        setattr(reporting, name, lambda *_, **__: None)
    evaluating.seconds_per_image = lambda _, **__: 1.0


def digest(folder: Path) -> str:
    """Of all that a run promises to make again: the student, and the log but for the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    told = json.dumps([{key: value for key, value in row.items() if key not in ("seconds", "crc32")} for row in rows])
    weights = (folder / "student" / "model.safetensors").read_bytes()
    return hashlib.sha256(weights + told.encode()).hexdigest()


def counted(config: DistillConfig) -> tuple[int, float]:
    """A run left alone: how often it touches a file, and its CPU seconds."""
    reading, writing = os.pipe()

    def count() -> None:
        def hook(event: str, arguments: tuple) -> None:
            if event in EVENTS and str(arguments[0]).startswith(str(config.out)):
                os.write(writing, b".")

        sys.addaudithook(hook)

    number, seconds = live(config, count)
    assert number == 0
    os.close(writing)
    return len(os.read(reading, 1 << 20)), seconds


def kill(config: DistillConfig, kind: str, moment: float, life: tuple[int, float]) -> str:
    """At a touch of a file, at a time, or in a step. What, where, and the signal it ended by, 0 where it was done."""
    events, seconds = life
    before = {
        "event": at_event(config.out, 1 + int(moment * events)),
        "time": after(moment * seconds),
        "step": in_step(int(moment * config.steps), moment * seconds / 50),
    }[kind]
    return f"{kind} {moment:.2f}: signal {live(config, before)[0]}"


def main(teacher: str, folder: str, runs: int, seed: int) -> None:
    """Each kind of kill in turn, at moments that are spread over the whole life; every second run is killed again."""
    quietly()
    whole = settings(teacher, Path(folder) / "whole")
    life = counted(whole)
    rng, killed = random.Random(seed), []
    for i in range(runs):
        config = settings(teacher, Path(folder) / f"killed-{i}")
        moment = (i + rng.random()) / runs
        kills = [kill(config, KINDS[i % 3], moment, life)]
        if i % 2:
            kills.append(kill(config, KINDS[rng.randrange(3)], rng.random() * (1 - moment), life))
        assert live(config, lambda: None)[0] == 0
        left = [str(file) for file in config.out.rglob("*") if file.name.startswith(".")]
        killed.append({"kills": kills, "digest": digest(config.out), "left": left})
    json.dump({"life": life, "whole": digest(whole.out), "killed": killed}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
