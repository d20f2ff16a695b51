"""Losses and gradients equal those of the authors' own code, on the same images, times, noise and networks, in fp64.

authors.safetensors holds what their code gave, written by benchmarks/method_parity.py: main/edm/edm_guidance.py and
main/sd_guidance.py of github.com/tianweiy/DMD2 at 8d8fa55, common_loss.py and distribution_matching/f_distill.py in
fastgen/methods of github.com/NVlabs/FastGen at 34f30e8, training/sid_loss.py and sida_training/sida_loss.py of
github.com/mingyuanzhou/SiD at 01fbb13 (main) and a5510fd (sida).
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from dmdistill.core.critics import DiscriminatorLoss, FakeScore
from dmdistill.core.denoisers import EDMDenoiser, EpsDenoiser, GuidedDenoiser
from dmdistill.core.divergences import DIVERGENCES, DensityRatioWeight
from dmdistill.core.losses import Estimates, matching_loss, weight_eq8
from dmdistill.core.samples import Batch, Samples
from dmdistill.core.schedules import EDM, VP
from dmdistill.core.terms import Adversarial, DistributionMatching, ScoreIdentity
from dmdistill.models.discriminator import DenoiserWithHead
from dmdistill.networks.discriminator import ConvolutionHead, build_head
from helpers.small_denoisers import Head, Network, large_features, large_head_parameters

TENSORS = load_file(Path(__file__).with_name("authors.safetensors"))
CLOSE = {"rtol": 1e-6, "atol": 1e-9}
BATCH = Batch(torch.zeros(1))


def tensors(case):
    """What the authors' code drew and gave in one case, by name."""
    return {name.split("/")[1]: value for name, value in TENSORS.items() if name.split("/")[0] == case}


class Labels(SimpleNamespace):
    """One-hot labels."""

    def null(self):
        return Labels(one_hot=torch.zeros_like(self.one_hot))

    def concat(self, other):
        return Labels(one_hot=torch.cat([self.one_hot, other.one_hot]))


class Replay:
    """A noise source that repeats draws; times too, in fp64."""

    def __init__(self, *draws):
        self.draws = iter(draws)

    def draw(self, samples, draw):
        return next(self.draws)


def samples(*, real=False):
    given = tensors("input")
    cond, x = Labels(one_hot=given["labels"]), given["x"].clone().requires_grad_()
    return Samples(x, cond, len(x), real=Samples(given["real"], cond, len(x)) if real else None)


def networks(kind=EDMDenoiser, schedule=None):
    return [kind(Network(seed), schedule or EDM()) for seed in (1, 2)]


def judged(fake):
    """The fake score with its head as a discriminator."""
    denoiser = DenoiserWithHead(fake, Head(), ["features"])
    return denoiser, lambda x_t, t, cond: denoiser(x_t, t, cond, logits=True)


def check(case, loss, inputs, *, scale=1.0):
    """scale * loss and its gradients are the authors'."""
    expected = tensors(case)
    torch.testing.assert_close(scale * loss.detach(), expected["loss"], check_dtype=False, **CLOSE)
    gradients = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    for name, gradient in zip(inputs, gradients, strict=True):
        theirs = expected.get(f"grad.{name}")
        assert (gradient is None or not gradient.any()) == (theirs is None), name
        if theirs is not None:
            assert theirs.abs().max() > 0
            torch.testing.assert_close(scale * gradient, theirs, rtol=1e-6, atol=1e-7 * theirs.abs().max().item())


def test_dmd2s_distribution_matching():
    (real, fake), seen, drawn = networks(), samples(), tensors("dmd2.matching")
    loss = DistributionMatching(real, fake)(seen, BATCH, Replay(drawn["t.0"], drawn["eps.0"]))
    check("dmd2.matching", loss, {"x": seen.x})


def test_dmd2s_fake_score():
    (_, fake), drawn = networks(), tensors("dmd2.fake")
    loss = FakeScore(fake)(samples().detach(), BATCH, Replay(drawn["t.0"], drawn["eps.0"]))
    check("dmd2.fake", loss, dict(fake.net.named_parameters()))


