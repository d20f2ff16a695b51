"""What a process of several holds in truth: the tensors alive in real DDP and FSDP2. A module, as pickles name it."""

import gc
import tempfile
import weakref
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dmdistill.commands.distill.setup import Job
from dmdistill.commands.options import change
from dmdistill.commands.plan.placeholders import NoisePairs
from dmdistill.commands.run_folder import RunFolder
from dmdistill.core.denoisers import X0Denoiser
from dmdistill.core.schedules import EDM
from dmdistill.distributed.data_parallel import local_tensor
from dmdistill.distributed.process_group import join_process_group
from dmdistill.models.model import Teacher


class LayersBlock(nn.Module):
    """Two layers, C -> K -> C, added to what they are given."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.first, self.second = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x):
        return x + self.second(self.first(x).relu())


class Layers(nn.Module):
    """Blocks of different sizes between two layers outside of them. No number of rows is divided by 4 alike."""

    def __init__(self, hidden):
        super().__init__()
        self.enter, self.leave = nn.Linear(5, 101), nn.Linear(101, 5)
        self.blocks = nn.Sequential(*(LayersBlock(101, size) for size in hidden))

    def forward(self, x, t=None, cond=None):
        return self.leave(self.blocks(self.enter(x)))


def layered(precision=None):
    denoiser = X0Denoiser(Layers((701, 1203, 498, 902, 903)), EDM())
    denoiser.precision = precision
    return Teacher(name="layers", denoiser=denoiser, shape=(7, 6, 5))


class NoisyJob(Job):
    """With pairs of noise."""

    def own_pairs(self):
        return NoisePairs(self.teacher, self.config.pair_count)


def storages(tensors):
    """Bytes of tensors' storages, each once."""
    found = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in map(local_tensor, tensors)}
    return sum(found.values())


def run_status(job):
    """Bytes of what stays between two steps, by part."""
    updates = (job.update_generator, job.update_fake)
    moments = [x for update in updates for state in update.optimizer.state.values() for x in state.values()]
    averages = [one for average in job.update_generator.emas for one in average.network.parameters()]
    return {
        "teacher": storages(job.teacher.denoiser.parameters()),
        "generator": storages(job.generator.parameters()),
        "fake score": storages(job.fake.parameters()),
        "averages": storages(averages),
        "optimiser": sum(local_tensor(one).numel() * one.itemsize for one in moments),
    }


class Alive(TorchDispatchMode):
    """Most bytes alive of all storages that operations were told of, since `most` was set: FSDP2 resizes them."""

    def __init__(self):
        super().__init__()
        self.storages, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # what it asks of its local tensor is seen
        answer = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, answer)):
            if isinstance(leaf, torch.Tensor) and not isinstance(leaf, DTensor):
                storage = leaf.untyped_storage()
                self.storages[id(storage)] = weakref.ref(storage)  # in place of a dead one of that number
        self.most = max(self.most, self.now)
        return answer

    @property
    def now(self):
        alive = {key: storage for key, one in self.storages.items() if (storage := one()) is not None}
        self.storages = {key: weakref.ref(storage) for key, storage in alive.items()}
        return sum(storage.nbytes() for storage in alive.values())


def held(config, make):
    """Bytes: the most in the third step, the most while networks are built, and those that stay, by part."""
    with join_process_group() as processes, tempfile.TemporaryDirectory() as folder, Alive() as alive:
        config = change(config, out=Path(folder) / "run")
        with RunFolder(config.out, config, processes=processes) as run:
            job = NoisyJob(config, make(), run)
            built = alive.most
            for step in range(3):
                gc.collect()  # what cycles still hold
                alive.most = 0
                job.iterate(step)
        return alive.most, built, run_status(job)
