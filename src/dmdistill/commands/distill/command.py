"""`dmdistill distill`: a teacher becomes a one-step student.

The order of a run: check the options, load the teacher, build the networks, lock the folder, make the pairs, set up the
optimizers, train, write the student, report.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.extended_run import describe_extension, keep_phases
from dmdistill.commands.distill.functions import load_distance, load_objective
from dmdistill.commands.distill.hints import describe_options
from dmdistill.commands.distill.initialization import check_student_times, initial_fake_score, initial_generator
from dmdistill.commands.distill.method_options import METHODS
from dmdistill.commands.distill.monitor import Monitor
from dmdistill.commands.distill.pair_loading import make_own_pairs, open_given_pairs
from dmdistill.commands.distill.real_data import RealImages, load_real_images
from dmdistill.commands.distill.report import write_report
from dmdistill.commands.distill.setup import Distillation, guided_teacher, set_up
from dmdistill.commands.distill.student import build_student
from dmdistill.commands.distill.teacher_check import TeacherCheck
from dmdistill.commands.distill.validation_metric import load_validation_metric
from dmdistill.commands.evaluate.generated_images import sampling_batch_size
from dmdistill.commands.options import check, flag_name, option_values
from dmdistill.commands.prompts import with_prompts
from dmdistill.commands.run_folder import DTYPES, OptionsCheck, RunFolder, open_run
from dmdistill.commands.solver_options import check_guidable, embedded_guidance, with_solver_options
from dmdistill.core.denoisers import Denoiser
from dmdistill.core.generators import Generator
from dmdistill.core.schedules import Flow
from dmdistill.data.augmentation import AUGMENT_LABELS
from dmdistill.data.image_sources import check_images
from dmdistill.data.pairs import PairDataset
from dmdistill.distributed.data_parallel import Parallelism, check_sharding_group, parallelism
from dmdistill.distributed.process_group import ProcessGroup, is_elastic_restart, join_process_group, local_device
from dmdistill.distributed.sharding import check_can_shard
from dmdistill.io.errors import import_optional
from dmdistill.io.user_functions import import_function
from dmdistill.models.cards import student_card
from dmdistill.models.fingerprint import fingerprint
from dmdistill.models.folder import save_model
from dmdistill.models.load import load_model, load_teacher
from dmdistill.models.model import Student, Teacher
from dmdistill.training.loggers import logging_to, require_logger
from dmdistill.training.nonfinite import OutputMonitor
from dmdistill.training.trainer import Trainer

__all__ = ["check_distill", "distill", "load_configured_teacher", "reads_shards"]

CPU = torch.device("cpu")


def distill(config: DistillConfig) -> Student | None:
    """Distill, write the student to out/student, report, return it; None in all processes but the first.

    TrainingStopped where a signal ended training early.
    """
    check(config)
    with join_process_group(local_device(config.compute.device)) as processes:
        if is_elastic_restart() and (config.out / "config.toml").exists():
            config = replace(config, resume=config.out)
        config = keep_phases(config)
        extension = describe_extension(config)
        check_distill(config, processes)
        teacher = load_configured_teacher(config, lazy=reads_shards(config, processes))
        with open_run(config, processes) as run:
            torch.manual_seed(config.seed)
            if extension and processes.is_main:
                run.print(extension)
            try:
                return run_distillation(config, teacher, run)
            except KeyboardInterrupt:  # while pairs or a report were made: what is finished stays
                if (run.folder / "config.toml").exists():
                    run.print_resume_command("distill", "interrupted")
                raise


def check_distill(config: DistillConfig, processes: ProcessGroup) -> None:
    """Raise a ValueError for batches that cannot be divided among processes, and for what is missing.

    That is a package, a function or real images.
    """
    parallel = Parallelism(processes, config.memory.accumulate)
    parallel.check_divisible("--batch", config.batch)
    if config.regression.lambda_reg > 0:
        parallel.check_divisible("--batch-reg", config.regression.batch_reg)
    check_sharding_group(config.memory.sharding_group, processes.world_size)
    if reads_shards(config, processes):
        check_can_shard()
    for source in (config.gan.data, config.evaluation.reference):
        if source is not None and not source.endswith(".npz"):  # EDM's statistics
            check_images(source)
    require_logger(config.logging.log_to)
    for name in ("lora_student", "lora_fake"):
        if getattr(config.memory, name):
            import_optional("peft", flag_name(name), extra="diffusers")
    functions = {
        "--method": config.method,
        "--weight": config.matching.weight,
        "--divergence": config.score.divergence,
        "--distance": config.regression.distance,
    }
    for flag, name in functions.items():
        if ":" in name:
            import_function(name, flag)


def check_guidance(config: DistillConfig, teacher: Teacher) -> None:
    """Raise a ValueError where the method cannot have the teacher's guidance, or needs one."""
    guidance = METHODS[config.method].guidance if config.method in METHODS else True
    if guidance == "always" and teacher.guidance == 1:
        flag = "--true-guidance" if embedded_guidance(teacher) else "--guidance"
        raise ValueError(f"--method {config.method} needs a guided teacher: give {flag} above 1")
    if not guidance and teacher.guidance != 1:
        raise ValueError(
            f"--method {config.method} with a guidance scale of {teacher.guidance:g}, expected 1: give --guidance 1, "
            "as SiD is defined here without guidance, or use --method dmd2"
        )


