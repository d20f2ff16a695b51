"""Every method's gradients in closed form, where they go, and the order of its updates."""

import dataclasses

import pytest
import torch
from torch import nn

from dmdistill.core.critics import DiscriminatorLoss
from dmdistill.core.denoisers import EDMDenoiser, GuidedDenoiser
from dmdistill.core.divergences import DIVERGENCES, DensityRatioWeight, RatioAverages
from dmdistill.core.generators import Generator, MultiStep, OneStep
from dmdistill.core.losses import Estimates, gradient_in, score_identity_loss, weight_eq8
from dmdistill.core.methods import decoupled_dmd, dmd2, sid
from dmdistill.core.noise import RandomNoise
from dmdistill.core.partition import SharedNoise, split_batch
from dmdistill.core.samples import Batch, Samples
from dmdistill.core.schedules import EDM, expand
from dmdistill.core.terms import Adversarial, DistributionMatching, GuidanceAugmentation, ScoreIdentity
from dmdistill.core.times import UniformTimes
from dmdistill.models.discriminator import DenoiserWithHead, HeadDiscriminator
from dmdistill.models.gaussian_mixture import GaussianMixture
from dmdistill.networks.discriminator import build_head
from helpers.small_denoisers import SHAPE, Head, Network

BATCH = Batch(torch.zeros(1))
COUNT = 7


class Replay:
    """A noise source that repeats draws, in any number of rounds."""

    def __init__(self, *draws):
        self.draws, self.number = draws, 0

    def draw(self, samples, draw):
        self.number += 1
        return self.draws[(self.number - 1) % len(self.draws)]


@pytest.fixture
def exact(schedule, mixture):
    """An exact teacher and an exact fake score of another mixture, in three classes each."""
    real, rng = mixture(schedule), torch.Generator().manual_seed(5)
    other = GaussianMixture(real.means + 0.3 * torch.randn(real.means.shape, generator=rng), schedule, stds=0.6)
    other.register_buffer("classes", torch.tensor([0, 1, 2, 0]))
    return real, other


@pytest.fixture
def drawn(schedule, rng, labels):
    """Images with a graph, the times and the noise that diffuse them; no time is nearly clean."""
    x, eps = (torch.randn(COUNT, *SHAPE, generator=rng, dtype=torch.float64) for _ in range(2))
    t = schedule.sample_t(COUNT, 0.3, 0.98, rng=rng).double()
    return Samples(x.requires_grad_(), labels([0, 1, 2, 0, 1, 2, 1], 3), COUNT), t, eps


def optimal(real, fake):
    """The discriminator whose logits are ln p_real - ln p_fake of the diffused densities."""
    return lambda x_t, t, cond: (real.log_prob(x_t, t, cond) - fake.log_prob(x_t, t, cond))[:, None]


def gradient(term, samples, *draws):
    return torch.autograd.grad(term(samples, BATCH, Replay(*draws)), samples.x)[0]


def test_an_optimal_discriminator_gives_the_difference_of_the_scores(schedule, exact, drawn):
    """d softplus(-D)/dx = -sigmoid(-D) alpha (s_real - s_fake) = -sigmoid(-D) alpha^2/sigma^2 (mu_real - mu_fake)."""
    (real, fake), (samples, t, eps) = exact, drawn
    found = gradient(Adversarial(optimal(real, fake), schedule), samples, t, eps)
    x_t = schedule.diffuse(samples.x.detach(), eps, t)
    logits = optimal(real, fake)(x_t, t, samples.cond)
    ratio = expand((schedule.alpha(t) / schedule.sigma(t)) ** 2, x_t)
    pull = ratio * (real(x_t, t, samples.cond) - fake(x_t, t, samples.cond))
    expected = -expand((-logits[:, 0]).sigmoid(), x_t) * pull / COUNT
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


