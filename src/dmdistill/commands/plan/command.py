"""`dmdistill plan`: what a distillation will take, before any of it is spent."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dmdistill.commands.distill.command import check
from dmdistill.commands.distill.diagnostics import BINS
from dmdistill.commands.pairs.command import with_solver_options
from dmdistill.commands.plan.config import PlanConfig
from dmdistill.commands.plan.dry_run import Counted, Rehearsal, rehearsal
from dmdistill.commands.plan.speed import Speed, calibrate
from dmdistill.commands.presets import check_at_least, check_positive
from dmdistill.commands.prompts import with_prompts
from dmdistill.commands.run_folder import setup_compute
from dmdistill.core.solvers import evaluations
from dmdistill.data.pairs import open_pairs
from dmdistill.distributed.data_parallel import Parallelism
from dmdistill.distributed.process_group import ProcessGroup
from dmdistill.io.atomic import check_writable, write_json
from dmdistill.models.load import load_teacher
from dmdistill.models.model import Teacher

__all__ = ["Estimate", "Work", "plan"]

DRAWING, PAIRS = "drawing images", "pairs, not sharded"
PARTS = ("teacher", "generator", "fake score", "gathered", "gradients", "optimiser", "averages", "batch", "activations")
PROMPTS = 8  # that stand for all


@dataclass(frozen=True)
class Work:
    """One part of a run. flops: of all processes together. seconds: until it is done."""

    name: str
    flops: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What a run takes.

    Attributes:
        memory: bytes by part at the peak of one process, for each phase, for drawing and, before networks are sharded,
            for pairs that the run makes itself.
        host: most bytes of networks that a process has whole in the host's memory before it shards them; 0 if not.
        flops_per_step: of one process, by phase; a multiplication and an addition are two.
        work: the parts of the run, in their order.
        speed: in words.
    """

    processes: int
    batch: int
    batch_reg: int
    memory: dict[str, dict[str, int]]
    host: int
    flops_per_step: dict[str, int]
    work: list[Work]
    speed: str

    @property
    def peak(self) -> dict[str, int]:
        return max(self.memory.values(), key=lambda parts: sum(parts.values()))

    @property
    def hours(self) -> float:
        return sum(one.seconds for one in self.work) / 3600

    def figures(self) -> dict[str, Any]:
        """All of it, for --json."""
        total = {"memory_peak": sum(self.peak.values()), "flops": sum(one.flops for one in self.work)}
        return asdict(self) | total | {"hours": self.hours, "device_hours": self.hours * self.processes}


def plan(config: PlanConfig) -> Estimate:
    """Count, and time or reckon; print two tables, write config.json where it is asked for."""
    check_plan(config)
    own = of_one(config)
    device, precision = setup_compute(config.compute)
    teacher = with_solver_options(load_teacher(config.teacher), config.ode)
    teacher = with_prompts(teacher, config.prompts, device=device, most=PROMPTS)
    torch.manual_seed(config.seed)
    if teacher.device.type != "meta":
        teacher.to(device, precision)
    elif config.peak_tflops is None:
        raise ValueError(f"{teacher.name} is on the meta device and cannot be timed: give --peak-tflops, a device's")
    teacher.denoiser.precision = precision
    with rehearsal(own, teacher, data=False, processes=config.processes) as job:
        counted = {phase.name: job.count(phase) for phase in job.course.phases} | {DRAWING: job.count_drawing()}
        parts = [part for part in parts_of(config, job, counted) if part[2]]
        memory = {name: one.memory for name, one in counted.items()}
        if job.host and config.lambda_reg > 0 and config.pairs is None:
            memory[PAIRS] = {"teacher": job.whole_teacher, "activations": counted[DRAWING].memory["activations"]}
        host = job.host
    speed = speed_of(own, teacher, counted)
    estimate = Estimate(
        processes=config.processes,
        batch=own.batch,
        batch_reg=own.batch_reg,
        memory=memory,
        host=host,
        flops_per_step={name: one.flops for name, one in counted.items() if name != DRAWING},
        work=[Work(name, flops, speed.seconds(kind, flops) / config.processes) for name, kind, flops in parts],
        speed=speed.words,
    )
    show(estimate)
    if config.json is not None:
        write_json(config.json, estimate.figures())
    return estimate