def test_dmd2s_times():
    """Karras' grid: theirs in fp32, so that single sigmas differ in the last digit."""
    ours = EDM().time(torch.tensor([0, 1, 20, 500, 980, 999]))
    torch.testing.assert_close(ours.double(), tensors("dmd2.karras")["sigmas"], rtol=1e-6, atol=0)


def test_dmd2s_adversarial_loss():
    (_, fake), seen, drawn = networks(), samples(), tensors("dmd2.generator")
    _, discriminator = judged(fake)
    loss = Adversarial(discriminator, EDM())(seen, BATCH, Replay(drawn["t.0"], drawn["eps.0"]))
    check("dmd2.generator", loss, {"x": seen.x})


def test_dmd2s_discriminator():
    """Its gradient is the same in the head and in the fake score's encoder, and there is none in the decoder."""
    (_, fake), drawn = networks(), tensors("dmd2.discriminator")
    denoiser, discriminator = judged(fake)
    noise = Replay(drawn["t.1"], drawn["eps.1"], drawn["t.0"], drawn["eps.0"])  # theirs judges the real images first
    loss = DiscriminatorLoss(discriminator, fake)(samples(real=True).detach(), BATCH, noise)
    check("dmd2.discriminator", loss, dict(fake.net.named_parameters()) | {"head": denoiser.head.weight})


def test_dmd2s_head():
    head, expected = ConvolutionHead(768, (8, 8)).double(), tensors("dmd2.head")
    large_head_parameters(head)
    features = large_features(768).requires_grad_()
    logits = head(features)
    (gradient,) = torch.autograd.grad(logits.sum(), features)
    torch.testing.assert_close(logits, expected["logits"], **CLOSE)
    theirs = expected["gradient"]
    assert logits.std() > 1e-3
    torch.testing.assert_close(gradient[:, ::96, ::3, ::3], theirs, rtol=1e-6, atol=1e-7 * theirs.abs().max().item())


@pytest.fixture
def schedule():
    """Stable Diffusion's, as diffusers computes it: in fp32."""
    alphas = 1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
    return VP(alphas.cumprod(0))


def test_dmd2s_guided_distribution_matching_for_stable_diffusion(schedule):
    """The loss is computed in fp32 there."""
    (real, fake), seen, drawn = networks(EpsDenoiser, schedule), samples(), tensors("sd.matching")
    noise = Replay(drawn["t.0"], drawn["eps.0"])
    check("sd.matching", DistributionMatching(GuidedDenoiser(real, 8.0), fake)(seen, BATCH, noise), {"x": seen.x})


def test_dmd2s_fake_score_for_stable_diffusion(schedule):
    (_, fake), drawn = networks(EpsDenoiser, schedule), tensors("sd.fake")
    loss = FakeScore(fake)(samples().detach(), BATCH, Replay(drawn["t.0"], drawn["eps.0"]))
    check("sd.fake", loss, dict(fake.net.named_parameters()))


def estimates(x, mu_real, mu_fake, t):
    one = torch.ones(len(x), *[1] * (x.ndim - 1), dtype=x.dtype)
    return Estimates(x, x, t, None, mu_real, mu_fake, one, one)


