"""Write what the authors' own code gives: losses and gradients of DMD2, f-distill, SiD and SiDA on small networks.

python benchmarks/method_parity.py CHECKOUTS tests/core/authors.safetensors

CHECKOUTS is a folder with checkouts of github.com/tianweiy/DMD2 (as DMD2), github.com/NVlabs/FastGen (as FastGen), and
github.com/mingyuanzhou/SiD, its branches main and sida (as SiD and SiDA). tests/core/test_parity_with_authors.py gives
our losses the same images, times, noise and networks, those of tests/helpers/small_denoisers.py, all in fp64.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from dmdistill.core.denoisers import EDMDenoiser
from dmdistill.core.schedules import EDM
from helpers.small_denoisers import CLASSES, SHAPE, Head, Network, large_features, large_head_parameters

COUNT = 5
ABSENT = [  # what the authors' files import and these losses do not use
    *("main.edm.edm_network", "main.sd_unet_forward", "main.utils", "dnnlib", "torch_utils", "fastgen.methods"),
    *("fastgen.configs", "fastgen.utils", "fastgen.utils.logging_utils", "fastgen.networks.noise_schedule"),
]
Tensors = dict[str, Tensor]


def load(folder: Path, module: str) -> Any:
    """Import a module of a checkout."""
    sys.path.insert(0, str(folder))
    return importlib.import_module(module)


class Absent(ModuleType):
    """A module of which nothing is used."""

    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__dict__.setdefault(name, MagicMock())


def replace_absent() -> None:
    """Put something in the place of the modules that are not needed, or do the little that is."""
    sys.modules.update({name: Absent(name) for name in ABSENT})
    sys.modules["torch_utils"].persistence.persistent_class = lambda cls: cls
    sys.modules["fastgen.methods"].DMD2Model = object
    sys.modules["fastgen.utils"].expand_like = lambda x, target: x.reshape(-1, *[1] * (target.ndim - 1))
    sys.modules["fastgen.utils.distributed"] = ModuleType("fastgen.utils.distributed")
    sys.modules["fastgen.utils.distributed"].world_size = lambda: 1  # type: ignore[attr-defined]
    sys.modules["main.utils"].get_x0_from_noise = lambda x_t, eps, abar, t: (
        (x_t - (1 - abar[t]).sqrt().reshape(-1, 1, 1, 1) * eps) / abar[t].sqrt().reshape(-1, 1, 1, 1)
    )


def edm_network(seed: int, seen: list[Tensor]) -> Callable[..., Any]:
    """Return a network as the authors call it; it keeps the noise levels that it is asked at."""
    denoiser = EDMDenoiser(Network(seed), EDM())

    def call(
        x: Tensor, sigma: Tensor, labels: Tensor, *, augment_labels: Any = None, return_flag: str = "", **options: Any
    ) -> Any:
        sigma = sigma.reshape(-1).double()
        seen.append(sigma)
        condition = SimpleNamespace(one_hot=labels)
        kept: list[Tensor] = []
        handle = denoiser.net.features.register_forward_hook(lambda module, args, output: kept.append(output))
        mean = denoiser(x, sigma, condition)  # type: ignore[arg-type]
        handle.remove()
        logits = kept[0].mean(1, keepdim=True)
        if options.get("return_bottleneck"):
            return kept[0]
        return {"encoder": logits, "encoder_decoder": (mean, logits)}.get(return_flag, mean)

    call.network = denoiser.net  # type: ignore[attr-defined]
    return call


class Recorder:
    """Keeps what torch draws while the authors' code runs."""

    def __init__(self) -> None:
        self.noise: list[Tensor] = []

    def randn_like(self, x: Tensor) -> Tensor:
        self.noise.append(torch.randn(x.shape, dtype=x.dtype))
        return self.noise[-1]


def run(loss: Callable[[], Tensor], names: dict[str, Tensor], seen: list[Tensor]) -> Tensors:
    """Return the loss, its gradients in tensors by name, and the times and noise that it drew."""
    recorder = Recorder()
    seen.clear()
    with patch("torch.randn_like", recorder.randn_like):
        value = loss()
    gradients = torch.autograd.grad(value, list(names.values()), allow_unused=True)
    outputs = {f"grad.{name}": g for name, g in zip(names, gradients, strict=True) if g is not None}
    times = {f"t.{number}": t for number, t in enumerate(seen)}
    return {"loss": value} | outputs | times | {f"eps.{number}": eps for number, eps in enumerate(recorder.noise)}