def test_the_optimal_discriminator_is_the_minimum_of_its_loss():
    """The derivative of its loss at ln p_real - ln p_fake is 0 along any function of x_t, in fp64 by quadrature."""
    x = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    real, fake = torch.distributions.Normal(0.5, 1.0), torch.distributions.Normal(-0.4, 1.3)
    logits = (real.log_prob(x) - fake.log_prob(x)).requires_grad_()
    loss = (
        nn.functional.softplus(logits) * fake.log_prob(x).exp()
        + nn.functional.softplus(-logits) * real.log_prob(x).exp()
    )
    (derivative,) = torch.autograd.grad(loss.sum(), logits)
    assert derivative.abs().max() < 1e-12
    assert loss.detach().sum() * (x[1] - x[0]) < 2 * torch.log(torch.tensor(2.0))


F_OF_RATIO = {  # D(p_real || p_fake) = E_fake f(r), r = p_real/p_fake
    "rkl": lambda r: -r.log(),
    "kl": lambda r: r * r.log(),
    "js": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    "sf": lambda r: (r + 1) * ((r + 1) / (2 * r)).log(),
    "neyman": lambda r: (1 - r) ** 2 / r,
    "sh": lambda r: (r.sqrt() - 1) ** 2,
    "jf": lambda r: (r - 1) * r.log(),
}


def second_derivative(f, r):
    r = r.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(r).sum(), r, create_graph=True)
    return torch.autograd.grad(first.sum(), r)[0]


