"""`dmdistill demo`: the bundled teacher distilled, or resumed."""

import pytest

from dmdistill.commands.cli import main
from dmdistill.commands.demo import command as demonstration
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.options import ComputeOptions
from dmdistill.commands.presets import from_preset, write_config


@pytest.fixture
def begun(monkeypatch):
    """The configurations with which distillations begin, none of which is run."""
    configs = []
    monkeypatch.setattr(demonstration, "distill", configs.append)
    return configs


def test_the_demo_is_the_preset_of_the_bundled_teacher(begun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["demo", "--threads", "1"])
    expected = from_preset(DistillConfig, "fashion", compute=ComputeOptions(threads=1))
    (config,) = begun
    assert str(config.out) == "runs/demo"
    assert config == from_preset(DistillConfig, "fashion", out=config.out, compute=expected.compute)


def test_a_demo_that_was_stopped_goes_on(begun, tmp_path):
    first = from_preset(DistillConfig, "fashion", out=tmp_path, steps=7)
    write_config(first, tmp_path / "config.toml")
    main(["demo", "--out", str(tmp_path)])
    assert (begun[0].steps, begun[0].resume) == (7, tmp_path)
