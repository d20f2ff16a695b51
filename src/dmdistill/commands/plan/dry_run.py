"""The steps of a distillation, computed one by one without a run: with data, or with shapes only."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from dmdistill.commands.distill.batches import Batches
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.diagnostics import Probe
from dmdistill.commands.distill.functions import load_distance
from dmdistill.commands.distill.initialization import (
    initial_fake_score,
    initial_generator,
    student_times,
    trainable_copy,
)
from dmdistill.commands.distill.monitor import build_probe
from dmdistill.commands.distill.schedule import BatchNeeds, Phase
from dmdistill.commands.distill.setup import Distillation, set_up
from dmdistill.commands.evaluate.generated_images import sampling_batch_size
from dmdistill.commands.options import change
from dmdistill.commands.plan.fsdp_memory import ShardingRecorder
from dmdistill.commands.plan.placeholders import PlaceholderImages, PlaceholderPairs, PlaceholderPrompts
from dmdistill.commands.plan.tensor_ledger import FakeTensors, Ledger, find_tensors
from dmdistill.core.denoisers import Denoiser
from dmdistill.core.samples import Batch, Samples
from dmdistill.data.prompt_embeddings import PromptSet
from dmdistill.distributed.data_parallel import Parallelism
from dmdistill.models.model import Teacher
from dmdistill.training.optimizer import NetworkOptimizer

__all__ = ["Cost", "DryRun", "dry_run"]


@dataclass(frozen=True)
class Cost:
    """Bytes by part at the peak of some work, and its operations (products, convolutions, attention)."""

    memory: dict[str, int]
    flops: int


@dataclass
class DryRun:
    """A distillation whose single steps are computed in any order.

    Attributes:
        config: the options, with one process's batches. teacher: the teacher, with shapes only where there is no data.
        distillation: its networks. probe: the noise of the diagnostics.
        sampling_batch: images generated at once.
        ledger: of the memory; None where it is not counted. sharding: what FSDP2 would hold; None without it.
    """

    config: DistillConfig
    teacher: Teacher
    distillation: Distillation
    probe: Probe
    sampling_batch: int
    ledger: Ledger | None
    sharding: ShardingRecorder | None

    def iterate(self, step: int) -> None:
        """Compute a step."""
        self.distillation.iterate(step)

    def resize(self, *, batch: int, batch_reg: int) -> None:
        """Change the sizes of batches."""
        self.config = change(self.config, batch=batch, batch_reg=batch_reg)
        batches = self.distillation.batches.with_sizes(self.config)
        self.distillation = replace(self.distillation, batches=batches)

    def count(self, phase: Phase) -> Cost:
        """Count a step of a phase, once the optimizers have their states.

        Of a few-step student it is the mean over the step that it learns, as the steps before that are simulated, one
        evaluation each; the memory is the largest.
        """
        assert self.ledger is not None
        world_size = self.sharding.world_size if self.sharding is not None else 1
        for optimizer in self.distillation.optimizers.values():
            moments = find_tensors(list(optimizer.optimizer.state.values()))
            self.ledger.name("optimizer", moments, world_size=world_size)
        costs = [self.count_step(phase, one) for one in sorted({0, self.config.student.step_count - 1})]
        largest = max(costs, key=lambda cost: sum(cost.memory.values()))
        return Cost(largest.memory, sum(cost.flops for cost in costs) // len(costs))

    def count_step(self, phase: Phase, student_step: int) -> Cost:
        """Count a step of a phase in which a few-step student learns this one of its own steps."""
        assert isinstance(self.distillation.batches, NamedBatches)
        batches = replace(self.distillation.batches, student_step=student_step)
        with self.counting() as costs:
            replace(self.distillation, batches=batches).iterate(phase.first)
        return costs[0]

    def count_sampling(self) -> Cost:
        """Count one evaluation of the guided teacher on as many images as are generated at once."""
        with self.counting() as costs:
            self.evaluate_teacher(self.sampling_batch)
        return costs[0]

    @torch.no_grad()
    def evaluate_teacher(self, images: int) -> None:
        """Evaluate the guided teacher once."""
        z, cond = self.teacher.move_inputs(*self.teacher.sample_inputs(images, rng=self.distillation.rng))
        schedule = self.teacher.denoiser.schedule
        self.teacher.guided_denoiser(schedule.prior_std * z, z.new_full((images,), schedule.t_max), cond)

    @property
    def teacher_bytes(self) -> int:
        """The size of the teacher's weights."""
        return sum(weight.numel() * weight.itemsize for weight in self.teacher.denoiser.parameters())

    @property
    def host_bytes(self) -> int:
        """The largest size of unsharded networks in the host's memory at once; 0 where nothing is sharded."""
        return self.sharding.peak_host_bytes if self.sharding is not None else 0

    @property
    def offloaded_bytes(self) -> int:
        """The size of the teacher's shards that stay in the host's memory; 0 where they are not offloaded."""
        return self.sharding.offloaded_bytes if self.sharding is not None else 0

    @contextmanager
    def counting(self) -> Iterator[list[Cost]]:
        """Yield a list that holds, in the end, the cost of the block."""
        costs: list[Cost] = []
        with nullcontext(self.ledger) if self.ledger is not None else Ledger() as ledger:
            ledger.reset_peak()
            yield costs
        costs.append(Cost({part: size for part, size in ledger.peak.items() if size}, ledger.flops))


