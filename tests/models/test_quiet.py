"""Commands print what they have to say, and nothing of the libraries that they use."""

import os
import subprocess
import sys

from dmdistill.models.quiet import quiet_libraries


def test_a_command_on_a_pipeline_prints_nothing_else(tiny_pipeline, tmp_path):
    """On stderr: transformers misses torchvision, and torch a fused norm of bf16 images with fp32 weights."""
    words = [str(tiny_pipeline("flux")), "--prompt", "red", "--count", "1", "--height", "64", "--solver-steps", "1"]
    compute = ["--device", "cpu", "--precision", "bf16", "--threads", "1"]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_VERBOSITY")}
    command = [sys.executable, "-m", "dmdistill", "sample", *words, *compute]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "1 images, 1 evaluation(s) each: samples.png"


def test_an_own_verbosity_is_followed(monkeypatch):
    monkeypatch.setenv("DIFFUSERS_VERBOSITY", "info")
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    quiet_libraries()
    assert (os.environ["DIFFUSERS_VERBOSITY"], os.environ.pop("TRANSFORMERS_VERBOSITY")) == ("info", "error")
