"""Every scheduler of diffusers: read so that mu, network times and noise levels are the scheduler's own, or refused.

The comparison knows no formula of ours: a network with a fixed output is evaluated by our denoiser, and its output
handed to the scheduler.
"""

import copy
import inspect

import pytest
import torch
from torch import nn

diffusers = pytest.importorskip("diffusers")

from dmdistill.core.schedules import EDM, VP
from dmdistill.models.diffusers_scheduler import read_schedule

BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp")
SPACINGS = {"linspace": 28, "leading": 10, "trailing": 10}  # and so many steps that all times are integers
PLAIN = {"clip_sample": False, "thresholding": False, "skip_prk_steps": True}  # clipping has tests of its own
SILENT = {  # steps that return no clean image
    *(("PNDMScheduler", prediction) for prediction in ("epsilon", "v_prediction")),
    ("UnCLIPScheduler", "v_prediction"),
}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of diffusers


def scheduler_classes():
    """All scheduler classes of diffusers that the installed packages allow, by name."""
    found = {name: getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler")}
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
    }


CLASSES = scheduler_classes()


def config_of(name, **options):
    """The config of a scheduler, as its file holds it."""
    try:
        config = dict(CLASSES[name](**options).config)
    except TypeError:  # it has arguments without a default
        config = options
    return {**config, "_class_name": name}


def is_accepted(name):
    try:
        read_schedule(config_of(name), tokens=100)
    except ValueError:
        return False
    return True


ACCEPTED = [name for name in CLASSES if is_accepted(name)]


class Recorder(nn.Module):
    """A network with one output, whatever it is given, which it records."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x, t, cond=None):
        self.x, self.t = x, t
        return self.output


def own_prediction(scheduler, f, t, sample):
    """The clean image that the scheduler computes from the network's output; None where it keeps that to itself."""
    if hasattr(scheduler, "convert_model_output"):
        scheduler._init_step_index(t)
        converted = scheduler.convert_model_output(f, sample=sample)
        if scheduler.config.get("algorithm_type") not in ("deis", "dpmsolver", "sde-dpmsolver"):
            return converted
        sigma = scheduler.sigmas[scheduler.step_index]
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigma)
        return (sample - sigma * converted) / alpha
    needs = inspect.signature(scheduler.step).parameters
    extra = {"timestep_back": t, "old_pred_original_sample": None} if "timestep_back" in needs else {}
    try:
        out = scheduler.step(model_output=f, timestep=t, sample=sample, **extra)
    except (NotImplementedError, ValueError):  # of predictions that the solver lacks
        return None
    return out[1] if isinstance(out, tuple) else getattr(out, "pred_original_sample", None)


