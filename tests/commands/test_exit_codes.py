"""A command that a signal ends early, with a checkpoint, has the exit code that shells and schedulers expect."""

import signal
import subprocess
import sys

import pytest

from dmdistill.commands.cli import main
from dmdistill.commands.distill.setup import Distillation

RUN = ["distill", "--batch", "2", "--lambda-reg", "0", "--report-images", "0", "--threads", "1", "--device", "cpu"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)]
)
def test_a_signal_is_the_exit_code(number, code, tiny_teacher, tmp_path, monkeypatch, capsys):
    iterate = Distillation.iterate

    def interrupted(self, step):
        if step == 1:
            signal.raise_signal(number)
        return iterate(self, step)

    monkeypatch.setattr(Distillation, "iterate", interrupted)
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as end:
        main([*RUN, "--teacher", str(tiny_teacher), "--steps", "9", "--out", str(out)])
    printed = capsys.readouterr()
    assert end.value.code == code
    assert printed.err == ""
    assert printed.out.endswith(f"stopped after step 2, saved; resume with: dmdistill distill --resume {out}\n")


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["distill", "--help-all"],
        ["presets", "fashion"],
        ["completion", "bash"],
        ["info", "MODEL"],
        ["sample", "MODEL"],
    ],
    ids=" ".join,
)
def test_output_that_nobody_reads_ends_silently(command, tiny_teacher, tmp_path):
    """Printed by Python or by rich; the latter's own exit code is 1."""
    words = [str(tiny_teacher) if word == "MODEL" else word for word in command]
    words += ["--count", "1"] if "sample" in words else []
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": tmp_path}
    process = subprocess.Popen([sys.executable, "-m", "dmdistill", *words], **options)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 128 + signal.SIGPIPE


def test_a_closed_stdout_is_that_of_a_broken_pipe(tiny_teacher, tmp_path):
    command = [sys.executable, "-m", "dmdistill", *RUN, "--teacher", str(tiny_teacher), "--steps", "300"]
    options = ["--log-every", "1", "--sample-every", "1000", "--evaluate-every", "1000", "--out", str(tmp_path / "run")]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not process.stdout.readline().startswith(b"distilling "):
        pass
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 128 + signal.SIGPIPE
    assert list((tmp_path / "run" / "checkpoints").glob("step-*.pt"))
