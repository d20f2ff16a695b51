"""The first network with a non-finite output is named, with the sample and its time."""

import pytest
import torch
from torch import nn

from dmdistill.training.nonfinite import OutputMonitor


class Spoilt(nn.Module):
    """Returns its input, with one sample's value replaced."""

    def __init__(self, sample=None, value=float("nan")):
        super().__init__()
        self.sample, self.value = sample, value

    def forward(self, x, t=None):
        return x if self.sample is None else x.index_fill(0, torch.tensor([self.sample]), self.value)


def run(networks, *, enabled=True):
    monitor = OutputMonitor(networks)
    monitor.start(enabled=enabled)
    x, t = torch.ones(3, 2), torch.tensor([0.5, 7.25, 80.0])
    for network in networks.values():
        network(x, t)
    return monitor


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_network_sample_and_time_are_named(value):
    monitor = run({"the generator": Spoilt(), "mu_real": Spoilt(1, value), "mu_fake": Spoilt(0)})
    assert (
        monitor.finding
        == "mu_real returned NaN or infinity for 1 of 3 samples, the first of them sample 1 at time 7.25"
    )


def test_a_network_without_times_is_named_too():
    network = Spoilt(2)
    monitor = OutputMonitor({"the generator": network})
    monitor.start(enabled=True)
    network(torch.ones(3, 2))
    assert monitor.finding == "the generator returned NaN or infinity for 1 of 3 samples, the first of them sample 2"


def test_nothing_is_inspected_unless_enabled_and_a_new_step_forgets():
    assert run({"mu_real": Spoilt(1)}, enabled=False).finding is None
    monitor = run({"mu_real": Spoilt(1)})
    monitor.start(enabled=True)
    assert monitor.finding is None
