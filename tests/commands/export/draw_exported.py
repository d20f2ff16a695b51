"""Generates images with exported folders, where dmdistill cannot be imported: `python -I draw_exported.py JOBS`.

JOBS: a JSON list of {"folder", "base": the teacher of adapters, "prompts", "guidance"}. FOLDER.z.pt holds
the noise; images, B C H W in [0, 1] or about it, go to FOLDER.out.pt.
"""

import json
import sys
from pathlib import Path

import torch

sys.modules["dmdistill"] = None

from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.utils import logging

torch.set_num_threads(1)
logging.disable_progress_bar()


class Noise:
    """Noise that replaces what a pipeline draws."""

    def __init__(self, z):
        self.z = z

    def __call__(self, shape, **_):
        assert tuple(shape) == tuple(self.z.shape)
        return self.z.clone()


def load_pipeline(job):
    if job["base"] is None:
        return DiffusionPipeline.from_pretrained(job["folder"], trust_remote_code=True)
    pipeline = DiffusionPipeline.from_pretrained(job["base"])
    pipeline.load_lora_weights(job["folder"])
    flow = "FlowMatch" in type(pipeline.scheduler).__name__
    kind = FlowMatchEulerDiscreteScheduler if flow else DDIMScheduler
    pipeline.scheduler = kind.from_pretrained(job["folder"], subfolder="scheduler")
    return pipeline


def generate(job):
    pipeline, z = load_pipeline(job), torch.load(job["folder"] + ".z.pt")
    pipeline.set_progress_bar_config(disable=True)
    name = type(pipeline).__name__
    if name == "OneStepPipeline":
        labels = [1, 0] if pipeline.config.classes else None
        return pipeline(noise=z, class_labels=labels, output_type="pt").images / 2 + 0.5
    options = {"num_inference_steps": 1, "output_type": "np"}
    if name in ("DDIMPipeline", "DiTPipeline"):
        sys.modules[type(pipeline).__module__].randn_tensor = Noise(z)
        inputs = {"class_labels": [1, 0], "guidance_scale": 1} if name == "DiTPipeline" else {"batch_size": len(z)}
    else:
        if name == "FluxPipeline":
            z = pipeline._pack_latents(z, *z.shape)
        inputs = {"latents": z, "guidance_scale": job["guidance"], "height": 16, "width": 16, "prompt": job["prompts"]}
    return torch.from_numpy(pipeline(**inputs, **options).images).permute(0, 3, 1, 2)


for job in json.loads(Path(sys.argv[1]).read_text()):
    torch.save(generate(job), job["folder"] + ".out.pt")