@contextmanager
def dry_run(
    config: DistillConfig,
    teacher: Teacher,
    *,
    device: torch.device,
    precision: torch.dtype | None,
    data: bool,
    ledger: bool = False,
    processes: int = 1,
) -> Iterator[DryRun]:
    """Set up a distillation that leaves nothing on disk, on noise in place of pairs.

    Args:
        config: the options, with one process's batches.
        teacher: the teacher.
        device: where networks compute.
        precision: in which networks compute; None for fp32.
        data: False for networks with shapes only, whose memory is always counted.
        ledger: count the memory with data too; one step of the last kind is computed first, for the optimizers' states.
        processes: how many share the batch; this is one of them.
    """
    times = student_times(config, teacher)  # whose values are known only with data
    config = change(config, pairs=None, start=None, compile=False, student_timesteps=times)
    with ExitStack() as stack:
        mode = None
        if not data:
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # copies do
            mode = stack.enter_context(FakeTensors())
        counter = stack.enter_context(Ledger()) if ledger or not data else None
        run = build(config, teacher, device, precision, mode, counter, processes)
        if counter is not None:
            name_tensors(run, counter, replicated=processes > 1 and run.sharding is None)
            run.iterate(config.steps - 1)
        yield run


def build(
    config: DistillConfig,
    teacher: Teacher,
    device: torch.device,
    precision: torch.dtype | None,
    mode: FakeTensors | None,
    ledger: Ledger | None,
    processes: int,
) -> DryRun:
    """Build the networks, copies without data where there is a mode, and all that a step needs."""
    copy_denoiser = trainable_copy
    with _disable_current_modes():  # LPIPS is frozen: its weights are there once, as in a run
        distance = load_distance(config.regression, teacher, device, precision, trained=False)
    if mode is not None:
        copy_denoiser = partial(copy_without_data, mode, teacher)
        teacher = replace(teacher, denoiser=mode.copy_network(teacher.denoiser))
        if isinstance(teacher.conditions, PromptSet):
            teacher = replace(teacher, conditions=PlaceholderPrompts(teacher.conditions))
    sharded = ledger is not None and processes > 1 and config.memory.strategy == "fsdp"
    group = config.memory.sharding_group or processes
    sharding = ShardingRecorder(ledger, world_size=group) if ledger is not None and sharded else None
    generator = initial_generator(config, teacher, copy_denoiser)
    fake = initial_fake_score(config, teacher, copy_denoiser)
    count = config.pair_set.pair_count
    distillation = set_up(
        config,
        teacher,
        generator,
        fake,
        distance=distance,
        pairs=PlaceholderPairs(teacher, count) if config.regression.lambda_reg > 0 else None,
        real_images=PlaceholderImages(teacher) if config.gan.data is not None else None,
        parallel=Parallelism(microbatches=config.memory.accumulate, sharder=sharding),
        rng=torch.Generator(device).manual_seed(config.seed),
    )
    batch = sampling_batch_size(teacher, config.batch * processes)
    probe = build_probe(distillation, seed=config.seed + 1, images=min(128, batch))
    return DryRun(config, teacher, distillation, probe, batch, ledger, sharding)


