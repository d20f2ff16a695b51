"""EDM's checkpoints as teachers: the same function of the same weights, and one clear line for all others."""

import dataclasses

import pytest
import torch
from torch import nn

from dmdistill.core.denoisers import EDMDenoiser
from dmdistill.core.schedules import EDM
from dmdistill.data.conditions import LabelSpace
from dmdistill.io.restricted_unpickler import Record
from dmdistill.models.edm_checkpoint import read_edm, read_state_dict
from dmdistill.models.folder import save_model
from dmdistill.models.load import load_model, load_teacher
from dmdistill.networks.song_unet import SongUNet

KWARGS = {
    "img_resolution": 16,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 10,
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "channel_mult_noise": 1,
    "resample_filter": [1, 1],
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
    "dropout": 0.13,
    "label_dropout": 0,
}
OURS = {"img_resolution", "in_channels", "out_channels", "label_dim", "model_channels", "channel_mult", "num_blocks"}
OURS |= {"attn_resolutions"}


def network(**changes):
    torch.manual_seed(0)
    net = SongUNet(**{key: value for key, value in (KWARGS | changes).items() if key in OURS})
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.15)
    return net.eval().requires_grad_(False)


@pytest.fixture
def checkpoint(edm, tmp_path):
    return edm.write(tmp_path / "mine.pkl", network(), KWARGS, sigma_data=0.4, data="data/cifar10-32x32.zip")


def refused(file, match):
    with pytest.raises(ValueError, match=match) as caught:
        load_model(str(file))
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_checkpoint_is_the_teacher_of_its_weights(checkpoint, rng):
    teacher = load_teacher(str(checkpoint))
    expected = EDMDenoiser(network(), EDM(sigma_min=0.002, sigma_max=80.0), sigma_data=0.4)
    x, cond = teacher.sample_inputs(2, rng=rng)
    t = torch.tensor([0.3, 20.0])
    assert torch.equal(teacher.denoiser(x, t, cond), expected(x, t, cond))
    assert (teacher.name, teacher.shape, teacher.licence, teacher.feature_extractor) == (
        "mine",
        (3, 16, 16),
        "unknown",
        None,
    )
    assert (teacher.evaluations, teacher.denoiser.schedule.t_max) == (35, 80.0)
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert teacher.config["network"]["dropout"] == 0


def test_saved_as_a_folder_it_answers_the_same(checkpoint, tmp_path, rng):
    teacher = load_teacher(str(checkpoint))
    save_model(tmp_path / "folder", teacher, card="")
    again = load_teacher(str(tmp_path / "folder"))
    z, cond = teacher.sample_inputs(2, rng=rng)
    teacher, again = (dataclasses.replace(model, steps=2) for model in (teacher, again))
    assert torch.equal(teacher.images(z, cond), again.images(z, cond))
    assert (teacher.config, teacher.conditions) == (again.config, again.conditions)


@pytest.mark.parametrize("protocol", [2, 3, 5])
def test_every_protocol_gives_the_same_weights(protocol, checkpoint, edm, tmp_path):
    edm.dump(tmp_path / "other.pkl", {"ema": edm.precond(network(), KWARGS)}, protocol=protocol)
    found, expected = (read_edm(file)[1] for file in (tmp_path / "other.pkl", checkpoint))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(
    ("classes", "name", "data", "names"),
    [
        (10, "mine", "a/cifar10-32x32.zip", ("airplane", "automobile")),
        (10, "cifar10-again", "", ("airplane", "automobile")),
        (10, "mine", "data/digits", ("class 0", "class 1")),
        (3, "mine", "a/cifar10-32x32.zip", ("class 0", "class 1")),
        (0, "mine", "a/cifar10-32x32.zip", None),
    ],
)
def test_classes_have_names(classes, name, data, names, edm, tmp_path):
    kwargs = KWARGS | {"label_dim": classes}
    labels = load_model(
        str(edm.write(tmp_path / f"{name}.pkl", network(label_dim=classes), kwargs, data=data))
    ).conditions
    assert (labels.names[:2] if labels else None) == names
    assert (len(labels) if labels else 0) == classes


@pytest.mark.parametrize(("size", "classes", "steps"), [(32, 10, 18), (64, 0, 40), (64, 7, 256)])
def test_the_solver_is_what_edm_recommends(size, classes, steps, edm, tmp_path):
    kwargs = KWARGS | {"img_resolution": size, "label_dim": classes}
    file = edm.write(tmp_path / "mine.pkl", network(img_resolution=size, label_dim=classes), kwargs)
    assert read_edm(file)[0]["steps"] == steps


def test_what_the_checkpoint_leaves_out_is_edms_default(edm, tmp_path):
    given = {key: value for key, value in KWARGS.items() if key not in ("channel_mult", "model_channels", "num_blocks")}
    config, _ = read_edm(edm.write(tmp_path / "mine.pkl", network(), given))
    found = [config["network"][key] for key in ("channel_mult", "model_channels", "num_blocks", "attn_resolutions")]
    assert found == [[1, 2, 2, 2], 128, 4, [8]]
    config, _ = read_edm(edm.write(tmp_path / "mine.pkl", network(), given | {"augment_dim": 9}))
    assert config["network"]["augment_dim"] == 9


