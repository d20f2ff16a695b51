"""The command line: what the user can mend is one line and exit code 2, and nothing is left half-written."""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import dmdistill
from dmdistill.commands.cli import COMMANDS, main
from dmdistill.io.atomic import write_safetensors
from dmdistill.io.folders import exclusive_folder
from helpers.edits import edit_json
from helpers.small_disk import small_disk

MACHINE = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]
SMALL = ["--steps", "2", "--batch", "3", "--batch-reg", "2", "--report-images", "4", "--pair-count", "6"]
QUICK = [*SMALL, "--solver-steps", "2", *MACHINE]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Defaults such as runs/distill are made in an empty folder, and an exception is one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DMDISTILL_DEBUG", raising=False)


@pytest.fixture
def model(tiny_teacher, tmp_path):
    return shutil.copytree(tiny_teacher, tmp_path / "model")


@pytest.fixture
def refused(capsys, tmp_path):
    """Run a command that must fail: its one line on stderr. Nothing may be written beside what was there."""

    def run(*arguments, match, kept=()):
        before = files(tmp_path)
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        error = capsys.readouterr().err
        assert end.value.code == 2
        assert error.startswith("dmdistill: ")
        assert error.count("\n") == 1, error
        assert match in error
        assert files(tmp_path) - before == set(kept)
        return error

    return run


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("command", ["teach", "pairs", "distill"])
def test_an_unknown_preset_suggests(command, refused):
    refused(command, "--preset", "fashoin", match="unknown preset 'fashoin'; did you mean 'fashion'?")


@pytest.mark.parametrize(
    "arguments",
    [["distill", "--teacher", "tyni"], ["pairs", "--teacher", "tyni"], ["sample", "tyni"], ["info", "tyni"]],
)
def test_an_unknown_model_is_named(arguments, refused):
    refused(*arguments, match="unknown model 'tyni'")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["distill", "--lamda-reg", "1"], "--lambda-reg"),
        (["teach", "--stesp", "1"], "--steps"),
        (["sample", "x", "--cuont", "1"], "--count"),
        (["distil"], "distill"),
        (["distill", "--solver", "huen"], "heun"),
        (["distill", "--steps", "many"], "many"),
        (["evaluate"], "dmdistill evaluate MODEL"),
    ],
)
def test_a_typo_in_a_flag_suggests(arguments, hint, capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert hint in error
    assert "Traceback" not in error
    assert files(tmp_path) == set()


@pytest.mark.parametrize("damage", ["missing", "cut short", "foreign"])
@pytest.mark.parametrize("command", ["distill", "sample"])
def test_spoiled_weights_are_named(command, damage, model, refused):
    file = model / "model.safetensors"
    if damage == "missing":
        file.unlink()
    elif damage == "cut short":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        save_file({"weight": torch.zeros(3)}, file)
    refused(*([command, "--teacher", model] if command == "distill" else [command, model]), match=file.name)


def test_a_student_is_no_teacher(model, refused):
    edit_json(model / "config.json", kind="student")
    refused("distill", "--teacher", model, match="is a student")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--lambda-reg", "1", "--pair-count", "0"], "--pair-count 0"),
        (["--lambda-reg", "0", "--no-match"], "--lambda-reg 0"),
        (["--lambda-reg", "-1"], "--lambda-reg -1.0"),
        (["--lambda-end", "-1"], "--lambda-end -1.0"),
        (["--decoder", "tiny"], "--decoder tiny"),
        (["--lpips-weights", "none.safetensors"], "none.safetensors"),
        (["--min-t", "0.9", "--max-t", "0.1"], "--min-t 0.9 --max-t 0.1"),
        (["--match-from", "1"], "--match-from 1.0"),
        (["--fake-from", "2"], "--fake-from 2.0"),
        (["--match-from", "0.5", "--regress-until", "0.4"], "--regress-until 0.4, expected from 0.5 to 1"),
        (["--no-match", "--regress-until", "0.5"], "--regress-until 0.5"),
        (["--start", "fashion-student"], "--start fashion-student"),
        (["--start", "fashion"], "--start fashion is a teacher, expected a student"),
        (["--seed", "-1"], "--seed -1"),
        (["--betas", "1.5", "0.9"], "--betas 1.5 0.9"),
        (["--ema-halflives", "9", "-5"], "--ema-halflives 9.0 -5.0"),
        (["--ema-halflives", "50", "50"], "--ema-halflives 50.0 50.0"),
        (["--guidance", "-3"], "--guidance -3.0"),
        (["--lora-fake", "100000"], "100000"),
        (["--steps", "0"], "--steps 0"),
        (["--batch", "0"], "--batch 0"),
        (["--fake-steps", "0"], "--fake-steps 0"),
        (["--evaluate-images", "1"], "--evaluate-images 1"),
        (["--report-images", "1"], "--report-images 1"),
        (["--lr", "-1"], "--lr -1.0"),
        (["--grad-clip", "0"], "--grad-clip 0.0"),
        (["--solver-steps", "0"], "--solver-steps 0"),
        (["--device", "gpu"], "device 'gpu' cannot be used"),
        (["--threads", "-1"], "--threads -1"),
        (["--threads", "99999999"], "--threads 99999999"),
        (["--pairs", "nowhere"], "nowhere/pairs.json does not exist"),
    ],
)
def test_contradictions_are_found_before_anything_is_written(arguments, match, tiny_teacher, refused):
    refused("distill", "--teacher", tiny_teacher, *QUICK, *arguments, match=match)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--steps", "0"], "--steps 0"),
        (["--batch", "0"], "--batch 0"),
        (["--log-every", "0"], "--log-every 0"),
        (["--label-dropout", "7"], "--label-dropout 7.0"),
        (["--group-channels", "0"], "--group-channels 0"),
        (["--channel-mult", "1", "0"], "--channel-mult 1 0"),
        (["--patch-size", "5"], "12"),
        (["--channel-mult", "1", "1", "1", "1"], "12"),
        (["--data", "nowhere"], "nowhere does not exist: expected a folder or a .zip of images"),
        (["--side", "3"], "--side 3, expected from 4 to 4096"),
    ],
)
def test_teaching_refuses_what_cannot_be(arguments, match, idx_folder, refused):
    given = ["--steps", "2", "--batch", "3", "--model-channels", "16", *MACHINE]
    refused("teach", "--data", idx_folder, *given, *arguments, match=match)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--labels", "99"], "--labels 99"),
        (["--labels", "1", "99", "--count", "1"], "99"),
        (["--count", "0"], "--count 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--columns", "0"], "--columns 0"),
        (["--out", "x.jpg"], "expected a file that ends in .png"),
    ],
)
def test_samples_that_cannot_be_are_refused(arguments, match, tiny_teacher, refused):
    refused("sample", tiny_teacher, *MACHINE, *arguments, match=match)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--pair-count", "0"], "--pair-count 0"),
        (["--shard-size", "0"], "--shard-size 0"),
        (["--pair-batch", "0"], "--pair-batch 0"),
        (["--solver-steps", "0"], "--solver-steps 0"),
    ],
)
def test_pairs_that_cannot_be_are_refused(arguments, match, tiny_teacher, refused):
    refused("pairs", "--teacher", tiny_teacher, *MACHINE, *arguments, match=match)


