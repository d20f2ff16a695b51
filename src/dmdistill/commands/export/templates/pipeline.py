"""One-step image generation: G(z) = gain (skip z + out F(scale z, time, class)), z ~ N(0, I).

A custom pipeline of diffusers, exported by dmdistill:

    pipeline = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
    images = pipeline(batch_size=8, generator=torch.Generator().manual_seed(0)).images
"""

from __future__ import annotations

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor


class OneStepPipeline(DiffusionPipeline):
    """A pipeline that evaluates its network once, at one time, with the coefficients of its parameterisation there.

    Args:
        unet: the network F(sample, timestep, class_labels).
        gain: factor of the whole image.
        skip: factor of the noise.
        out: factor of the network's output.
        scale: factor of the network's input.
        time: timestep of the network.
        shape: C H W of an image.
        classes: number of classes; 0 for an unconditional model.
    """

    def __init__(
        self,
        unet: object,
        gain: float = 1.0,  # diffusers takes a parameter without a default for a module
        skip: float = 0.0,
        out: float = 1.0,
        scale: float = 1.0,
        time: float = 1.0,
        shape: list | tuple = (),
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet)
        coefficients = {"gain": gain, "skip": skip, "out": out, "scale": scale, "time": time}
        self.register_to_config(**coefficients, shape=list(shape), classes=classes)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: list[int] | Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Generate images.

        Args:
            batch_size: number of images, where no noise is given.
            class_labels: one per image; drawn where None.
            generator: of the random draws.
            noise: B C H W; drawn where None.
            output_type: pil, np (B H W C in [0, 1]) or pt (B C H W in about [-1, 1], not clipped).
            return_dict: whether to return an ImagePipelineOutput; else a tuple.
        """
        config, device = self.config, self._execution_device
        source = generator.device if generator is not None else device
        if noise is None:
            noise = torch.randn(batch_size, *config.shape, generator=generator, device=source)
        noise, labels = noise.to(device, torch.float32), None
        if config.classes:
            if class_labels is None:
                class_labels = torch.randint(config.classes, (len(noise),), generator=generator, device=source)
            labels = self.check_labels(torch.as_tensor(class_labels, device=device).long(), len(noise))
        time = torch.full((len(noise),), config.time, device=device, dtype=torch.float32)
        f = self.unet((config.scale * noise).to(self.unet.dtype), time, class_labels=labels, return_dict=False)[0]
        f = f[:, : noise.shape[1]].float()  # without a learned variance
        images = config.gain * (config.skip * noise + config.out * f)
        if output_type != "pt":
            images = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
            images = self.numpy_to_pil(images) if output_type == "pil" else images
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def check_labels(self, labels: Tensor, count: int) -> Tensor:
        """Return the labels. ValueError unless there is one for each image, all in range."""
        classes = self.config.classes
        if labels.shape != (count,) or not bool(((labels >= 0) & (labels < classes)).all()):
            raise ValueError(f"class_labels {labels.tolist()}, expected {count} from 0 to {classes - 1}")
        return labels
