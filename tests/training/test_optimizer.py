"""Moving a network, against the same thing written plainly."""

import copy
import math

import pytest
import torch
from torch import nn

from dmdistill.training.ema import EMA, ImplicitAlignment
from dmdistill.training.optimizer import NetworkOptimizer

STEPS, WARMUP, CLIP, LR = 12, 4, 0.5, 0.1


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 2))


def losses(net, *, start=0, end=STEPS):
    """A loss per step, each of its own batch, some steep enough to be clipped."""
    rng = torch.Generator().manual_seed(1)
    for step in range(end):
        x = torch.randn(7, 3, generator=rng) * (5 if step % 3 == 0 else 0.1)
        if step >= start:
            yield (net(x) ** 2).mean()


def build(net, **changes):
    settings = {"lr": LR, "steps": STEPS, "warmup": WARMUP, "decay": True, "clip": CLIP, "halflives": [3.0, 8.0]}
    return NetworkOptimizer(net, **(settings | changes))


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(("decay", "largest"), [(True, None), (False, None), (False, 0.1)])
def test_update_is_a_plain_adamw_loop(decay, largest):
    """Warm-up, cosine and clipping of norms and of entries written out: bit for bit."""
    net, plain = network(), network()
    update = build(net, decay=decay, betas=(0.8, 0.95), weight_decay=0.1, eps=1e-4, clip_value=largest)
    for loss in losses(net):
        update(loss)

    optimizer = torch.optim.AdamW(plain.parameters(), betas=(0.8, 0.95), eps=1e-4, weight_decay=0.1, fused=True)
    clipped = []
    for step, loss in enumerate(losses(plain)):
        cosine = (1 + math.cos(math.pi * step / STEPS)) / 2 if decay else 1
        optimizer.param_groups[0]["lr"] = LR * (min(1, (step + 1) / WARMUP) * cosine)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in plain.parameters()]).norm()
        clipped.append(bool(norm > CLIP))
        nn.utils.clip_grad_norm_(plain.parameters(), CLIP)
        if largest is not None:
            assert step % 3 or max(p.grad.abs().max() for p in plain.parameters()) > largest
            nn.utils.clip_grad_value_(plain.parameters(), largest)
        optimizer.step()
        torch.testing.assert_close(update.gradient_norm, norm) if step == STEPS - 1 else None
    assert same(net, plain)
    assert 0 < sum(clipped) < STEPS  # both kinds of step were met


def test_a_clipped_gradient_has_norm_clip():
    """AdamW forgets a gradient's scale, so SGD's view: what reaches the optimizer has norm `clip` at most."""
    net = network()
    update = build(net, clip=0.01)
    seen = []
    update.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.flatten() for p in net.parameters()]).norm().item())
    )
    for loss in losses(net, end=3):
        update(loss)
    assert seen == pytest.approx([0.01] * 3, rel=1e-3)


def test_the_learning_rate_ends_at_zero():
    net = network()
    update = build(net)
    for loss in losses(net):
        update(loss)
    assert update.scheduler.get_last_lr() == [0.0]


def test_frozen_parameters_stay():
    net = network()
    net[0].requires_grad_(False)
    before = copy.deepcopy(net)
    update = build(net)
    for loss in losses(net, end=3):
        update(loss)
    assert same(net[0], before[0])
    assert not same(net[2], before[2])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_loss_changes_nothing(bad):
    net = network()
    update = build(net)
    for loss in losses(net, end=2):
        update(loss)
    before = copy.deepcopy(update.state_dict())
    with pytest.raises(FloatingPointError, match=r"the network's loss is .*, the norm of its gradient nan"):
        update(net(torch.full((1, 3), bad)).sum())
    assert flat(update.state_dict()) == flat(before)
    for loss in losses(net, start=2):  # and it can go on as if nothing had been
        update(loss)
    straight = network()
    other = build(straight)
    for loss in losses(straight):
        other(loss)
    assert same(net, straight)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_without_the_check_the_network_stays_as_it_is_from_then_on(bad):
    """Weights and moments; the averages stay finite. Loading a state makes it move again."""
    net = network()
    update = build(net)
    update.check_finite = False
    for loss in losses(net, end=2):
        update(loss)
    before = copy.deepcopy(update.state_dict())
    assert update.nonfinite == 0
    update(net(torch.full((1, 3), bad)).sum())
    for loss in losses(net, start=2, end=6):
        update(loss)
    assert update.nonfinite == 1
    after = update.state_dict()
    assert flat(after["network"]) == flat(before["network"])
    assert flat(after["optimizer"]["state"]) == flat(before["optimizer"]["state"])
    assert all(torch.isfinite(w).all() for average in after["emas"] for w in average.values())
    update.load_state_dict(before)
    for loss in losses(net, start=2):
        update(loss)
    straight = network()
    other = build(straight)
    for loss in losses(straight):
        other(loss)
    assert same(net, straight)