@pytest.mark.parametrize("wrong", ["shape", "conditions"])
def test_pairs_of_another_kind_are_refused(wrong, tiny_teacher, tmp_path, refused):
    pairs = tmp_path / "pairs"
    main(
        [
            "pairs",
            "--teacher",
            str(tiny_teacher),
            "--pair-count",
            "6",
            "--out",
            str(pairs),
            "--solver-steps",
            "1",
            *MACHINE,
        ]
    )
    file = pairs / "shard-00000.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    if wrong == "shape":
        save_file(tensors | {name: tensors[name].repeat(1, 3, 1, 1) for name in ("z", "y")}, file)
    else:
        described = json.loads((pairs / "pairs.json").read_text())
        del described["crc32"]
        (pairs / "pairs.json").write_text(json.dumps(described | {"conditions": "7 classes"}))
    refused("distill", "--teacher", tiny_teacher, "--pairs", pairs, *QUICK, match=f"{pairs} holds")


def test_pairs_of_other_settings_are_refused(tiny_teacher, tmp_path, refused):
    given = ["pairs", "--teacher", str(tiny_teacher), "--pair-count", "6", "--out", str(tmp_path / "p"), *MACHINE]
    main([*given, "--solver-steps", "1"])
    refused(*given, "--solver-steps", "2", match="other settings: steps 1, now 2. ")