@pytest.mark.parametrize("name", DIVERGENCES)
def test_h_is_the_divergences_second_derivative(name):
    """h(r) = r^2 f''(r), up to a constant factor."""
    r = torch.logspace(-1, 1.3, 50, dtype=torch.float64)
    ratio = DIVERGENCES[name](r) / (r**2 * second_derivative(F_OF_RATIO[name], r))
    torch.testing.assert_close(ratio, ratio[:1].expand(50), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [("rkl", "fake", "real"), ("kl", "real", "fake"), ("sf", "mixture", "real")],
)
def test_the_names_say_which_way_a_kl_divergence_goes(name, first, second):
    """sf is the softened reverse KL, 2 KL(mixture || teacher), whose h(r) = 1/(1 + r) stays below DMD's."""
    x = torch.linspace(-14, 14, 10_001, dtype=torch.float64)
    real, fake = (torch.distributions.Normal(*values).log_prob(x).exp() for values in ((0.3, 1.0), (-0.5, 0.9)))
    p = {"real": real, "fake": fake, "mixture": (real + fake) / 2}
    divergence = torch.trapezoid(p[first] * (p[first] / p[second]).log(), x) * (2 if first == "mixture" else 1)
    found = torch.trapezoid(fake * F_OF_RATIO[name](real / fake), x)
    torch.testing.assert_close(found, divergence, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_h_times_the_difference_of_the_scores_is_the_divergences_gradient(name):
    """Of a normal student from a normal teacher, in the student's mean, theta, by quadrature in fp64.

    Autograd of the integral of p_fake f(r) is E_fake h (s_fake - s_real), with h = r^2 f''(r).
    """
    x = torch.linspace(-14, 14, 40_001, dtype=torch.float64)
    theta = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    real, fake = (
        torch.distributions.Normal(0.3, 1.0),
        torch.distributions.Normal(theta, 0.9 if name != "neyman" else 1.2),
    )
    if name == "neyman":  # whose integral of p_fake^2/p_real needs a real distribution as wide
        real = torch.distributions.Normal(0.3, 1.3)
    r, step = (real.log_prob(x) - fake.log_prob(x)).exp(), x[1] - x[0]
    inside = fake.log_prob(x).exp() > 1e-30
    (expected,) = torch.autograd.grad((fake.log_prob(x).exp() * F_OF_RATIO[name](r))[inside].sum() * step, theta)
    scores = (theta - x) / fake.scale**2 - (real.loc - x) / real.scale**2
    h = r**2 * second_derivative(F_OF_RATIO[name], r.detach())
    found = ((fake.log_prob(x).exp() * h * scores)[inside].sum() * step).detach()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_fdistills_weight_is_normalized_twice(schedule, exact, drawn):
    """r by its mean over samples of the same tenth of the times, h by its mean."""
    (real, fake), rng = exact, torch.Generator().manual_seed(1)
    x = torch.randn(40, *SHAPE, generator=rng, dtype=torch.float64)
    t = schedule.sample_t(40, rng=rng).double()
    logits = torch.randn(40, 3, generator=rng) * 2
    t_min, t_max = schedule.time(torch.tensor(0)).item(), float(schedule.t_max)
    weight = DensityRatioWeight(lambda x_t, t, cond: logits, "jf", t_min, t_max)
    at = estimates(x, x, t, None, real(x, t), fake(x, t), schedule)
    r = logits.double().mean(1).clamp(-10, 10).exp().clamp(0.1, 20)
    tenth = ((t - t_min) / (t_max - t_min) * 10).floor().clamp(0, 9)
    r = torch.stack([r[n] / r[tenth == tenth[n]].mean() for n in range(40)])
    h = (1 + r) / (1 + r).mean()
    torch.testing.assert_close(weight(at).flatten(), weight_eq8(at).flatten() * h, rtol=1e-5, atol=0)
    assert len(tenth.unique()) > 2
    assert h.std() > 0.1


def test_a_share_of_the_averages_of_fdistills_ratio_is_kept():
    """Each bin starts at 1 and changes only where it has samples; by default its average is that of the samples."""
    kept, plain = RatioAverages(4, decay=0.5), RatioAverages(4)
    first, second = (
        (torch.tensor([6.0, 0, 3, 0]), torch.tensor([2, 0, 1, 0])),
        (torch.tensor([4.0, 0, 0, 9]), torch.tensor([1, 0, 0, 3])),
    )
    assert kept.update(*first).tolist() == [2, 1, 2, 1]
    assert kept.update(*second).tolist() == [3, 1, 2, 2]
    assert plain.update(*first).tolist() == [3, 1, 3, 1]
    assert plain.update(*second).tolist() == [4, 1, 3, 3]
    other = RatioAverages(4)
    other.load_state_dict(kept.state_dict())
    assert torch.equal(other.values, kept.values)


def estimates(x, x_t, t, cond, mu_real, mu_fake, schedule):
    return Estimates(x, x_t, t, cond, mu_real, mu_fake, expand(schedule.alpha(t), x), expand(schedule.sigma(t), x))


def test_an_optimal_discriminator_gives_fdistill_the_density_ratio(schedule, exact, drawn):
    """Of forward KL, h is the ratio itself, clipped, over its mean in one bin, and over the mean of that."""
    (real, fake), (samples, t, eps) = exact, drawn
    weight = DensityRatioWeight(optimal(real, fake), "kl", 0.0, float(schedule.t_max), averages=RatioAverages(1))
    x_t = schedule.diffuse(samples.x.detach(), eps, t)
    means = real(x_t, t, samples.cond), fake(x_t, t, samples.cond)
    at = estimates(samples.x.detach(), x_t, t, samples.cond, *means, schedule)
    r = (real.log_prob(x_t, t, samples.cond) - fake.log_prob(x_t, t, samples.cond)).exp().clamp(0.1, 20)
    expected = weight_eq8(at).flatten() * r / r.mean()
    torch.testing.assert_close(weight(at).flatten(), expected, rtol=1e-5, atol=0)
    found = gradient(DistributionMatching(real, fake, weight=weight), samples, t, eps)
    difference = expand(expected, x_t) * (means[1] - means[0]) / samples.x.numel()
    torch.testing.assert_close(found, difference, rtol=1e-5, atol=1e-9)


def test_reverse_kl_is_dmd2_to_the_bit(schedule, exact, drawn):
    """Losses of all updates and all gradients, with the same draws."""
    (real, fake), (samples, _, _) = exact, drawn
    weight = DensityRatioWeight(lambda x_t, t, cond: pytest.fail("asked"), "rkl", 0.0, 1.0)
    results = []
    for choice in ({}, {"weight": weight}):
        x = samples.x.detach().clone().requires_grad_()
        objective = dmd2(OneStep(lambda z, cond, x=x: z * x), real, fake, discriminator=optimal(real, fake), **choice)
        z = torch.ones_like(x)
        batch = Batch(z, samples.cond, real=x.detach(), cond_real=samples.cond)
        found = list(objective.iteration(batch, RandomNoise(torch.Generator().manual_seed(2))))
        results.append([*(loss.total.detach() for loss in found), torch.autograd.grad(found[0].total, x)[0]])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert len(results[0]) == 3


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.2])
def test_sids_gradient_is_autograds_of_its_definition(schedule, exact, drawn, alpha):
    """(mu_real - mu_fake)(mu_real - x) - alpha (mu_real - mu_fake)^2 over a constant mean|x - mu_real|, in fp64."""
    (real, fake), (samples, t, eps) = exact, drawn
    term = ScoreIdentity(real, fake, alpha=alpha)
    loss = term(samples, BATCH, Replay(t, eps))
    x = samples.x.detach().clone().requires_grad_()
    x_t = schedule.diffuse(x, eps, t)
    mu_real, mu_fake = real(x_t, t, samples.cond), fake(x_t, t, samples.cond)
    total = 0
    for n in range(COUNT):
        gap, error = mu_real[n] - mu_fake[n], mu_real[n] - x[n]
        total = total + ((gap * error).mean() - alpha * (gap**2).mean()) / error.abs().mean().detach()
    torch.testing.assert_close(loss.detach(), total.detach() / COUNT, rtol=1e-12, atol=0)
    (expected,) = torch.autograd.grad(total / COUNT, x)
    torch.testing.assert_close(torch.autograd.grad(loss, samples.x)[0], expected, rtol=1e-9, atol=1e-13)


