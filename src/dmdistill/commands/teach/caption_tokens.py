"""Captions as tokens: the conditions of a U-Net whose text encoder is trained with it, and their batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from dmdistill.commands.teach.tokenizer import train_tokenizer
from dmdistill.models.quiet import quiet
from dmdistill.networks.diffusers_wrappers import UNet2DCondition

__all__ = ["TOKENS", "CaptionTokens", "CaptionedLatents", "TextUNet", "Tokens"]

TOKENS = 16  # at most, of a prompt


@dataclass(frozen=True)
class Tokens:
    """Prompts as tokens, which the trained text encoder encodes anew in each step.

    Attributes:
        prompts: int64, B TOKENS.
        empty: of the null prompt, 1 TOKENS.
    """

    prompts: Tensor
    empty: Tensor

    def null(self) -> Self:
        """Return as many null prompts."""
        return replace(self, prompts=self.empty.expand(len(self), -1))

    def concat(self, other: Self) -> Self:
        """Return these prompts followed by others."""
        return replace(self, prompts=torch.cat([self.prompts, other.prompts]))

    def __getitem__(self, rows: slice) -> Self:
        return replace(self, prompts=self.prompts[rows])

    def __len__(self) -> int:
        return len(self.prompts)

    def to(self, device: torch.device) -> Self:
        """Return the prompts on a device."""
        return type(self)(self.prompts.to(device), self.empty.to(device))

    def drop(self, probability: float, *, rng: torch.Generator) -> Self:
        """Replace each prompt by the null prompt with this probability, for classifier-free guidance."""
        keep = torch.rand(len(self), 1, generator=rng, device=rng.device) >= probability
        return replace(self, prompts=torch.where(keep, self.prompts, self.empty))


@dataclass(frozen=True)
class Encoded:
    """Embeddings of prompts, as the wrapper of the U-Net takes them."""

    tensors: dict[str, Tensor]


class TextUNet(nn.Module):
    """U-Net and text encoder as one network F(x, t, tokens), since they are trained together."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.unet, self.text_encoder = UNet2DCondition(unet), text_encoder

    def forward(self, x: Tensor, t: Tensor, cond: Tokens) -> Tensor:
        """Return F(x, t, cond), B C H W."""
        embeds = self.text_encoder(cond.prompts)[0]
        return self.unet(x, t, Encoded({"prompt_embeds": embeds}))


@dataclass(frozen=True)
class CaptionTokens:
    """The captions of a set of images as conditions.

    Attributes:
        tokenizer: CLIP's, trained on the captions.
        tokens: of the captions, int64, N TOKENS. empty: of the null prompt, 1 TOKENS.
    """

    tokenizer: Any
    tokens: Tensor
    empty: Tensor

    @classmethod
    def of(cls, captions: Sequence[str]) -> Self:
        """Train a tokenizer on captions and return them as its tokens."""
        with quiet("transformers"):
            tokenizer = train_tokenizer(captions, length=TOKENS)
        options = {"padding": "max_length", "truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
        return cls(tokenizer, *(tokenizer(texts, **options).input_ids for texts in (list(captions), [""])))

    def __len__(self) -> int:
        return len(self.tokens)

    def __str__(self) -> str:
        return f"{len(self)} captions"

    def select(self, index: Tensor) -> Tokens:
        """Return the captions of these numbers, integers (B,), on their device."""
        return Tokens(self.tokens.to(index.device)[index], self.empty.to(index.device))

    def to(self, device: torch.device) -> Self:
        """Return the tokens on a device."""
        return replace(self, tokens=self.tokens.to(device), empty=self.empty.to(device))


class CaptionedLatents:
    """Random batches of latents with the tokens of their captions, on the device of the random generator."""

    def __init__(self, latents: Tensor, captions: CaptionTokens, *, rng: torch.Generator, dropout: float) -> None:
        self.latents, self.captions = latents.to(rng.device), captions.to(rng.device)
        self.rng, self.dropout = rng, dropout

    def draw(self, n: int) -> tuple[Tensor, Tokens]:
        """Draw n latents with replacement, fp32, n C H W, and their captions."""
        rows = torch.randint(len(self.latents), (n,), generator=self.rng, device=self.rng.device)
        return self.latents[rows], self.captions.select(rows).drop(self.dropout, rng=self.rng)
