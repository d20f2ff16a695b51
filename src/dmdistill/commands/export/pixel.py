"""Export of pixel students: diffusers' DDIM pipeline where it generates the same images, else a pipeline of our own."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmdistill.commands.export.pipeline_use import usage_code
from dmdistill.commands.export.precision import cast_network
from dmdistill.commands.export.sampling import ddim_scheduler
from dmdistill.commands.export.source_bundle import bundle_modules, module_file
from dmdistill.core.denoisers import Denoiser, EpsDenoiser
from dmdistill.core.generators import Generator
from dmdistill.core.schedules import VP
from dmdistill.io.atomic import write_json
from dmdistill.models.cards import class_names
from dmdistill.models.diffusers_folder import read_scheduler_config, resolve_folder
from dmdistill.models.model import Student
from dmdistill.models.python_function import is_python_function
from dmdistill.networks.diffusers_wrappers import DiffusersWrapper
from dmdistill.networks.lora import merge_lora

__all__ = ["ddim_is_exact", "export_pixel_pipeline", "sampling_steps"]

CALL = """images = pipeline(
    {}, generator=torch.Generator().manual_seed(0)
).images"""  # in a card's code


def export_pixel_pipeline(student: Student, folder: Path, dtype: torch.dtype) -> str:
    """Write a pipeline for a student of pixels, its network in `dtype`. Returns the code that uses it.

    ValueError where the network is neither a class of diffusers nor one of this package.
    """
    network = merge_lora(student.network)
    if isinstance(network, DiffusersWrapper):
        cast_network(network.model, dtype)
        teacher = str(student.config.get("teacher"))
        config = None if is_python_function(teacher) else read_scheduler_config(resolve_folder(teacher))
        if config is not None and (scheduler := exact_ddim(student, network, config)) is not None:
            return write_ddim_pipeline(scheduler, network, student.evaluations, folder, dtype)
        network.model.save_pretrained(folder / "unet")
        if config is not None:  # which this package reads where the folder is loaded as a student again
            (folder / "scheduler").mkdir()
            write_json(folder / "scheduler" / "scheduler_config.json", config)
        return write_custom_pipeline(student, folder, ["diffusers", type(network.model).__name__], dtype)
    if student.text is not None or student.autoencoder is not None or not student.config.get("network"):
        raise ValueError(
            f"{student.name} cannot be exported: its network, a {type(network).__name__}, is not a class of diffusers, "
            "and of other networks only this package's own, of pixels, can be exported with their source"
        )
    write_network(network, student.config["network"], folder / "unet", dtype)
    return write_custom_pipeline(student, folder, ["network", "StudentNetwork"], dtype)


def exact_ddim(student: Student, network: DiffusersWrapper, config: dict[str, Any]) -> Any | None:
    """Build the scheduler of diffusers' DDIM pipeline where that generates the student's images; else None."""
    options = network.model.config
    if student.conditions is not None or options["out_channels"] != options["in_channels"]:
        return None
    if not isinstance(student.denoiser.schedule, VP):
        return None
    scheduler = ddim_scheduler(student.generator, config)
    return scheduler if scheduler is not None and ddim_is_exact(scheduler, student.denoiser) else None


def ddim_is_exact(scheduler: Any, denoiser: Denoiser) -> bool:
    """Tell whether DDIM's image at t_max in fp32 is the student's to 1e-5, where z and predicted noise nearly cancel.

    Computers may round the roots of abar differently by one unit in the last place, so its neighbours are tested too.
    """
    schedule = denoiser.schedule
    last = torch.tensor([schedule.t_max], dtype=torch.float64)
    alpha, sigma = schedule.alpha(last), schedule.sigma(last)
    z = torch.linspace(-4, 4, 1001)
    x = 0.5 * torch.sin(9 * z)  # about the spread of an image
    f = ((z - alpha * x) / sigma).float() if isinstance(denoiser, EpsDenoiser) else x
    scheduler.set_timesteps(1)
    step = scheduler.step(f, scheduler.timesteps[0], z, return_dict=False)[0]
    neighbours = [sigma.float().nextafter(torch.tensor(end)) for end in (0.0, 1.0)]
    expected = torch.stack([denoiser.mean(f, z, alpha.float(), one) for one in (sigma.float(), *neighbours)])
    return bool((step - expected).abs().max() < 1e-5 * expected.std())


def write_ddim_pipeline(scheduler: Any, network: DiffusersWrapper, steps: int, folder: Path, dtype: torch.dtype) -> str:
    """Write diffusers' pipeline of an unconditional UNet2DModel, which always starts from noise of variance 1."""
    import diffusers

    diffusers.DDIMPipeline(unet=network.model, scheduler=scheduler).save_pretrained(folder)  # type: ignore[attr-defined]
    return usage_code(CALL.format(f"batch_size=4, num_inference_steps={steps}"), dtype_to_load(dtype))


