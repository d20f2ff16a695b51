"""Where to compute, and in which precision."""

import pytest
import torch

from dmdistill.training.device import choose_device, choose_precision


def test_auto_takes_a_device_that_computes():
    device = choose_device("auto")
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert torch.ones(3, device=device).sum().item() == 3


def test_a_device_by_name():
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu:x"])
def test_a_device_that_is_not_here_is_one_clear_line(name):
    with pytest.raises(ValueError, match=f"device '{name}' cannot be used") as caught:
        choose_device(name)
    assert "\n" not in str(caught.value)


def test_precisions():
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu) is None
    assert choose_precision("bf16", cpu) is torch.bfloat16
    assert choose_precision("auto", cpu) in (None, torch.bfloat16)


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, None)])
def test_auto_takes_bf16_where_the_hardware_has_it(native, expected, monkeypatch):
    monkeypatch.setattr("dmdistill.training.device.cpu_has_bf16", lambda: native)
    assert choose_precision("auto", torch.device("cpu")) is expected
    assert choose_precision("auto", torch.device("mps")) is None
