"""A published folder: it loads by name, its card has the metrics, and no path of the computer that made it."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dmdistill.commands.distill.command import distill
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.evaluate import command as evaluating
from dmdistill.commands.options import ComputeOptions, SolverOptions
from dmdistill.models.load import load_model, load_teacher
from dmdistill.models.model import Student
from helpers.configs import configure

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "release.py"


@pytest.fixture
def main(monkeypatch):
    spec = importlib.util.spec_from_file_location("release", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["release", *map(str, words)])
        module.main()

    return run


@pytest.fixture
def student(tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluating, "seconds_per_image", lambda _, **__: 1.0)
    config = configure(
        DistillConfig,
        teacher=str(tiny_teacher),
        out=tmp_path / "secret" / "run",
        pair_count=4,
        steps=2,
        batch=2,
        batch_reg=2,
        report_images=0,
        ode=SolverOptions(solver_steps=2),
        compute=ComputeOptions(device="cpu", precision="fp32", threads=1),
    )
    distill(config)
    return config.out


def write_report(folder, name, fid):
    about = {
        "model": name,
        "evaluations_per_image": 1,
        "images": 50,
        "seconds_per_image": 0.25,
        "metrics": {"fid": fid},
    }
    (folder / f"{name}.json").write_text(json.dumps(about))
    return folder / f"{name}.json"


@pytest.mark.parametrize(("store", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_published_models_load_by_name(store, dtype, main, student, tiny_teacher, tmp_path, monkeypatch, capsys):
    rows = write_report(tmp_path, "one", 7.25), write_report(tmp_path, "two", 8.5)
    words = ["--name", "small", "--dtype", store, "--reports", *rows]
    main("--teacher", tiny_teacher, "--student", student, "--out", tmp_path / "out", *words)
    monkeypatch.setenv("DMDISTILL_MODELS", str(tmp_path / "out"))
    teacher, found = load_teacher("small"), load_model("small-student")
    assert isinstance(found, Student)
    assert (teacher.name, found.name, found.config["distilled"]["teacher"]) == ("small", "small-student", "small")
    for one, model in (("small", load_teacher(str(tiny_teacher))), ("small-student", load_model(str(student)))):
        stored = load_file(tmp_path / "out" / one / "model.safetensors")
        for name, tensor in model.network.state_dict().items():
            assert torch.equal(stored[name], tensor.to(dtype)), name
        assert f"\n# {one}\n" in (tmp_path / "out" / one / "README.md").read_text()
        text = (tmp_path / "out" / one / "README.md").read_text() + (tmp_path / "out" / one / "config.json").read_text()
        assert "7.25" in text
        assert "8.5" in text
        assert str(tmp_path) not in text
        assert "secret" not in text
    assert capsys.readouterr().out.count(f"{store} changes a pixel by") == 2


def test_further_students_are_published_under_names_of_their_own(main, student, tiny_teacher, tmp_path):
    rows = [write_report(tmp_path, name, fid) for name, fid in (("one", 7.25), ("two", 8.5), ("three", 9.75))]
    words = ["--name", "small", "--out", tmp_path / "out", "--reports", *rows]
    main("--teacher", tiny_teacher, "--student", student, f"5to1={student}", *words)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"small", "small-student", "small-5to1"}
    for one in ("small", "small-5to1"):
        card = (tmp_path / "out" / one / "README.md").read_text()
        assert f"\n# {one}\n" in card
        assert [line.split(" | ")[0] for line in card.splitlines() if line.startswith("| small")] == [
            "| small",
            "| small-student",
            "| small-5to1",
        ]
    assert isinstance(load_model(str(tmp_path / "out" / "small-5to1")), Student)


def test_a_folder_that_is_too_large_is_refused(main, student, tiny_teacher, tmp_path):
    with pytest.raises(SystemExit, match=r"takes 0\.\d MB, expected at most 0\.01"):
        main(
            "--teacher",
            tiny_teacher,
            "--student",
            student,
            "--out",
            tmp_path / "out",
            "--name",
            "small",
            "--most",
            "0.01",
        )
