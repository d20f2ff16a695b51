"""Diversity within a prompt."""

import math
from itertools import combinations

import pytest
import torch

from dmdistill.metrics.accumulate import FeatureAccumulator, sample_numbers
from dmdistill.metrics.diversity import prompt_diversity


def test_it_is_the_mean_over_prompts_of_the_mean_over_pairs(rng):
    features = torch.randn(23, 5, generator=rng) + 1
    groups = torch.randint(6, (23,), generator=rng) * 10
    means = []
    for group in groups.unique():
        pairs = [1 - torch.cosine_similarity(a, b, dim=0).item() for a, b in combinations(features[groups == group], 2)]
        means += [sum(pairs) / len(pairs)] if pairs else []
    assert prompt_diversity(features, groups) == pytest.approx(sum(means) / len(means), rel=1e-5)


@pytest.mark.parametrize("degrees", [0, 60, 90, 180])
def test_two_images_have_their_distance_whatever_their_scale(degrees):
    """And the one of another prompt counts nothing."""
    angle = math.radians(degrees)
    features = torch.tensor([[2.0, 0], [7.0, 7.0], [3 * math.cos(angle), 3 * math.sin(angle)]])
    assert prompt_diversity(features, torch.tensor([4, 1, 4])) == pytest.approx(1 - math.cos(angle), abs=1e-6)


def test_orthogonal_images_are_at_distance_one_and_prompts_count_alike():
    """Ten pairs of one prompt and one of another, whose images are copies."""
    features = torch.cat([torch.eye(5, 6), torch.eye(6)[[5, 5]]])
    assert prompt_diversity(features, torch.tensor([0] * 5 + [1] * 2)) == pytest.approx(0.5)


def test_a_prompt_needs_two_images():
    with pytest.raises(ValueError, match="3 images of as many prompts"):
        prompt_diversity(torch.eye(3), torch.arange(3))


@pytest.mark.parametrize(("count", "capacity"), [(40, 100), (100, 30)])
def test_the_numbers_of_stored_images_are_known(count, capacity):
    """Added in two parts by two processes, the later one first."""
    numbers = torch.arange(count, dtype=torch.float32)[:, None]
    parts = [FeatureAccumulator("x", "x", capacity) for _ in range(2)]
    parts[0].add(numbers[:17], first=0)
    parts[1].add(numbers[17:], first=17)
    stored = (parts[1] + parts[0]).statistics().features.flatten()
    assert stored.tolist() == sample_numbers(count, capacity).tolist()
