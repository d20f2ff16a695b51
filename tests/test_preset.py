"""What the README promises of the bundled preset. Minutes of two cores: `make test-slow`."""

import pytest
import torch

from dmdistill.commands.distill.command import distill
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.presets import from_preset
from dmdistill.io.atomic import read_json


@pytest.mark.slow
def test_the_preset_keeps_its_promise(tmp_path, monkeypatch):
    """At most 2 minutes of pairs and 5 of distillation on two cores, and at most twice the teacher's distance."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        distill(from_preset(DistillConfig, "fashion"))
    finally:
        torch.set_num_threads(threads)
    report = read_json(tmp_path / "runs" / "distill" / "report.json")
    teacher, student = (report[who]["metrics"]["frechet_fashion-classifier"] for who in ("teacher", "student"))
    assert student <= 2 * teacher
    assert report["seconds"]["distillation"] <= 300
    assert report["seconds"]["pairs"] <= 120
