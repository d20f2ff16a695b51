"""Generators of one and of several steps, and the inputs that they are trained on."""

import pytest
import torch

from dmdistill.core.denoisers import X0Denoiser
from dmdistill.core.generators import Generator, MultiStep, OneStep, derived_noise
from dmdistill.core.noise import RandomNoise
from dmdistill.core.samples import Batch
from dmdistill.core.schedules import EDM, VP

SHAPE = (2, 3, 5)


class Replay:
    """A noise source that repeats draws and keeps no other."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def draw(self, samples, draw):
        return self.draws.pop(0)


@pytest.fixture
def build(mixture):
    """A generator of an exact denoiser, of some steps."""
    return lambda schedule, steps=4, **kwargs: Generator(mixture(schedule), schedule.student_times(steps), **kwargs)


@pytest.fixture
def noise(rng):
    return lambda n=6: torch.randn(n, *SHAPE, generator=rng)


def test_one_time_is_one_step(schedule, build, noise, labels, rng):
    """To the bit: the images, their gradient, the fresh ones, and the draws that were made."""
    batch = Batch(noise().requires_grad_(), labels([0, 1, 2, 2, 1, 0], 3), z_fake=noise(12), steps=(0, 0, 0))
    batch = Batch(batch.z, batch.cond, z_fake=batch.z_fake, cond_fake=labels([0, 1, 2] * 4, 3), steps=batch.steps)
    results = []
    for sampler in (OneStep(build(schedule, 1)), MultiStep(build(schedule, 1))):
        source = RandomNoise(torch.Generator().manual_seed(3))
        samples, fresh = sampler(batch, source), list(sampler.fresh(batch, source))
        (gradient,) = torch.autograd.grad(samples.x.square().sum(), batch.z)
        assert (samples.fresh, samples.paired, samples.time) == (6, 0, None)
        assert [len(one.x) for one in fresh] == [6, 6]
        tensors = [samples.x, gradient, samples.cond.one_hot, source.rng.get_state()]
        results.append(tensors + [t for one in fresh for t in (one.x, one.cond.one_hot)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_one_step_sampled_is_one_call(schedule, build, noise):
    generator, z = build(schedule, 1), noise()
    assert torch.equal(generator.sample(z), generator(z))


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_backward_simulation_is_the_samplers_path(schedule, build, noise, labels, step):
    """With fresh noise: from noise of its own, and with the batch's in the last transition, as in the authors' code.

    All of it is N(0, I) and independent, so that the inputs in training have the distribution of those in sampling.
    """
    generator, cond, z = build(schedule), labels([0, 1, 2, 2, 1, 0], 3), noise()
    start, *between = [noise() for _ in range(max(step, 1))]
    source = Replay(*[start, *between] if step else [])
    samples = MultiStep(generator)(Batch(z, cond, steps=(step,)), source)
    assert source.draws == []
    transitions = [*between, z]
    whole = Generator(generator.denoiser, generator.timesteps[: step + 1])
    expected = whole.sample(start if step else z, cond, noise=lambda before: transitions[before])
    assert torch.equal(samples.x, expected)
    assert samples.time == (generator.timesteps[step] if step else None)


@pytest.mark.parametrize("step", [0, 1, 3])
def test_backward_simulation_by_the_ode_is_the_samplers_path(schedule, build, noise, step):
    generator, z = build(schedule, transition="ode"), noise()
    samples = MultiStep(generator)(Batch(z, steps=(step,)), Replay())
    whole = Generator(generator.denoiser, generator.timesteps[: step + 1], "ode")
    assert torch.equal(samples.x, whole.sample(z))


@pytest.mark.parametrize("transition", ["sde", "ode"])
def test_simulated_inputs_have_the_distribution_of_sampled_ones(schedule, mixture, transition):
    """Means and covariances of 20,000 inputs of the last step, the covariances of one row of pixels."""
    generator = Generator(mixture(schedule), schedule.student_times(3), transition)
    z = torch.randn(20_000, *SHAPE, generator=torch.Generator().manual_seed(1))
    simulated = MultiStep(generator).simulate(z, None, 2, RandomNoise(torch.Generator().manual_seed(2)))
    last = []
    generator.denoiser.register_forward_pre_hook(lambda module, args: last.append(args[0]))
    other = torch.Generator().manual_seed(3)
    generator.sample(torch.randn(z.shape, generator=other), noise=lambda step: torch.randn(z.shape, generator=other))
    sampled, scale = last[-1], last[-1].std()
    assert (simulated.mean(0) - sampled.mean(0)).abs().max() < 0.05 * scale
    assert (simulated[:, 0, 0].T.cov() - sampled[:, 0, 0].T.cov()).abs().max() < 0.08 * scale**2


def test_the_ode_goes_along_straight_noise(schedule, mixture, noise, rng):
    """DDIM's step: alpha' mu + sigma' (x_t - alpha mu)/sigma, from the network's own input."""
    generator = Generator(mixture(schedule), schedule.student_times(2), "ode")
    z = noise()
    mu = generator(z)
    first, second = (torch.full((6,), float(t)) for t in generator.timesteps)
    x_t = schedule.prior_std * z
    alpha, sigma = (f(first)[:, None, None, None] for f in (schedule.alpha, schedule.sigma))
    expected = schedule.diffuse(mu, (x_t - alpha * mu) / sigma, second)
    torch.testing.assert_close(generator.next_input(z, mu, 0, noise), expected, rtol=1e-5, atol=1e-5)


def test_only_the_trained_step_has_a_graph(schedule, noise):
    """Its gradient is that of this step alone, at its input."""
    net = torch.nn.Linear(5, 5).double()
    generator = Generator(X0Denoiser(Ignoring(net), schedule), schedule.student_times(3))
    called = []
    net.register_forward_hook(lambda module, args, output: called.append((args[0], torch.is_grad_enabled())))
    z = noise().double()
    samples = MultiStep(generator)(Batch(z, steps=(2,)), Replay(noise().double(), noise().double()))
    assert [graph for _, graph in called] == [False, False, True]
    assert not any(x.requires_grad for x, _ in called)
    gradients = torch.autograd.grad(samples.x.square().sum(), net.parameters())
    expected = torch.autograd.grad(net(called[2][0]).square().sum(), net.parameters())
    assert all(torch.equal(one, other) for one, other in zip(gradients, expected, strict=True))


class Ignoring(torch.nn.Module):
    """A network that is told no time."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t, cond=None):
        return self.net(x)


