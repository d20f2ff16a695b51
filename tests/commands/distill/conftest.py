"""What the tests of `dmdistill distill` share: runs of a second, without figures."""

import pytest

from helpers.configs import small_distillation
from helpers.runs import skip_figures


@pytest.fixture(autouse=True)
def without_figures(request, monkeypatch):
    """Skip figures and timings where a test does not use the fixture `figures`."""
    if "figures" not in request.fixturenames:
        skip_figures(monkeypatch)


@pytest.fixture
def figures():
    """Asks for a run's figures and timings."""


@pytest.fixture
def settings(tiny_teacher, tmp_path):
    """name, options -> a distillation of the tiny teacher of six steps."""

    def build(name="run", **changes):
        if {"lora_student", "lora_fake"} & changes.keys():
            pytest.importorskip("peft")
        plain = {"teacher": str(tiny_teacher), "log_every": 2, "report_images": 8}
        return small_distillation(**plain | {"out": tmp_path / name} | changes)

    return build