def check_plan(config: PlanConfig) -> None:
    """ValueError where a setting cannot be, OSError where the figures could not be written."""
    check_at_least(config, 1, "processes")
    check(replace(config, log_to=None), ProcessGroup(world_size=config.processes))  # nothing is logged
    if not 0 < config.utilisation <= 1:
        raise ValueError(f"--utilisation {config.utilisation}, expected a share, above 0 and at most 1")
    if config.peak_tflops is not None:
        check_positive(config, "peak_tflops")
    if config.json is not None:
        check_writable(config.json)


def of_one(config: PlanConfig) -> PlanConfig:
    """The configuration of one process. ValueError where the pairs are too few for a batch and cannot be divided."""
    count, size = config.processes, config.batch_reg
    pairs = config.pair_count if config.pairs is None else len(open_pairs(config.pairs))
    if config.lambda_reg > 0 and pairs < size:
        Parallelism(ProcessGroup(world_size=count), config.accumulate).check_divisible("the number of pairs", pairs)
        size = pairs
    return replace(config, batch=config.batch // count, batch_reg=-(-size // count), pair_count=pairs)


def speed_of(config: PlanConfig, teacher: Teacher, counted: dict[str, Counted]) -> Speed:
    """Of a stated device, or of this machine. config: of one process."""
    if config.peak_tflops is not None:
        rate = config.peak_tflops * 1e12 * config.utilisation
        words = f"reckoned at {config.utilisation:g} of {config.peak_tflops:g} TFLOP/s a process"
        return Speed(dict.fromkeys(counted, rate), words)
    with rehearsal(config, teacher, data=True, processes=config.processes) as job:
        return calibrate(job, counted, drawing=DRAWING)


def parts_of(config: PlanConfig, job: Rehearsal, counted: dict[str, Counted]) -> list[tuple[str, str, float]]:
    """(name, kind, operations) of each part of the run, of all processes together."""
    teacher, probe = job.teacher, len(job.watch.probe.z)
    guided = counted[DRAWING].flops / job.many  # one evaluation of mu_real for one image
    plain = guided / (1 if teacher.guidance == 1 else 2)
    solved = guided * evaluations(teacher.solver, teacher.steps)
    made = config.pair_count if config.lambda_reg > 0 and config.pairs is None else 0
    looks = -(-config.steps // config.evaluate_every)
    judged = max(1, len(config.halflives)) * config.evaluate_images if job.judged else 0
    healthy = probe * (1 + BINS) * plain + probe * BINS * guided
    fresh = max(0, config.report_images - made)
    steps = [
        (f"{phase.steps} steps: {phase.name}", phase.name, phase.steps * counted[phase.name].flops * config.processes)
        for phase in job.course.phases
    ]
    return [
        (f"{made} pairs", DRAWING, made * solved),
        *steps,
        (f"{looks} measurements", DRAWING, looks * (judged * plain + healthy)),
        (f"report of {config.report_images} images", DRAWING, fresh * solved + config.report_images * plain),
    ]


def show(estimate: Estimate) -> None:
    """Two tables: memory, and time."""
    console = Console(highlight=False)
    memory = Table("memory of a process, MB", *estimate.memory)
    for part in dict.fromkeys([*PARTS, *(part for parts in estimate.memory.values() for part in parts)]):
        sizes = [parts.get(part, 0) for parts in estimate.memory.values()]
        if any(sizes):
            memory.add_row(part, *(f"{size / 1e6:.1f}" for size in sizes))
    memory.add_row("sum", *(f"{sum(parts.values()) / 1e6:.1f}" for parts in estimate.memory.values()))
    console.print(memory)
    table = Table("work", "TFLOP", "hours")
    for one in estimate.work:
        table.add_row(one.name, f"{one.flops / 1e12:.4g}", f"{one.seconds / 3600:.3g}")
    table.add_row("sum", f"{sum(one.flops for one in estimate.work) / 1e12:.4g}", f"{estimate.hours:.3g}")
    console.print(table)
    one = estimate.processes == 1
    console.print(
        f"{'one process' if one else f'{estimate.processes} processes'} of {estimate.batch} generated images and "
        f"{estimate.batch_reg} pairs a step: {sum(estimate.peak.values()) / 1e9:.3g} GB{'' if one else ' each'}, "
        f"{estimate.hours:.3g} hours, {estimate.hours * estimate.processes:.3g} device-hours, {estimate.speed}",
        soft_wrap=True,
        markup=False,
    )
    if estimate.host:
        console.print(
            f"each builds its networks in {estimate.host / 1e9:.3g} GB of the host's memory and shards them from there",
            soft_wrap=True,
        )
    console.print(
        "not counted: kernels' workspace, networks that judge; of exchange between processes the time, and the "
        "backend's own buffers",
        soft_wrap=True,
    )