def flat(state):
    """A nested state as plain numbers."""
    if isinstance(state, dict):
        return {key: flat(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [flat(value) for value in state]
    return state.tolist() if isinstance(state, torch.Tensor) else state


def test_a_state_resumes_bit_for_bit():
    straight = network()
    whole = build(straight)
    for loss in losses(straight):
        whole(loss)

    first = network()
    half = build(first)
    for loss in losses(first, end=5):
        half(loss)
    saved = copy.deepcopy(half.state_dict())
    torch.manual_seed(7)
    second = nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 2))
    rest = build(second)
    rest.load_state_dict(saved)
    for loss in losses(second, start=5):
        rest(loss)
    assert flat(rest.state_dict()) == flat(whole.state_dict())


def constant(net, value):
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(value)


def following_ema(net, halflife):
    average = EMA(net, halflife=halflife)
    average.follow(net)
    return average


@pytest.mark.parametrize("halflife", [1, 7, 50.0])
def test_half_of_the_old_is_left_after_a_halflife(halflife):
    net = network()
    constant(net, 4.0)
    average = following_ema(net, halflife)
    constant(net, 2.0)
    for count in range(int(halflife)):
        average.update(count + 10_000)  # long past the ramp-up
    for p in average.network.parameters():
        torch.testing.assert_close(p, torch.full_like(p, 3.0))


def test_the_start_is_forgotten_during_the_ramp_up():
    """After n updates the half-life is n/10 at most, so the first network weighs next to nothing."""
    net = network()
    constant(net, 1e3)
    average = following_ema(net, 1e6)
    constant(net, 0.0)
    weight = 1.0
    for count in range(1, 31):
        average.update(count)
        weight *= 0.5 ** (10 / count)
    for p in average.network.parameters():
        torch.testing.assert_close(p, torch.full_like(p, 1e3 * weight), rtol=1e-3, atol=1e-6)
    assert weight < 1e-11


def test_an_ema_is_a_copy_that_requires_no_gradient():
    net = network()
    average = EMA(net, halflife=3)
    assert not any(p.requires_grad for p in average.network.parameters())
    constant(net, 0.0)
    assert not same(average.network, net)


@pytest.fixture
def adapted():
    """A frozen network with a small trained one in its middle, and statistics of what went through."""
    net = nn.Sequential(*network()[:2], nn.Linear(5, 5), nn.BatchNorm1d(5), network()[2])
    net[0].requires_grad_(False)
    net[4].requires_grad_(False)
    return net


def test_an_ema_shares_frozen_parameters(adapted):
    before = copy.deepcopy(adapted)
    update = build(adapted, halflives=[1.0])
    for loss in losses(adapted, end=4):
        update(loss)
    average = update.emas[0].network
    mine, theirs = dict(average.named_parameters()), dict(adapted.named_parameters())
    shared = {name for name, parameter in mine.items() if parameter is theirs[name]}
    assert shared == {"0.weight", "0.bias", "4.weight", "4.bias"}
    assert same(adapted[0], before[0])
    assert same(average[4], before[4])
    gaps = [(average[2].weight - net[2].weight).abs().max() for net in (adapted, before)]
    assert min(gaps) > 0  # on the way from one to the other
    assert not same(average[3], adapted[3])  # statistics in the making are the network's own


def test_a_state_holds_the_trained_weights_and_resumes_bit_for_bit(adapted):
    straight, first, second = (copy.deepcopy(adapted) for _ in range(3))
    whole, half = build(straight), build(first)
    for loss in losses(straight):
        whole(loss)
    for loss in losses(first, end=5):
        half(loss)
    saved = copy.deepcopy(half.state_dict())
    for weights in (saved["network"], *saved["emas"]):
        assert {name.split(".")[0] for name in weights} == {"2", "3"}
    nn.init.zeros_(second[2].weight)
    rest = build(second)
    rest.load_state_dict(saved)
    for loss in losses(second, start=5):
        rest(loss)
    assert flat(rest.state_dict()) == flat(whole.state_dict())
    assert same(second, straight)