@pytest.mark.parametrize("command", ["distill", "teach"])
def test_a_run_folder_that_exists_is_left_alone(command, tiny_teacher, idx_folder, tmp_path, refused):
    run = tmp_path / "run"
    run.mkdir()
    (run / "mine.txt").write_text("precious")
    given = ["--teacher", tiny_teacher, *QUICK] if command == "distill" else ["--data", idx_folder, *MACHINE]
    refused(command, "--out", run, *given, match="already exists: choose another --out, or resume it by --resume")
    assert (run / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("command", ["distill", "teach", "pairs"])
def test_a_folder_in_use_is_left_alone(command, tiny_teacher, idx_folder, tmp_path, refused):
    """Of two processes on one folder the second goes; once the first has ended, it may."""
    given = outputs(tiny_teacher, idx_folder, tmp_path / "run")[command]
    with exclusive_folder(tmp_path / "run"):
        refused(*given, match=f"{tmp_path / 'run'} is in use by another process: wait for its end, or choose")
    main([str(argument) for argument in given])
    assert not list(tmp_path.rglob(".*"))
    if command == "distill":
        again = ["distill", "--resume", tmp_path / "run"]
        with exclusive_folder(tmp_path / "run"):
            refused(*again, match="is in use by another process")


def test_a_run_killed_before_it_said_what_it_is_can_be_begun_anew(tiny_teacher, tmp_path):
    left = tmp_path / "run" / ".config.toml.1-2.tmp"
    left.parent.mkdir()
    left.write_text("seed =")
    main(["distill", "--teacher", str(tiny_teacher), "--lambda-reg", "0", "--out", str(left.parent), *QUICK])
    assert not left.exists()


def test_nothing_to_resume_is_said(tmp_path, refused):
    refused("distill", "--resume", tmp_path / "nowhere", match="nowhere/config.toml does not exist")


def outputs(tiny_teacher, idx_folder, out):
    """Every command that writes, told to write at `out`."""
    return {
        "distill": ["distill", "--teacher", tiny_teacher, "--out", out, *QUICK],
        "teach": ["teach", "--data", idx_folder, "--out", out, "--steps", "1", *MACHINE],
        "classifier": ["classifier", "--data", idx_folder, "--out", out, "--epochs", "1", "--batch", "50", *MACHINE],
        "pairs": [
            "pairs",
            "--teacher",
            tiny_teacher,
            "--out",
            out,
            "--pair-count",
            "6",
            "--solver-steps",
            "1",
            *MACHINE,
        ],
        "sample": ["sample", tiny_teacher, "--out", out / "x.png", "--count", "2", *MACHINE],
        "evaluate": ["evaluate", tiny_teacher, "--json", out / "x.json", "--images", "2", *MACHINE],
        "bench": ["bench", tiny_teacher, "--json", out / "x.json", "--repeats", "1", "--max-batch", "1", *MACHINE],
        "plan": ["plan", "--teacher", tiny_teacher, "--json", out / "x.json", *QUICK],
    }


WRITERS = ["distill", "teach", "classifier", "pairs", "sample", "evaluate", "bench", "plan"]


@pytest.mark.parametrize("command", WRITERS)
def test_an_output_folder_that_cannot_be_is_named(command, tiny_teacher, idx_folder, tmp_path, refused, monkeypatch):
    """Before any network is asked."""

    def asked(*_):
        raise AssertionError("a network was asked")

    monkeypatch.setattr(torch.nn.Module, "__call__", asked)
    (tmp_path / "file").write_text("precious")
    refused(*outputs(tiny_teacher, idx_folder, tmp_path / "file" / "below")[command], match="Not a directory")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_file_of_figures_cannot_be_a_folder(tiny_teacher, tmp_path, refused):
    given = outputs(tiny_teacher, None, tmp_path)["evaluate"]
    (tmp_path / "x.json").mkdir()
    refused(*given, match="x.json cannot be written: Is a directory")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--lr", "0"], "--lr 0.0"),
        (["--seed", "-1"], "--seed -1"),
        (["--epochs", "0"], "--epochs 0, expected at least 1"),
        (["--batch", "0"], "--batch 0"),
        (["--batch", "999"], "--batch 999, expected at most 200"),
        (["--out", "full"], "full already exists: choose another --out"),
    ],
)
def test_a_classifier_that_cannot_be_is_refused(arguments, match, idx_folder, tmp_path, refused):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("precious")
    refused("classifier", "--data", idx_folder, *MACHINE, *arguments, match=match)
    assert (tmp_path / "full" / "config.json").read_text() == "precious"


def test_a_full_disk_is_one_line_and_leaves_no_picture(tiny_teacher, refused):
    with small_disk(9000):
        refused("sample", tiny_teacher, "--count", "200", *MACHINE, match="File too large")


def test_a_full_disk_is_one_line_and_leaves_no_shard(tiny_teacher, refused):
    given = ["--pair-count", "50", "--solver-steps", "1", *MACHINE]
    kept = ["pairs", "pairs/fashion", "pairs/fashion/pairs.json"]
    with small_disk(9000):
        refused("pairs", "--teacher", tiny_teacher, *given, match="File too large", kept=kept)