def test_the_score_identity_holds_for_an_exact_fake_score(mixture):
    """E (mu_real - mu_fake)(x - mu_fake) = 0 for images of the fake distribution.

    So E[(mu_real - mu_fake)(mu_real - x)] = E|mu_real - mu_fake|^2, the Fisher divergence that SiD lowers; and the loss
    at alpha = 1 is 0 in expectation.
    """
    schedule, rng = EDM(), torch.Generator().manual_seed(1)
    real = mixture(schedule)
    fake = GaussianMixture(real.means + 0.2, schedule, stds=0.6)
    x = fake.sample(40_000, rng).double()
    t, eps = torch.full((len(x),), 0.8), torch.randn(x.shape, generator=rng, dtype=torch.float64)
    x_t = schedule.diffuse(x, eps, t.double())
    mu_real, mu_fake = real(x_t, t), fake(x_t, t)
    scale = (x - mu_real).abs().flatten(1).mean(1)  # the denominator taken out again
    fisher = (mu_real - mu_fake).square().mean()
    values = [(score_identity_loss(x, mu_real, mu_fake, alpha=alpha) * scale).mean() for alpha in (0.0, 1.0)]
    assert abs(values[0] / fisher - 1) < 0.05
    assert abs(values[1] / fisher) < 0.05


def test_sidas_adversarial_part(schedule, exact, drawn):
    """Half of SiD's gradient, and half of the weighted adversarial one, at the same times and noise."""
    (real, fake), (samples, t, eps) = exact, drawn
    discriminator = optimal(real, fake)
    whole = gradient(ScoreIdentity(real, fake, discriminator=discriminator, gan_weight=0.3), samples, t, eps)
    identity = gradient(ScoreIdentity(real, fake), samples, t, eps)
    adversarial = gradient(Adversarial(clamped(discriminator), schedule), samples, t, eps)
    x_t = schedule.diffuse(samples.x.detach(), eps, t)
    error = (samples.x.detach() - real(x_t, t, samples.cond)).abs().flatten(1).mean(1)
    expected = 0.5 * identity + 0.5 * 0.3 * (1 / error).mean() * adversarial
    torch.testing.assert_close(whole, expected, rtol=1e-9, atol=1e-13)
    assert (0.5 * identity - whole).abs().max() > 1e-4


def clamped(discriminator):
    return lambda *at: discriminator(*at).clamp(-10, 10)