def check_time_shift(config: DistillConfig, teacher: Teacher) -> None:
    """Raise a ValueError where times of another schedule than a flow's are to be shifted."""
    shift = config.matching.time_shift
    if shift != 1 and not isinstance(teacher.denoiser.schedule, Flow):
        raise ValueError(f"--time-shift {shift:g}, expected 1: the noise schedule of {teacher.name} is not a flow's")


def check_augmentation(config: DistillConfig, teacher: Teacher) -> None:
    """Raise a ValueError for augmentation with a network that takes no augmentation labels."""
    augment = config.fake_score.augment_fake
    if augment and getattr(teacher.network, "augment_dim", 0) != AUGMENT_LABELS:
        raise ValueError(
            f"--augment-fake {augment:g}, expected 0: the network of {teacher.name} takes no labels of augmentations"
        )


def check_matching_guidance(config: DistillConfig, teacher: Teacher) -> None:
    """Raise a ValueError where the guidance of distribution matching has no effect, or the teacher cannot have it."""
    options = config.matching
    if options.real_guidance not in ((), (1,)):
        check_guidable(teacher, f"--real-guidance {options.real_guidance_text}")
    elif options.guidance_cap and (options.real_guidance or teacher.guidance == 1):
        raise ValueError(
            f"--guidance-cap {options.guidance_cap:g} without guidance: give --guidance above 1, or --real-guidance"
        )


def reads_shards(config: DistillConfig, processes: ProcessGroup) -> bool:
    """Whether each process reads its shards of the weights from their files."""
    return config.memory.strategy == "fsdp" and processes.world_size > 1


def load_configured_teacher(config: DistillConfig, *, lazy: bool = False) -> Teacher:
    """Load the teacher, with its solver options; `lazy` as in `load_model`."""
    teacher = load_teacher(config.teacher, size=config.image_size.size, lazy=lazy)
    teacher = with_solver_options(teacher, config.ode)
    check_guidance(config, teacher)
    check_time_shift(config, teacher)
    check_augmentation(config, teacher)
    check_matching_guidance(config, teacher)
    check_student_times(config, teacher)
    return teacher


def run_distillation(config: DistillConfig, teacher: Teacher, run: RunFolder) -> Student | None:
    """Build the networks, make the pairs, train, and write the student."""
    for line in describe_options(config, teacher) if run.processes.is_main else ():
        run.print(line)
    parallel = parallelism(
        run.processes, config.memory.accumulate, config.memory.strategy, config.memory.sharding_group
    )
    network_device = parallel.build_device(run.device)
    teacher = with_prompts(teacher, config.prompts, device=run.device)
    teacher.to(run.device, run.precision, network_device=network_device)
    identity = run.processes.on_main(lambda: fingerprint(teacher))  # it reads every weight
    metric = load_validation_metric(
        config.evaluation.reference, teacher, device=run.device, processes=run.processes, say=run.print
    )
    distance = load_distance(config.regression, teacher, run.device, run.precision)
    pairs = open_given_pairs(config, teacher, identity)
    real_images = open_real_images(config, teacher, run)
    generator = initial_generator(config, teacher)
    fake = initial_fake_score(config, teacher)
    check_own_objective(config, generator, teacher, fake, run)
    run.lock()
    batch = sampling_batch_size(teacher, config.batch)
    if pairs is None and config.regression.lambda_reg > 0:
        pairs = make_own_pairs(config, teacher, identity, run, partial(load_configured_teacher, config), network_device)
    distillation = set_up(
        config,
        teacher,
        generator,
        fake,
        distance=distance,
        pairs=pairs,
        real_images=real_images,
        parallel=parallel,
        rng=run.rng,
    )
    trainer = build_trainer(config, distillation)
    trainer.stateful |= {"options": OptionsCheck(run.config, run.print), "teacher": TeacherCheck(teacher, identity)}
    trainer.stateful["ratios"] = distillation.objectives.ratios
    monitor = Monitor(config, distillation, trainer, metric, batch=batch)
    run.restore(trainer)
    if config.logging.sample_every and not trainer.step and (file := monitor.save_start()):
        run.print(f"teacher and untrained student, in rows: {file}")
    with logging_to(trainer, config.logging.log_to if run.processes.is_main else None, option_values(config)):
        done = trainer.fit(distillation.iterate, hooks=monitor.hooks, name="distilling", work=distillation.phases.work)
    if not done:
        run.stop("distill", trainer)
    teacher, student = finish(config, distillation, monitor, run)
    if student is None or not config.evaluation.report_images:
        return student
    return report(config, teacher, pairs, run, batch=batch, seconds=trainer.seconds)


