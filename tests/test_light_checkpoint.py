"""Light checkpoints: what is kept of a run, how much is lost, and that training resumes from it."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dmdistill.training.metrics_log import read_metrics
from dmdistill.training.optimizer import NetworkOptimizer
from dmdistill.training.trainer import Trainer

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks" / "gpu"))
from light_checkpoint import compress, decompress, pack_run, to_difference, unpack_run


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 24, 3), nn.SiLU(), nn.Flatten(), nn.Linear(24 * 36, 7))


def loss_function(net, rng):
    x = torch.randn(16, 3, 8, 8, generator=rng)
    return (net(x) - x.mean((2, 3)).repeat(1, 3)[:, :7]).square().mean()


def train(folder, *, steps, resume=False, every=1000):
    """Train a small network; return its trainer, optimizer and generator."""
    net, rng = network(), torch.Generator().manual_seed(1)
    update = NetworkOptimizer(net, lr=3e-3, steps=400, warmup=10, halflives=[20.0, 100.0])
    trainer = Trainer(folder, steps=steps, updates={"net": update}, rng=rng, save_every=every, log_every=10)
    if resume:
        trainer.restore()
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text("seed = 0\n")

    def iterate(step):
        loss = loss_function(net, rng)
        update(loss)
        return {"loss": loss.detach()}

    trainer.fit(iterate, name="training")
    return trainer, update, rng


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, *train(folder, steps=60)


def test_losses_are_within_the_documented_bounds(run):
    """Weights by 2^-11 of themselves, averages by a 254th of their channel's largest gap, moments by a 16th octave."""
    _, _, update, _ = run
    before, after = update.state_dict(), decompress(compress(update.state_dict()))
    for name, tensor in before["network"].items():
        assert ((after["network"][name] - tensor).abs() <= tensor.abs() / 2048 + 3e-8).all()
    for one, other in zip(before["emas"], after["emas"], strict=True):
        for name, tensor in one.items():
            gap = (tensor - after["network"][name]).reshape(len(tensor), -1).abs().amax(1)
            error = (other[name] - tensor).reshape(len(tensor), -1).abs().amax(1)
            assert (error <= gap / 253 + 1e-7).all()
    for index, moments in before["optimizer"]["state"].items():
        found = after["optimizer"]["state"][index]
        assert found["step"] == moments["step"] == 60
        ratio = (found["exp_avg_sq"] / moments["exp_avg_sq"]).log2().abs()
        assert ratio[moments["exp_avg_sq"] > 0].max() <= 1 / 16 + 1e-4
        assert not found["exp_avg"].any() or found["exp_avg"].ndim == 1


def test_small_tensors_and_zeros_are_exact(run):
    _, _, update, _ = run
    state = update.state_dict()
    state["optimizer"]["state"][0]["exp_avg_sq"][0] = 0
    state["emas"][0]["3.weight"] = state["network"]["3.weight"].half().float()
    found = decompress(compress(state))
    assert not found["optimizer"]["state"][0]["exp_avg_sq"][0].any()
    assert torch.equal(found["emas"][0]["3.weight"], found["network"]["3.weight"])
    for name in ("0.bias", "3.bias"):
        assert torch.equal(found["network"][name], state["network"][name])
        assert torch.equal(found["emas"][1][name], state["emas"][1][name])


def test_moments_below_the_smallest_code_are_rounded_up_to_it():
    square = torch.tensor([[1.0, 2.0**-40, 2.0**-31]])
    state = {"step": torch.tensor(3.0), "exp_avg": square, "exp_avg_sq": square}
    empty = {"network": {}, "emas": [], "optimizer": {"state": {0: state}}}
    found = decompress(compress(empty))["optimizer"]["state"][0]["exp_avg_sq"]
    torch.testing.assert_close(found, torch.tensor([[1.0, 2.0**-31.75, 2.0**-31]]))


def test_weights_too_large_for_fp16_stay_in_fp32():
    weights = {"a": torch.tensor([[1e5, 1.2345678]])}
    found = decompress(compress({"network": weights, "emas": [weights], "optimizer": {"state": {}}}))
    assert torch.equal(found["network"]["a"], weights["a"])
    assert torch.equal(to_difference(weights["a"], weights["a"])[1], torch.zeros(1, 2, dtype=torch.int8))


def test_a_run_is_four_bytes_a_parameter_and_one_for_each_further_average(run, tmp_path):
    folder, _, update, _ = run
    assert pack_run(folder, tmp_path / "run.light") == 60
    parameters = sum(p.numel() for p in update.parameters)
    assert (tmp_path / "run.light").stat().st_size < 5 * parameters + 20_000
    assert next((folder / "checkpoints").iterdir()).stat().st_size > 20 * parameters


def test_a_run_resumes_from_a_light_file(run, tmp_path):
    """The next losses are within a tenth those of the run that was never packed; metrics and draws are the same."""
    folder, trainer, _, rng = run
    pack_run(folder, tmp_path / "run.light")
    other = tmp_path / "elsewhere"
    assert unpack_run(tmp_path / "run.light", other) == 60
    assert (other / "config.toml").read_text() == "seed = 0\n"
    before = rng.get_state()
    there, _, _ = train(other, steps=60, resume=True)
    assert there.step == 60
    assert 0 < there.seconds <= trainer.seconds  # the rest went by after its last checkpoint
    assert torch.equal(there.rng.get_state(), before)
    assert read_metrics(other) == read_metrics(folder)
    train(other, steps=90, resume=True)
    whole = tmp_path / "whole"
    train(whole, steps=90)
    mine, theirs = ([row["loss"] for row in read_metrics(one)] for one in (other, whole))
    assert mine[6:] == pytest.approx(theirs[6:], rel=0.1)
    assert theirs[8] < 0.7 * theirs[5]  # it still learns


def test_other_folders_and_files_are_refused_by_name(run, tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.toml: it is no run"):
        pack_run(tmp_path, tmp_path / "x")
    (tmp_path / "x").write_bytes(b"hello")
    with pytest.raises(ValueError, match="x is no light file of a run, or is damaged"):
        unpack_run(tmp_path / "x", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    pack_run(run[0], tmp_path / "run.light")
    with pytest.raises(ValueError, match="already exists"):
        unpack_run(tmp_path / "run.light", tmp_path)