def test_decoupled_dmd_with_the_same_noise_is_guided_dmd(schedule, exact, drawn):
    """With a weight that knows no teacher, as the normalizers of the two parts are the conditional teacher's."""
    (real, fake), (samples, t, eps) = exact, drawn
    weight = lambda at: at.alpha  # noqa: E731
    guided = GuidedDenoiser(real, 4.0)
    objective = decoupled_dmd(OneStep(lambda z, cond: z), guided, fake, weight=weight)
    found = sum(factor * gradient(term, samples, t, eps) for term, factor in objective.terms.items())
    expected = gradient(DistributionMatching(guided, fake, weight=weight), samples, t, eps)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)
    part = gradient(GuidanceAugmentation(guided, weight=weight), samples, t, eps)
    assert part.abs().max() > 1e-4
    mu_null, mu_cond = guided.estimates(schedule.diffuse(samples.x.detach(), eps, t), t, samples.cond)
    closed = -3 * expand(schedule.alpha(t), eps) * (mu_cond - mu_null) / samples.x.numel()
    torch.testing.assert_close(part, closed, rtol=1e-9, atol=1e-13)


def test_guidance_one_has_no_augmentation(exact, drawn):
    (real, _), (samples, t, eps) = exact, drawn
    term = GuidanceAugmentation(GuidedDenoiser(real, 1.0))
    assert not gradient(term, samples, t, eps).any()


@pytest.mark.parametrize("step", [0, 1, 3])
def test_guidance_is_drawn_at_less_noise_than_the_students_step(schedule, exact, drawn, step):
    """And distribution matching at all times: the schedule "decoupled-hybrid"."""
    (real, fake), (samples, _, _) = exact, drawn
    times = schedule.student_times(4)
    many = samples.x.detach().repeat(200, 1, 1, 1)
    cond = samples.cond
    for _ in range(8):
        cond = cond.concat(cond)
    seen = dataclasses.replace(samples, x=many, cond=cond[slice(0, len(many))], fresh=len(many))
    seen = dataclasses.replace(seen, time=times[step] if step else None)
    objective, asked = decoupled_dmd(OneStep(lambda z, cond: z), GuidedDenoiser(real, 4.0), fake), []
    real.register_forward_pre_hook(lambda module, args: asked.append(args[1]))
    for term in objective.terms:
        term(seen, BATCH, RandomNoise(torch.Generator().manual_seed(3)))
    matching, guidance = asked
    bins = schedule.time(torch.arange(1000))
    assert matching.max() > bins[960]
    assert guidance.max() <= bins[min(round(1000 * schedule.fraction(times[step])), 980)]
    assert guidance.max() > bins[round(940 * schedule.fraction(times[step]))]
    assert guidance.min() < bins[40]


def test_guidance_of_a_step_of_hardly_any_noise_has_times_below_it(schedule, exact, drawn):
    """Also where matching's own range begins above it."""
    (real, _), (samples, _, _) = exact, drawn
    time = schedule.time(torch.tensor(9)).item()
    term = GuidanceAugmentation(GuidedDenoiser(real, 4.0), times=UniformTimes(0.02, 0.98))
    asked = []
    real.register_forward_pre_hook(lambda module, args: asked.append(args[1]))
    term(dataclasses.replace(samples, time=time), BATCH, RandomNoise(torch.Generator().manual_seed(3)))
    assert asked[0].max() <= schedule.time(torch.tensor(10))


# Small trainable networks: where gradients go, and the order of updates.


class Prompt:
    """One-hot labels in fp64 for four classes."""

    def __init__(self, one_hot):
        self.one_hot = one_hot

    def null(self):
        return Prompt(torch.zeros_like(self.one_hot))

    def concat(self, other):
        return Prompt(torch.cat([self.one_hot, other.one_hot]))

    def __getitem__(self, rows):
        return Prompt(self.one_hot[rows])


