"""The CLIP score: how well images match their prompts (Hessel et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmdistill.io.errors import first_line, import_optional
from dmdistill.metrics.features import check_uint8

__all__ = ["ClipScore", "load_clip"]


class ClipScore:
    """100 max(cos, 0) of the embeddings of an image and its prompt, for each image of a batch.

    Args:
        model: a CLIPModel of transformers, in evaluation mode.
        tokenizer: of its prompts.
        processor: of its images.
        id: names the weights, for caches.
    """

    def __init__(self, model: Any, tokenizer: Any, processor: Any, *, id: str) -> None:
        self.model, self.tokenizer, self.processor, self.id = model, tokenizer, processor, id

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Compute the scores, B, fp32, on the CPU.

        Args:
            images: uint8, B C H W, C 1 or 3.
            prompts: B, cut at the model's length.
        """
        if len(prompts) != len(check_uint8(images)):
            raise ValueError(f"{len(images)} images and {len(prompts)} prompts, expected one of each")
        pictures = [image.permute(1, 2, 0).numpy() for image in images.cpu().expand(-1, 3, -1, -1)]
        pixels = self.processor(pictures, return_tensors="pt", input_data_format="channels_last")
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        output = self.model(**{name: tensor.to(self.model.device) for name, tensor in {**tokens, **pixels}.items()})
        cosines = torch.cosine_similarity(output.image_embeds.float(), output.text_embeds.float())
        return 100 * cosines.clamp(min=0).cpu()


def load_clip(source: str | Path, *, device: torch.device | str = "cpu") -> ClipScore:
    """Load a CLIP model of transformers. ValueError, in one line, where it cannot be loaded.

    The paper's is laion/CLIP-ViT-bigG-14-laion2B-39B-b160k. Scores of different models are not comparable.

    Args:
        source: a folder or a hub id.
        device: where it computes.
    """
    transformers = import_optional("transformers", "the CLIP score", extra="diffusers")
    # the other image processor of new versions needs torchvision; old versions only have this one
    processors = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    try:
        model: Any = transformers.CLIPModel.from_pretrained(source)
        tokenizer, processor = transformers.AutoTokenizer.from_pretrained(source), processors.from_pretrained(source)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{source} cannot be loaded as a CLIP model: {first_line(error)}") from None
    return ClipScore(model.to(device).eval(), tokenizer, processor, id=f"clip-{source}")
