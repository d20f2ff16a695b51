"""Where networks are before and while they are sharded, as far as one process can tell."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributed import device_mesh, fsdp

from dmdistill.distributed import sharding
from dmdistill.distributed.data_parallel import parallelism
from dmdistill.distributed.process_group import ProcessGroup
from dmdistill.networks.copying import copy_sharing_frozen


class LayerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen, self.trained = nn.Linear(5, 3), nn.Linear(3, 5)
        self.frozen.requires_grad_(False)


@pytest.fixture
def network():
    network = nn.Sequential(nn.Linear(4, 5), LayerBlock(), LayerBlock())
    network[0].requires_grad_(False)
    return network


@pytest.fixture
def sharded(monkeypatch):
    """(device of the mesh, module, whether shards are offloaded) of each call of fully_shard, which does nothing."""
    calls = []

    def record(module, *, mesh, offload_policy, **_):
        calls.append((mesh.device_type, module, isinstance(offload_policy, fsdp.CPUOffloadPolicy)))

    monkeypatch.setattr(sharding.dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(sharding.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(
        device_mesh, "init_device_mesh", lambda device, shape, **_: SimpleNamespace(device_type=device, shape=shape)
    )
    monkeypatch.setattr(fsdp, "fully_shard", record)
    return calls


def test_shares_are_cut_on_the_gpu_block_by_block_wherever_the_network_was(network, sharded):
    parallel = parallelism(ProcessGroup(world_size=2), 1, "fsdp")
    for offload in (False, True):
        sharded.clear()
        parallel.shard(network, offload=offload)
        assert sharded == [("cuda", module, offload) for module in (network[1], network[2], network)]


def test_no_network_takes_another_ones_frozen_weights_along(network, sharded):
    """fully_shard moves a module's own tensors, in place, to the device."""
    student = copy_sharing_frozen(network)
    before, shared = copy.deepcopy(student.state_dict()), {*network.parameters()} & {*student.parameters()}
    assert len(shared) == 6
    parallelism(ProcessGroup(world_size=2), 1, "fsdp").shard(student)
    assert not {*network.parameters()} & {*student.parameters()}
    assert not any(one.requires_grad for name, one in student.named_parameters() if "trained" not in name)
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_nothing_is_sharded_by_one_process_or_by_ddp(network, sharded):
    parallelism(ProcessGroup(), 1, "fsdp").shard(network)
    parallelism(ProcessGroup(world_size=2), 1, "ddp").shard(network)
    assert sharded == []
