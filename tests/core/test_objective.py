"""Algorithm 1: the order of its lines, and that it distils a mixture whose every mode is known."""

import copy
import dataclasses

import pytest
import torch

from dmdistill.core.denoisers import EDMDenoiser, GuidedDenoiser
from dmdistill.core.generators import Generator
from dmdistill.core.losses import denoising_loss, distribution_matching_loss, pseudo_huber, regression_loss
from dmdistill.core.methods import dmd, regression
from dmdistill.core.noise import RandomNoise, diffusion
from dmdistill.core.samples import Batch, Samples
from dmdistill.core.schedules import EDM
from dmdistill.core.solvers import heun
from dmdistill.core.terms import DistributionMatching
from dmdistill.models.gaussian_mixture import ring
from helpers.plane import COUNT, MLP, MODES, STD, measure, pretrain, updater


def distil(base, real, rng, *, steps, lambda_reg=0.25):
    """G after `steps` iterations of DMD, from a pretrained student."""
    generator, fake = Generator(copy.deepcopy(base)), copy.deepcopy(base)
    z_ref = torch.randn(1024, 2, generator=rng)
    y_ref = heun(real, z_ref, steps=18)
    optimisers = [torch.optim.AdamW(network.parameters(), 1e-3) for network in (generator, fake)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimisers[0], steps)
    objective = dmd(generator, real, fake, lambda_reg=lambda_reg)
    for _ in range(steps):
        rows = torch.randint(0, len(z_ref), (COUNT // 2,), generator=rng)
        batch = Batch(torch.randn(COUNT, 2, generator=rng), z_ref=z_ref[rows], y_ref=y_ref[rows])
        step(objective, batch, rng, updater(optimisers[0], schedule), updater(optimisers[1]))
    return generator


def test_dmd_recovers_every_mode_of_a_mixture(rng):
    """Measured: distance .494 at the start, .055 at the end (.015 between two samplings), shares from .66 of a mode."""
    torch.manual_seed(0)
    real = ring(MODES, std=STD)
    before = copy.deepcopy(real.state_dict())
    base = pretrain(real, rng)
    start, _ = measure(Generator(base), real)
    end, share = measure(distil(base, real, rng, steps=800), real)
    assert end < start / 4
    assert (share > 0.5 / MODES).all()
    assert share.sum() > 0.7
    assert all(torch.equal(tensor, before[name]) for name, tensor in real.state_dict().items())


def test_dmd_is_its_seeds():
    """The same seed gives the same generator, bit for bit; another seed another."""

    def run(seed):
        torch.manual_seed(5)
        real, rng = ring(MODES, std=STD), torch.Generator().manual_seed(seed)
        return distil(EDMDenoiser(MLP(), real.schedule), real, rng, steps=5).state_dict()

    first, again, other = run(0), run(0), run(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.fixture
def trio():
    """G, mu_real and mu_fake as trainable networks of different weights, that keep what they were asked."""

    def build(**kwargs):
        torch.manual_seed(3)
        schedule = EDM()
        generator, real, fake = (EDMDenoiser(MLP(8, **kwargs), schedule) for _ in range(3))
        return Generator(generator), real, fake

    return build


@pytest.fixture
def batch(rng):
    def build(count=6, pairs=4, **kwargs):
        draw = lambda n: torch.randn(n, 2, generator=rng)  # noqa: E731
        return Batch(draw(count), z_ref=draw(pairs), y_ref=draw(pairs), **kwargs)

    return build


def ignore(loss):
    """Takes a loss and moves nothing."""


def step(objective, batch, rng, generator=ignore, fake=ignore):
    return objective.step(batch, RandomNoise(rng), {"generator": generator, "fake": fake})


def asked(network):
    return (network.denoiser if isinstance(network, Generator) else network).net.asked


def test_step_is_algorithm_1(trio, batch, rng):
    """Its lines in the test's own hand, from the same seed: equal losses, equal weights, the teacher's unchanged.

    The update of G is large, so that a fake score trained on a newer G's images would show.
    """
    generator, real, fake = trio()
    twin, _, twin_fake = copy.deepcopy((generator, real, fake))
    data, seed = batch(), rng.get_state()
    before = copy.deepcopy(real.state_dict())
    optimisers = [torch.optim.SGD(network.parameters(), 1.0) for network in (generator, fake)]
    losses = step(dmd(generator, real, fake, lambda_reg=0.3), data, rng, *map(updater, optimisers))

    rng.set_state(seed)
    schedule, optimisers = real.schedule, [torch.optim.SGD(network.parameters(), 1.0) for network in (twin, twin_fake)]
    x, x_ref = twin(torch.cat([data.z, data.z_ref])).split([6, 4])
    t, eps = schedule.sample_t(6, 0.02, 0.98, rng=rng), torch.randn(6, 2, generator=rng)
    loss_kl = distribution_matching_loss(x, real, twin_fake, t, eps)
    loss_reg = regression_loss(x_ref, data.y_ref, pseudo_huber)
    updater(optimisers[0])(loss_kl + 0.3 * loss_reg)
    t, eps = schedule.sample_t(6, rng=rng), torch.randn(6, 2, generator=rng)
    loss_fake = denoising_loss(twin_fake, x.detach(), t, eps)
    updater(optimisers[1])(loss_fake)

    assert losses == {"loss_kl": loss_kl, "loss_reg": loss_reg, "loss_fake": loss_fake}
    assert not any(loss.requires_grad for loss in losses.values())
    for ours, plain in ((generator, twin), (fake, twin_fake)):
        for (name, tensor), expected in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
            assert torch.equal(tensor, expected), name
    assert not torch.equal(generator(data.z), x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in real.state_dict().items())
    assert all(p.grad is None for p in real.parameters())


def test_generator_moves_first_and_each_update_moves_one_network(trio, batch, rng):
    generator, real, fake = trio()
    order = []

    def update(name, own, others):
        def closure(loss):
            order.append(name)
            loss.backward()
            assert all(p.grad is not None for p in own.parameters())
            assert all(p.grad is None for other in others for p in other.parameters())
            own.zero_grad()

        return closure

    moves = update("generator", generator, (real, fake)), update("fake", fake, (real, generator))
    step(dmd(generator, real, fake), batch(), rng, *moves)
    assert order == ["generator", "fake"]


def test_z_and_z_ref_go_through_the_generator_in_one_call(trio, batch, rng):
    generator, real, fake = trio()
    step(dmd(generator, real, fake), batch(6, 4), rng)
    assert asked(generator) == [10]
    assert asked(real) == [6]
    assert asked(fake) == [6, 6]  # for Eq. 7, then for Eq. 6


def test_the_pairs_images_may_be_judged_and_learnt_too(trio, rng, labels):
    """x = concat(x, x_ref), each under its own class: the losses are those of one batch of all the noise."""
    generator, real, fake = trio(classes=3)
    z, y = torch.randn(7, 2, generator=rng), torch.randn(3, 2, generator=rng)
    told, seed = labels([0, 1, 2, 0, 2, 2, 1], 3), rng.get_state()
    split = Batch(z[:4], told[slice(0, 4)], z_ref=z[4:], y_ref=y, cond_ref=told[slice(4, 7)])
    losses = step(dmd(generator, real, fake, match_pairs=True), split, rng)
    rng.set_state(seed)
    whole = step(dmd(generator, real, fake, lambda_reg=0), Batch(z, told), rng)
    assert (losses["loss_kl"], losses["loss_fake"]) == (whole["loss_kl"], whole["loss_fake"])
    rng.set_state(seed)
    apart = step(dmd(generator, real, fake), split, rng)
    assert losses["loss_reg"] == apart["loss_reg"]
    assert losses["loss_kl"] != apart["loss_kl"]


def test_conditions_travel_with_their_noise(trio, rng, labels):
    """Each image is made, judged and learnt under its own class, and the pairs' classes do not mix with them."""
    generator, real, fake = trio(classes=3)
    told = {name: [] for name in ("generator", "real", "fake")}
    for name, network in (("generator", generator.denoiser), ("real", real), ("fake", fake)):
        network.register_forward_pre_hook(
            lambda _, args, name=name: told[name].append(args[2].one_hot.argmax(1).tolist())
        )
    draw = lambda n: torch.randn(n, 2, generator=rng)  # noqa: E731
    batch = Batch(
        draw(2),
        labels([0, 1], 3),
        z_ref=draw(3),
        y_ref=draw(3),
        cond_ref=labels([2, 2, 1], 3),
        z_fake=draw(4),
        cond_fake=labels([0, 2, 1, 0], 3),
    )
    step(dmd(generator, real, fake), batch, rng)
    assert told == {
        "generator": [[0, 1, 2, 2, 1], [0, 2, 1, 0]],
        "real": [[0, 1]],
        "fake": [[0, 1], [0, 1], [0, 2], [1, 0]],
    }


def test_without_pairs_there_is_no_regression(trio, rng):
    generator, real, fake = trio()
    losses = step(dmd(generator, real, fake, lambda_reg=0), Batch(torch.randn(6, 2, generator=rng)), rng)
    assert set(losses) == {"loss_kl", "loss_fake"}
    assert asked(generator) == [6]


def test_without_matching_only_the_pairs_are_asked_for(trio, batch, rng):
    generator, real, fake = trio()
    data, updates = batch(6, 4), []
    losses = step(regression(generator, lambda_reg=0.5), data, rng, updates.append, pytest.fail)
    assert asked(generator) == [4]
    assert asked(real) == asked(fake) == []
    expected = regression_loss(generator(data.z_ref), data.y_ref, pseudo_huber)
    assert losses == {"loss_reg": expected}
    assert updates == [0.5 * expected]


def test_the_fake_score_can_follow_before_anything_is_matched(trio, rng, labels):
    """It learns the images of the pairs' noise, each under its own class, at no further call of the generator."""
    generator, real, fake = trio(classes=3)
    cond, z, y = labels([2, 0, 1], 3), torch.randn(3, 2, generator=rng), torch.randn(3, 2, generator=rng)
    data, seed = Batch(z[:2], cond[slice(0, 2)], z_ref=z, y_ref=y, cond_ref=cond), rng.get_state()
    losses = step(regression(generator, fake=fake), data, rng)
    assert (asked(generator), asked(real), asked(fake)) == ([3], [], [3])
    rng.set_state(seed)
    t, eps = real.schedule.sample_t(3, rng=rng), torch.randn(3, 2, generator=rng)
    assert losses["loss_fake"] == denoising_loss(fake, generator(z, cond).detach(), t, eps, cond)


@pytest.mark.parametrize("more", [1, 4])
def test_z_fake_gives_more_updates_of_the_fake_score(trio, batch, rng, more):
    """One on the generator's own x, then `more` on images that the updated G made in one call, without a graph."""
    generator, real, fake = trio()
    seen = []
    data = batch(6, 4, z_fake=torch.randn(6 * more, 2, generator=rng))

    def move(loss):
        with torch.no_grad():
            for p in generator.parameters():
                p.add_(0.1)

    schedule = Recorder()
    fake.schedule = schedule
    step(dmd(generator, real, fake), data, rng, move, seen.append)
    assert len(seen) == 1 + more
    assert asked(generator) == [10, 6 * more]
    assert not any(x.requires_grad for x in schedule.images)
    with torch.no_grad():
        fresh = generator(data.z_fake)
    assert torch.equal(torch.cat(schedule.images[1:]), fresh)


class Recorder(EDM):
    """Keeps the images that Eq. 6 diffuses."""

    def __init__(self):
        super().__init__()
        self.images = []

    def diffuse(self, x, eps, t):
        self.images.append(x)
        return super().diffuse(x, eps, t)


def test_times_are_eq_7s_and_eq_6s(trio, rng):
    """Eq. 7 draws from [.02, .98] of the bins, Eq. 6 from all, one time per sample and fresh ones for each."""
    generator, real, fake = trio()
    times = []
    for network in (real, fake):
        network.register_forward_pre_hook(lambda _, args: times.append(args[1]))
    step(dmd(generator, real, fake, lambda_reg=0), Batch(torch.randn(4000, 2, generator=rng)), rng)
    of_real, of_fake, of_training = times
    grid = real.schedule.time(torch.tensor([0, 20, 980, 999]))
    assert torch.equal(of_real, of_fake)
    assert (of_real.min() >= grid[1]) & (of_real.max() <= grid[2])
    assert (of_training.min() < grid[1]) & (of_training.max() > grid[2])
    assert len(of_real.unique()) > 900


def test_a_guided_teacher_is_guided_and_the_fake_score_is_not(trio, rng, labels):
    generator, real, fake = trio(classes=3)
    cond = labels([0, 1, 2, 0, 1, 2], 3)
    objective = dmd(generator, GuidedDenoiser(real, 3.0), fake, lambda_reg=0)
    step(objective, Batch(torch.randn(6, 2, generator=rng), cond), rng)
    assert asked(real) == [12]
    assert asked(fake) == [6, 6]


def test_a_regression_without_pairs_is_refused(trio, rng):
    generator, real, fake = trio()
    for objective in (regression(generator), dmd(generator, real, fake)):
        with pytest.raises(ValueError, match="z_ref"):
            step(objective, Batch(torch.randn(6, 2, generator=rng)), rng)


def test_an_update_without_a_term_is_refused(trio, batch, rng):
    objective = dataclasses.replace(dmd(*trio()), critics={"fake": {}})
    with pytest.raises(ValueError, match="fake"):
        step(objective, batch(), rng)


def test_a_condition_on_one_side_only_is_refused(trio, batch, rng, labels):
    with pytest.raises(ValueError, match="both or neither"):
        step(dmd(*trio(classes=3)), batch(6, 4, cond=labels([0] * 6, 3)), rng)


def test_a_term_of_ones_own_is_a_summand(trio, batch, rng):
    """Its loss is in the log by its name, and enters the total by its weight."""

    @dataclasses.dataclass(frozen=True, eq=False)
    class Brightness:
        name: str = "loss_brightness"

        def __call__(self, samples, batch, noise):
            return samples.x.mean()

    generator, real, fake = trio()
    plain = dmd(generator, real, fake, lambda_reg=0)
    objective = dataclasses.replace(plain, terms={**plain.terms, Brightness(): 0.5})
    totals, seed = [], rng.get_state()
    losses = step(objective, batch(), rng, totals.append)
    rng.set_state(seed)
    expected = step(plain, batch(), rng)["loss_kl"] + 0.5 * losses["loss_brightness"]
    assert set(losses) == {"loss_kl", "loss_brightness", "loss_fake"}
    assert totals == [expected]


def test_generator_is_the_teacher_at_the_last_time(schedule, mixture):
    """G(z) = mu(prior_std z, last), section 3.1."""
    exact, z = mixture(schedule), torch.randn(7, 2, 3, 5)
    assert torch.equal(Generator(exact)(z), exact(schedule.prior_std * z, torch.full((7,), schedule.t_max)))


class Known(torch.nn.Module):
    """mu is 1 of a labelled image and 0 of another: guided by s it is s."""

    schedule = EDM()

    def forward(self, x_t, t, cond):
        return cond.one_hot.sum(1, keepdim=True).expand_as(x_t).clone()


def test_a_range_of_guidance_is_drawn_uniformly_for_each_sample(rng, labels):
    """The gradient is (mu_fake - s_i) / numel, so that it shows the scales: the noise source's own draws."""
    count = 4000
    real = GuidedDenoiser(Known(), 5.5, scale_range=(3.0, 8.0))
    x = torch.zeros(count, 2, requires_grad=True)
    term = DistributionMatching(real, lambda x_t, t, cond: 0 * x_t, weight=lambda at: torch.ones(len(at.x)))
    samples, batch = Samples(x, labels([0] * count, 3), count), Batch(torch.zeros(count, 2))
    state = rng.get_state()
    (gradient,) = torch.autograd.grad(term(samples, batch, RandomNoise(rng)), x)
    scales = -gradient[:, 0] * x.numel()
    rng.set_state(state)
    diffusion(RandomNoise(rng), samples, real.schedule, term.times)
    torch.testing.assert_close(scales, 3 + 5 * torch.rand(count, generator=rng), rtol=1e-4, atol=1e-4)
    assert scales.min() >= 3
    assert scales.max() <= 8
    assert scales.mean().item() == pytest.approx(5.5, abs=0.1)  # four standard errors
