"""Networks side by side: each is a plain one, and none knows of the others."""

import pytest
import torch
from torch import nn

from dmdistill.commands.reproduce.fig3.mlp_ensemble import MLPEnsemble


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def test_each_network_is_a_plain_one(rng):
    """Sample i is what an nn.Sequential with the weights of network i mod 3 makes of it."""
    ensemble = MLPEnsemble(3, rng, width=5)
    x, noise = torch.randn(12, 2, generator=rng), torch.randn(12, generator=rng)
    answer = ensemble(x, noise)
    for i in range(3):
        layers = []
        for weight, bias in zip(ensemble.weights, ensemble.biases, strict=True):
            linear = nn.Linear(*weight.shape[1:])
            linear.load_state_dict({"weight": weight[i].T, "bias": bias[i, 0]})
            layers += [linear, nn.SiLU()]
        plain = nn.Sequential(*layers[:-1])
        torch.testing.assert_close(answer[i::3], plain(torch.cat([x, noise[:, None]], 1)[i::3]))


def test_a_samples_gradient_reaches_its_own_network_alone(rng):
    ensemble = MLPEnsemble(3, rng, width=5)
    ensemble(torch.randn(12, 2, generator=rng), torch.randn(12, generator=rng))[1::3].square().sum().backward()
    for parameter in ensemble.parameters():
        moved = parameter.grad.abs().flatten(1).sum(1) > 0
        assert moved.tolist() == [False, True, False]


def test_samples_that_cannot_be_shared_out_are_refused(rng):
    with pytest.raises(ValueError, match="7 samples for 3 networks, expected a multiple"):
        MLPEnsemble(3, rng)(torch.zeros(7, 2), torch.zeros(7))
