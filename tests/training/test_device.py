"""Where to compute, and in which precision."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from dmdistill.training import device
from dmdistill.training.device import choose_device, choose_precision, reuse_memory


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
    monkeypatch.setattr("dmdistill.training.device.cpu_prefers_bf16", lambda: faster)
    assert choose_precision("auto", torch.device("cpu")) is expected
    assert choose_precision("auto", torch.device("mps")) is None


@pytest.mark.parametrize(
    ("amx", "avx512", "intel", "expected"),
    [
        (True, True, True, True),
        (False, True, True, False),
        (False, True, False, True),
        (False, False, False, False),
        (False, False, True, False),
    ],
)
def test_a_cpu_likes_bf16_with_amx_or_with_amds_instruction(amx, avx512, intel, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(device, "is_intel", lambda: intel)
    assert device.cpu_prefers_bf16() is expected


@pytest.mark.parametrize(("text", "intel"), [("vendor_id : GenuineIntel", True), ("vendor_id : AuthenticAMD", False)])
def test_the_maker_is_read_where_the_system_tells_it(text, intel, monkeypatch, tmp_path):
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(device, "Path", lambda name: file)
    monkeypatch.setattr(device.platform, "processor", lambda: text)
    assert device.is_intel() is intel
    file.write_text(text)
    monkeypatch.setattr(device.platform, "processor", lambda: "")
    assert device.is_intel() is intel


COUNT_PAGE_FAULTS = """
import resource, sys
import torch
from dmdistill.training.device import reuse_memory
if "reuse" in sys.argv:
    reuse_memory()
torch.ones(100_000_000)  # freed at once: room for the next ones, each of more than the 32 MB that glibc reuses itself
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an allocator of glibc")
def test_memory_of_freed_tensors_is_given_to_the_next_ones():
    """In a process of its own, whose heap is whole. 200 MB are written: 50,000 pages, or 100 huge ones."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}

    def count(*words, **variables):
        command = [sys.executable, "-c", COUNT_PAGE_FAULTS, *words]
        return int(subprocess.run(command, env=own | variables, capture_output=True, text=True, check=True).stdout)

    reused, anew = count("reuse"), count()
    assert reused < 500
    assert 5 * reused < anew
    assert count("reuse", MALLOC_MMAP_THRESHOLD_="65536") > 5 * reused  # what the user asks of glibc goes first


def test_other_c_libraries_keep_their_allocator(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(device, "ctypes", None)
    reuse_memory()