def dmd2_edm(folder: Path, x: Tensor, real: Tensor, labels: Tensor) -> dict[str, Tensors]:
    """DMD2's losses for EDM: main/edm/edm_guidance.py."""
    module = load(folder, "main.edm.edm_guidance")
    guidance = module.EDMGuidance.__new__(module.EDMGuidance)
    nn.Module.__init__(guidance)
    seen: list[Tensor] = []
    fake, head = edm_network(2, seen), Head()
    sigmas = module.get_sigmas_karras(1000, 0.002, 80).flip(0)
    fields = {"real_unet": edm_network(1, []), "fake_unet": fake, "karras_sigmas": sigmas, "sigma_data": 0.5}
    fields |= {"min_step": 20, "max_step": 980, "num_train_timesteps": 1000, "diffusion_gan": True}
    fields |= {"cls_pred_branch": lambda rep: head([rep.double()])[..., None, None]}
    for name, value in (fields | {"diffusion_gan_max_timestep": 1000}).items():
        object.__setattr__(guidance, name, value)
    parameters = dict(fake.network.named_parameters())  # type: ignore[attr-defined]
    judged = parameters | {"head": head.weight}
    return {
        "dmd2.matching": run(
            lambda: guidance.compute_distribution_matching_loss(x, labels)[0]["loss_dm"], {"x": x}, seen
        ),
        "dmd2.fake": run(lambda: guidance.compute_loss_fake(x, labels)[0]["loss_fake_mean"], parameters, seen),
        "dmd2.generator": run(
            lambda: guidance.compute_generator_clean_cls_loss(x, labels)["gen_cls_loss"], {"x": x}, seen
        ),
        "dmd2.discriminator": run(
            lambda: guidance.compute_guidance_clean_cls_loss(real, x, labels, labels)[0]["guidance_cls_loss"],
            judged,
            seen,
        ),
        "dmd2.karras": {"sigmas": sigmas[[0, 1, 20, 500, 980, 999]]},
    }


def dmd2_head(folder: Path) -> dict[str, Tensors]:
    """DMD2's head for ImageNet, of 768 channels, which its constructor builds."""
    module, made = load(folder, "main.edm.edm_guidance"), []
    sequential = nn.Sequential
    arguments = MagicMock(
        min_step_percent=0.02, max_step_percent=0.98, num_train_timesteps=1000, sigma_max=80.0, rho=7.0
    )
    arguments.sigma_min = 0.002
    with patch.object(module.nn, "Sequential", lambda *layers: made.append(sequential(*layers)) or made[-1]):
        try:
            with patch.object(module, "pickle"), patch.object(module.copy, "deepcopy"):
                module.EDMGuidance(arguments, None)
        except (AttributeError, TypeError) as error:
            if not made:
                raise RuntimeError("the head was not built") from error
    head = made[0].double()
    large_head_parameters(head)
    features = large_features(768).requires_grad_()
    logits = head(features)
    (gradient,) = torch.autograd.grad(logits.sum(), features)
    return {"dmd2.head": {"logits": logits, "gradient": gradient[:, ::96, ::3, ::3].contiguous()}}


def dmd2_sd(folder: Path, x: Tensor, labels: Tensor) -> dict[str, Tensors]:
    """DMD2's losses for Stable Diffusion, with guidance 8: main/sd_guidance.py."""
    module = load(folder, "main.sd_guidance")
    guidance = module.SDGuidance.__new__(module.SDGuidance)
    nn.Module.__init__(guidance)
    scheduler = module.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    seen: list[Tensor] = []

    def unet(seed: int) -> Callable[..., Any]:
        network = Network(seed)

        def call(x: Tensor, t: Tensor, one_hot: Tensor, added_cond_kwargs: Any) -> Any:
            seen.append(t.double())
            return SimpleNamespace(sample=network(x, t.double(), SimpleNamespace(one_hot=one_hot)))

        call.network = network  # type: ignore[attr-defined]
        return call

    fake = unet(2)
    fields = {"real_unet": unet(1), "fake_unet": fake, "scheduler": scheduler, "use_fp16": False}
    fields |= {"alphas_cumprod": scheduler.alphas_cumprod, "min_step": 20, "max_step": 980, "num_train_timesteps": 1000}
    fields |= {"real_guidance_scale": 8, "fake_guidance_scale": 1, "gradient_checkpointing": False}
    for name, value in (fields | {"network_context_manager": torch.enable_grad()}).items():
        object.__setattr__(guidance, name, value)
    null = torch.zeros_like(labels)
    parameters = dict(fake.network.named_parameters())  # type: ignore[attr-defined]
    return {
        "sd.matching": run(
            lambda: guidance.compute_distribution_matching_loss(x, labels, null, None, None)[0]["loss_dm"],
            {"x": x},
            seen,
        ),
        "sd.fake": run(lambda: guidance.compute_loss_fake(x, labels, null)[0]["loss_fake_mean"], parameters, seen),
    }


