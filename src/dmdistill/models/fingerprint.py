"""Identity of a model by its weights, for pairs and caches."""

from __future__ import annotations

import hashlib
from itertools import chain
from typing import Any

from torch import Tensor, nn

from dmdistill.distributed.stored_weights import iterate_state
from dmdistill.io.checksums import tensor_bytes
from dmdistill.models.model import Model

__all__ = ["fingerprint"]


def fingerprint(model: Model) -> str:
    """Return the model's name and eight hexadecimal digits of a hash of all that determines its samples and images.

    That is its weights, the autoencoder's, parameterisation, noise schedule, clipping, and an embedded guidance that
    is chosen. Solver, steps, classifier-free guidance, precision and conditions are not included, as pairs and caches
    record them beside it.
    """
    denoiser, sha = model.denoiser, hashlib.sha256()
    modules = [model.network, *([model.autoencoder] if isinstance(model.autoencoder, nn.Module) else [])]
    values: list[Any] = [value for _, value in sorted(vars(denoiser.schedule).items())]
    values += [getattr(denoiser, "sigma_data", None), getattr(model.network, "time_scale", 1.0)]
    values += [type(denoiser).__name__, type(denoiser.schedule).__name__, getattr(model, "clipping", None)]
    if (scale := model.config.get("embedded_guidance")) is not None:
        values.append(float(scale))
    for value in chain(*map(iterate_state, modules), values):
        if isinstance(value, Tensor):
            sha.update(tensor_bytes(value))
        else:
            sha.update(repr(float(value) if isinstance(value, int) else value).encode())
    return f"{model.name} {sha.hexdigest()[:8]}"
