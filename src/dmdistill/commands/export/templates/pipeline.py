"""Image generation in one or few steps: images = gain (skip x + out F(scale x, time, class)), first of x ~ N(0, I).

A custom pipeline of diffusers, exported by dmdistill:

    pipeline = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
    images = pipeline(batch_size=8, generator=torch.Generator().manual_seed(0)).images
"""

from __future__ import annotations

import zlib

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor


class StudentPipeline(DiffusionPipeline):
    """A pipeline that evaluates its network once a step, with the coefficients of its parameterisation there.

    Args:
        unet: the network F(sample, timestep, class_labels).
        steps: of each step gain, the factor of the whole image; skip, of the input; out, of the network's output;
            scale, of the network's input; time, the network's timestep; and next, the factors of images, input and
            fresh noise that make the next step's input, None for the last step.
        shape: C H W of an image.
        classes: number of classes; 0 for an unconditional model.
        id2label: names of the classes by their numbers from 0; empty where they have none.
    """

    def __init__(
        self,
        unet: object,
        steps: list | tuple = (),  # diffusers takes a parameter without a default for a module
        shape: list | tuple = (),
        classes: int = 0,
        id2label: dict | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet)
        names = {str(number): name for number, name in (id2label or {}).items()}
        self.register_to_config(steps=list(steps), shape=list(shape), classes=classes, id2label=names)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | str | list[int | str] | Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Generate images.

        Args:
            batch_size: number of images, from 1; where None that of noise or class_labels, else 1.
            class_labels: numbers, from 0, or names of classes, one per image; drawn where None.
            generator: of the random draws.
            noise: B C H W, which also decides the noise of later steps; drawn where None.
            output_type: pil, np (B H W C in [0, 1]) or pt (B C H W in about [-1, 1], not clipped).
            return_dict: whether to return an ImagePipelineOutput; else a tuple.

        Raises:
            ValueError: batch_size is below 1, a class is unknown, or noise or class_labels are not one per image.
        """
        config, device = self.config, self._execution_device
        source = generator.device if generator is not None else device
        numbers = self.class_numbers(class_labels) if class_labels is not None else None
        if batch_size is None:
            batch_size = len(noise if noise is not None else numbers or [0])
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected 1 or more")
        if noise is None:
            noise = torch.randn(batch_size, *config.shape, generator=generator, device=source)
        if noise.shape != (batch_size, *config.shape):
            raise ValueError(f"noise has shape {list(noise.shape)}, expected {[batch_size, *config.shape]}")
        if numbers is not None and len(numbers) != batch_size:
            raise ValueError(f"{len(numbers)} class_labels for {batch_size} images, expected one per image")
        noise, labels = noise.to(device, torch.float32), None
        if config.classes:
            drawn = {"generator": generator, "device": source}
            labels = torch.tensor(numbers) if numbers else torch.randint(config.classes, (batch_size,), **drawn)
            labels = labels.to(device)
        x = noise
        for number, step in enumerate(config.steps):
            images = self.evaluate(x, step, labels)
            if factors := step["next"]:
                x = factors["images"] * images + factors["input"] * x
                x = x + factors["noise"] * derived_noise(noise, number)
        if output_type != "pt":
            images = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
            images = self.numpy_to_pil(images) if output_type == "pil" else images
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def evaluate(self, x: Tensor, step: dict, labels: Tensor | None) -> Tensor:
        """Return the images of a step, of its input x."""
        time = torch.full((len(x),), step["time"], device=x.device, dtype=torch.float32)
        f = self.unet((step["scale"] * x).to(self.unet.dtype), time, class_labels=labels, return_dict=False)[0]
        f = f[:, : x.shape[1]].float()  # without a learned variance
        return step["gain"] * (step["skip"] * x + step["out"] * f)

    def class_numbers(self, labels: int | str | list | Tensor) -> list[int]:
        """Return the numbers of classes that are given by number or name. ValueError for an unknown one."""
        classes, names = self.config.classes, self.config.id2label
        if not classes:
            raise ValueError("class_labels are given, and the model has no classes")
        known = {name.casefold(): int(number) for number, name in names.items()}
        known |= {str(number): number for number in range(classes)}
        labels = labels.tolist() if isinstance(labels, Tensor) else labels
        numbers = []
        for label in [labels] if isinstance(labels, int | str) else labels:
            number = known.get(str(label).strip().casefold())
            if number is None:
                few = [names[key] for key in sorted(names, key=int)[:20]] + ["..."] * (len(names) > 20)
                words = f" or one of {', '.join(few)}" if few else ""
                raise ValueError(f"class_labels has {label!r}, which is no class: expected 0 to {classes - 1}{words}")
            numbers.append(number)
        return numbers


def derived_noise(z: Tensor, step: int) -> Tensor:
    """Return noise ~ N(0, I) of the shape of z, B C H W, that each sample's own z decides, as in dmdistill."""
    seeds = [zlib.crc32(sample.numpy().tobytes(), step) for sample in z.float().cpu().contiguous()]
    rows = [torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(z)
