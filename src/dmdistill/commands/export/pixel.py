"""Students of pixels for diffusers: its DDIM pipeline where that makes the same image, else a pipeline of our own."""

from __future__ import annotations

import copy
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmdistill.commands.export.bundle_source import joined_source, source_of
from dmdistill.commands.export.latent import one_step_scheduler
from dmdistill.core.denoisers import Denoiser, EpsDenoiser
from dmdistill.core.generators import Generator
from dmdistill.core.schedules import VP
from dmdistill.io.atomic import write_json
from dmdistill.models.model import Student
from dmdistill.models.python_function import is_python_function
from dmdistill.networks.diffusers_wrappers import DiffusersWrapper
from dmdistill.networks.lora import merge_lora

__all__ = ["one_step", "write_custom"]


def write_custom(student: Student, folder: Path) -> str:
    """Fill an empty folder; answer with the code to use it. ValueError for a network that diffusers cannot have."""
    network = merge_lora(student.network)
    if isinstance(network, DiffusersWrapper):
        taken = is_python_function(str(student.config.get("teacher")))  # then there is no scheduler's configuration
        if student.conditions is None and isinstance(student.denoiser.schedule, VP) and not taken:
            scheduler = one_step_scheduler(student)
            if is_exact(scheduler, student.denoiser):
                return write_ddim(scheduler, network, folder)
        network.model.save_pretrained(folder / "unet")
        return write_own(student, folder, ["diffusers", type(network.model).__name__])
    if student.text is not None or student.autoencoder is not None or not student.config.get("network"):
        raise ValueError(
            f"{student.name} cannot be exported: its network, a {type(network).__name__}, is of no class of diffusers, "
            "and with its source only EDM's networks of pixels, as this package builds them, are"
        )
    write_network(network, student.config["network"], folder / "unet")
    return write_own(student, folder, ["network", "OneStepNetwork"])


def is_exact(scheduler: Any, denoiser: Denoiser) -> bool:
    """Whether DDIM's one step, in fp32, is ours to 1e-5 where z and a noise prediction cancel but for an image.

    On any machine: the roots of its abar may be rounded otherwise there, by a unit in the last place.
    """
    path = denoiser.schedule
    last = torch.tensor([path.t_max], dtype=torch.float64)
    alpha, sigma = path.alpha(last), path.sigma(last)
    z = torch.linspace(-4, 4, 1001)
    x = 0.5 * torch.sin(9 * z)  # of about an image's spread
    f = ((z - alpha * x) / sigma).float() if isinstance(denoiser, EpsDenoiser) else x
    scheduler.set_timesteps(1)
    step = scheduler.step(f, scheduler.timesteps[0], z, return_dict=False)[0]
    near = [sigma.float().nextafter(torch.tensor(end)) for end in (0.0, 1.0)]
    expected = torch.stack([denoiser.mean(f, z, alpha.float(), one) for one in (sigma.float(), *near)])
    return bool((step - expected).abs().max() < 1e-5 * expected.std())


def write_ddim(scheduler: Any, network: DiffusersWrapper, folder: Path) -> str:
    """Diffusers' own pipeline of an unconditional UNet2DModel. It always starts from noise of variance 1."""
    import diffusers

    diffusers.DDIMPipeline(unet=network.model, scheduler=scheduler).save_pretrained(folder)  # type: ignore[attr-defined]
    return """pipeline = DiffusionPipeline.from_pretrained("{folder}")
images = pipeline(batch_size=4, num_inference_steps=1, generator=torch.Generator().manual_seed(0)).images"""


def write_own(student: Student, folder: Path, unet: list[str]) -> str:
    """Our pipeline's file and its configuration, in diffusers' custom-pipeline convention."""
    import diffusers

    shutil.copy(source_of("dmdistill.commands.export.templates.pipeline"), folder / "pipeline.py")
    numbers = one_step(student.denoiser, student.shape)
    index = {"_class_name": ["pipeline", "OneStepPipeline"], "_diffusers_version": diffusers.__version__, "unet": unet}
    classes = len(student.conditions) if student.conditions is not None else 0
    write_json(folder / "model_index.json", {**index, **numbers, "shape": list(student.shape), "classes": classes})
    told = "class_labels=[0, 1, 2, 3], " if classes > 3 else "class_labels=[0] * 4, " if classes else ""
    return f"""pipeline = DiffusionPipeline.from_pretrained("{{folder}}", trust_remote_code=True)
images = pipeline(batch_size=4, {told}generator=torch.Generator().manual_seed(0)).images"""


@torch.no_grad()
def one_step(denoiser: Denoiser, shape: tuple[int, ...]) -> dict[str, float]:
    """The numbers of G(z) = gain (skip z + out F(scale z, time)), found by asking at z = 1 with an F that is constant.

    skip is at most 1: z and F may cancel to a thousandth, which gain then enlarges, and are to cancel as in `mean`.

    ValueError for a denoiser that is not of this form.
    """
    probe, twin = Constant(), copy.copy(denoiser)
    twin._modules = {**denoiser._modules, "net": probe}
    twin.precision = None
    answers = []
    for probe.value in (0.0, 1.0, 3.0):
        answers.append(Generator(twin)(torch.ones(1, *shape, dtype=torch.float64)).mean().item())
    skip, out = answers[0], answers[1] - answers[0]
    if abs(answers[2] - skip - 3 * out) > 1e-6 * (1 + abs(out)):
        raise ValueError(f"{type(denoiser).__name__} is not linear in its network's answer and cannot be exported")
    gain = max(1.0, abs(skip))
    return {"gain": gain, "skip": skip / gain, "out": out / gain, "scale": probe.asked[0], "time": probe.asked[1]}


class Constant(nn.Module):
    """A network that answers with one value, and keeps what it was asked: (mean of x, time)."""

    value = 0.0
    asked = (0.0, 0.0)

    def forward(self, x: Tensor, time: Tensor, cond: Any = None) -> Tensor:
        self.asked = (x.mean().item(), time.item())
        return torch.full_like(x, self.value)


def write_network(network: nn.Module, described: dict[str, Any], folder: Path) -> None:
    """network.py, one file of our network's source, and the weights as diffusers stores them."""
    folder.mkdir()
    source = joined_source(type(network).__module__, "dmdistill.commands.export.templates.network")
    (folder / "network.py").write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("dmdistill_exported_network", folder / "network.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # our own source, just written
    settings = {key: value for key, value in described.items() if key != "class"}
    model = module.OneStepNetwork(network=type(network).__name__, settings=settings)
    model.net.load_state_dict(network.state_dict())
    model.save_pretrained(folder)
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