def copy_without_data(
    mode: FakeTensors, teacher: Teacher, denoiser: Denoiser, rank: int, checkpointing: str, *, augments: bool = False
) -> Denoiser:
    """Copy a denoiser for training, without data. Adapters are made with data, which are few: peft moves layers."""
    if not rank:
        return trainable_copy(denoiser, rank, checkpointing, augments=augments)
    with _disable_current_modes():
        adapted = trainable_copy(teacher.denoiser, rank, checkpointing, augments=augments)
    return mode.copy_network(adapted)


def name_tensors(run: DryRun, ledger: Ledger, *, replicated: bool) -> None:
    """Tell the ledger what the tensors that stay are for; what networks share is the teacher's."""
    world_size = run.sharding.world_size if run.sharding is not None else 1
    distillation = run.distillation
    ledger.name("batch", [run.probe.z, run.probe.eps, *find_tensors(run.probe.cond)])
    networks = [("EMAs", ema.network) for ema in distillation.optimizers["generator"].emas]
    networks += [("generator", distillation.generator), ("fake score", distillation.fake)]
    networks += [("teacher", run.teacher.denoiser)]
    for part, network in networks:
        ledger.name(part, network.state_dict(keep_vars=True).values())
        if run.sharding is not None:
            run.sharding.name(part, network.parameters())
        else:
            ledger.name(part, network.parameters())
    for optimizer in distillation.optimizers.values():
        for parameter in optimizer.parameters:
            if replicated:  # the buckets of DDP, which stay
                ledger.add_bytes("gradients", parameter.numel() * parameter.itemsize)
            hook = partial(name_gradient, ledger, optimizer, world_size, replicated)
            parameter.register_post_accumulate_grad_hook(hook)
    run.distillation = replace(distillation, batches=NamedBatches(distillation.batches, ledger))


def name_gradient(
    ledger: Ledger, optimizer: NetworkOptimizer, world_size: int, replicated: bool, parameter: Tensor
) -> None:
    """Tell the ledger of a gradient. DDP has that of the last microbatch in a bucket, and those before it beside it."""
    assert parameter.grad is not None
    if replicated and len(optimizer.losses) == optimizer.parallel.microbatches - 1:
        ledger.label_shared("gradients", [parameter.grad])
    else:
        ledger.name("gradients", [parameter.grad], world_size=world_size)


@dataclass(frozen=True)
class NamedBatches:
    """Batches whose tensors are named in a ledger; `student_step` replaces what a few-step student learns in them."""

    source: Batches
    ledger: Ledger
    student_step: int | None = None

    def batch(self, step: int, needs: BatchNeeds) -> Batch:
        """Draw a batch, and name its tensors."""
        batch = self.source.batch(step, needs)
        self.ledger.name("batch", find_tensors(batch))
        if self.student_step is not None:
            batch = replace(batch, steps=tuple(self.student_step for _ in batch.steps))
        return batch

    def reference_images(self, count: int) -> Samples | None:
        """Return images of the data."""
        return self.source.reference_images(count)

    def with_sizes(self, config: DistillConfig) -> NamedBatches:
        """Return batches of other sizes."""
        return replace(self, source=self.source.with_sizes(config))
