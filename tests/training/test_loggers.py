"""Loggers get what metrics.jsonl gets, and samples: seen by stand-ins of their packages, or read from their files."""

import importlib
import io
import json
import socket
import sqlite3
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from dmdistill.training.loggers import Tracker, logging_to, require_logger
from dmdistill.training.metrics_log import read_metrics
from dmdistill.training.trainer import Trainer


class Calls:
    """Records the calls of a package, by the names of its functions."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


@pytest.fixture
def tracker(monkeypatch):
    """Stands in for wandb or trackio; an Image is the path that it was given."""

    def install(name):
        calls, module = Calls(), types.ModuleType(name)
        for function in ("init", "log", "finish"):
            setattr(module, function, getattr(calls, function))
        module.Image = lambda path: ("image", path)
        monkeypatch.setitem(sys.modules, name, module)
        return calls.calls

    return install


@pytest.fixture
def writer(monkeypatch):
    """Stands in for torch.utils.tensorboard."""
    calls, module = Calls(), types.ModuleType("torch.utils.tensorboard")

    def open_writer(folder, **kwargs):
        calls.calls.append(("SummaryWriter", (folder,), kwargs))
        return calls

    module.SummaryWriter = open_writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return calls.calls


def train(folder, name, *, steps=3, resume=False):
    """A run of so many steps, with samples at every second and at the last, and a checkpoint at each of these."""
    folder.mkdir(exist_ok=True)
    rng = torch.Generator()
    trainer = Trainer(folder, steps=steps, updates={}, rng=rng, log_every=1, save_every=2)
    if resume:
        trainer.restore()
    file = folder / "grid.png"
    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).save(file)

    def look(step):
        if trainer.logger is not None:
            trainer.logger.log_image(step, file)
        return {"frechet": 10.0 * step}

    with logging_to(trainer, name, {"steps": 3}):
        trainer.fit(lambda step: {"loss": torch.tensor(float(step))}, hooks=[(2, look)], name="training")
    assert trainer.logger is None
    return file


def metric_rows(folder):
    """(step, metrics) as metrics.jsonl has them."""
    rows = read_metrics(folder)
    return [(row["step"], {name: row[name] for name in row if name not in ("step", "seconds")}) for row in rows]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_gets_rows_and_samples_in_order(name, tracker, tmp_path):
    calls = tracker(name)
    file = train(tmp_path / "run", name)
    rows = [("log", (metrics,), {"step": step}) for step, metrics in metric_rows(tmp_path / "run")]
    pictures = [("log", ({"samples": ("image", str(file))},), {"step": step}) for step in (2, 3)]
    stored = json.loads((tmp_path / "run" / "tracker.json").read_text())
    run = stored.pop("run")
    assert run.startswith("run-")
    assert stored == {name: {"metrics": 3, "samples": 3}}
    own = {"id": run, "dir": str(tmp_path / "run")} if name == "wandb" else {}
    begun = ("init", (), {"project": "dmdistill", "name": run, "config": {"steps": 3}, "resume": "allow", **own})
    assert calls == [begun, rows[0], pictures[0], rows[1], pictures[1], rows[2], ("finish", (), {})]
    assert [metrics for _, (metrics,), _ in rows] == [
        {"loss": 0.0},
        {"loss": 1.0, "frechet": 20.0},
        {"loss": 2.0, "frechet": 30.0},
    ]


def test_tensorboard_gets_scalars_and_images(writer, tmp_path):
    train(tmp_path / "run", "tensorboard")
    assert writer[0] == ("SummaryWriter", (str(tmp_path / "run" / "tensorboard"),), {"purge_step": None})
    scalars = [args for name, args, _ in writer if name == "add_scalar"]
    expected = [(name, value, step) for step, row in metric_rows(tmp_path / "run") for name, value in row.items()]
    assert scalars == expected
    images = [(args, kwargs) for name, args, kwargs in writer if name == "add_image"]
    assert [args[2] for args, _ in images] == [2, 3]
    (tag, image, _), kwargs = images[0]
    assert (tag, kwargs) == ("samples", {"dataformats": "HWC"})
    assert np.array_equal(image, np.arange(24).reshape(4, 6)[:, :, None].repeat(3, axis=2))
    assert writer[-1] == ("close", (), {})


def resumed_from_before(folder, name):
    """A run whose checkpoint of its fourth step is lost, then renamed and resumed from the second to the sixth."""
    train(folder, name, steps=4)
    (folder / "checkpoints" / "step-00000004.pt").unlink()
    moved = folder.rename(folder.with_name("moved"))
    train(moved, name, steps=6, resume=True)
    assert [step for step, _ in metric_rows(moved)] == [1, 2, 3, 4, 5, 6]
    return moved


def test_a_resumed_run_continues_its_own_and_repeats_no_step(tracker, tmp_path):
    calls = tracker("wandb")
    resumed_from_before(tmp_path / "run", "wandb")
    first, second = [kwargs for name, _, kwargs in calls if name == "init"]
    assert first["id"] == second["id"]
    logging_to = [(kwargs["step"], list(args[0])) for name, args, kwargs in calls if name == "log"]
    assert [step for step, names in logging_to if names == ["samples"]] == [2, 4, 6]
    assert [step for step, names in logging_to if names != ["samples"]] == [1, 2, 3, 4, 5, 6]


def test_a_picture_that_no_row_followed_is_not_sent_again(tracker, tmp_path):
    calls = tracker("wandb")
    for steps in ((3,), (3, 5)):
        one = Tracker("wandb", tmp_path, {})
        for step in steps:
            one.log_image(step, tmp_path / "grid.png")
    assert [kwargs["step"] for name, _, kwargs in calls if name == "log"] == [3, 5]


def test_a_tracker_that_does_not_begin_is_one_line(tracker, monkeypatch, tmp_path):
    tracker("wandb")

    def init(**_):
        raise RuntimeError("No API key configured.\nMore of it.")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    trainer = Trainer(tmp_path, steps=1, updates={}, rng=torch.Generator())
    with pytest.raises(ValueError, match=r"wandb did not start \(No API key configured\.\).*leave --log-to out"):
        logging_to(trainer, "wandb", {}).__enter__()


def test_tensorboard_reads_what_was_written(tmp_path):
    """The package itself: every figure of every row, and the pictures, as it reads them back."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path / "run", "tensorboard")
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    read = [(one.step, name, one.value) for name in events.Tags()["scalars"] for one in events.Scalars(name)]
    written = [(step, name, value) for step, row in metric_rows(tmp_path / "run") for name, value in row.items()]
    assert sorted(read) == sorted(written)
    assert [(one.step, one.width, one.height) for one in events.Images("samples")] == [(2, 6, 4), (3, 6, 4)]


