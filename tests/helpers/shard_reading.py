"""A teacher read from disk by processes that shard it. A module, as pickles name it."""

from contextlib import contextmanager

import pytest
import torch

from dmdistill.commands.distill.initialization import initial_generator, trainable_copy
from dmdistill.distributed.data_parallel import local_tensor, parallelism
from dmdistill.distributed.process_group import join_process_group
from dmdistill.distributed.stored_weights import StoredWeights
from dmdistill.models.load import load_teacher
from dmdistill.training.optimizer import sharded_emas


@contextmanager
def recorded_reads(patch):
    """Yield a list of the (name, bytes) of each reading of weights within the block."""
    reads, original = [], StoredWeights.open

    @contextmanager
    def record(self):
        with original(self) as read:

            def note(name, *rows):
                tensor = read(name, *rows)
                reads.append((name, tensor.nbytes))
                return tensor

            yield note

    patch.setattr(StoredWeights, "open", record)
    yield reads


def build_networks(name, config, lazy):
    """Build the networks of a distillation as a run does, in this one of several processes.

    Returns the shards of all of them, by network and name, the readings of their weights, and the bytes of parameters
    that were off the meta device before they were sharded.
    """
    memory = config.memory
    with join_process_group() as processes, pytest.MonkeyPatch.context() as patch, recorded_reads(patch) as reads:
        parallel = parallelism(processes, 1, "fsdp")
        teacher = load_teacher(name, lazy=lazy)
        torch.manual_seed(0)
        generator = initial_generator(config, teacher)
        fake = trainable_copy(teacher.denoiser, memory.lora_fake, memory.checkpointing)
        before = [p for network in (teacher.denoiser, generator, fake) for p in network.parameters() if not p.is_meta]
        real = sum(p.nbytes for p in {*before})
        parallel.shard(teacher.denoiser)
        (ema,) = sharded_emas(generator, [2.0], parallel)
        parallel.shard(fake)
        networks = {"teacher": teacher.denoiser, "generator": generator, "ema": ema.network, "fake": fake}
        shards = {
            f"{key} {name}": local_tensor(tensor).detach().clone().numpy()
            for key, network in networks.items()
            for name, tensor in [*network.state_dict().items(), *network.named_buffers()]
        }
    return shards, reads, real