def test_a_full_disk_is_one_line_and_leaves_no_checkpoint(tiny_teacher, tmp_path, refused):
    given = ["--teacher", tiny_teacher, "--lambda-reg", "0", "--out", tmp_path / "run", *QUICK]
    kept = ["run", "run/config.toml", "run/metrics.jsonl", "run/checkpoints", "run/samples"]
    with small_disk(9000):
        refused(
            "distill",
            *given,
            match="2.pt cannot be written",
            kept=[*kept, "run/samples/start.png", "run/samples/step-000002.png"],
        )


def spoil(model):
    """NaN in one bias of a model's weights."""
    file = model / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    tensors["map_layer0.bias"][3] = math.nan
    write_safetensors(file, tensors)


def test_nan_in_a_teacher_names_network_time_and_step(model, tmp_path, capsys):
    spoil(model)
    with pytest.raises(SystemExit) as end:
        main(["distill", "--teacher", str(model), "--lambda-reg", "0", "--out", str(tmp_path / "run"), *QUICK])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.count("\n") == 1
    for word in ("step 0", "the generator's loss is nan", "the generator returned NaN", "sample 0"):
        assert word in error
    assert not (tmp_path / "run" / "student").exists()


def test_nan_in_a_teacher_makes_no_pairs(model, refused):
    spoil(model)
    given = ["--pair-count", "6", "--solver-steps", "1", *MACHINE]
    refused("pairs", "--teacher", model, *given, match="1 steps of heun with the teacher tiny ")


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("DMDISTILL_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown model 'tyni'"):
        main(["info", "tyni"])


def test_an_interrupt_is_one_line(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dmdistill.commands.info.command.load_model", interrupted)
    with pytest.raises(SystemExit) as end:
        main(["info", "anything"])
    assert (end.value.code, capsys.readouterr().err) == (130, "dmdistill: interrupted\n")


def test_the_installed_command_fails_as_main_does(tmp_path):
    """In a process of its own: exit code, one line, no traceback."""
    done = subprocess.run(
        [sys.executable, "-c", "from dmdistill.commands.cli import main; main()", "distill", "--preset", "fashoin"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory: try a smaller --batch or --batch-reg\n"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "try a smaller --batch or --batch-reg\n",
        ),
    ],
)
def test_what_needs_too_much_memory_is_one_line_with_flags_of_the_command(error, said, monkeypatch, capsys):
    def distill(config):
        raise error

    monkeypatch.setattr("dmdistill.commands.distill.command.distill", distill)
    with pytest.raises(SystemExit) as end:
        main(["distill"])
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith(said)


def test_the_version_and_the_short_help(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"dmdistill {dmdistill.__version__}\n"
    main([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: dmdistill")
    assert all(any(line.split()[:1] == [name] for line in lines) for name in COMMANDS)
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(("flag", "value"), [("--batch", 10**20), ("--steps", 10**14), ("--pair-count", 10**14)])
def test_counts_beyond_sense_are_refused(flag, value, tiny_teacher, refused):
    refused("distill", "--teacher", tiny_teacher, *QUICK, flag, value, match=f"{flag} {value}")


def test_a_tilde_is_the_home_folder(tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('out = "~/pairs"')
    main(
        [
            "pairs",
            "--teacher",
            str(tiny_teacher),
            "--pair-count",
            "2",
            "--preset=~/mine.toml",
            "--solver-steps",
            "1",
            *MACHINE,
        ]
    )
    assert (tmp_path / "pairs" / "pairs.json").is_file()
    assert not (tmp_path / "~").exists()


def test_a_run_is_resumed_from_another_folder_with_its_own_teacher_only(tiny_teacher, tmp_path, monkeypatch, capsys):
    """A relative path keeps its meaning; other weights under the same name are refused."""
    first, second = tmp_path / "first", tmp_path / "second folder"
    shutil.copytree(tiny_teacher, first / "teacher")
    second.mkdir()
    monkeypatch.chdir(first)
    given = ["--teacher", "teacher", "--lambda-reg", "0", *QUICK]
    main(["distill", *given, "--steps", "2", "--save-every", "1", "--out", str(second / "run")])
    monkeypatch.chdir(second)
    main(["distill", "--resume", "run", "--steps", "3"])
    weights = load_file(first / "teacher" / "model.safetensors")
    write_safetensors(first / "teacher" / "model.safetensors", {name: 1.01 * one for name, one in weights.items()})
    with pytest.raises(SystemExit) as end:
        main(["distill", "--resume", "run", "--steps", "4"])
    assert end.value.code == 2
    assert "--resume: the run began with the teacher" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["pairs", "distill"])
def test_pairs_that_no_disk_holds_are_refused(command, tiny_teacher, refused):
    given = ["--teacher", tiny_teacher, "--pair-count", "2000000000", *MACHINE]
    assert "2000000000 pairs take " in refused(command, *given, match="GB left: choose fewer by --pair-count")