def read_wandb(run):
    """(step, values) of all that Weights & Biases stored offline, in order; a picture as the bytes of its file.

    A .wandb file is a LevelDB log: 7 bytes of its own, then blocks of 32 KiB of parts of records, each part with 4
    bytes of checksum, 2 of length and 1 of kind (1 whole, 2 first, 3 middle, 4 last).
    """
    importlib.import_module("wandb").teardown()  # its own process writes the end of the file
    proto = importlib.import_module("wandb.proto.wandb_internal_pb2")
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        data, at, whole = file.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if (rest := 32768 - at % 32768) < 7:
                at += rest
                continue
            length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
            whole = (b"" if kind in (1, 2) else whole) + data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4) and (record := proto.Record.FromString(whole)).HasField("history"):
                items = {".".join(one.nested_key) or one.key: json.loads(one.value_json) for one in record.history.item}
                own = {name: value for name, value in items.items() if not name.startswith(("_", "samples."))}
                if "samples.path" in items:
                    own["samples"] = (file.parent / "files" / items["samples.path"]).read_bytes()
                yield items["_step"], own


def read_trackio(_):
    """(step, values) of all that trackio stored, in order; a picture as the bytes of its file."""
    store = importlib.import_module("trackio.utils").TRACKIO_DIR
    assert len({name for (name,) in sqlite3.connect(store / "dmdistill.db").execute("SELECT run_id FROM metrics")}) == 1
    for step, text in sqlite3.connect(store / "dmdistill.db").execute("SELECT step, metrics FROM metrics ORDER BY id"):
        own = json.loads(text)
        if "samples" in own:
            own["samples"] = (store / "media" / own["samples"]["file_path"]).read_bytes()
        yield step, own


@pytest.mark.parametrize(("name", "read"), [("wandb", read_wandb), ("trackio", read_trackio)])
def test_the_tracker_itself_keeps_every_step_once_offline(name, read, tmp_path, monkeypatch):
    """The package itself: metrics and pictures as it reads them back, of a run that was killed, renamed and resumed."""
    for variable, value in {"WANDB_MODE": "offline", "TRACKIO_DIR": tmp_path / "trackio", "HOME": tmp_path}.items():
        monkeypatch.setenv(variable, str(value))
    requests = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: requests.append(where))
    pytest.importorskip(name)  # trackio asks for its folder when it is imported
    require_logger(name)
    run = resumed_from_before(tmp_path / "run", name)
    stored = {}
    for step, values in read(run):
        assert not stored.setdefault(step, {}).keys() & values.keys(), f"{name} has step {step} twice"
        stored[step] |= values
    picture = (run / "grid.png").read_bytes()
    pixels = {step: values.pop("samples") for step, values in stored.items() if "samples" in values}
    assert stored == dict(metric_rows(run))
    assert {step: read_pixels(file) for step, file in pixels.items()} == dict.fromkeys((2, 4, 6), read_pixels(picture))
    assert requests == []
    allowed = {"moved", "trackio", ".cache"}  # .cache: a log of wandb's own
    assert {file.name for file in tmp_path.iterdir()} <= allowed


def read_pixels(file):
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB")).tolist()


def test_without_an_account_wandb_asks_nothing_and_nothing_is_begun(monkeypatch, tmp_path, error_line):
    pytest.importorskip("wandb")
    for variable in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    importlib.import_module("wandb").teardown()
    assert "WANDB_MODE=offline" in error_line("distill", "--out", tmp_path / "run", "--log-to", "wandb")
    assert not (tmp_path / "run").exists()
    importlib.import_module("wandb").teardown()


def test_without_a_logger_the_log_stays(tmp_path):
    train(tmp_path / "run", None)
    assert [step for step, _ in metric_rows(tmp_path / "run")] == [1, 2, 3]


def test_an_error_ends_the_tracker_too(tracker, tmp_path):
    calls = tracker("wandb")
    trainer = Trainer(tmp_path, steps=1, updates={}, rng=torch.Generator())
    with pytest.raises(KeyError), logging_to(trainer, "wandb", {}):
        raise KeyError
    assert calls[-1] == ("finish", (), {})


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_is_one_line_and_named(name, monkeypatch, tmp_path, error_line):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"--log-to {name} needs {name} "):
        require_logger(name)
    for command in ("distill", "teach"):
        assert f"pip install 'dmdistill[{name}]'" in error_line(command, "--log-to", name)
    assert list(tmp_path.iterdir()) == []