def test_fresh_images_are_each_of_their_own_step(schedule, build, noise, labels):
    generator, steps = build(schedule), (1, 3, 0)
    cond = labels([0, 1, 2] * 4, 3)
    batch = Batch(noise(), cond[slice(0, 6)], z_fake=noise(12), cond_fake=cond, steps=steps)
    groups = list(MultiStep(generator).fresh(batch, RandomNoise(torch.Generator().manual_seed(2))))
    source = RandomNoise(torch.Generator().manual_seed(2))
    assert [one.time for one in groups] == [generator.timesteps[3], None]
    for number, group in enumerate(groups):
        rows = slice(6 * number, 6 * number + 6)
        alone = Batch(batch.z_fake[rows], cond[rows], steps=(steps[1 + number],))
        assert torch.equal(group.x, MultiStep(generator)(alone, source).x)
        assert torch.equal(group.cond.one_hot, cond[rows].one_hot)
        assert not group.x.requires_grad


def test_inputs_of_data_are_real_images_diffused(schedule, build, noise, labels):
    """Under their own conditions, each group with its own; the first step is pure noise all the same."""
    generator, real, z = build(schedule), noise(18), noise(18)
    cond, cond_real = labels([0, 1, 2] * 6, 3), labels([2, 2, 1] * 6, 3)
    batch = Batch(z[:6], cond[slice(0, 6)], z_fake=z[6:], cond_fake=cond[slice(6, 18)], real=real)
    batch = Batch(**vars(batch) | {"cond_real": cond_real, "steps": (2, 0, 3)})
    sampler = MultiStep(generator, "data")
    for number, samples in enumerate([sampler(batch, Replay()), *sampler.fresh(batch, Replay())]):
        rows, step = slice(6 * number, 6 * number + 6), batch.steps[number]
        t = torch.full((6,), generator.timesteps[step])
        x = schedule.diffuse(real[rows], z[rows], t) if step else z[rows]
        expected = cond_real[rows] if step else cond[rows]
        assert torch.equal(samples.cond.one_hot, expected.one_hot)
        assert torch.equal(samples.x, generator(x, expected, step))
    with pytest.raises(ValueError, match="real images"):
        sampler(Batch(z[:6], steps=(1,)), Replay())


def test_too_few_real_images_are_refused(noise):
    with pytest.raises(ValueError, match="9 real images, expected 12"):
        Batch(noise(), real=noise(9)).real_images(1)


def test_the_first_input_is_pure_noise_whatever_its_time(noise, mixture):
    """SDXL's one step is asked at 399, SiD's at sigma 2.5: its noise has the scale that the schedule gives it."""
    z, vp, edm = noise(), VP.linear_betas(), EDM()
    for schedule, t, x in ((vp, 399.0, z), (edm, 2.5, 2.5 * z)):
        exact = mixture(schedule)
        assert torch.equal(Generator(exact, [t])(z), exact(x, torch.full((6,), t)))


@pytest.mark.parametrize("times", [(999.0, 999.0), (249.0, 499.0), (999.0, 499.0, 749.0)])
def test_times_that_do_not_fall_are_refused(times, mixture):
    with pytest.raises(ValueError, match="499" if 499.0 in times else "999"):
        Generator(mixture(VP.linear_betas()), times)


def test_derived_noise_is_each_samples_own():
    """Independent of the batch, other for each step and sample, and the same on every call."""
    z = torch.randn(7, *SHAPE, generator=torch.Generator().manual_seed(4))
    noise = derived_noise(z, 1)
    assert torch.equal(noise[3:5], derived_noise(z[3:5], 1))
    assert torch.equal(derived_noise(z.flip(0), 1).flip(0), noise)
    assert not torch.equal(noise, derived_noise(z, 2))
    assert (noise.dtype, noise.shape) == (z.dtype, z.shape)
    assert derived_noise(z.double(), 1).dtype == torch.float64


def test_derived_noise_is_standard_normal_and_independent_of_all_other():
    """Over 4,000 samples: of each other's pixels, of z, and of the noise of another step."""
    z = torch.randn(4000, 2, 2, 2, generator=torch.Generator().manual_seed(5))
    together = torch.cat([z.flatten(1), derived_noise(z, 0).flatten(1), derived_noise(z, 1).flatten(1)], 1)
    bound = 4.5 / 4000**0.5
    assert together.mean(0).abs().max() < bound
    assert (together.T.cov() - torch.eye(24)).abs().max() < 1.5 * bound
    assert ((together**4).mean(0) - 3).abs().max() < 0.8


def test_a_sample_of_several_steps_is_independent_of_the_batch(schedule, build, noise):
    generator, z = build(schedule), noise()
    torch.testing.assert_close(generator.sample(z)[2:3], generator.sample(z[2:3]), rtol=1e-5, atol=1e-6)
