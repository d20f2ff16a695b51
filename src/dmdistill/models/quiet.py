"""Loading, and commands, without the messages of the libraries that they use."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

__all__ = ["quiet", "quiet_libraries"]

RMS_NORM = "Mismatch dtype between input and weight"  # of torch, for bf16 images and fp32 weights, as autocast has them


def quiet_libraries() -> None:
    """Silence what diffusers and transformers, once they are imported, and torch say to developers, not to users.

    $DIFFUSERS_VERBOSITY and $TRANSFORMERS_VERBOSITY, where they are set, are followed.
    """
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    warnings.filterwarnings("ignore", message=RMS_NORM)


@contextmanager
def quiet(*libraries: str) -> Iterator[None]:
    """Silence warnings, and the log and progress bars of libraries, within the block.

    Args:
        libraries: "diffusers", "transformers"; they are installed.
    """
    loggers = [import_module(f"{name}.utils.logging") for name in libraries]
    before = [(logger.get_verbosity(), logger.is_progress_bar_enabled()) for logger in loggers]
    try:
        for logger in loggers:
            logger.set_verbosity(logging.CRITICAL)
            logger.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, (verbosity, bars) in zip(loggers, before, strict=True):
            logger.set_verbosity(verbosity)
            if bars:
                logger.enable_progress_bar()
