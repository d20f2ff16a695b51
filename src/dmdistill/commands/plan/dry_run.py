"""The steps of a distillation, tried beforehand: with data or without, on noise in place of pairs, leaving nothing."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.schedule import Phase
from dmdistill.commands.distill.setup import Job
from dmdistill.commands.evaluate.generated_images import sampling_batch_size
from dmdistill.commands.plan.fsdp_memory import ShardingRecorder
from dmdistill.commands.plan.placeholders import BlankPrompts, NoisePairs
from dmdistill.commands.plan.tensor_ledger import Ledger, WithoutData, tensors_of
from dmdistill.commands.run_folder import RunFolder
from dmdistill.core.denoisers import Denoiser
from dmdistill.core.losses import Distance
from dmdistill.core.samples import Batch
from dmdistill.data.pairs import PairDataset
from dmdistill.data.prompt_embeddings import PromptSet
from dmdistill.distributed.data_parallel import Parallelism
from dmdistill.models.model import Teacher

__all__ = ["Counted", "Rehearsal", "rehearsal"]


@dataclass(frozen=True)
class Counted:
    """memory: bytes by part at the peak. flops: of matrix products, convolutions and attention."""

    memory: dict[str, int]
    flops: int


class Rehearsal(Job):
    """A distillation of which single steps are asked, in any order.

    ledger: is told what tensors are for. mode: that of networks without data, None for those with. processes: of which
    this one is counted, as the strategy lets it hold the networks.

    Attributes:
        judged: whether the run itself has a judge.
    """

    judged = False

    def __init__(
        self,
        config: DistillConfig,
        teacher: Teacher,
        run: RunFolder,
        *,
        ledger: Ledger | None = None,
        mode: WithoutData | None = None,
        processes: int = 1,
    ) -> None:
        self.ledger, self.mode, self.real = ledger, mode, teacher
        self.among = processes if config.strategy == "fsdp" else 1
        self.replicated = processes > self.among
        if mode is not None:
            teacher = replace(teacher, denoiser=mode.copy_of(teacher.denoiser))
            if isinstance(teacher.conditions, PromptSet):
                teacher = replace(teacher, conditions=BlankPrompts(teacher.conditions))
        self.sharding = parallel = None
        if ledger is not None and self.among > 1:
            self.sharding = ShardingRecorder(ledger, world_size=self.among)
            parallel = Parallelism(microbatches=config.accumulate, sharder=self.sharding)
        many = sampling_batch_size(teacher, config.batch * processes)
        super().__init__(config, teacher, run, parallel=parallel, many=many)
        if ledger is not None:
            self.tell(ledger)

    def tell(self, ledger: Ledger) -> None:
        """Name what stays; what networks share is the teacher's."""
        probe = self.watch.probe
        ledger.name("batch", [probe.z, probe.eps, *tensors_of(probe.cond)])
        networks = [("averages", average.network) for average in self.update_generator.emas]
        networks += [("generator", self.generator), ("fake score", self.fake), ("teacher", self.teacher.denoiser)]
        for name, network in networks:
            ledger.name(name, network.state_dict(keep_vars=True).values())
            ledger.name(name, network.parameters(), among=self.among)
        for parameter in (*self.update_generator.parameters, *self.update_fake.parameters):
            if self.replicated:  # DDP's buckets, which stay
                ledger.hold("gradients", parameter.numel() * parameter.itemsize)
            parameter.register_post_accumulate_grad_hook(partial(self.name_gradient, ledger))

    def name_gradient(self, ledger: Ledger, parameter: Tensor) -> None:
        """Of the last part DDP has it in a bucket; of those before it for itself."""
        assert parameter.grad is not None
        if self.replicated and getattr(self.dmd, "part", 0) == self.parallel.microbatches - 1:
            ledger.within("gradients", [parameter.grad])
        else:
            ledger.name("gradients", [parameter.grad], among=self.among)

    def given_pairs(self) -> None:
        """None: those of --pairs are as good as others."""

    def own_pairs(self) -> PairDataset:
        return NoisePairs(self.teacher, self.config.pair_count)

    def distance(self) -> Distance:
        with _disable_current_modes():  # LPIPS is read from its file
            return super().distance()

    def trained_copy(self, rank: int) -> Denoiser:
        """A copy of the teacher. Adapters are made with data, which are few: peft moves its layers about."""
        if self.mode is None or not rank:
            return super().trained_copy(rank)
        without, self.teacher = self.teacher, self.real
        with _disable_current_modes():
            adapted = super().trained_copy(rank)
        self.teacher = without
        return self.mode.copy_of(adapted)

    def batch(self, step: int) -> Batch:
        batch = super().batch(step)
        if self.ledger is not None:
            self.ledger.name("batch", tensors_of(batch))
        return batch

    def count(self, phase: Phase) -> Counted:
        """One step of a phase, once the optimisers have their states."""
        assert self.ledger is not None
        for update in (self.update_generator, self.update_fake):
            moments = tensors_of(list(update.optimizer.state.values()))
            self.ledger.name("optimiser", moments, among=self.among)
        with self.counting() as counted:
            self.iterate(phase.first)
        return counted[0]

    @property
    def host(self) -> int:
        """Most bytes of networks whole in the host's memory at once, until they are sharded; 0 if they are not."""
        return self.sharding.peak_host_bytes if self.sharding is not None else 0

    @property
    def whole_teacher(self) -> int:
        """Bytes of its weights."""
        return sum(one.numel() * one.itemsize for one in self.teacher.denoiser.parameters())

    def count_drawing(self) -> Counted:
        """One evaluation of mu_real, guided, at as many images as are drawn at once."""
        with self.counting() as counted:
            self.ask_teacher(self.many)
        return counted[0]

    @torch.no_grad()
    def ask_teacher(self, images: int) -> None:
        z, cond = self.teacher.move_inputs(*self.teacher.sample_inputs(images, rng=self.run.rng))
        schedule = self.teacher.denoiser.schedule
        self.teacher.guided_denoiser(schedule.prior_std * z, z.new_full((images,), schedule.t_max), cond)

    @contextmanager
    def counting(self) -> Iterator[list[Counted]]:
        """Yields a list that holds, in the end, what was counted inside."""
        counted: list[Counted] = []
        with nullcontext(self.ledger) if self.ledger is not None else Ledger() as ledger:
            ledger.restart()
            yield counted
        counted.append(Counted({part: size for part, size in ledger.peak.items() if size}, ledger.flops))


@contextmanager
def rehearsal(
    config: DistillConfig, teacher: Teacher, *, data: bool, ledger: bool = False, processes: int = 1
) -> Iterator[Rehearsal]:
    """A rehearsal of this configuration, in a folder that goes away.

    config: with the batches of one process. processes: it is one of so many, which have the batch together.
    data: False for networks that have shapes alone, whose memory is always counted. ledger: count it with data too.
    Where it is counted one step of the last kind is made, so that the optimisers have their states.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        judged, none = (
            bool(teacher.feature_extractor or config.reference),
            dict.fromkeys(("resume", "pairs", "start", "reference")),
        )
        config = replace(config, out=folder / "run", compile=False, **none)
        run = RunFolder(config.out, config)
        mode = None
        if not data:
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # copying does
            mode = stack.enter_context(WithoutData())
        counting = stack.enter_context(Ledger()) if ledger or not data else None
        job = Rehearsal(
            config, replace(teacher, feature_extractor=None), run, ledger=counting, mode=mode, processes=processes
        )
        job.judged = judged
        if counting is not None:
            job.iterate(config.steps - 1)
        yield job
