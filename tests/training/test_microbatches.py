"""Microbatches and processes: their draws are rows of the full draw, their update is that of the full batch."""

import copy
from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from dmdistill.core.denoisers import X0Denoiser
from dmdistill.core.methods import dmd, regression
from dmdistill.core.noise import RandomNoise, diffusion
from dmdistill.core.partition import SharedNoise, select_part, split_batch
from dmdistill.core.samples import Batch, Samples
from dmdistill.core.schedules import EDM
from dmdistill.core.times import UniformTimes
from dmdistill.distributed.data_parallel import Parallelism
from dmdistill.training.microbatches import run_in_lockstep
from dmdistill.training.optimizer import NetworkOptimizer

FRESH, PAIRED, SHAPE = 8, 4, (2, 3)


class Linear(nn.Module):
    """A linear denoiser of images of 2 x 3."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x_t, t, cond=None):
        return self.layer(x_t.flatten(1)).unflatten(1, SHAPE)


class LinearGenerator(Linear):
    def forward(self, z, cond=None):
        return super().forward(z, None)


@pytest.fixture
def networks():
    torch.manual_seed(0)
    real = X0Denoiser(Linear(), EDM()).requires_grad_(False)
    return {"generator": LinearGenerator(), "real": real, "fake": X0Denoiser(Linear(), EDM())}


@pytest.fixture
def batch(rng):
    def draw(count):
        return torch.randn(count, *SHAPE, generator=rng)

    return Batch(draw(FRESH), z_ref=draw(PAIRED), y_ref=draw(PAIRED), z_fake=draw(2 * FRESH))


def train(networks, objective, microbatches, run, **options):
    """Run one iteration of copies of the networks. Returns its losses, gradient norms and the new weights."""
    copies = copy.deepcopy(networks)
    parallel = Parallelism(microbatches=microbatches)
    optimizers = {
        name: NetworkOptimizer(copies[name], lr=1e-2, steps=10, warmup=0, parallel=parallel)
        for name in ("generator", "fake")
    }
    losses = run(objective(*copies.values(), **options), optimizers)
    weights = [parameter.detach() for network in copies.values() for parameter in network.parameters()]
    return losses, [optimizer.gradient_norm for optimizer in optimizers.values()], weights


def step(batch):
    return lambda objective, optimizers: objective.step(batch, RandomNoise(seeded()), optimizers)


def lockstep(batch, microbatches):
    def run(objective, optimizers):
        noise = SharedNoise(seeded(), parts=microbatches, count=microbatches)
        parts = zip(split_batch(batch, microbatches), noise.parts, strict=True)
        return run_in_lockstep([objective.iteration(*part) for part in parts], optimizers)

    return run


def seeded():
    return torch.Generator().manual_seed(7)


def regression_with_fake(generator, real, fake):
    return regression(generator, fake=fake)


METHODS = {
    "dmd": (dmd, {}),
    "pairs matched": (dmd, {"match_pairs": True}),
    "no pairs": (dmd, {"lambda_reg": 0.0}),
    "regression": (regression_with_fake, {}),
}


def suitable(batch, kind):
    """A phase before distribution matching has one update of the fake score."""
    return replace(batch, z_fake=None) if kind == "regression" else batch


@pytest.mark.parametrize("kind", METHODS)
def test_one_part_is_the_step_of_the_objective_bit_for_bit(kind, networks, batch):
    (method, options), batch = METHODS[kind], suitable(batch, kind)
    full, part = (train(networks, method, 1, run, **options) for run in (step(batch), lockstep(batch, 1)))
    torch.testing.assert_close(part, full, rtol=0, atol=0)


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_are_the_full_batch_to_rounding(microbatches, kind, networks, batch):
    (method, options), batch = METHODS[kind], suitable(batch, kind)
    full = train(networks, method, 1, step(batch), **options)
    parts = train(networks, method, microbatches, lockstep(batch, microbatches), **options)
    assert full[0].keys() <= {"loss_kl", "loss_reg", "loss_fake"}
    torch.testing.assert_close(parts, full, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("fresh", "paired"), [(FRESH, PAIRED), (FRESH, 0), (0, PAIRED)])
@pytest.mark.parametrize(("processes", "microbatches"), [(1, 4), (2, 2), (4, 1)])
def test_the_draws_of_all_parts_are_the_rows_of_the_full_draw(processes, microbatches, fresh, paired):
    """Those of fresh images and those of pairs, of one draw after the other, whichever part draws first."""
    schedule, count = EDM(), processes * microbatches
    full, rng = Samples(torch.zeros(fresh + paired, *SHAPE), None, fresh, paired), seeded()
    middle, everywhere = UniformTimes(0.1, 0.9), UniformTimes()
    expected = [diffusion(RandomNoise(rng), full, schedule, times) for times in (middle, everywhere)]
    part = Samples(torch.zeros((fresh + paired) // count, *SHAPE), None, fresh // count, paired // count)
    drawn = []
    for rank in range(processes):
        generator = seeded()
        shared = SharedNoise(generator, parts=microbatches, count=count, first=rank * microbatches)
        first = [diffusion(source, part, schedule, middle) for source in shared.parts]
        second = [diffusion(source, part, schedule, everywhere) for source in reversed(shared.parts)][::-1]
        drawn += zip(first, second, strict=True)
        assert torch.equal(generator.get_state(), rng.get_state())
        assert shared.draws == {}  # no draw stays in memory once all parts have it
    for number, draw in enumerate(expected):
        for which, rows in enumerate(draw):
            parts = [one[number][which].split([part.fresh, part.paired]) for one in drawn]
            together = [torch.cat([piece[kind] for piece in parts]) for kind in (0, 1)]
            assert torch.equal(torch.cat(together), rows)


def test_microbatches_are_equal_parts_of_each_kind_of_row(batch):
    parts = split_batch(batch, 4)
    for field in fields(Batch):
        if field.name == "steps":  # the same for all
            continue
        rows = getattr(batch, field.name)
        pieces = [getattr(part, field.name) for part in parts]
        if rows is None:
            assert pieces == [None] * 4
            continue
        groups = 2 if field.name == "z_fake" else 1
        by_group = [piece.chunk(groups) for piece in pieces]
        assert torch.equal(torch.cat([piece[group] for group in range(groups) for piece in by_group]), rows)


def test_a_part_of_a_list_and_of_nothing():
    assert [select_part([*range(6)], [6], index, 3) for index in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert select_part(None, [6], 1, 3) is None
