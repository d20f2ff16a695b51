"""The tiny pipelines that other tests stand on are real ones: diffusers loads and samples them."""

import pytest
import torch

from helpers.tiny_pipelines import FAMILIES

diffusers = pytest.importorskip("diffusers")


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_samples_a_tiny_pipeline(family, tiny_pipeline, rng):
    pipe = diffusers.DiffusionPipeline.from_pretrained(tiny_pipeline(family), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    prompts = ["a red square", "a blue circle", "a red square"]
    drawn = pipe(prompts, num_inference_steps=2, generator=rng, height=16, width=16, output_type="pt").images
    assert drawn.shape == (3, 3, 16, 16)
    assert torch.isfinite(drawn).all()
    assert drawn.std() > 0.05
