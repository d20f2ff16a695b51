"""Updates of two networks that learn from each other, in any number of processes. A module, as pickles name it."""

import torch
from torch import nn

from dmdistill.core.partition import select_part
from dmdistill.distributed.data_parallel import parallelism
from dmdistill.distributed.process_group import join_process_group
from dmdistill.training.checkpoints import map_tensors
from dmdistill.training.microbatches import run_in_lockstep
from dmdistill.training.optimizer import NetworkOptimizer

SIZE, BATCH = 6, 8


class ConvBlock(nn.Module):
    """Residual convolution, a unit that FSDP2 gathers."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return x + self.conv(nn.functional.silu(self.norm(x)))


def build_network(seed, dtype):
    """Network of two blocks, in the memory format of U-Nets."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), ConvBlock(), ConvBlock(), nn.Conv2d(4, 1, 3, padding=1))
    return network.to(dtype).to(memory_format=torch.channels_last)


class Loss:
    """Loss of one update."""

    def __init__(self, update, total):
        self.update, self.total, self.losses = update, total, {f"loss_{update}": total}


def iteration(generator, fake, z, target):
    """Yield the generator's loss, then the fake score's on its samples, as Algorithm 1 does."""
    x = generator(z)
    yield Loss("generator", ((fake(x) - target) * x).mean() + (x - target).square().mean())
    yield Loss("fake", (fake(x.detach() + 0.3 * target) - x.detach()).square().mean())


def train(strategy, microbatches, steps, dtype, sharding_group=0):
    """Train for some steps; return the losses of the last, and every weight, EMA and moment."""
    with join_process_group() as processes:
        parallel = parallelism(processes, microbatches, strategy, sharding_group)
        networks = [build_network(seed, dtype) for seed in (0, 1)]
        settings = {"lr": 0.01, "steps": steps, "warmup": 3, "clip": 0.5, "halflives": [5.0], "parallel": parallel}
        updates = [NetworkOptimizer(network, **settings) for network in networks]
        wrapped = [parallel.wrap(network) for network in networks]
        rng, count = torch.Generator().manual_seed(2), processes.world_size * microbatches
        losses = {}
        for _ in range(steps):
            full = [torch.randn(BATCH, 1, SIZE, SIZE, generator=rng, dtype=torch.float64).to(dtype) for _ in range(2)]
            parts = range(processes.rank * microbatches, (processes.rank + 1) * microbatches)
            batches = [[select_part(rows, [BATCH], part, count) for rows in full] for part in parts]
            losses = run_in_lockstep(
                [iteration(*wrapped, *batch) for batch in batches],
                dict(zip(("generator", "fake"), updates, strict=True)),
                networks=wrapped,
                processes=processes,
            )
        states = [map_tensors(parallel.full_tensor, update.state_dict()) for update in updates]
    arrays = map_tensors(lambda tensor: tensor.numpy(), states) if processes.is_main else None
    return {name: value.item() for name, value in losses.items()}, arrays
