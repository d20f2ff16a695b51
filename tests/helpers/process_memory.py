"""The memory of one of several processes: the tensors alive in real DDP and FSDP2. A module, as pickles name it."""

import gc
import weakref

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dmdistill.commands.distill.initialization import initial_generator, trainable_copy
from dmdistill.commands.distill.monitor import build_probe
from dmdistill.commands.distill.setup import set_up
from dmdistill.commands.evaluate.generated_images import sampling_batch_size
from dmdistill.commands.plan.placeholders import PlaceholderPairs
from dmdistill.core.denoisers import X0Denoiser
from dmdistill.core.losses import pseudo_huber
from dmdistill.core.schedules import EDM
from dmdistill.distributed.data_parallel import local_tensor, parallelism
from dmdistill.distributed.process_group import join_process_group
from dmdistill.models.model import Teacher


class LayersBlock(nn.Module):
    """Two layers, C -> K -> C, added to their input."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.first, self.second = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x):
        return x + self.second(self.first(x).relu())


class Layers(nn.Module):
    """Blocks of different sizes between two layers outside of them, with rows of each remainder by 4."""

    def __init__(self, hidden):
        super().__init__()
        self.enter, self.leave = nn.Linear(5, 101), nn.Linear(101, 5)
        self.blocks = nn.Sequential(*(LayersBlock(101, size) for size in hidden))

    def forward(self, x, t=None, cond=None):
        return self.leave(self.blocks(self.enter(x)))


def layered_teacher(precision=None):
    denoiser = X0Denoiser(Layers((701, 1203, 498, 902, 903)), EDM())
    denoiser.precision = precision
    return Teacher(name="layers", denoiser=denoiser, shape=(7, 6, 5))


def storage_bytes(tensors):
    """The bytes of tensors' storages, each once."""
    found = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in map(local_tensor, tensors)}
    return sum(found.values())


def bytes_by_part(run):
    """Bytes of what stays between two steps of a distillation, by part; what networks share is the teacher's."""
    teacher = {local_tensor(parameter).data_ptr() for parameter in run.teacher.denoiser.parameters()}

    def own(network):
        return [one for one in network.parameters() if local_tensor(one).data_ptr() not in teacher]

    moments = [x for one in run.optimizers.values() for state in one.optimizer.state.values() for x in state.values()]
    return {
        "teacher": storage_bytes(run.teacher.denoiser.parameters()),
        "generator": storage_bytes(own(run.generator)),
        "fake score": storage_bytes(own(run.fake)),
        "EMAs": storage_bytes(p for ema in run.optimizers["generator"].emas for p in own(ema.network)),
        "optimizer": sum(local_tensor(one).numel() * one.itemsize for one in moments),
    }


class LivingStorages(TorchDispatchMode):
    """The most bytes alive of all storages that operations met since `peak` was set: FSDP2 resizes them."""

    def __init__(self):
        super().__init__()
        self.storages, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # the operations on its local tensor come here too
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor) and not isinstance(leaf, DTensor):
                storage = leaf.untyped_storage()
                self.storages[id(storage)] = weakref.ref(storage)  # in place of a dead one of that number
        self.peak = max(self.peak, self.now)
        return result

    @property
    def now(self):
        living = {key: storage for key, one in self.storages.items() if (storage := one()) is not None}
        self.storages = {key: weakref.ref(storage) for key, storage in living.items()}
        return sum(storage.nbytes() for storage in living.values())


def measure_memory(config, load):
    """Train three steps, on pairs of noise, in this one of several processes.

    Returns the peak of the third step, the peak while networks are built, and what stays, by part: bytes.
    """
    memory = config.memory
    with join_process_group() as processes, LivingStorages() as living:
        parallel = parallelism(processes, memory.accumulate, memory.strategy, memory.sharding_group)
        teacher = load()
        run = set_up(
            config,
            teacher,
            initial_generator(config, teacher),
            trainable_copy(teacher.denoiser, memory.lora_fake, memory.checkpointing),
            distance=pseudo_huber,
            pairs=PlaceholderPairs(teacher, config.pair_set.pair_count),
            parallel=parallel,
            rng=torch.Generator().manual_seed(0),
        )
        probe = build_probe(run, seed=1, images=min(128, sampling_batch_size(teacher, config.batch)))
        built = living.peak
        for step in range(3):
            gc.collect()  # reference cycles
            living.peak = 0
            run.iterate(step)
        del probe  # which a run keeps, as here until now
        return living.peak, built, bytes_by_part(run)