@pytest.mark.parametrize("change", [lambda w: w.pop("2.bias"), lambda w: w.update({"9.weight": w["2.weight"]})])
def test_a_state_of_other_names_is_refused(change, adapted):
    update = build(adapted)
    state = copy.deepcopy(update.state_dict())
    change(state["emas"][1])
    with pytest.raises(KeyError, match="1 names differ from the network's"):
        update.load_state_dict(state)


def test_a_restart_repeats_the_warm_up():
    """The rate of each update, where one of 20 begins a new warm-up of 4; and the state knows where it is."""
    update = build(network(), lr=1.0, steps=20, warmup=4, restart=10, halflives=[])
    rates = []
    for loss in losses(update.network, end=20):
        rates.append(update.optimizer.param_groups[0]["lr"])
        update(loss)
    rises = [0.25, 0.5, 0.75] + 7 * [1.0]
    assert rates == pytest.approx([r * (1 + math.cos(math.pi * i / 20)) / 2 for i, r in enumerate(2 * rises)])


def test_each_ema_has_its_own_halflife():
    net = network()
    update = build(net, lr=0.5, warmup=1, decay=False, weight_decay=0.0, halflives=[0.1, 1e6])
    start = copy.deepcopy(net)
    for loss in losses(net):
        update(loss)

    def gap(a, b):
        return sum((p - q).abs().sum().item() for p, q in zip(a.parameters(), b.parameters(), strict=True))

    quick, slow = (average.network for average in update.emas)
    assert gap(quick, net) < gap(slow, net) < gap(start, net)


def test_moments_have_the_memory_layout_of_their_weights():
    """AdamW's kernel walks through memory: a state that was saved with other strides must not go to other weights."""
    torch.manual_seed(0)
    nets = [nn.Conv2d(3, 5, 2), nn.Conv2d(3, 5, 2).to(memory_format=torch.channels_last)]
    nets[1].load_state_dict(nets[0].state_dict())
    updates = [build(net, halflives=[]) for net in nets]
    x = torch.randn(2, 3, 4, 6)
    updates[0](nets[0](x).square().mean())
    updates[1].load_state_dict(copy.deepcopy(updates[0].state_dict()))
    for net, update in zip(nets, updates, strict=True):
        update(net(x).square().mean())
    torch.testing.assert_close(nets[0].weight, nets[1].weight)


def test_a_network_is_attracted_after_each_update_of_another():
    """moved <- (1 - w) moved + w net, from the update after the first on; what is frozen stays."""
    net, moved = network(), network()
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(1)
    net[0].requires_grad_(False)
    update = build(net)
    update.alignments.append(ImplicitAlignment(moved, net, weight=0.25, first=1))
    plain = copy.deepcopy(moved)
    for number, loss in enumerate(losses(net, end=4)):
        update(loss)
        if number >= 1:
            for mine, theirs in zip(plain[2].parameters(), net[2].parameters(), strict=True):
                mine.data = 0.75 * mine.data + 0.25 * theirs.data
        torch.testing.assert_close(list(moved.parameters()), list(plain.parameters()))
    assert not same(moved, net)
    with pytest.raises(ValueError, match="other parameters in training"):
        ImplicitAlignment(network()[:2], net, weight=0.25)
    moved[2].requires_grad_(False)
    with pytest.raises(ValueError, match="other parameters in training"):
        ImplicitAlignment(moved, net, weight=0.25)


def test_a_checkpoint_from_before_a_parameter_was_frozen_is_resumed():
    """As of EDM's layer of augmentation labels: its weight and moments are left out, the others find their own."""
    nets = [network(), network()]
    nets[1][0].bias.requires_grad_(False)
    before, after = build(nets[0], halflives=[2.0]), build(nets[1], halflives=[2.0])
    for loss in losses(nets[0], end=3):
        before(loss)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    for name, parameter in nets[1].named_parameters():
        if name != "0.bias":
            torch.testing.assert_close(parameter, dict(nets[0].named_parameters())[name])
    own, others = (
        {
            name: update.optimizer.state[p]["exp_avg"]
            for name, p in net.named_parameters()
            if p in update.optimizer.state
        }
        for net, update in ((nets[1], after), (nets[0], before))
    )
    assert own.keys() == others.keys() - {"0.bias"}
    torch.testing.assert_close(own, {name: others[name] for name in own})
