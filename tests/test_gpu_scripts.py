"""The scripts of benchmarks/gpu from end to end, on the CPU, at a size that takes seconds."""

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dmdistill.commands.evaluate import compute
from dmdistill.commands.teach import command as teaching
from dmdistill.data.pairs import open_pairs
from dmdistill.models.load import load_model
from dmdistill.models.model import Student, Teacher
from dmdistill.training.metrics_log import read_metrics

FOLDER = Path(__file__).parent.parent / "benchmarks" / "gpu"
SMALL = "--model-channels 16 --channel-mult 1 --num-blocks 1 --patch-size 4"
CPU = "--device cpu --precision fp32 --threads 1 --no-compile"


@pytest.fixture
def script(monkeypatch):
    """name, words -> run that script with them."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def run(name, words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words.split())])
        importlib.import_module(name).main()

    return run


@pytest.fixture
def cifar(tmp_path):
    """Fifty images to train on, under the names of CIFAR-10's binary version."""
    folder, rng = tmp_path / "cifar", np.random.default_rng(0)
    folder.mkdir()
    for i in range(1, 6):
        rows = rng.integers(256, size=(10, 3073), dtype=np.uint8)
        rows[:, 0] %= 10
        (folder / f"data_batch_{i}.bin").write_bytes(rows.tobytes())
    return folder


@pytest.fixture
def lpips(tmp_path):
    """The folder of LPIPS's weights."""
    if not (assets := os.environ.get("DMDISTILL_ASSETS")):
        pytest.skip("LPIPS's weights: set DMDISTILL_ASSETS to the folder of lpips_vgg16.safetensors")
    return Path(assets) / "lpips_vgg16.safetensors"


def test_parcels_arrive_in_any_number_of_deliveries(script, tmp_path, rng):
    source = tmp_path / "model"
    (source / "deep").mkdir(parents=True)
    content = torch.randint(256, (3_000_000,), generator=rng, dtype=torch.uint8).numpy().tobytes()
    (source / "deep" / "weights").write_bytes(content)
    (source / "config.json").write_text("{}")
    script("parcels", f"split {source} {tmp_path / 'parts'} --mib 1")
    parts = sorted((tmp_path / "parts").iterdir())
    assert [part.name for part in parts] == ["model.000", "model.001", "model.002", "model.parcel"]
    assert max(part.stat().st_size for part in parts) <= 2**20
    store = tmp_path / "store"
    for delivery in (parts[2:], parts[:1], parts[1:2]):
        assert not (store / "model").exists()
        (tmp_path / "carried").mkdir()
        for part in delivery:
            part.rename(tmp_path / "carried" / part.name)
        script("parcels", f"take {tmp_path / 'carried'} {store}")
        (tmp_path / "carried").rename(tmp_path / f"past-{delivery[0].name}")
    assert (store / "model" / "deep" / "weights").read_bytes() == content
    assert sorted(path.name for path in store.iterdir()) == ["model"]
    script("parcels", f"take {tmp_path / 'nothing'} {store}")


def test_a_damaged_parcel_is_named(script, tmp_path):
    (tmp_path / "x.bin").write_bytes(bytes(1000))
    script("parcels", f"split {tmp_path / 'x.bin'} {tmp_path / 'parts'}")
    part = tmp_path / "parts" / "x.bin.000"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"x\.bin: its parts are damaged"):
        script("parcels", f"take {tmp_path / 'parts'} {tmp_path / 'store'}")
    assert not (tmp_path / "store" / "x.bin").exists()