@pytest.mark.parametrize("name", sorted(DIVERGENCES.keys() - {"rkl"}))
def test_fdistills_h_and_its_normalizations(name):
    """They divide by the number in a bin plus 1e-6, we by the number: equal to 1e-6 where a bin has one, in fp32.

    Reverse KL ends with an error there: h is one number, and it asks for its length.
    """
    given = tensors("fdistill")
    x, zero = torch.ones(len(given["t"]), 2, 3, 5, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    weight = DensityRatioWeight(lambda x_t, t, cond: given["logits"], name, 0.002, 80.0)
    h = weight(estimates(x, zero.expand_as(x), zero.expand_as(x), given["t"]))  # mean|x - mu_real| = 1
    assert h.std() > 0.1
    torch.testing.assert_close(h.flatten(), given[f"h.{name}"], check_dtype=False, rtol=4e-6, atol=1e-6)


def test_fdistills_loss():
    """FastGen divides by mean|x - mu_real| + 1e-6, DMD2 and we by mean|x - mu_real|."""
    given, x = tensors("fdistill"), samples().x
    h = given["h.js"][: len(x)]
    at = estimates(x.detach(), given["mu_real"], given["mu_fake"], torch.ones(len(x)))
    error = (at.x - at.mu_real).abs().mean((1, 2, 3), keepdim=True)
    loss = matching_loss(x, at, lambda at: weight_eq8(at) * h.reshape(-1, 1, 1, 1) * error / (error + 1e-6))
    check("fdistill", loss, {"x": x})


def test_fdistills_adversarial_losses():
    given = tensors("fdistill")
    logits = iter([given["logits"], 0.5 * given["logits"] - 1])  # ours judges the real images first
    noise = Replay(*[torch.ones(5), torch.zeros(5, 2, 3, 5)] * 2)
    judge = DiscriminatorLoss(lambda x_t, t, cond: next(logits), networks()[1])
    loss = judge(samples(real=True).detach(), BATCH, noise)
    theirs = given["gan.discriminator"]
    torch.testing.assert_close(loss, theirs, **CLOSE)
    seen, schedule = samples(), networks()[1].schedule
    noise = Replay(torch.ones(5), torch.zeros(5, 2, 3, 5))
    adversarial = Adversarial(lambda x_t, t, cond: given["logits"] + 0 * x_t.sum(), schedule)
    torch.testing.assert_close(adversarial(seen, BATCH, noise), given["gan.generator"], **CLOSE)


@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_sids_generator(alpha):
    """Theirs sums over pixels, which ours averages; its training loop multiplies by a further 100."""
    (real, fake), seen, drawn = networks(), samples(), tensors(f"sid.generator.{alpha}")
    loss = ScoreIdentity(real, fake, alpha=alpha)(seen, BATCH, Replay(drawn["t.0"], drawn["eps.0"]))
    check(f"sid.generator.{alpha}", loss, {"x": seen.x}, scale=seen.x[0].numel())


def test_sids_fake_score():
    """Theirs sums over pixels, which ours averages."""
    (_, fake), seen, drawn = networks(), samples(), tensors("sid.fake")
    loss = FakeScore(fake)(seen.detach(), BATCH, Replay(drawn["t.0"], drawn["eps.0"]))
    check("sid.fake", loss, dict(fake.net.named_parameters()), scale=seen.x[0].numel())


def mean_head(fake):
    denoiser = DenoiserWithHead(fake, build_head([torch.zeros(1, 2, 3, 5)], "mean"), ["features"])
    return lambda x_t, t, cond: denoiser(x_t, t, cond, logits=True)


def test_sidas_generator():
    """Theirs is 100 times a sum over pixels: .5 * 100 SiD's loss + .5 * .01 pixels * the adversarial one."""
    (real, fake), seen, drawn = networks(), samples(), tensors("sida.generator")
    term = ScoreIdentity(real, fake, alpha=1.0, discriminator=mean_head(fake), gan_weight=1e-4)
    loss = term(seen, BATCH, Replay(drawn["t.0"], drawn["eps.0"]))
    check("sida.generator", loss, {"x": seen.x}, scale=100 * seen.x[0].numel())


def test_sidas_fake_score_and_discriminator():
    """Theirs is a sum over pixels, and half the discriminator's loss, once per image."""
    (_, fake), seen, drawn = networks(), samples(real=True).detach(), tensors("sida.fake")
    judge = DiscriminatorLoss(mean_head(fake), fake, shared=True, weighted=True)
    loss = FakeScore(fake)(seen, BATCH, Replay(drawn["t.0"], drawn["eps.0"]))
    loss = loss + 0.5 * judge(seen, BATCH, Replay(drawn["t.0"], drawn["eps.0"]))
    check("sida.fake", loss, dict(fake.net.named_parameters()), scale=seen.x[0].numel())