@pytest.mark.parametrize("kind", ["VPPrecond", "VEPrecond", "iDDPMPrecond", "x" * 9999])
def test_other_preconditionings_are_refused(kind, edm, tmp_path):
    refused(edm.write(tmp_path / "mine.pkl", network(), KWARGS, kind=kind), f"holds a '{kind[:40]}'; only EDMPrecond")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"sigma_data": 0}, "sigma_data is 0, expected"),
        ({"sigma_data": float("nan")}, "sigma_data is nan, expected"),
        ({"sigma_data": "0.5"}, "sigma_data is '0.5', expected"),
        ({"_modules": {}}, "no model under 'ema'"),
        ({"_modules": {"model": None}}, "no model under 'ema'"),
        ({"_modules": []}, "no model under 'ema'"),
    ],
)
def test_a_precond_that_makes_no_sense_is_refused(changes, match, edm, tmp_path):
    refused(edm.write(tmp_path / "mine.pkl", network(), KWARGS, **changes), match)


def test_values_whose_text_would_be_endless_are_not_printed(edm, tmp_path):
    """A tree of 2^60 leaves, in 60 tuples."""
    tree = ()
    for _ in range(60):
        tree = (tree, tree)
    refused(edm.write(tmp_path / "mine.pkl", network(), KWARGS, sigma_data=tree), "sigma_data is")
    config, _ = read_edm(edm.write(tmp_path / "mine.pkl", network(), KWARGS, data=tree))
    assert config["classes"][0] == "class 0"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_blocks": 10**12}, "more blocks than weights"),
        ({"channel_mult": [1] * 10**5}, "'channel_mult' is a list"),
        ({"channel_mult": ["x"]}, "'channel_mult' is a list"),
        ({"model_channels": 2**40}, "model_channels.* 1099511627776"),
        ({"model_channels": 2**24}, r"is \(.*\), the network's is \("),
        ({"model_channels": torch.ones(1)}, "'model_channels' is a Tensor"),
        ({"model_channels": 32}, r"is \(.*\), the network's is \("),
        ({"num_blocks": 2}, r"\d+ names differ"),
        ({"img_resolution": 8}, r"\d+ names differ"),
        ({"img_resolution": "16"}, "resolution '16'"),
        ({"label_dim": 10**9}, "classes, expected"),
        ({"label_dim": 3}, r"map_label.weight is \(16, 10\), the network's is \(16, 3\)"),
        ({"odd": 3}, "no argument 'odd'"),
        ({"resample_filter": [1, 3, 3, 1]}, "is not the resample_filter that this network was built with"),
        ({"num_blocks": None}, "'num_blocks' is a NoneType"),
    ],
)
def test_arguments_that_are_not_the_weights_are_refused(changes, match, edm, tmp_path):
    """And none of them makes anything large."""
    refused(edm.write(tmp_path / "mine.pkl", network(), KWARGS | changes), match)


@pytest.mark.parametrize("value", [[], {}, {"ema": None}, {"ema": {"model": 1}}, 3, "ema", None, {"net": 1}])
def test_other_values_are_no_checkpoint(value, edm, tmp_path):
    edm.dump(tmp_path / "mine.pkl", value)
    refused(tmp_path / "mine.pkl", "is no checkpoint of EDM: it holds no model under 'ema'")


def test_other_networks_are_refused(edm, tmp_path):
    edm.dump(tmp_path / "mine.pkl", {"ema": edm.precond(nn.Linear(2, 2), KWARGS)})
    refused(tmp_path / "mine.pkl", "network is a 'Linear', known: SongUNet, DhariwalUNet")


def test_a_checkpoint_cut_short_or_missing_is_named(checkpoint, tmp_path):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    refused(checkpoint, "cannot be read as a checkpoint")
    with pytest.raises(ValueError, match=r"there is no file or folder nothing\.pkl"):
        load_model("nothing.pkl")


def module(children=(), **tensors):
    return Record("Linear", {"_parameters": tensors, "_buffers": {}, "_modules": dict(children)})


def test_weights_are_those_of_the_state_dict():
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Linear(2, 2, bias=False))
    net.register_buffer("hidden", torch.ones(1), persistent=False)

    def record(module):
        children = {name: record(child) for name, child in module._modules.items()}
        tensors = {name: value and value.data for name, value in module._parameters.items() if value is None}
        tensors |= {name: value.data for name, value in module._parameters.items() if value is not None}
        return Record("x", module.__dict__ | {"_parameters": tensors, "_modules": children})

    assert read_state_dict(record(net)).keys() == net.state_dict().keys()


def test_modules_that_hold_themselves_or_share_weights_are_refused():
    circle = module()
    circle.state["_modules"]["again"] = circle
    shared, weight = module(), torch.ones(1)
    deep = module()
    for _ in range(500):
        deep = module({"x": deep})
    tree = module()
    for _ in range(60):
        tree = module({"a": tree, "b": tree})
    for one in (circle, module({"a": shared, "b": shared}), module(a=weight, b=weight), deep, tree):
        with pytest.raises(ValueError, match="inside itself, or there twice"):
            read_state_dict(one)


def test_published_names_bring_their_licence(edm, tmp_path):
    file = edm.write(tmp_path / "edm-cifar10-32x32-cond-vp.pkl", network(), KWARGS)
    assert load_model(str(file)).licence == "CC-BY-NC-SA-4.0"


def test_many_classes_are_said_in_few_words():
    assert str(LabelSpace(("a", "b"))) == "2 classes: a, b"
    assert str(LabelSpace(tuple(f"class {i}" for i in range(1000)))) == (
        "1000 classes: class 0, class 1, class 2, ..., class 999"
    )


def test_an_unknown_model_lists_all_names():
    with pytest.raises(ValueError, match=r"did you mean 'edm-cifar10-32x32-cond-vp'\? A model of "):
        load_model("edm-cifar10-32x32-cond-pv")
    with pytest.raises(ValueError, match=r"\. Known: fashion, fashion-student, edm-cifar10-32x32-\{cond"):
        load_model("nothing-of-that-kind")