def write_custom_pipeline(student: Student, folder: Path, unet: list[str], dtype: torch.dtype) -> str:
    """Write the source and configuration of our pipeline, in the convention of diffusers' custom pipelines."""
    import diffusers

    shutil.copy(module_file("dmdistill.commands.export.templates.pipeline"), folder / "pipeline.py")
    steps = sampling_steps(student.generator, student.shape)
    for step in steps:
        step["time"] *= getattr(student.network, "time_scale", 1.0)  # of a network of diffusers
    classes = len(student.conditions) if student.conditions is not None else 0
    names = class_names(student)
    index = {"_class_name": ["pipeline", "StudentPipeline"], "_diffusers_version": diffusers.__version__, "unet": unet}
    settings = {"steps": steps, "shape": list(student.shape), "classes": classes, "id2label": dict(enumerate(names))}
    write_json(folder / "model_index.json", index | settings)
    labels = [(names or range(classes))[i % classes] for i in range(4)] if classes else []
    arguments = f"class_labels={json.dumps(labels, ensure_ascii=False)}" if classes else "batch_size=4"
    return usage_code(CALL.format(arguments), dtype_to_load(dtype), options=", trust_remote_code=True")


def dtype_to_load(dtype: torch.dtype) -> torch.dtype | None:
    """Return the dtype that a card's code gives where the network is the only component: None for fp32, the default."""
    return None if dtype == torch.float32 else dtype


@torch.no_grad()
def sampling_steps(generator: Generator, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """Find the numbers of a generator's steps.

    Of each step, for an input x: gain, skip, out, scale and time of its images gain (skip x + out F(scale x, time)),
    and as "next" the factors of images, input and fresh noise that make the next input; None for the last step.
    |skip| is at most 1: x and F may cancel to a thousandth, which gain then enlarges, as in `Denoiser.mean`.

    ValueError for a denoiser that is not of this form.
    """
    last = len(generator.timesteps) - 1
    return [
        {
            **step_coefficients(generator, step, shape),
            "next": next_coefficients(generator, step) if step < last else None,
        }
        for step in range(last + 1)
    ]


def step_coefficients(generator: Generator, step: int, shape: tuple[int, ...]) -> dict[str, float]:
    """Find the numbers of a step's images, from constant F at x = 1."""
    denoiser, probe = generator.denoiser, ConstantNetwork()
    twin = copy.copy(denoiser)
    twin._modules = {**denoiser._modules, "net": probe}
    twin.precision = None
    probed, outputs = Generator(twin, generator.timesteps), []
    for probe.value in (0.0, 1.0, 3.0):
        outputs.append(probed(torch.ones(1, *shape, dtype=torch.float64), None, step).mean().item())
    skip, out = outputs[0], outputs[1] - outputs[0]
    if abs(outputs[2] - skip - 3 * out) > 1e-6 * (1 + abs(out)):
        raise ValueError(f"{type(denoiser).__name__} is not linear in its network's output and cannot be exported")
    gain = max(1.0, abs(skip))
    return {"gain": gain, "skip": skip / gain, "out": out / gain, "scale": probe.scale, "time": probe.time}


def next_coefficients(generator: Generator, step: int) -> dict[str, float]:
    """Find the factors of images, input and fresh noise in the input of the step after `step`."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    return {
        "images": generator.next_input(zero, one, step, lambda: zero).item(),
        "input": generator.next_input(one, zero, step, lambda: zero).item(),
        "noise": generator.next_input(zero, zero, step, lambda: one).item(),
    }


class ConstantNetwork(nn.Module):
    """A network with a constant output, which records the mean of its input and its time."""

    value = scale = time = 0.0

    def forward(self, x: Tensor, time: Tensor, cond: Any = None) -> Tensor:
        """Return `value` in the shape of x."""
        self.scale, self.time = x.mean().item(), time.item()
        return torch.full_like(x, self.value)


def write_network(network: nn.Module, settings: dict[str, Any], folder: Path, dtype: torch.dtype) -> None:
    """Write network.py, the source of our network in one file, and its weights as diffusers stores them."""
    folder.mkdir()
    source = bundle_modules(type(network).__module__, "dmdistill.commands.export.templates.network")
    (folder / "network.py").write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("dmdistill_exported_network", folder / "network.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # the source that was just written
    arguments = {key: value for key, value in settings.items() if key != "class"}
    model = module.StudentNetwork(network=type(network).__name__, settings=arguments)
    model.net.load_state_dict(network.state_dict())
    cast_network(model, dtype).save_pretrained(folder)  # type: ignore[operator]
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
