"""Generates images with exported folders, where dmdistill cannot be imported: `python -I draw_exported.py JOBS`.

JOBS: a JSON list of {"folder", "base": the teacher of adapters, "prompts", "guidance": None for the pipeline's own}.
FOLDER.z.pt holds the noise, then that of each transition; images, B C H W in [0, 1] or about it, go to FOLDER.out.pt.
Scheduler and steps are what the folder's card says.
"""

import ast
import json
import re
import sys
from pathlib import Path

import torch

sys.modules["dmdistill"] = None

import diffusers
from diffusers import DiffusionPipeline
from diffusers.utils import logging

torch.set_num_threads(1)
logging.disable_progress_bar()


class Noise:
    """Noise that replaces what a pipeline or a scheduler draws, in turn."""

    def __init__(self, noise):
        self.noise = list(noise)

    def __call__(self, shape, **_):
        z = self.noise.pop(0)
        assert tuple(shape) == tuple(z.shape)
        return z.clone()


def replace_noise(user, noise):
    """Make the module of an object's class draw this noise."""
    sys.modules[type(user).__module__].randn_tensor = Noise(noise)


def load_pipeline(job, card):
    if job["base"] is None:
        return DiffusionPipeline.from_pretrained(job["folder"], trust_remote_code=True)
    pipeline = DiffusionPipeline.from_pretrained(job["base"])
    pipeline.load_lora_weights(job["folder"])
    kind = getattr(diffusers, re.search(r"pipeline.scheduler = (\w+)", card)[1])
    pipeline.scheduler = kind.from_pretrained(job["folder"], subfolder="scheduler")
    return pipeline


def generate(job):
    card = (Path(job["folder"]) / "README.md").read_text()
    pipeline, (z, *noise) = load_pipeline(job, card), torch.load(job["folder"] + ".z.pt")
    pipeline.set_progress_bar_config(disable=True)
    name = type(pipeline).__name__
    if name == "StudentPipeline":
        labels = [1, 0] if pipeline.config.classes else None
        return pipeline(noise=z, class_labels=labels, output_type="pt").images / 2 + 0.5
    argument, value = re.search(r" (num_inference_steps|timesteps|sigmas)=(\d+|\[.*?\])", card).groups()
    options = {argument: ast.literal_eval(value), "output_type": "np"}
    if name in ("DDIMPipeline", "DiTPipeline"):
        replace_noise(pipeline, [z])
        inputs = {"class_labels": [1, 0], "guidance_scale": 1} if name == "DiTPipeline" else {"batch_size": len(z)}
    else:
        if name == "FluxPipeline":
            z, *noise = (pipeline._pack_latents(one, *one.shape) for one in (z, *noise))
        inputs = {"latents": z, "height": 16, "width": 16, "prompt": job["prompts"]}
        inputs |= {"guidance_scale": job["guidance"]} if job["guidance"] is not None else {}
    replace_noise(pipeline.scheduler, noise)
    return torch.from_numpy(pipeline(**inputs, **options).images).permute(0, 3, 1, 2)


for job in json.loads(Path(sys.argv[1]).read_text()):
    torch.save(generate(job), job["folder"] + ".out.pt")
