"""Adapters: where they sit, what they share, how they are stored."""

import copy
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dmdistill.models.folder import save_model
from dmdistill.models.load import load_model, load_teacher
from dmdistill.models.model import Student
from dmdistill.networks.copying import copy_sharing_frozen
from dmdistill.networks.lora import adapter_weights, add_lora, merge_lora
from helpers.edits import edit_json
from helpers.tiny_models import unet2d_network

pytest.importorskip("peft")


@pytest.fixture
def song(tiny_teacher):
    teacher = load_teacher(str(tiny_teacher))
    cond = teacher.conditions.select(torch.tensor([3, 7]))
    return teacher.network, lambda net: net(
        torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.ones(2), cond
    )


@pytest.fixture
def unet():
    """A U-Net of diffusers."""
    pytest.importorskip("diffusers")
    net = unet2d_network().requires_grad_(False)
    return (
        net,
        lambda net: net(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.ones(2)).sample,
    )


@pytest.fixture(params=["song", "unet"])
def case(request):
    """A frozen network and how to ask it."""
    return request.getfixturevalue(request.param)


def moved(network):
    """Adapters as training leaves them: none of them zero."""
    torch.manual_seed(2)
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return network


def test_a_network_starts_as_it_was_and_its_adapters_matter(case):
    net, ask = case
    before, names = ask(net), list(net.state_dict())
    adapted = add_lora(net, rank=2)
    with torch.no_grad():  # in training attention is computed in another way, and rounded in another
        assert torch.equal(ask(adapted), ask(net))
    assert (ask(moved(adapted)) - before).abs().max() > 1e-3
    assert torch.equal(ask(net), before)
    assert list(net.state_dict()) == names


def test_only_the_adapters_are_trained_and_the_rest_is_shared(case):
    net, _ = case
    adapted = add_lora(net, rank=2)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained == adapter_weights(adapted).keys() != set()
    shared = [parameter for parameter in adapted.parameters() if not parameter.requires_grad]
    assert {id(p) for p in shared} == {id(p) for p in net.parameters()}
    assert {id(b) for b in adapted.buffers()} == {id(b) for b in net.buffers()}


def test_a_copy_of_adapters_holds_nothing_else(case):
    net, ask = case
    adapted = moved(add_lora(net, rank=2))
    copied = copy_sharing_frozen(adapted)
    theirs = {p.data_ptr() for p in adapted.parameters()}
    own = sum(p.nbytes for p in copied.parameters() if p.data_ptr() not in theirs)
    assert own == sum(tensor.nbytes for tensor in adapter_weights(adapted).values())
    before = ask(adapted)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    assert torch.equal(ask(copied), before)


@pytest.mark.parametrize(("rank", "alpha", "scale"), [(2, None, 1.0), (2, 8, 4.0), (3, 1.5, 0.5)])
def test_an_adapter_is_the_formula(rank, alpha, scale):
    """W x + b + alpha/rank B A x."""
    net = nn.ModuleDict({"to_q": nn.Linear(5, 3)})
    adapted = moved(add_lora(net, rank=rank, alpha=alpha))
    a, b = adapter_weights(adapted).values()
    assert (a.shape, b.shape) == ((rank, 5), (3, rank))
    x = torch.randn(4, 5)
    torch.testing.assert_close(adapted["to_q"](x), net["to_q"](x) + scale * x @ a.T @ b.T)


def test_attention_and_feed_forward_are_adapted(unet, song):
    def adapted(net):
        return {name.split(".lora_")[0] for name in adapter_weights(add_lora(net, rank=1))}

    attention = [name for name, module in unet[0].named_modules() if type(module).__name__ == "Attention"]
    assert len(attention) == 4  # one way down, one in the middle, two up
    assert adapted(unet[0]) == {f"{name}.{end}" for name in attention for end in ("to_q", "to_k", "to_v", "to_out.0")}
    blocks = {name: module for name, module in song[0].named_modules() if hasattr(module, "conv0")}
    ends = ("qkv", "proj", "affine", "conv0", "conv1")
    assert adapted(song[0]) == {
        f"{name}.{end}" for name, block in blocks.items() for end in ends if hasattr(block, end)
    }
    assert any(name.endswith("qkv") for name in adapted(song[0]))


def test_the_transformers_layers_of_diffusers_are_found():
    diffusers = pytest.importorskip("diffusers")
    net = diffusers.Transformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=8, norm_num_groups=4, num_layers=1, attention_bias=True
    )
    adapted = {name.split(".lora_")[0] for name in adapter_weights(add_lora(net, rank=1))}
    block = "transformer_blocks.0"
    assert adapted >= {"proj_in", "proj_out", f"{block}.ff.net.0.proj", f"{block}.ff.net.2", f"{block}.attn1.to_out.0"}


def test_the_seed_decides(case):
    def start(seed):
        torch.manual_seed(seed)
        return adapter_weights(add_lora(case[0], rank=2))

    first, again, other = start(0), start(0), start(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], other[name]) == (".lora_B." in name) for name in first)


def test_adapters_of_half_precision_weights_are_fp32(case):
    half = copy.deepcopy(case[0]).to(torch.bfloat16)
    adapted = add_lora(half, rank=2)
    assert {tensor.dtype for tensor in adapter_weights(adapted).values()} == {torch.float32}
    assert {p.dtype for p in adapted.parameters() if not p.requires_grad} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(case[1](adapted), case[1](half))