def fdistill(folder: Path, x: Tensor) -> dict[str, Tensors]:
    """FastGen's weights h and its loss: f_distill.py and common_loss.py of fastgen/methods."""
    sys.modules.pop("fastgen.methods.common_loss", None)
    sys.modules["fastgen.methods"].__path__ = [str(folder / "fastgen" / "methods")]  # type: ignore[attr-defined]
    module = load(folder, "fastgen.methods.distribution_matching.f_distill")
    losses = load(folder, "fastgen.methods.common_loss")
    count = 40
    logits, t = torch.randn(count, 3) * 2, torch.rand(count) * 80
    means = {"mu_real": torch.randn_like(x), "mu_fake": torch.randn_like(x)}
    settings = {"ratio_lower": 0.1, "ratio_upper": 20, "ratio_normalization": True, "ratio_ema_rate": 0.0}
    outputs: Tensors = {"logits": logits, "t": t} | means
    weights = module.all_f_div_weighting_function
    for name in weights.keys() - {"rkl"}:  # which is one number there, and has no length
        scheduler = SimpleNamespace(min_t=0.002, max_t=80.0)
        net = SimpleNamespace(noise_scheduler=scheduler, bins=torch.ones(10))
        fields = {"config": SimpleNamespace(f_distill=SimpleNamespace(**settings)), "bin_num": 10, "net": net}
        model = SimpleNamespace(**fields, f_div_weighting_function=weights[name])
        h = module.FdistillModel._get_f_div_weighting_h(model, logits, t)
        outputs[f"h.{name}"] = h.expand(count).contiguous()
    h = outputs["h.js"][: len(x)]
    loss = losses.variational_score_distillation_loss(x, means["mu_real"], means["mu_fake"], additional_scale=h)
    outputs |= {"loss": loss, "grad.x": torch.autograd.grad(loss, x)[0]}
    outputs["gan.generator"] = losses.gan_loss_generator(logits)
    outputs["gan.discriminator"] = losses.gan_loss_discriminator(logits, 0.5 * logits - 1)
    return {"fdistill": outputs}


def sid(folder: Path, x: Tensor, labels: Tensor) -> dict[str, Tensors]:
    """SiD's losses, summed over pixels and divided by the batch as in its training loop: training/sid_loss.py."""
    loss = load(folder, "training.sid_loss").SID_EDMLoss()
    seen: list[Tensor] = []
    real, fake = edm_network(1, []), edm_network(2, seen)
    parameters = dict(fake.network.named_parameters())  # type: ignore[attr-defined]
    return {
        f"sid.generator.{alpha}": run(
            lambda alpha=alpha: loss.generator_loss(real, fake, x, labels, alpha=alpha).sum() / len(x), {"x": x}, seen
        )
        for alpha in (1.0, 1.2)
    } | {"sid.fake": run(lambda: loss(fake, x.detach(), labels).sum() / len(x), parameters, seen)}


def sida(folder: Path, x: Tensor, images: Tensor, labels: Tensor) -> dict[str, Tensors]:
    """SiDA's losses, scaled as in its training loop: sida_training/sida_loss.py."""
    loss = load(folder, "sida_training.sida_loss").SIDA_EDMLoss()
    seen: list[Tensor] = []
    real, fake = edm_network(1, []), edm_network(2, seen)
    parameters = dict(fake.network.named_parameters())  # type: ignore[attr-defined]

    def generator() -> Tensor:
        identity, adversarial = loss.generator_share_encoder_loss(real, fake, x, labels, alpha=1.0)
        pixels = x[0].numel()
        return (0.5 * 100 * identity.sum() + 0.5 * 0.01 * pixels * adversarial.sum()) / len(x)

    def critic() -> Tensor:
        fake_loss, judged = loss.fakescore_discriminator_share_encoder_loss(
            fake, x.detach(), labels, real_images=images
        )
        return (fake_loss.sum() + judged.sum()) / len(x)

    return {"sida.generator": run(generator, {"x": x}, seen), "sida.fake": run(critic, parameters, seen)}


def main() -> None:
    """Run all and write one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path, help="The folder of the checkouts.")
    parser.add_argument("fixture", type=Path, help="The file to write.")
    arguments = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    replace_absent()
    x, real = torch.randn(COUNT, *SHAPE).requires_grad_(), torch.randn(COUNT, *SHAPE)
    labels = F.one_hot(torch.arange(COUNT) % CLASSES, CLASSES).double()
    cases = {"input": {"x": x, "real": real, "labels": labels}}
    cases |= dmd2_edm(arguments.checkouts / "DMD2", x, real, labels) | dmd2_head(arguments.checkouts / "DMD2")
    cases |= dmd2_sd(arguments.checkouts / "DMD2", x, labels) | fdistill(arguments.checkouts / "FastGen", x)
    cases |= sid(arguments.checkouts / "SiD", x, labels) | sida(arguments.checkouts / "SiDA", x, real, labels)
    tensors = {f"{case}/{name}": value.detach() for case, values in cases.items() for name, value in values.items()}
    save_file({name: value.clone() for name, value in tensors.items()}, arguments.fixture)


if __name__ == "__main__":
    main()
