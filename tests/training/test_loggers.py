"""Loggers get what metrics.jsonl gets, and samples: seen by stand-ins of their packages."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from dmdistill.training.loggers import logged, need_logger
from dmdistill.training.trainer import Trainer, read_metrics


class Calls:
    """Notes what a package is asked, by the names of its functions."""

    def __init__(self):
        self.made = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.made.append((name, args, kwargs))


@pytest.fixture
def tracker(monkeypatch):
    """Stands in for wandb or trackio; an Image is the path it is made of."""

    def install(name):
        calls, module = Calls(), types.ModuleType(name)
        for function in ("init", "log", "finish"):
            setattr(module, function, getattr(calls, function))
        module.Image = lambda path: ("image", path)
        monkeypatch.setitem(sys.modules, name, module)
        return calls.made

    return install


@pytest.fixture
def writer(monkeypatch):
    """Stands in for torch.utils.tensorboard."""
    calls, module = Calls(), types.ModuleType("torch.utils.tensorboard")

    def open_writer(folder, **kwargs):
        calls.made.append(("SummaryWriter", (folder,), kwargs))
        return calls

    module.SummaryWriter = open_writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return calls.made


def trained(folder, name):
    """A run of three steps, with samples at the second; it is over, or interrupted by an error."""
    folder.mkdir()
    trainer = Trainer(folder, steps=3, updates={}, rng=torch.Generator(), log_every=1)
    file = folder / "grid.png"
    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).save(file)

    def look(step):
        if trainer.logger is not None:
            trainer.logger.picture(step, file)
        return {"frechet": 10.0 * step}

    with logged(trainer, name, {"steps": 3}):
        trainer.fit(lambda step: {"loss": torch.tensor(float(step))}, hooks=[(2, look)], name="training")
    assert trainer.logger is None
    return file


def rows_of(folder):
    """(step, figures) as metrics.jsonl has them."""
    rows = read_metrics(folder)
    return [(row["step"], {name: row[name] for name in row if name not in ("step", "seconds")}) for row in rows]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_gets_rows_and_samples_in_order(name, tracker, tmp_path):
    made = tracker(name)
    file = trained(tmp_path / "run", name)
    rows = [("log", (figures,), {"step": step}) for step, figures in rows_of(tmp_path / "run")]
    pictures = [("log", ({"samples": ("image", str(file))},), {"step": step}) for step in (2, 3)]
    run = f"run-{(tmp_path / 'run' / 'tracker-id').read_text()}"
    own = {"id": run, "dir": str(tmp_path / "run")} if name == "wandb" else {}
    begun = ("init", (), {"project": "dmdistill", "name": run, "config": {"steps": 3}, "resume": "allow", **own})
    assert made == [begun, rows[0], pictures[0], rows[1], pictures[1], rows[2], ("finish", (), {})]
    assert [figures for _, (figures,), _ in rows] == [
        {"loss": 0.0},
        {"loss": 1.0, "frechet": 20.0},
        {"loss": 2.0, "frechet": 30.0},
    ]


def test_tensorboard_gets_scalars_and_images(writer, tmp_path):
    trained(tmp_path / "run", "tensorboard")
    assert writer[0] == ("SummaryWriter", (str(tmp_path / "run" / "tensorboard"),), {"purge_step": None})
    scalars = [args for name, args, _ in writer if name == "add_scalar"]
    expected = [(name, value, step) for step, row in rows_of(tmp_path / "run") for name, value in row.items()]
    assert scalars == expected
    images = [(args, kwargs) for name, args, kwargs in writer if name == "add_image"]
    assert [args[2] for args, _ in images] == [2, 3]
    (tag, image, _), kwargs = images[0]
    assert (tag, kwargs) == ("samples", {"dataformats": "HWC"})
    assert np.array_equal(image, np.arange(24).reshape(4, 6)[:, :, None].repeat(3, axis=2))
    assert writer[-1] == ("close", (), {})


def test_a_resumed_run_goes_on_with_its_own(tracker, tmp_path):
    made = tracker("wandb")
    trainer = Trainer(tmp_path, steps=1, updates={}, rng=torch.Generator())
    for _ in range(2):
        with logged(trainer, "wandb", {}):
            pass
    begun = [kwargs for name, _, kwargs in made if name == "init"]
    assert begun[0] == begun[1]


def test_a_tracker_that_does_not_begin_is_one_line(tracker, monkeypatch, tmp_path):
    tracker("wandb")

    def init(**_):
        raise RuntimeError("No API key configured.\nMore of it.")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    trainer = Trainer(tmp_path, steps=1, updates={}, rng=torch.Generator())
    with pytest.raises(ValueError, match=r"wandb did not begin \(No API key configured\.\).*leave --log-to out"):
        logged(trainer, "wandb", {}).__enter__()


def test_tensorboard_reads_what_was_written(tmp_path):
    """The package itself: every figure of every row, and the pictures, as it reads them back."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trained(tmp_path / "run", "tensorboard")
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    read = [(one.step, name, one.value) for name in events.Tags()["scalars"] for one in events.Scalars(name)]
    written = [(step, name, value) for step, row in rows_of(tmp_path / "run") for name, value in row.items()]
    assert sorted(read) == sorted(written)
    assert [(one.step, one.width, one.height) for one in events.Images("samples")] == [(2, 6, 4), (3, 6, 4)]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_tracker_itself_takes_a_run_offline(name, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HOME", str(tmp_path))
    pytest.importorskip(name)  # trackio asks for its folder when it is imported
    trained(tmp_path / "run", name)
    kept = {"wandb": "run/wandb/offline-run-*/*.wandb", "trackio": "**/dmdistill.db"}[name]
    assert [file.stat().st_size > 0 for file in tmp_path.glob(kept)] == [True]


def test_without_a_logger_the_log_stays(tmp_path):
    trained(tmp_path / "run", None)
    assert [step for step, _ in rows_of(tmp_path / "run")] == [1, 2, 3]


def test_an_error_ends_the_tracker_too(tracker, tmp_path):
    made = tracker("wandb")
    trainer = Trainer(tmp_path, steps=1, updates={}, rng=torch.Generator())
    with pytest.raises(KeyError), logged(trainer, "wandb", {}):
        raise KeyError
    assert made[-1] == ("finish", (), {})


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_is_one_line_and_named(name, monkeypatch, tmp_path, line_of):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"--log-to {name} needs {name} "):
        need_logger(name)
    for command in ("distill", "teach"):
        assert f"pip install 'dmdistill[{name}]'" in line_of(command, "--log-to", name)
    assert list(tmp_path.iterdir()) == []
