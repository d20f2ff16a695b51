"""Where to compute, and in which precision."""

import pytest
import torch

from dmdistill.training import device
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


@pytest.mark.parametrize(("faster", "expected"), [(True, torch.bfloat16), (False, None)])
def test_auto_takes_bf16_where_the_hardware_is_faster_in_it(faster, expected, monkeypatch):
    monkeypatch.setattr("dmdistill.training.device.cpu_likes_bf16", lambda: faster)
    assert choose_precision("auto", torch.device("cpu")) is expected
    assert choose_precision("auto", torch.device("mps")) is None


@pytest.mark.parametrize(
    ("native", "bf16", "expected"), [(True, 1e-3, True), (True, 3e-3, False), (False, 1e-3, False)]
)
def test_a_cpu_with_the_instruction_is_asked_how_fast_it_is(native, bf16, expected, monkeypatch):
    monkeypatch.setattr(device, "least_seconds", lambda *dtypes: [2e-3, bf16])
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native, raising=False)
    assert device.cpu_likes_bf16.__wrapped__() is expected


def test_a_convolution_takes_time_and_the_answer_is_kept():
    assert all(0 < least < 10 for least in device.least_seconds(torch.float32, torch.bfloat16, repeats=2))
    assert device.cpu_likes_bf16() is device.cpu_likes_bf16()