def data(count=4, more=0, real=0, *, steps=(), seed=0):
    """A batch with noise for `more` further updates and real images for `real`."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randn(n * count, *SHAPE, generator=rng, dtype=torch.float64)  # noqa: E731
    cond = lambda n: Prompt(torch.eye(4, dtype=torch.float64)[torch.randint(4, (n * count,), generator=rng)])  # noqa: E731
    fake = {"z_fake": draw(more), "cond_fake": cond(more)} if more else {}
    images = {"real": draw(real), "cond_real": cond(real)} if real else {}
    return Batch(draw(1), cond(1), **fake, **images, steps=steps)


class Setup:
    """A generator, a teacher and a fake score with a head, all trainable; and a head on the teacher."""

    def __init__(self, steps=1):
        schedule = EDM()
        networks = [EDMDenoiser(Network(seed), schedule) for seed in (1, 2, 3)]
        self.real, self.generator = networks[0], Generator(networks[1], schedule.student_times(steps))
        self.fake = DenoiserWithHead(networks[2], Head(), ["features"])
        self.head = Head()
        self.on_teacher = HeadDiscriminator(self.real, self.head, ["features"])

    def on_fake(self, x_t, t, cond):
        return self.fake(x_t, t, cond, logits=True)

    def reached(self, loss):
        """Which parts have a gradient of a loss other than zero, by name."""
        parts = {"generator": self.generator, "real": self.real, "head of the teacher": self.head}
        parts |= {"head": self.fake.head, "encoder": self.fake.net.features}
        named = [(name, p) for name, part in parts.items() for p in part.parameters() if p.requires_grad]
        named.append(("decoder", self.fake.net.out))
        gradients = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
        return {
            name
            for (name, _), gradient in zip(named, gradients, strict=True)
            if gradient is not None and gradient.any()
        }


def objectives(it, sampler):
    mean = DenoiserWithHead(it.fake.denoiser, build_head([torch.zeros(1, *SHAPE)], "mean"), ["features"])
    judge = lambda *at: mean(*at, logits=True)  # noqa: E731
    weight = DensityRatioWeight(it.on_teacher, "js", 0.002, 80.0)
    both, guided = {"encoder", "decoder", "head"}, GuidedDenoiser(it.real, 3.0)
    on_teacher = {"discriminator": it.on_teacher, "weight": weight}
    return {
        "dmd2": (dmd2(sampler, it.real, it.fake), [{"encoder", "decoder"}]),
        "dmd2 with a GAN": (dmd2(sampler, it.real, it.fake, discriminator=it.on_fake, r1=0.1), [both]),
        "f-distill": (dmd2(sampler, it.real, it.fake, **on_teacher), [both - {"head"} | {"head of the teacher"}]),
        "f-distill, two updates": (
            dmd2(sampler, it.real, it.fake, **on_teacher, discriminator_update="discriminator"),
            [{"encoder", "decoder"}, {"head of the teacher"}],
        ),
        "sid": (sid(sampler, it.real, it.fake), [{"encoder", "decoder"}]),
        "sida": (sid(sampler, it.real, it.fake, discriminator=judge), [{"encoder", "decoder"}]),
        "decoupled dmd": (decoupled_dmd(sampler, guided, it.fake), [{"encoder", "decoder"}]),
    }


METHODS = list(objectives(Setup(), OneStep(Setup().generator)))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_exactly_what_each_update_trains(method, steps):
    """The generator's loss the generator only; the critics' the fake score and the head, as the method has it.

    No term but a head on the teacher relies on its being frozen.
    """
    it = Setup(steps)
    it.real.requires_grad_(not method.startswith("f-distill"))
    objective, critics = objectives(it, MultiStep(it.generator))[method]
    batch = data(more=1, real=2, steps=(steps - 1, 0))
    seen = {}
    for loss in objective.iteration(batch, RandomNoise(torch.Generator().manual_seed(1))):
        seen.setdefault(loss.update, set()).update(it.reached(loss.total))
    assert seen.pop("generator") == {"generator"}
    assert list(seen.values()) == critics


def test_a_discriminator_loss_reaches_the_head_and_the_encoder_and_nothing_else():
    it, batch = Setup(), data(real=1)
    it.real.requires_grad_(False)
    samples = Samples(batch.z, batch.cond, 4, real=batch.real_images(0))
    noise = RandomNoise(torch.Generator().manual_seed(1))
    for discriminator, expected in ((it.on_fake, {"head", "encoder"}), (it.on_teacher, {"head of the teacher"})):
        for extra in ({}, {"r1": 1.0}):
            loss = DiscriminatorLoss(discriminator, it.fake, **extra)(samples, batch, noise)
            assert it.reached(loss) == expected


@pytest.mark.parametrize("method", METHODS)
def test_order_of_updates(method):
    """DMD2's: the student, then its critics on the same images and on fresh ones; SiD's: the critics first."""
    it = Setup()
    batch, images = data(more=2, real=3), []
    for part in (it.fake, it.fake.denoiser, it.real):
        part.schedule = Recorder(images)
    objective, _ = objectives(it, OneStep(it.generator))[method]
    order = []
    x, x_fake = it.generator(batch.z, batch.cond), it.generator(batch.z_fake, batch.cond_fake)
    starts = {}  # by update: the images that it diffused the first time

    def update(name):
        def closure(loss):
            starts.setdefault(name, images[:])
            order.append(name)
            images.clear()
            if name == "generator":
                with torch.no_grad():
                    for p in it.generator.parameters():
                        p.mul_(1.1)

        return closure

    names = ["generator", *objective.critics]
    losses = objective.step(
        batch, RandomNoise(torch.Generator().manual_seed(1)), {name: update(name) for name in names}
    )
    assert all(not loss.requires_grad for loss in losses.values())
    if method.startswith("sid"):
        assert order == ["fake", "fake", "generator"]
        assert torch.equal(starts["fake"][0], x_fake[:4])
    else:
        assert order == ["generator", *list(objective.critics) * 3]
        assert torch.equal(starts["fake"][0], x)
    assert torch.equal(starts["generator"][0].detach(), x)


class Recorder(EDM):
    """Keeps the images that are diffused."""

    def __init__(self, images):
        super().__init__()
        self.images = images

    def diffuse(self, x, eps, t):
        self.images.append(x)
        return super().diffuse(x, eps, t)


@pytest.mark.parametrize("method", ["dmd2 with a GAN", "f-distill", "sida"])
def test_each_update_of_the_critics_has_its_own_real_images(method):
    """In the batch's order, under their own conditions."""
    it, judged = Setup(), []
    objective, _ = objectives(it, OneStep(it.generator))[method]
    batch = data(more=2, real=3)
    term = next(term for term in objective.critics["fake"] if isinstance(term, DiscriminatorLoss))

    def keep(samples, *rest):
        judged.append(samples.real)
        return samples.x.sum() * 0

    spy = type("Spy", (), {"name": "spy", "__call__": lambda self, *args: keep(*args)})()
    objective = dataclasses.replace(objective, critics={"fake": {spy: 1.0}})
    list(objective.iteration(batch, RandomNoise(torch.Generator().manual_seed(1))))
    count = len(judged)
    assert count == (2 if method == "sida" else 3)
    assert torch.equal(torch.cat([one.x for one in judged]), batch.real[: 4 * count])
    assert torch.equal(torch.cat([one.cond.one_hot for one in judged]), batch.cond_real.one_hot[: 4 * count])
    with pytest.raises(ValueError, match="real images"):
        term(Samples(batch.z, batch.cond, 4), batch, RandomNoise(torch.Generator()))