def test_merged_is_the_same_without_adapters(case):
    net, ask = case
    before, adapted = ask(net), moved(add_lora(net, rank=2))
    answer = ask(adapted)
    merged = merge_lora(adapted)
    torch.testing.assert_close(ask(merged), answer, rtol=1e-5, atol=1e-5)
    assert [(n, p.shape) for n, p in merged.named_parameters()] == [(n, p.shape) for n, p in net.named_parameters()]
    assert {p.data_ptr() for p in merged.parameters()}.isdisjoint(p.data_ptr() for p in adapted.parameters())
    assert torch.equal(ask(adapted), answer)
    assert torch.equal(ask(net), before)
    net.load_state_dict(merged.state_dict())
    assert torch.equal(ask(net), ask(merged))


@pytest.mark.parametrize("net", [nn.Sequential(nn.Linear(2, 3)), nn.ModuleDict({"to_q": nn.Embedding(2, 3)})])
def test_a_network_with_nothing_to_adapt_is_refused(net):
    with pytest.raises(ValueError, match=r"for LoRA, of a name that ends in to_q.*; or qkv, proj"):
        add_lora(net, rank=2)


def test_a_rank_that_cannot_be_is_refused(case):
    with pytest.raises(ValueError, match="LoRA of rank 0, expected at least 1"):
        add_lora(case[0], rank=0)


@pytest.fixture
def student(tiny_teacher, tmp_path):
    """The folder of a student that is adapters, beside a copy of its teacher; and the student."""
    shutil.copytree(tiny_teacher, tmp_path / "teacher")
    teacher = load_teacher(str(tmp_path / "teacher"))
    described = {"kind": "student", "lora": {"rank": 2, "alpha": 3.0}, "teacher": str(tmp_path / "teacher")}
    made = Student(
        name="small",
        denoiser=moved(add_lora(teacher.denoiser, rank=2, alpha=3.0)),
        shape=teacher.shape,
        conditions=teacher.conditions,
        config=teacher.config | described,
    )
    save_model(tmp_path / "student", made, card="")
    return tmp_path / "student", made


def refused(folder, match, **given):
    with pytest.raises(ValueError, match=match) as caught:
        load_model(str(folder), **given)
    assert "\n" not in str(caught.value)


def change(folder, **changes):
    edit_json(folder / "config.json", **changes)


def test_saved_and_loaded_a_student_is_the_same(student, rng):
    folder, made = student
    loaded = load_model(str(folder))
    assert load_file(folder / "model.safetensors").keys() == adapter_weights(made.network).keys()
    z, cond = made.sample_inputs(3, rng=rng)
    assert torch.equal(loaded.images(z, cond), made.images(z, cond))
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())


def test_a_teacher_at_hand_is_shared(student):
    folder, _ = student
    teacher = load_teacher(str(folder.parent / "teacher"))
    shutil.rmtree(folder.parent / "teacher")
    loaded = load_model(str(folder), teacher=teacher)
    base = [p for name, p in loaded.network.named_parameters() if ".lora_" not in name]
    assert {id(p) for p in base} == {id(p) for p in teacher.network.parameters()}


def test_a_teacher_that_is_gone_is_named(student):
    folder, _ = student
    shutil.rmtree(folder.parent / "teacher")
    refused(folder, "a student of the teacher '.*/teacher', which is needed: there is no file or folder")


def test_another_teacher_is_refused(student):
    folder, _ = student
    change(folder.parent / "teacher", denoiser={"class": "EDMDenoiser", "sigma_data": 0.7})
    refused(folder, "which is needed: tiny is another model: its denoiser differs")


@pytest.mark.parametrize(
    ("lora", "match"),
    [
        ({"rank": 3, "alpha": 3.0}, r"lora_A\.default\.weight is \(2, .*\), the network's is \(3, "),
        ({"rank": 0}, "rank of lora is 0, expected"),
        ({"rank": 10**6}, "LoRA of rank 1000000, expected at most"),
        ({"rank": 2, "alpha": "2"}, "alpha of lora is '2'"),
        ({"rank": 2, "alpha": 2, "path": "/"}, "lora is .*path"),
        ({"alpha": 3.0}, "rank"),
        ({"rank": "two"}, "which is needed"),
        (7, "which is needed"),
    ],
)
def test_adapters_of_another_form_are_refused(lora, match, student):
    change(student[0], lora=lora)
    refused(student[0], match)


@pytest.mark.parametrize(
    "changes",
    [{"name": 3}, {"name": None}, {"teacher": ["fashion"]}, {"teacher": "a\nb"}, {"kind": "teacher"}],
    ids=repr,
)
def test_a_config_of_other_values_is_refused(changes, student):
    change(student[0], **changes)
    refused(student[0], next(iter(changes)))


def test_a_student_that_is_its_own_teacher_is_refused(student):
    change(student[0], teacher=str(student[0]))
    refused(student[0], "which is needed: maximum recursion")


def test_adapters_must_all_be_there(student):
    file = student[0] / "model.safetensors"
    weights = load_file(file)
    gone = sorted(weights)[0]
    save_file({name: tensor for name, tensor in weights.items() if name != gone}, file)
    refused(student[0], f"is not of this network: 1 names differ, first '{gone}'")


def test_without_peft_it_is_asked_for(student, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(student[0], r"config\.json needs peft \(.*\): pip install 'dmdistill\[diffusers\]'$")
