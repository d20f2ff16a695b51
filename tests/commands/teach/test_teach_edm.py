"""Teachers of EDM's kind: `dmdistill teach`."""

import dataclasses

import pytest
import torch

from dmdistill.commands.teach import command
from dmdistill.commands.teach.config import NetworkOptions, TeachConfig
from dmdistill.models.load import load_teacher
from dmdistill.training.signals import TrainingStopped
from helpers.configs import CPU, configure
from helpers.runs import logged_values


def settings(data, out):
    """Six steps of a small network on images of 12 x 12."""
    return configure(
        TeachConfig,
        data=data,
        out=out,
        network=NetworkOptions(model_channels=16, channel_mult=(1,), num_blocks=1),
        steps=6,
        batch=4,
        warmup=2,
        ema_halflife=2.0,
        log_every=2,
        save_every=4,
        compute=CPU,
    )


def test_a_teacher_is_written_and_resumed_bit_for_bit(idx_folder, tmp_path, terminated, rng):
    complete, stopped = (settings(idx_folder, tmp_path / name) for name in ("complete", "stopped"))
    trained = command.teach(complete)
    loaded = load_teacher(str(complete.out))
    assert (loaded.shape, len(loaded.conditions), loaded.evaluations) == ((1, 12, 12), 10, 35)
    z, cond = loaded.sample_inputs(2, rng=rng)
    torch.testing.assert_close(loaded.images(z, cond), trained.images(z, cond), rtol=1e-4, atol=1e-4)

    calls = terminated(command, "denoising_loss", 3)
    with pytest.raises(TrainingStopped, match="15"):
        command.teach(stopped)
    command.teach(dataclasses.replace(stopped, resume=stopped.out))
    assert len(calls) == 6
    files = [config.out / "teacher" / "model.safetensors" for config in (complete, stopped)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert logged_values(complete.out) == logged_values(stopped.out)
