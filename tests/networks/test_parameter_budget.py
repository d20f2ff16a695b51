"""A network that outgrows its weights is not built to its end."""

import pytest
import torch
from torch import nn

from dmdistill.networks.parameter_budget import build_on_meta


def stack(depth):
    return nn.Sequential(*(nn.Linear(2, 3) for _ in range(depth)))


def test_networks_are_built_without_memory():
    with build_on_meta(2):
        layer = nn.Linear(2**20, 2**20)
    assert layer.weight.is_meta
    assert layer.weight.numel() == 2**40


def test_a_network_with_more_layers_than_weights_stops_being_built():
    with build_on_meta(20):
        assert len(list(stack(10).parameters())) == 20
    with pytest.raises(ValueError, match="20"), build_on_meta(20):
        stack(10**9)


def test_afterwards_networks_are_built_as_ever():
    with pytest.raises(ValueError, match="1"), build_on_meta(1):
        stack(100)
    assert len(list(stack(100).parameters())) == 200
    assert stack(1)[0].weight.device == torch.device("cpu")
