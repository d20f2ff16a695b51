"""Objectives beside the class that they replace: the same losses and weights, bit for bit."""

import copy

import pytest
import torch
from torch import nn

from dmdistill.core.denoisers import EDMDenoiser
from dmdistill.core.dmd import DMD
from dmdistill.core.generators import Generator
from dmdistill.core.methods import dmd, regression
from dmdistill.core.samples import Batch, RandomNoise
from dmdistill.core.schedules import EDM


class MLP(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, x_t, t, cond=None):
        return self.layers(torch.cat([x_t, t[:, None]], 1))


VARIANTS = {
    "full": ({}, lambda g, r, f: dmd(g, r, f)),
    "pairs matched too": ({"match_pairs": True}, lambda g, r, f: dmd(g, r, f, match_pairs=True)),
    "no regression": ({"lambda_reg": 0.0, "no_pairs": True}, lambda g, r, f: dmd(g, r, f, lambda_reg=0.0)),
    "regression alone": ({"match": False, "lambda_reg": 0.7}, lambda g, r, f: regression(g, lambda_reg=0.7)),
    "fake score ahead": ({"match": False, "follow": True}, lambda g, r, f: regression(g, lambda_reg=0.25, fake=f)),
    "three fake updates": ({"more": 2}, lambda g, r, f: dmd(g, r, f)),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_weights_are_the_same_bit_for_bit(variant):
    settings, method = dict(VARIANTS[variant][0]), VARIANTS[variant][1]
    more, pairs = settings.pop("more", 0), not settings.pop("no_pairs", False)

    def run(ours):
        torch.manual_seed(1)
        generator, real, fake = (EDMDenoiser(MLP(), EDM()) for _ in range(3))
        generator, rng = Generator(generator), torch.Generator().manual_seed(4)
        optimizers = [torch.optim.AdamW(network.parameters(), 1e-2) for network in (generator, fake)]

        def update(optimizer):
            def closure(loss):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

            return closure

        old = DMD(generator, real, fake, rng=rng, **settings)
        new = method(generator, real, fake)
        rows = []
        for _ in range(5):
            draw = lambda n: torch.randn(n, 2, generator=rng)  # noqa: E731
            z, z_ref, y_ref = draw(6), *((draw(4), draw(4)) if pairs else (None, None))
            batch = Batch(z, z_ref=z_ref, y_ref=y_ref, z_fake=draw(6 * more) if more else None)
            updates = {"generator": update(optimizers[0]), "fake": update(optimizers[1])}
            rows.append(new.step(batch, RandomNoise(rng), updates) if ours else old.step(batch, *updates.values()))
        return rows, copy.deepcopy([*generator.state_dict().values(), *fake.state_dict().values()])

    (old_rows, old_weights), (new_rows, new_weights) = run(False), run(True)
    assert new_rows == old_rows
    assert all(map(torch.equal, new_weights, old_weights))