def test_sidas_images_share_times_and_noise():
    """And DMD2's do not."""
    it = Setup()
    batch, asked = data(real=1), []
    samples = Samples(batch.z, batch.cond, 4, real=Samples(batch.z, batch.cond, 4))
    discriminator = lambda x_t, t, cond: asked.append((x_t, t)) or it.on_fake(x_t, t, cond)  # noqa: E731
    for shared in (True, False):
        DiscriminatorLoss(discriminator, it.fake, shared=shared)(samples, batch, RandomNoise(torch.Generator()))
    first, second, third, fourth = asked
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(third[1], fourth[1])
    assert not torch.equal(third[0], fourth[0])


def test_sidas_critics_see_augmented_images_and_its_generator_does_not():
    it = Setup()
    double = lambda samples, noise: dataclasses.replace(samples, x=2 * samples.x)  # noqa: E731
    judge = lambda *at: it.on_fake(*at)  # noqa: E731
    plain, augmented = (
        sid(OneStep(it.generator), it.real, it.fake, discriminator=judge, augment=augment) for augment in (None, double)
    )
    batch = data(real=1)
    samples = Samples(batch.z, batch.cond, 4, real=batch.real_images(0))
    doubled = dataclasses.replace(double(samples, None), real=double(samples.real, None))

    def losses(terms, seen):
        return [term(seen, batch, RandomNoise(torch.Generator().manual_seed(1))).item() for term in terms]

    assert losses(augmented.critics["fake"], samples) == losses(plain.critics["fake"], doubled)
    assert losses(augmented.critics["fake"], samples) != losses(plain.critics["fake"], samples)
    assert losses(augmented.terms, samples) == losses(plain.terms, samples)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("method", ["dmd2", "dmd2 with a GAN", "sid", "decoupled dmd"])
