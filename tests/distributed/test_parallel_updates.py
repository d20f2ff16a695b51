"""Processes, shards and microbatches change updates by rounding only: in double precision nothing else is left."""

import numpy as np
import pytest
import torch

from helpers.parallel_updates import train
from helpers.process_group_tests import together

STEPS = 40


def arrays(state):
    """List the arrays of a nested state."""
    if isinstance(state, dict):
        return arrays(list(state.values()))
    if isinstance(state, list | tuple):
        return [array for value in state for array in arrays(value)]
    return [state] if isinstance(state, np.ndarray) else []


def difference(states, others):
    """Return the largest relative difference of an array from its counterpart."""
    pairs = list(zip(arrays(states), arrays(others), strict=True))
    assert len(pairs) > 60
    return max(abs(a - b).max() / abs(a).max() for a, b in pairs if abs(a).max() > 0)


@pytest.fixture(scope="module")
def reference():
    """A run of one process in double precision."""
    return train("ddp", 1, STEPS, torch.float64)


@pytest.mark.parametrize(
    ("processes", "strategy", "microbatches", "sharding_group"),
    [(2, "ddp", 1, 0), (2, "fsdp", 1, 0), (2, "fsdp", 2, 0), (4, "fsdp", 1, 2), (2, "fsdp", 1, 1)],
)
def test_in_double_precision_every_way_of_training_is_the_same(
    processes, strategy, microbatches, sharding_group, reference
):
    """After 40 updates: a fault would stay in any precision, rounding is gone."""
    arguments = strategy, microbatches, STEPS, torch.float64, sharding_group
    (result, _), *_ = together(processes, train, *arguments)
    losses, states = result
    assert losses == pytest.approx(reference[0], rel=1e-12)
    assert difference(reference[1], states) < 1e-12


def test_in_single_precision_even_one_process_differs_by_rounding(reference):
    """Dividing the batch of one process, nearly exact in double precision, changes single precision by far more."""
    exact = train("ddp", 2, STEPS, torch.float64)
    assert difference(reference[1], exact[1]) < 1e-12
    single, divided = (train("ddp", microbatches, STEPS, torch.float32) for microbatches in (1, 2))
    assert 1e-7 < difference(single[1], divided[1]) < 1e-2