def test_training_is_stopped_after_the_given_seconds(script, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    lease = importlib.import_module("lease")
    received, before = [], signal.getsignal(signal.SIGTERM)
    with lease.stop_after(0.1):
        time.sleep(0.3)  # outside of training it is passed over
        signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    with lease.stop_after(0.1):
        signal.signal(signal.SIGTERM, lambda *_: received.append(True))
        time.sleep(0.3)
    assert received == [True]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_teacher_is_trained_on_two_computers(script, cifar, tmp_path, monkeypatch):
    """The first stops in the middle; the second has only the files that it left."""
    first, second = tmp_path / "first", tmp_path / "second"
    flags = f"{SMALL} {CPU} --steps 8 --batch 4 --warmup 2 --log-every 1 --save-every 8 --sample-every 0"
    monkeypatch.setattr(Teacher, "images", lambda teacher, z, cond: z)
    loss, calls = teaching.denoising_loss, []

    def ending(*arguments):
        calls.append(None)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGTERM)
        return loss(*arguments)

    monkeypatch.setattr(teaching, "denoising_loss", ending)
    script("cifar10_teach", f"--data {cifar} --store {first} --out {tmp_path / 'out1'} -- {flags}")
    report = json.loads((tmp_path / "out1" / "teacher.json").read_text())
    assert (report["step"], report["of"], report["finished"], report["steps"]) == (5, 8, False, 5)
    assert report["images_per_second"] == pytest.approx(4 * report["steps_per_second"], abs=0.1)
    assert len(list((tmp_path / "out1").rglob("*.*"))) <= 8

    script("parcels", f"take {tmp_path / 'out1' / 'parts'} {second}")
    script("cifar10_teach", f"--data {cifar} --store {second} --out {tmp_path / 'out2'} --seconds 500")
    report = json.loads((tmp_path / "out2" / "teacher.json").read_text())
    assert (report["step"], report["finished"], report["steps"], len(calls)) == (8, True, 3, 8)
    assert [row["step"] for row in read_metrics(tmp_path / "out2")] == list(range(1, 9))

    script("parcels", f"take {tmp_path / 'out2'} {tmp_path / 'home'}")
    teacher = load_model(str(tmp_path / "home" / "teacher"))
    assert isinstance(teacher, Teacher)
    assert (teacher.name, teacher.shape) == ("cifar10", (3, 32, 32))


@pytest.fixture
def teacher_store(cifar, script, tmp_path, monkeypatch):
    """A store with a teacher of one step, in two of Heun's."""
    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "images", lambda teacher, z, cond: z)
        flags = f"{SMALL} {CPU} --steps 1 --batch 4"
        script("cifar10_teach", f"--data {cifar} --store {tmp_path / 'taught'} --out {tmp_path / 'out'} -- {flags}")
    store = tmp_path / "store"
    script("parcels", f"take {tmp_path / 'out'} {store}")
    return store


def test_a_student_is_distilled_and_evaluated(script, teacher_store, cifar, lpips, tmp_path, monkeypatch):
    """Pairs, five updates of the fake score for each of the generator, and a table with its teacher."""
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    (teacher_store / "lpips_vgg16.safetensors").symlink_to(lpips)
    pairs = "pair-count=6 shard-size=4 pair-batch=2 solver-steps=2 device=cpu precision=fp32 no-compile"
    flags = (
        f"{CPU} --steps 2 --batch 2 --batch-reg 2 --evaluate-images 4 --lpips-side 32 --sample-every 2 --solver-steps 2"
    )
    words = f"--store {teacher_store} --out {tmp_path / 'out'} --preset cifar10-small-5to1 --pairs {pairs} -- {flags}"
    script("cifar10_distill", words)
    report = json.loads((tmp_path / "out" / "distill.json").read_text())
    assert (report["preset"], report["step"], report["finished"], report["pairs"]) == ("cifar10-small-5to1", 2, True, 6)
    assert len(open_pairs(teacher_store / "pairs")) == 6
    script("parcels", f"take {tmp_path / 'out'} {tmp_path / 'home'}")
    student = load_model(str(tmp_path / "home" / "student"))
    assert isinstance(student, Student)
    assert student.config["distilled"]["fake_steps"] == 5

    class Pooled:
        """Features in Inception's place."""

        name, id = "inception", "pooled-1"

        def __call__(self, images):
            return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)

    monkeypatch.setattr(compute, "load_inception", lambda *_, **__: Pooled())
    models = f"teacher={teacher_store / 'teacher'} student={tmp_path / 'home' / 'student'}"
    for _ in range(2):  # the second time all is there
        script("cifar10_evaluate", f"--data {cifar} --out {tmp_path / 'table'} --images 12 --batch 6 {models}")
    lines = (tmp_path / "table" / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| teacher", "| student"]
    assert [line.split(" | ")[1] for line in lines[2:]] == ["35", "1"]
    assert all(name in lines[0] for name in ("fid", "kid", "precision", "recall"))
    assert all((tmp_path / "table" / f"{name}.png").is_file() for name in ("teacher", "student"))
