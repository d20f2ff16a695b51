"""Host memory that a process takes while the networks of a distillation are built and sharded by FSDP2, on the CPU.

    torchrun --nproc-per-node 4 benchmarks/sharding.py [--whole] [--lora 16]

The networks are the teacher, generator, fake score and one average, each of EDM's size for CIFAR-10 (55.7 M
parameters, 223 MB). Memory is what Linux calls RssAnon: pages of mapped files are not counted. --whole loads networks
whole before they are sharded; with --lora generator, fake score and average are adapters of this rank to the teacher's
frozen weights, of which each process has one set of shards.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import torch.distributed.fsdp  # noqa: F401  which takes memory of its own

from dmdistill.commands.distill.initialization import trainable_copy
from dmdistill.distributed.data_parallel import local_tensor, parallelism
from dmdistill.distributed.process_group import join_process_group
from dmdistill.models.folder import build_denoiser, save_model
from dmdistill.models.load import load_teacher
from dmdistill.models.model import Teacher
from dmdistill.training.optimizer import sharded_emas

CONFIG = {
    "kind": "teacher",
    "name": "cifar10",
    "network": {
        "class": "SongUNet",
        "img_resolution": 32,
        "in_channels": 3,
        "out_channels": 3,
        "channel_mult": [2, 2, 2],
    },
    "schedule": {"class": "EDM"},
    "denoiser": {"class": "EDMDenoiser", "sigma_data": 0.5},
    "shape": [3, 32, 32],
    "solver": "heun",
    "steps": 18,
    "guidance": 1.0,
}


def anonymous_megabytes() -> float:
    """Return the anonymous memory of this process."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1e3


@contextmanager
def watch_memory():
    """Yield a list of the memory that is taken within the block, in MB, every two milliseconds."""
    start, taken, done = anonymous_megabytes(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            taken.append(anonymous_megabytes() - start)

    thread = threading.Thread(target=watch)
    thread.start()
    yield taken
    done.set()
    thread.join()


def main(*, whole: bool, lora: int) -> None:
    """Build and shard the networks, and print the peak and the size of the shards, of each process."""
    with join_process_group() as processes, tempfile.TemporaryDirectory() as folder:
        home = processes.broadcast(folder)
        if processes.is_main:
            model = Teacher(name="cifar10", denoiser=build_denoiser(CONFIG), shape=(3, 32, 32), config=CONFIG)
            save_model(Path(home), model, card="")
            del model
        processes.barrier()
        parallel = parallelism(processes, 1, "fsdp")
        with watch_memory() as taken:
            started = time.perf_counter()
            teacher = load_teacher(home, lazy=not whole)
            generator, fake = (trainable_copy(teacher.denoiser, lora, "none") for _ in range(2))
            parallel.shard(teacher.denoiser)
            parallel.shard(fake)
            (ema,) = sharded_emas(generator, [2.0], parallel)
            seconds = time.perf_counter() - started
        networks = (teacher.denoiser, generator, fake, ema.network)
        shards = {one.data_ptr(): one.nbytes for net in networks for one in map(local_tensor, net.parameters())}
        for rank, (peak, held, time_) in enumerate(processes.gather((max(taken), sum(shards.values()) / 1e6, seconds))):
            print(f"process {rank}: {peak:.0f} MB at the peak, {held:.0f} MB of shards, {time_:.1f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--lora", type=int, default=0)
    main(**vars(parser.parse_args()))
