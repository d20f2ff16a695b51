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
    """A network asked once, at one time, with the five numbers that its parameterisation comes to there.

    Args:
        unet: F(sample, timestep, class_labels).
        gain, skip, out, scale, time: of the formula above.
        shape: C H W of an image. classes: how many it knows; 0 for an unconditional model.
    """

    def __init__(
        self,
        unet: object,
        gain: float = 1.0,  # diffusers takes what has no default for a module
        skip: float = 0.0,
        out: float = 1.0,
        scale: float = 1.0,
        time: float = 1.0,
        shape: tuple[int, ...] = (),
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet)
        numbers = {"gain": gain, "skip": skip, "out": out, "scale": scale, "time": time}
        self.register_to_config(**numbers, shape=list(shape), classes=classes)

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
        """Images of `noise` (B C H W, drawn where none is given), of random classes where none are given.

        output_type: pil, np (B H W C in [0, 1]) or pt (B C H W in about [-1, 1], not clipped).
        """
        config, device = self.config, self._execution_device
        if noise is None:
            source = generator.device if generator is not None else device
            noise = torch.randn(batch_size, *config.shape, generator=generator, device=source)
        noise = noise.to(device, torch.float32)
        labels = None
        if config.classes:
            if class_labels is None:
                source = generator.device if generator is not None else device
                class_labels = torch.randint(config.classes, (len(noise),), generator=generator, device=source)
            labels = torch.as_tensor(class_labels, device=device).long()
            if labels.shape != (len(noise),) or not bool(((labels >= 0) & (labels < config.classes)).all()):
                raise ValueError(
                    f"class_labels {labels.tolist()}, expected {len(noise)} from 0 to {config.classes - 1}"
                )
        time = torch.full((len(noise),), config.time, device=device, dtype=torch.float32)
        f = self.unet((config.scale * noise).to(self.unet.dtype), time, class_labels=labels, return_dict=False)[0]
        images = config.gain * (config.skip * noise + config.out * f.float())
        if output_type != "pt":
            images = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
            images = self.numpy_to_pil(images) if output_type == "pil" else images
        return ImagePipelineOutput(images=images) if return_dict else (images,)
