"""`dmdistill plan`: what a distillation will take, before any of it is spent."""

from __future__ import annotations

import torch

from dmdistill.commands.distill.command import check_distill, load_configured_teacher, reads_shards
from dmdistill.commands.distill.diagnostics import BINS
from dmdistill.commands.distill.monitor import TEACHER_IMAGES
from dmdistill.commands.options import change, check
from dmdistill.commands.plan.config import PlanConfig
from dmdistill.commands.plan.dry_run import Cost, DryRun, dry_run
from dmdistill.commands.plan.estimate import Estimate, Work, print_estimate
from dmdistill.commands.plan.speed import Speed, measure_speed
from dmdistill.commands.prompts import with_prompts
from dmdistill.commands.run_folder import setup_compute
from dmdistill.core.solvers import evaluations
from dmdistill.data.pairs import open_pairs
from dmdistill.distributed.data_parallel import Parallelism
from dmdistill.distributed.process_group import ProcessGroup
from dmdistill.distributed.stored_weights import is_stored
from dmdistill.io.atomic import check_writable, write_json

__all__ = ["plan"]

SAMPLING, PAIRS = "sampling", "pairs, not sharded"
PROMPTS = 8  # of the prompts, for all


def plan(config: PlanConfig) -> Estimate:
    """Count the memory and the operations, time or calculate the hours, print tables, and write --json."""
    check_plan(config)
    own = single_process_config(config)
    device, precision = setup_compute(config.compute)
    teacher = with_prompts(load_configured_teacher(config), config.prompts, device=device, most=PROMPTS)
    torch.manual_seed(config.seed)
    if teacher.device.type != "meta":
        teacher.to(device, precision)
    elif config.peak_tflops is None:
        raise ValueError(f"{teacher.name} is on the meta device and cannot be timed: give --peak-tflops, a device's")
    teacher.denoiser.precision = precision
    compute = {"device": device, "precision": precision, "processes": config.processes}
    with dry_run(own, teacher, data=False, **compute) as run:
        costs = {phase.name: run.count(phase) for phase in run.distillation.phases.phases}
        costs[SAMPLING] = run.count_sampling()
        parts = [part for part in work_parts(config, run, costs) if part[2]]
        memory = {name: cost.memory for name, cost in costs.items()}
        if run.host_bytes and makes_pairs(config):
            memory[PAIRS] = {"teacher": run.teacher_bytes, "activations": costs[SAMPLING].memory["activations"]}
        host, offloaded = host_bytes(config, run), run.offloaded_bytes
    if config.peak_tflops is not None:
        speed = stated_speed(config, config.peak_tflops, costs)
    else:
        with dry_run(own, teacher, data=True, **compute) as run:
            speed = measure_speed(run, costs, sampling=SAMPLING)
    estimate = Estimate(
        processes=config.processes,
        batch=own.batch,
        batch_reg=own.regression.batch_reg if config.regression.lambda_reg > 0 else 0,
        memory=memory,
        host=host,
        offloaded=offloaded,
        flops_per_step={name: cost.flops for name, cost in costs.items() if name != SAMPLING},
        work=[Work(name, flops, speed.seconds(kind, flops) / config.processes) for name, kind, flops in parts],
        speed=speed.source,
    )
    print_estimate(estimate)
    if config.json is not None:
        write_json(config.json, estimate.numbers())
    return estimate


def check_plan(config: PlanConfig) -> None:
    """Raise a ValueError where an option cannot be, an OSError where the numbers could not be written."""
    check(config)
    check_distill(change(config, log_to=None), ProcessGroup(world_size=config.processes))  # nothing is logged
    if config.json is not None:
        check_writable(config.json)


def single_process_config(config: PlanConfig) -> PlanConfig:
    """Return the options with one process's batches. ValueError where few pairs cannot be divided among processes."""
    count, size = config.processes, config.regression.batch_reg
    folder = config.pair_set.pairs
    pairs = config.pair_set.pair_count if folder is None else len(open_pairs(folder))
    if config.regression.lambda_reg > 0 and pairs < size:
        processes = ProcessGroup(world_size=count)
        Parallelism(processes, config.memory.accumulate).check_divisible("the number of pairs", pairs)
        size = pairs
    return change(config, batch=config.batch // count, batch_reg=-(-size // count), pair_count=pairs)


def makes_pairs(config: PlanConfig) -> bool:
    """Whether the run makes its own pairs."""
    return config.regression.lambda_reg > 0 and config.pair_set.pairs is None


def host_bytes(config: PlanConfig, run: DryRun) -> int:
    """Return the size of whole networks in a process' host memory: of all, or of a teacher that makes pairs, or 0."""
    if not (is_stored(run.teacher.network) and reads_shards(config, ProcessGroup(world_size=config.processes))):
        return run.host_bytes
    return run.teacher_bytes if makes_pairs(config) else 0


def stated_speed(config: PlanConfig, peak_tflops: float, costs: dict[str, Cost]) -> Speed:
    """Return the speed of a device with a stated peak."""
    rate = peak_tflops * 1e12 * config.utilization
    source = f"calculated at {config.utilization:g} of {peak_tflops:g} TFLOP/s a process"
    return Speed(dict.fromkeys(costs, rate), source)


def work_parts(config: PlanConfig, run: DryRun, costs: dict[str, Cost]) -> list[tuple[str, str, float]]:
    """Return name, kind and operations, of all processes together, of each part of the run."""
    teacher, evaluation = run.teacher, config.evaluation
    guided = costs[SAMPLING].flops / run.sampling_batch  # one evaluation of the guided teacher for one image
    plain = guided / (1 if teacher.guidance == 1 else 2)
    solved = guided * evaluations(teacher.solver, teacher.steps)
    generated = plain * config.student.step_count
    pairs = config.pair_set.pair_count if makes_pairs(config) else 0
    measurements = -(-config.steps // evaluation.evaluate_every)
    has_metric = bool(teacher.feature_extractor or evaluation.reference)
    measured = max(1, len(config.optimizer.ema_halflives)) * evaluation.evaluate_images if has_metric else 0
    has_data = config.regression.lambda_reg > 0 or config.gan.data is not None
    judged = 2 * BINS if run.distillation.phases.has_gan else 0  # evaluations of the discriminator
    real = plain * (1 if getattr(run.distillation.real, "scale", 1) == 1 else 2)
    probed = len(run.probe.z) * (generated + (BINS + judged) * plain + BINS * real)
    pictured = min(TEACHER_IMAGES, len(run.probe.z))  # of the teacher, for samples/start.png and the diagnostics
    compared = pictured * solved + BINS * plain * (len(run.probe.z) if has_data else pictured)
    fresh = max(0, evaluation.report_images - pairs)
    steps = [
        (f"{phase.steps} steps: {phase.name}", phase.name, phase.steps * costs[phase.name].flops * config.processes)
        for phase in run.distillation.phases.phases
    ]
    return [
        (f"{pairs} pairs", SAMPLING, pairs * solved),
        *steps,
        (f"{measurements} measurements", SAMPLING, measurements * (measured * generated + probed) + compared),
        (
            f"report of {evaluation.report_images} images",
            SAMPLING,
            fresh * solved + evaluation.report_images * generated,
        ),
    ]
