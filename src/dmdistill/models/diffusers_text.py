"""Text encoders of diffusers' pipelines, called as the pipelines call them."""

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

from dmdistill.io.errors import first_line, import_optional
from dmdistill.models.config_json import read_object
from dmdistill.models.diffusers_components import count_weights
from dmdistill.models.diffusers_folder import read_component_config, weights_variant
from dmdistill.models.quiet import quiet
from dmdistill.networks.parameter_budget import limit_parameters

__all__ = ["PipelineText"]

POOLED = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
OUTPUTS = {  # of encode_prompt, by the class of the pipeline
    "StableDiffusionPipeline": ("prompt_embeds", "negative_prompt_embeds"),
    "StableDiffusionXLPipeline": POOLED,
    "StableDiffusion3Pipeline": POOLED,
    "FluxPipeline": ("prompt_embeds", "pooled_prompt_embeds", "text_ids"),
}
EMBEDS = ("prompt_embeds", "pooled_prompt_embeds")  # the inputs of networks
NOT_LOADED = ("unet", "transformer", "vae", "safety_checker", "feature_extractor", "image_encoder")
SUFFIXES = (".json", ".txt", ".model", ".safetensors")  # of the files of tokenizers and text encoders


class PipelineText:
    """The tokenizers and text encoders of a pipeline, as a `TextEncoder`; they are loaded when they are first used.

    Args:
        folder: of the pipeline.
        dtype: of the text encoders and of the embeddings.
    """

    def __init__(self, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
        self.folder, self.dtype = folder, dtype
        self.device = torch.device("cpu")
        self.pipeline: Any = None

    @cached_property
    def index(self) -> dict[str, Any]:
        """The content of model_index.json. ValueError where it is of no pipeline that is known here."""
        file = self.folder / "model_index.json"
        if not file.is_file():
            raise ValueError(f"{file} does not exist")
        index = read_object(file)
        name = index.get("_class_name")
        if name not in list(OUTPUTS):
            raise ValueError(f"{self.folder} is of the class {name}; prompts are encoded for {', '.join(OUTPUTS)}")
        return index

    @property
    def id(self) -> str:
        """The pipeline's class, the dtype, and a digest of all files that determine the embeddings."""
        return self.digest

    @cached_property
    def digest(self) -> str:
        """The id, computed once."""
        sha = hashlib.sha256(json.dumps(self.index, sort_keys=True).encode())
        for file in self.files():
            sha.update(file.relative_to(self.folder).as_posix().encode())
            with file.open("rb") as content:
                sha.update(hashlib.file_digest(content, "sha256").digest())
        return f"{self.index['_class_name']} {str(self.dtype).removeprefix('torch.')} {sha.hexdigest()[:16]}"

    def files(self) -> Iterator[Path]:
        """Iterate over the files that determine the embeddings."""
        for pattern in ("tokenizer*/*", "text_encoder*/*", "transformer/config.json"):
            yield from sorted(file for file in self.folder.glob(pattern) if file.suffix in SUFFIXES)

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return prompt_embeds (B, tokens, width) and, for most pipelines, pooled_prompt_embeds (B, width)."""
        outputs = self.encode_prompt(prompts, guided=False)
        return {name: outputs[name] for name in EMBEDS if name in outputs}

    def empty(self) -> dict[str, Tensor]:
        """Return the embeddings of the null prompt, as guidance without a negative prompt uses them."""
        if "negative_prompt_embeds" not in OUTPUTS[self.index["_class_name"]]:
            return self.encode([""])
        outputs = self.encode_prompt([""], guided=True)
        return {name: outputs[f"negative_{name}"] for name in EMBEDS if name in outputs}

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str], *, guided: bool) -> dict[str, Tensor]:
        """Return all outputs of the pipeline's encode_prompt, by name, on the CPU."""
        encode = self.load().encode_prompt
        options = {"do_classifier_free_guidance": guided, "prompt_2": None, "prompt_3": None}  # None: the prompt again
        options = {name: value for name, value in options.items() if name in signature(encode).parameters}
        try:
            with quiet("diffusers", "transformers"):
                outputs = encode(list(prompts), device=self.device, num_images_per_prompt=1, **options)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of a tokenizer and a text encoder that do not fit each other
            raise ValueError(f"{self.folder} cannot encode prompts: {first_line(error)}") from None
        names = OUTPUTS[self.index["_class_name"]]
        return {name: tensor.cpu() for name, tensor in zip(names, outputs, strict=True) if tensor is not None}

    def load(self) -> Any:
        """Return the pipeline with its tokenizers and text encoders only; it is loaded once."""
        if self.pipeline is None:
            self.pipeline = self.load_pipeline()
        return self.pipeline

    def load_pipeline(self) -> Any:
        """Load the pipeline's tokenizers and text encoders, whose configs are checked first."""
        kind = getattr(import_optional("diffusers", str(self.folder), extra="diffusers"), self.index["_class_name"])
        import_optional("transformers", str(self.folder), extra="diffusers")
        encoders = [folder for folder in sorted(self.folder.glob("text_encoder*")) if folder.is_dir()]
        for folder in encoders:
            read_component_config(folder)
        variants = [weights_variant(folder) for folder in encoders]
        left_out = {name for name, part in self.index.items() if name in NOT_LOADED or part == [None, None]}
        parts: dict[str, Any] = dict.fromkeys(left_out)
        if "requires_safety_checker" in self.index:
            parts["requires_safety_checker"] = False  # no images are made
        options = {"use_safetensors": True, "local_files_only": True, "variant": next(filter(None, variants), None)}
        tensors = sum(count_weights(folder)[0] for folder in encoders)
        try:
            with quiet("diffusers", "transformers"), limit_parameters(tensors):
                pipeline = kind.from_pretrained(self.folder, dtype=self.dtype, **options, **parts)
        except Exception as error:  # whatever the libraries raise
            raise ValueError(f"the text encoders of {self.folder} cannot be loaded: {first_line(error)}") from None
        check_tokenizers(pipeline.components, self.folder)
        pipeline.to(self.device)
        if kind.__name__ == "StableDiffusion3Pipeline" and pipeline.text_encoder_3 is None:
            pipeline.transformer = transformer_without_weights(self.folder)
        return pipeline

    def to(self, device: torch.device) -> Self:
        """Encode on another device from now on."""
        self.device = torch.device(device)
        self.release()
        return self

    def release(self) -> None:
        """Free the memory of the text encoders; they are loaded again when they are next used."""
        self.pipeline = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def check_tokenizers(components: dict[str, Any], folder: Path) -> None:
    """Raise ValueError where prompts would be padded to more tokens than the text encoder has positions.

    A tokenizer whose config names 1e9 tokens, or none, takes that much memory and ends the process.
    """
    for name in (name for name in components if name.startswith("tokenizer") and components[name] is not None):
        encoder = components.get(name.replace("tokenizer", "text_encoder"))
        positions = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
        length = components[name].model_max_length
        if positions is not None and not (type(length) is int and 1 <= length <= positions):
            raise ValueError(
                f"{folder / name}: model_max_length is {length!r:.50}, expected an integer from 1 to {positions}, the "
                "positions of its text encoder"
            )


def transformer_without_weights(folder: Path) -> Any:
    """Build Stable Diffusion 3's network without weights: without its third encoder the pipeline reads its width."""
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    config: Any = SD3Transformer2DModel.load_config(folder, subfolder="transformer")
    with torch.device("meta"):
        return SD3Transformer2DModel.from_config(config)
