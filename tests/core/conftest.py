"""What the tests of the mathematics share: paths, an exact teacher on each, and conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import pytest
import torch
from torch import Tensor

from dmdistill.core.schedules import EDM, VP, Flow, NoiseSchedule
from dmdistill.models.gaussian_mixture import GaussianMixture

PATHS = {"edm": EDM(), "vp": VP.linear_betas(), "flow": Flow()}


@dataclass(frozen=True)
class Labels:
    """One-hot labels, the simplest condition."""

    one_hot: Tensor

    def null(self) -> Self:
        return type(self)(torch.zeros_like(self.one_hot))

    def concat(self, other: Self) -> Self:
        return type(self)(torch.cat([self.one_hot, other.one_hot]))

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(self.one_hot[rows])


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small only wait for a second core; and one thread adds in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def labels():
    """Labels from class indices: labels([0, 2], 3)."""
    return lambda classes, count: Labels(torch.eye(count)[torch.as_tensor(classes)])


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=["edm", "vp", "flow"])
def schedule(request) -> NoiseSchedule:
    return PATHS[request.param]


@pytest.fixture
def schedules() -> dict[str, NoiseSchedule]:
    return PATHS


@pytest.fixture
def mixture():
    """An exact teacher of images 2 x 3 x 5 on a given path: four unequal components in three classes."""

    def build(schedule: NoiseSchedule) -> GaussianMixture:
        rng = torch.Generator().manual_seed(1)
        return GaussianMixture(
            torch.randn(4, 2, 3, 5, generator=rng) * 0.5,
            schedule,
            stds=torch.tensor([0.2, 0.3, 0.4, 0.5]),
            weights=torch.tensor([1.0, 2.0, 3.0, 4.0]),
            classes=torch.tensor([0, 1, 2, 0]),
        )

    return build


@pytest.fixture
def every_time():
    """All bins of a path, in fp32 as training draws them, and the last time of the solvers."""
    return lambda schedule: torch.cat([schedule.time(torch.arange(schedule.bins)), torch.tensor([schedule.t_max])])