@pytest.mark.parametrize("inputs", ["simulated", "data"])
def test_losses_do_not_depend_on_the_number_of_microbatches(method, parts, inputs):
    """A full batch's losses are the means of its parts', each update's, with real images and several steps."""
    it = Setup(3)
    objective, _ = objectives(it, MultiStep(it.generator, inputs))[method]
    batch = data(more=2, real=3, steps=(2, 0, 1))
    whole = list(objective.iteration(batch, RandomNoise(torch.Generator().manual_seed(4))))
    shared = SharedNoise(torch.Generator().manual_seed(4), parts=parts, count=parts)
    pieces = zip(
        *(objective.iteration(*pair) for pair in zip(split_batch(batch, parts), shared.parts, strict=True)), strict=True
    )
    for full, some in zip(whole, pieces, strict=True):
        for name, loss in full.losses.items():
            mean = torch.stack([one.losses[name].detach() for one in some]).mean()
            torch.testing.assert_close(mean, loss.detach(), rtol=1e-10, atol=0)
    assert shared.draws == {}


@pytest.mark.parametrize("method", ["f-distill", "sida"])
def test_with_averages_over_processes_losses_do_not_depend_on_their_number(method):
    """Of methods whose loss of a sample depends on the others: two processes, here in turn, exchange their means."""
    it, batch = Setup(), data(more=1, real=2)

    def build(mean):
        objective, _ = objectives(it, OneStep(it.generator))[method]
        replace = lambda term: (  # noqa: E731
            dataclasses.replace(term, mean=mean)
            if hasattr(term, "mean")
            else dataclasses.replace(term, weight=dataclasses.replace(term.weight, mean=mean))
            if isinstance(getattr(term, "weight", None), DensityRatioWeight)
            else term
        )
        change = lambda terms: {replace(term): weight for term, weight in terms.items()}  # noqa: E731
        critics = {name: change(terms) for name, terms in objective.critics.items()}
        return dataclasses.replace(objective, terms=change(objective.terms), critics=critics)

    def run(rank, known):
        """One process, which is told the means that are known; returns its losses, and what it had averaged."""
        given = []

        def mean(value):
            given.append(value.detach())
            return known[len(given) - 1] if len(given) <= len(known) else value

        noise = SharedNoise(torch.Generator().manual_seed(4), count=2, first=rank)
        return list(build(mean).iteration(split_batch(batch, 2)[rank], noise.parts[0])), given

    whole = list(build(lambda value: value).iteration(batch, RandomNoise(torch.Generator().manual_seed(4))))
    means = []
    for _ in range(4):  # each round makes one more mean known
        runs, given = zip(*[run(rank, means) for rank in range(2)], strict=True)
        means = [torch.stack(pair).mean(0) for pair in zip(*given, strict=True)]
    assert means
    for full, *some in zip(whole, *runs, strict=True):
        for name, loss in full.losses.items():
            mean = torch.stack([one.losses[name].detach() for one in some]).mean()
            torch.testing.assert_close(mean, loss.detach(), rtol=1e-6, atol=0)


def test_gradient_in_is_the_gradient_of_the_loss_and_its_value():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = nn.Parameter(torch.randn(3, dtype=torch.float64))
    loss = lambda x: (x.square() * weight).sin().sum()  # noqa: E731
    found = gradient_in(2 * x, loss)
    torch.testing.assert_close(found, loss(2 * x))
    torch.testing.assert_close(torch.autograd.grad(found, x)[0], torch.autograd.grad(loss(2 * x), x)[0])
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient_in(2 * x, loss), weight)
