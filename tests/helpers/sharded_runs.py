"""Trainings whose checkpoints are sharded, in any number of processes. A module, as pickles name it."""

import errno
import os
import time

import pytest
import torch

from dmdistill.core.partition import select_part
from dmdistill.distributed.data_parallel import parallelism
from dmdistill.distributed.process_group import join_process_group
from dmdistill.training.checkpoints import map_tensors
from dmdistill.training.microbatches import run_in_lockstep
from dmdistill.training.optimizer import NetworkOptimizer
from dmdistill.training.trainer import Trainer
from helpers.parallel_updates import BATCH, SIZE, build_network, iteration


def train(folder, strategy, steps, sharding_group=0):
    """Train to a number of steps, from the newest checkpoint on, with one every two steps.

    Returns every weight, EMA and moment in the end, whole, from the first process.
    """
    with join_process_group() as processes:
        parallel = parallelism(processes, 1, strategy, sharding_group)
        networks = [build_network(seed, torch.float64) for seed in (0, 1)]
        settings = {"lr": 0.01, "steps": 100, "warmup": 3, "clip": 0.5, "halflives": [5.0], "parallel": parallel}
        updates = dict(zip(("generator", "fake"), (NetworkOptimizer(one, **settings) for one in networks), strict=True))
        wrapped = [parallel.wrap(network) for network in networks]
        rng = torch.Generator().manual_seed(2)
        options = {"log_every": 1, "save_every": 2, "processes": processes}
        trainer = Trainer(folder, steps=steps, updates=updates, rng=rng, **options)

        def iterate(step):
            full = [torch.randn(BATCH, 1, SIZE, SIZE, generator=rng, dtype=torch.float64) for _ in range(2)]
            batch = [select_part(rows, [BATCH], processes.rank, processes.world_size) for rows in full]
            return run_in_lockstep([iteration(*wrapped, *batch)], updates, networks=wrapped, processes=processes)

        trainer.restore()
        trainer.fit(iterate, name="training")
        states = [map_tensors(parallel.full_tensor, update.state_dict()) for update in updates.values()]
    return map_tensors(lambda tensor: tensor.numpy(), states) if processes.is_main else None


def train_on_a_slow_disk(folder, steps):
    """Train as `train` does, while each writing of shards takes as long as several steps."""
    from dmdistill.training.shard_storage import ShardWriter

    write = ShardWriter.write_data

    def wait(self, plan, planner):
        time.sleep(0.5)
        return write(self, plan, planner)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWriter, "write_data", wait)
        train(folder, "fsdp", steps)


def train_on_a_full_disk(folder):
    """Train, where the second process cannot write its shards. Returns the error of this process, or its exit code."""
    import safetensors.torch

    save = safetensors.torch.save_file

    def refuse(tensors, file, *words):
        if "shards-00001" in str(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(tensors, file, *words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", refuse)
        try:
            train(folder, "fsdp", 4)
        except OSError as error:
            return str(error)
        except SystemExit as end:
            return end.code
    return "no error"
