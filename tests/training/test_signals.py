"""Signals and a closed stdout end training with a checkpoint; Ctrl-C at the start of a command is one line."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from dmdistill.training.checkpoints import Checkpoints
from dmdistill.training.signals import exit_on_interrupt, interrupt_event, stop_signals


def test_the_environment_names_the_signals(monkeypatch):
    assert stop_signals() == [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
    monkeypatch.setenv("DMDISTILL_STOP_SIGNALS", "SIGTERM, SIGUSR2")
    assert stop_signals() == [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2]
    monkeypatch.setenv("DMDISTILL_STOP_SIGNALS", "")
    assert stop_signals() == [signal.SIGINT]
    monkeypatch.setenv("DMDISTILL_STOP_SIGNALS", "USR1")
    with pytest.raises(ValueError, match=r"DMDISTILL_STOP_SIGNALS 'USR1', .* SIGUSR1"):
        stop_signals()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_only_a_second_ctrl_c_interrupts(number):
    """Slurm sends SIGTERM after its warning, while the checkpoint may still be being written."""
    with interrupt_event() as event:
        for _ in range(3):
            signal.raise_signal(number)
        assert event.is_set()
        assert event.number == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_with_other_processes_a_second_ctrl_c_says_nothing_new():
    with interrupt_event(single=False) as event:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert event.is_set()


def test_sighup_stays_ignored_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupt_event() as event:
            signal.raise_signal(signal.SIGHUP)
            assert not event.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_no_handler_is_installed():
    before, events = signal.getsignal(signal.SIGTERM), []

    def train():
        with interrupt_event() as event, exit_on_interrupt():
            events.append((event.is_set(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert events == [(False, before)]


TRAINING = """
import sys, time
from pathlib import Path
import torch
from dmdistill.training.optimizer import NetworkOptimizer
from dmdistill.training.trainer import Trainer

network = torch.nn.Linear(1, 1)
update = NetworkOptimizer(network, lr=0.1, steps=2000)
trainer = Trainer(Path(sys.argv[1]), steps=2000, updates={"one": update}, rng=torch.Generator(), log_every=1,
                  save_every=10**6)

def iterate(step):
    time.sleep(0.002)
    update(loss := network.weight.square().sum())
    return {"loss": loss.detach()}

completed = trainer.fit(iterate, name="training")
print("the end", completed, flush=True)
"""


def start(*command, **settings):
    return subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings)


def test_a_closed_stdout_ends_training_with_a_checkpoint(tmp_path):
    process = start("-c", TRAINING, str(tmp_path))
    assert process.stdout.readline().startswith(b"training 200/2000")
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0
    [file] = Checkpoints(tmp_path, keep=1).files()
    assert 400 < int(file.stem.removeprefix("step-")) < 2000


def test_ctrl_c_within_imports_is_one_line():
    script = (
        "import os, signal, time\n"
        "from dmdistill.training.signals import exit_on_interrupt\n"
        "with exit_on_interrupt():\n"
        "    print('imports', flush=True)\n"
        "    import torch\n"
        "    time.sleep(30)\n"
    )
    process = start("-c", script)
    assert process.stdout.readline() == b"imports\n"
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 130
    assert process.stderr.read() == b"dmdistill: interrupted\n"


def test_after_the_imports_ctrl_c_is_as_before():
    before = signal.getsignal(signal.SIGINT)
    with exit_on_interrupt():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