def compare(name, options, steps):
    """Our denoiser against a scheduler, at several of its timesteps. Returns how many predictions were compared.

    Differences are those of its fp32 sums, which a division by a small alpha enlarges.
    """
    config = config_of(name, **options)
    read = read_schedule(config, tokens=100)
    scheduler = CLASSES[name].from_config(config)
    scheduler.set_timesteps(steps)
    rng = torch.Generator().manual_seed(0)
    x, eps, f = (torch.randn(2, 3, 4, 5, generator=rng) for _ in range(3))
    network, predictions = Recorder(f), 0
    denoiser = read.denoiser(network, read.schedule)
    times = [t for t in scheduler.timesteps if not isinstance(read.schedule, VP) or abs(t - t.round()) < 1e-4]
    for t in [times[i] for i in (0, len(times) // 3, len(times) - 2)]:
        ours = time_of(read, scheduler, t)
        mu = denoiser(read.schedule.diffuse(x, eps, ours), ours)
        theirs = restarted(scheduler).add_noise(x, eps, t[None].expand(2))
        torch.testing.assert_close(network.x, restarted(scheduler).scale_model_input(theirs, t), rtol=0, atol=2e-3)
        torch.testing.assert_close(read.time_scale * network.t, t.float().expand(2), rtol=1e-5, atol=1e-4)
        if (prediction := own_prediction(restarted(scheduler), f, t, theirs)) is not None:
            alpha = read.schedule.alpha(ours[:1]).clamp(min=1e-3)
            torch.testing.assert_close(alpha * mu, alpha * prediction, rtol=0, atol=5e-3)
            predictions += 1
    return predictions


def restarted(scheduler):
    """A copy of a scheduler at its beginning, to call it out of order."""
    return copy.deepcopy(scheduler)


def time_of(read, scheduler, t):
    """Our time of a scheduler's timestep, for two samples."""
    if isinstance(read.schedule, EDM):
        return scheduler.sigmas[scheduler.index_for_timestep(t)].float().expand(2)
    return (t.float() / read.time_scale).expand(2)


def test_many_schedulers_are_accepted():
    assert len(ACCEPTED) > 15
    assert {"DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "EDMEulerScheduler"} < {
        *ACCEPTED
    }


@pytest.mark.parametrize("name", sorted({*CLASSES} - {*ACCEPTED}))
def test_other_schedulers_are_refused_by_name(name):
    with pytest.raises(ValueError, match=name) as caught:
        read_schedule(config_of(name))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif("LMSDiscreteScheduler" in CLASSES, reason="scipy is installed")
def test_a_scheduler_of_a_missing_package_says_so():
    with pytest.raises(ValueError, match=r"LMSDiscreteScheduler: it needs scipy"):
        read_schedule({"_class_name": "LMSDiscreteScheduler"})


BETA_CLASSES = [name for name in ACCEPTED if not name.startswith(("EDM", "FlowMatch"))]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", BETA_CLASSES)
def test_schedulers_with_betas_agree(name, prediction):
    """For every beta schedule and spacing that the class knows."""
    known, combinations, predictions = inspect.signature(CLASSES[name]).parameters, 0, 0
    for betas, spacing in [*((betas, "leading") for betas in BETAS), ("linear", "linspace"), ("linear", "trailing")]:
        steps = SPACINGS[spacing]
        options = {"beta_schedule": betas, "timestep_spacing": spacing, "prediction_type": prediction, **PLAIN}
        options = {key: value for key, value in options.items() if key in known}
        try:
            CLASSES[name](**options).set_timesteps(steps)
        except (NotImplementedError, ValueError):  # of one that the class does not know
            continue
        predictions += compare(name, options, steps)
        combinations += 1
    assert combinations > 0
    assert predictions > 0 or prediction == "sample" or (name, prediction) in SILENT


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("trained", [1000, 400])
@pytest.mark.parametrize("name", [name for name in ACCEPTED if name.startswith("FlowMatch")])
def test_flows_agree(name, trained, shift):
    """The network is asked at sigma times the number of training timesteps; mu is x_t - sigma F."""
    config = config_of(name, shift=shift, num_train_timesteps=trained)
    read, scheduler = read_schedule(config), CLASSES[name].from_config(config)
    scheduler.set_timesteps(7)
    rng = torch.Generator().manual_seed(0)
    x, eps, f = (torch.randn(2, 3, 4, 5, generator=rng) for _ in range(3))
    network = Recorder(f)
    denoiser = read.denoiser(network, read.schedule)
    for i in (0,) if "Heun" in name else (0, 2, 5):  # whose second evaluations are of the same time
        t, ours = scheduler.timesteps[i], scheduler.sigmas[i].expand(2)
        x_t = read.schedule.diffuse(x, eps, ours)
        if "Heun" not in name:  # it takes one sample at a time
            torch.testing.assert_close(x_t, scheduler.scale_noise(x, t[None].expand(2), eps))
        mu = denoiser(x_t, ours)
        torch.testing.assert_close(read.time_scale * network.t, t.expand(2))
        last = restarted(scheduler)
        last.sigmas[i + 1] = 0.0  # so that the step ends at the clean image
        torch.testing.assert_close(mu, last.step(f, t, x_t).prev_sample)


@pytest.mark.parametrize("options", [{}, {"sigma_min": 0.01, "sigma_max": 50.0, "sigma_data": 0.7}])
@pytest.mark.parametrize("name", [name for name in ACCEPTED if name.startswith("EDM")])
def test_preconditioned_networks_agree(name, options):
    assert compare(name, options, 7) > 0
