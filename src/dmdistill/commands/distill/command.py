"""`dmdistill distill`: a teacher becomes a one-step student."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.report import write_report
from dmdistill.commands.distill.setup import Job
from dmdistill.commands.pairs.command import with_solver_options
from dmdistill.commands.presets import check_at_least, check_numbers, check_positive, check_shares
from dmdistill.commands.prompts import with_prompts
from dmdistill.commands.run_folder import RunFolder
from dmdistill.distributed.data_parallel import Parallelism, parallelism
from dmdistill.distributed.process_group import (
    SINGLE_PROCESS,
    ProcessGroup,
    is_elastic_restart,
    join_process_group,
    local_device,
)
from dmdistill.io.errors import import_optional
from dmdistill.models.cards import student_card
from dmdistill.models.folder import save_model
from dmdistill.models.load import load_model, load_teacher
from dmdistill.models.model import Student, Teacher
from dmdistill.training.loggers import logging_to, require_logger

__all__ = ["distill"]

CPU = torch.device("cpu")


def distill(config: DistillConfig) -> Student | None:
    """Distill, write the student to out/student, report, return it; None where it was interrupted."""
    with join_process_group(local_device(config.compute.device)) as processes:
        if is_elastic_restart() and (config.out / "config.toml").exists():
            config = replace(config, resume=config.out)
        check(config, processes)
        return distill_together(config, processes)


def distill_together(config: DistillConfig, processes: ProcessGroup) -> Student | None:
    """One process's part in it; the first one answers with the student."""
    teacher = load(config)
    with RunFolder(config.out, config, resume=config.resume is not None, processes=processes) as run:
        teacher = placed(config, teacher, run)
        torch.manual_seed(config.seed)
        try:
            return make_student(config, teacher, run)
        except KeyboardInterrupt:  # while pairs or figures were made: what is finished is kept
            run.say(f"interrupted; go on with: dmdistill distill --resume {run.folder}")
            raise


def load(config: DistillConfig) -> Teacher:
    """The teacher, with its solver."""
    return with_solver_options(load_teacher(config.teacher), config.ode)


def placed(config: DistillConfig, teacher: Teacher, run: RunFolder) -> Teacher:
    """A teacher with its prompts, on the run's device; its network in the host's memory if it is to be sharded."""
    home = parallelism(run.processes, 1, config.strategy).build_device(run.device)
    return with_prompts(teacher, config.prompts, device=run.device).to(run.device, run.precision, network_device=home)


def make_student(config: DistillConfig, teacher: Teacher, run: RunFolder) -> Student | None:
    """Everything after the checks."""
    job = Job(config, teacher, run)
    with logging_to(job.trainer, config.log_to if run.processes.is_main else None, asdict(config)):
        done = job.trainer.fit(job.iterate, hooks=job.watch.hooks, name="distilling")
    if not done:
        run.say_how_to_resume("distill", job.trainer.step)
        return None
    student = job.student(again=lambda: with_prompts(load(config), config.prompts).to(CPU, run.precision))
    if not run.processes.is_main:
        return None
    if (best := job.watch.best).step:
        run.say(f"best: {best.name} of step {best.step}, Frechet distance {best.value:.4g}")
    save_model(config.out / "student", student, card=student_card(student, asdict(config)), dtype=run.storage)
    return report(config, job, run) if config.report_images else student


def check(config: DistillConfig, processes: ProcessGroup = SINGLE_PROCESS) -> None:
    """ValueError where a setting cannot be, or settings contradict each other, before anything is loaded or written."""
    check_numbers(config)
    check_at_least(config, 1, "steps", "batch", "batch_reg", "accumulate", "fake_steps")
    parallel = Parallelism(processes, config.accumulate)
    parallel.check_divisible("--batch", config.batch)
    if config.lambda_reg > 0:
        parallel.check_divisible("--batch-reg", config.batch_reg)
    check_at_least(config, 1, "log_every", "sample_every", "evaluate_every", "save_every")
    check_at_least(
        config, 0, "report_images", "warmup", "lambda_reg", "lambda_end", "weight_decay", "lora_student", "lora_fake"
    )
    if config.lpips_side and config.lpips_side < 16:
        raise ValueError(f"--lpips-side {config.lpips_side}, expected at least 16, or 0 for the images' own")
    check_shares(config, "betas", "match_from")
    check_at_least(config, 2, "evaluate_images")
    if config.report_images == 1:
        raise ValueError("--report-images 1, expected at least 2, or 0 for no report")
    check_positive(config, "lr", "lr_fake", "clip", "halflives")
    if len(set(config.halflives)) < len(config.halflives):
        raise ValueError(f"--halflives {config.halflives}, expected each once: an average is named by its own")
    require_logger(config.log_to)
    for name in ("lora_student", "lora_fake"):
        if getattr(config, name):
            import_optional("peft", f"--{name.replace('_', '-')}", extra="diffusers")
    if not 0 <= config.low < config.high <= 1:
        raise ValueError(f"--low {config.low} --high {config.high}, expected 0 <= low < high <= 1")
    if config.lambda_reg > 0 and config.pairs is None and config.pair_count < 1:
        raise ValueError(
            f"--lambda-reg {config.lambda_reg} needs pairs: give --pairs FOLDER or a --pair-count above 0, or set "
            "--lambda-reg 0 to distill without"
        )
    if config.lambda_reg == 0 and not config.match:
        raise ValueError("--lambda-reg 0 with --no-match leaves no loss: keep one of the two")
    if not 0 <= config.fake_from <= 1:
        raise ValueError(f"--fake-from {config.fake_from}, expected a fraction in [0, 1]")
    least = config.match_from if config.match else 1  # a step must have a loss
    if not least <= config.regress_until <= 1:
        raise ValueError(f"--regress-until {config.regress_until}, expected {least} to 1")
    if config.distance == "lpips" and config.lpips_weights is None:
        raise ValueError("--distance lpips needs --lpips-weights FILE, a safetensors file of VGG16 and LPIPS")
    if config.decoder is not None and (config.lpips_weights is None or config.distance == "huber"):
        raise ValueError(f"--decoder {config.decoder} is for LPIPS, which needs --lpips-weights FILE")


def report(config: DistillConfig, job: Job, run: RunFolder) -> Student:
    """Measure the stored student beside its teacher, and return it."""
    student = load_model(str(config.out / "student"), teacher=job.teacher)
    assert isinstance(student, Student)
    student.to(run.device, run.precision)
    job.teacher.to(run.device, run.precision)
    write_report(config, job.teacher, student, job.pairs, batch=job.many, seconds=job.trainer.seconds, say=run.say)
    return student
