"""The precision of networks that may be the user's own."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dmdistill.core.denoisers import Denoiser
from dmdistill.io.console import say
from dmdistill.io.errors import first_line

__all__ = ["fall_back_to_fp32"]


def fall_back_to_fp32(name: str, denoiser: Denoiser, evaluate: Callable[[], object]) -> None:
    """Set a denoiser's precision to None, and say so, where its network can be evaluated in fp32 only.

    Args:
        name: of the model.
        denoiser: with the precision to try.
        evaluate: evaluates the network once.
    """
    precision = denoiser.precision
    error = evaluation_error(denoiser, precision, evaluate)
    if error is None or evaluation_error(denoiser, None, evaluate) is not None:
        denoiser.precision = precision
        return
    say(f"{name}: the network computes in fp32, as it fails in {precision} ({first_line(error)})", stderr=True)


def evaluation_error(
    denoiser: Denoiser, precision: torch.dtype | None, evaluate: Callable[[], object]
) -> Exception | None:
    """Return the error of evaluating the network in a precision, which it sets; None for none."""
    denoiser.precision = precision
    try:
        evaluate()
    except Exception as error:  # whatever the user's network raises
        return error
    return None
