"""The text encoders of diffusers' pipelines, asked as the pipelines ask them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from dmdistill.io.atomic import read_json

__all__ = ["PipelineText"]

FAMILIES = {  # the class of a pipeline, and what its encode_prompt answers with
    "StableDiffusionPipeline": ("prompt_embeds", "negative_prompt_embeds"),
    "StableDiffusionXLPipeline": (
        *("prompt_embeds", "negative_prompt_embeds"),
        *("pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
    ),
    "StableDiffusion3Pipeline": (
        *("prompt_embeds", "negative_prompt_embeds"),
        *("pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
    ),
    "FluxPipeline": ("prompt_embeds", "pooled_prompt_embeds", "text_ids"),
}
TENSORS = ("prompt_embeds", "pooled_prompt_embeds")  # what a network is told
ABSENT = ("unet", "transformer", "vae", "safety_checker", "feature_extractor", "image_encoder")
FILES = (".json", ".txt", ".model", ".safetensors")  # of tokenizers and text encoders


class PipelineText:
    """A TextEncoder: the tokenizers and text encoders of a pipeline, loaded when they are first asked.

    Args:
        folder: the pipeline's.
        dtype: in which the text encoders compute, and of their tensors.

    ValueError where the folder is no pipeline's or one of a class that is not known here.
    """

    def __init__(self, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
        self.folder, self.dtype = folder, dtype
        self.device = torch.device("cpu")
        self.pipeline: Any = None

    @cached_property
    def index(self) -> dict[str, Any]:
        """What model_index.json says: the pipeline's class and parts."""
        index = read_json(self.folder / "model_index.json")
        kind = index.get("_class_name") if isinstance(index, dict) else None
        if not isinstance(kind, str) or kind not in FAMILIES:
            raise ValueError(f"{self.folder} is of the class {kind}; prompts are encoded for {', '.join(FAMILIES)}")
        return index

    @property
    def id(self) -> str:
        """The pipeline's class, the dtype, and a digest of all files that decide what a prompt becomes."""
        return self.digest

    @cached_property
    def digest(self) -> str:
        sha = hashlib.sha256(json.dumps(self.index, sort_keys=True).encode())
        for file in self.files():
            sha.update(file.relative_to(self.folder).as_posix().encode())
            with file.open("rb") as content:
                sha.update(hashlib.file_digest(content, "sha256").digest())
        return f"{self.index['_class_name']} {str(self.dtype).removeprefix('torch.')} {sha.hexdigest()[:16]}"

    def files(self) -> Iterator[Path]:
        for pattern in ("tokenizer*/*", "text_encoder*/*", "transformer/config.json"):
            yield from sorted(file for file in self.folder.glob(pattern) if file.suffix in FILES)

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """prompt_embeds (B, tokens, width) and, where the family has it, pooled_prompt_embeds (B, width)."""
        answer = self.ask(prompts, guided=False)
        return {name: answer[name] for name in TENSORS if name in answer}

    def empty(self) -> dict[str, Tensor]:
        """What the pipeline leads away from where no negative prompt is given: "" encoded, or zeros."""
        if "negative_prompt_embeds" not in FAMILIES[self.index["_class_name"]]:
            return self.encode([""])
        answer = self.ask([""], guided=True)
        return {name: answer[f"negative_{name}"] for name in TENSORS if name in answer}

    @torch.no_grad()
    def ask(self, prompts: Sequence[str], *, guided: bool) -> dict[str, Tensor]:
        """All that encode_prompt answers with, by name, on the CPU."""
        encode = self.load().encode_prompt
        options = {"do_classifier_free_guidance": guided, "prompt_2": None, "prompt_3": None}  # None: the prompt again
        known = {name: value for name, value in options.items() if name in signature(encode).parameters}
        answer = encode(list(prompts), device=self.device, num_images_per_prompt=1, **known)
        names = FAMILIES[self.index["_class_name"]]
        return {name: tensor.cpu() for name, tensor in zip(names, answer, strict=True) if tensor is not None}

    def load(self) -> Any:
        """The pipeline of tokenizers and text encoders alone."""
        if self.pipeline is None:
            import diffusers

            kind = getattr(diffusers, self.index["_class_name"])
            absent = {name for name, part in self.index.items() if name in ABSENT or part == [None, None]}
            parts: dict[str, Any] = dict.fromkeys(absent)
            if "requires_safety_checker" in self.index:
                parts["requires_safety_checker"] = False  # no image is made
            pipeline = kind.from_pretrained(
                self.folder,
                dtype=self.dtype,
                use_safetensors=True,
                local_files_only=True,
                **parts,
            )
            self.pipeline = pipeline.to(self.device)
            if kind.__name__ == "StableDiffusion3Pipeline" and pipeline.text_encoder_3 is None:
                self.pipeline.transformer = transformer_without_weights(self.folder)
        return self.pipeline

    def to(self, device: torch.device) -> Self:
        self.device = torch.device(device)
        self.release()
        return self

    def release(self) -> None:
        self.pipeline = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def transformer_without_weights(folder: Path) -> Any:
    """Stable Diffusion 3's network as a description: without its third encoder the pipeline asks it for a width."""
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    config: Any = SD3Transformer2DModel.load_config(folder, subfolder="transformer")
    with torch.device("meta"):
        return SD3Transformer2DModel.from_config(config)