def check_own_objective(
    config: DistillConfig, generator: Generator, teacher: Teacher, fake: Denoiser, run: RunFolder
) -> None:
    """Raise a ValueError where the user's own method fails, before pairs are made; say if it trains no fake score."""
    if config.method not in METHODS and not reads_shards(config, run.processes):  # then networks have no weights yet
        objective = load_objective(config.method, generator, guided_teacher(config, teacher), fake)
        if not objective.critics:
            run.print(f"--method {config.method} has no critics: the fake score stays as the teacher is")


def open_real_images(config: DistillConfig, teacher: Teacher, run: RunFolder) -> RealImages | None:
    """Open the real images of --data; None where there are none."""
    if config.gan.data is None:
        return None
    return load_real_images(config.gan.data, teacher, device=run.device, processes=run.processes, say=run.print)


def build_trainer(config: DistillConfig, distillation: Distillation) -> Trainer:
    """Build the training loop."""
    run = distillation
    names = list(run.optimizers) if run.phases.matching else ["generator"]
    networks = {"the generator": run.generator, "mu_real": run.real, "mu_fake": run.fake}
    return Trainer(
        config.out,
        steps=config.steps,
        updates={name: run.optimizers[name] for name in names},
        rng=run.rng,
        log_every=config.logging.log_every,
        save_every=config.checkpoint.save_every,
        processes=run.parallel.processes,
        output_monitor=OutputMonitor(networks),
    )


def finish(
    config: DistillConfig, distillation: Distillation, monitor: Monitor, run: RunFolder
) -> tuple[Teacher, Student | None]:
    """Write the student. The first process returns it with its teacher, which is loaded anew where it is sharded."""
    average, step, weights = monitor.choose()
    teacher, generator = distillation.teacher, distillation.generator
    if not run.processes.is_main:
        return teacher, None
    if distillation.parallel.is_sharded:
        teacher = with_prompts(load_configured_teacher(config), config.prompts).to(CPU, run.precision)
        generator = initial_generator(config, teacher)
    distillation.optimizers["generator"].load_weights(generator, weights)
    student = build_student(config, teacher, generator, average=average, step=step)
    if (best := monitor.best).step and monitor.metric is not None:
        value = f"{monitor.metric.label} {best.value:.4g} over {config.evaluation.evaluate_images} images"
        run.print(f"best: {best.name} of step {best.step}, {value}; lower is better")
    dtype = DTYPES[config.checkpoint.save_dtype]
    save_model(config.out / "student", student, card=student_card(student, option_values(config)), dtype=dtype)
    run.print(f"student in {config.out / 'student'}; `dmdistill info {config.out}` says whether its curves are healthy")
    if not config.evaluation.report_images:
        reference = f" --reference {config.evaluation.reference}" if config.evaluation.reference is not None else ""
        run.print(f"no report, by --report-images 0: `dmdistill evaluate {config.out}{reference}` measures the student")
    return teacher, student


def report(
    config: DistillConfig,
    teacher: Teacher,
    pairs: PairDataset | None,
    run: RunFolder,
    *,
    batch: int,
    seconds: float,
) -> Student:
    """Measure the stored student beside its teacher, and return it."""
    student = load_model(str(config.out / "student"), teacher=teacher)
    assert isinstance(student, Student)
    student.to(run.device, run.precision)
    teacher.to(run.device, run.precision)
    write_report(config, teacher, student, pairs, batch=batch, seconds=seconds, say=run.print)
    return student
