"""Models as folders: what is saved comes back; what is not ours is refused in one line."""

import json
import math
import resource
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmdistill.core.generators import Generator
from dmdistill.io.weights import load_weights, save_weights
from dmdistill.models import load
from dmdistill.models.folder import build_part, save_model
from dmdistill.models.load import load_model, load_teacher
from dmdistill.models.model import Student, Teacher
from helpers.edits import edit_json, read_entries


@pytest.fixture
def model(tiny_teacher, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(tiny_teacher, tmp_path / "model")


def change(folder, **changes):
    edit_json(folder / "config.json", **changes)


def refused(folder, match):
    with pytest.raises(ValueError, match=match) as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_saved_and_loaded_is_the_same(tiny_teacher, tmp_path, rng):
    teacher = load_teacher(str(tiny_teacher))
    save_model(tmp_path / "again", teacher, card="the card")
    again = load_teacher(str(tmp_path / "again"))
    for name, tensor in teacher.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name])
    z, cond = teacher.sample_inputs(3, rng=rng)
    assert torch.equal(teacher.images(z, cond), again.images(z, cond))
    kept = (
        "name",
        "shape",
        "conditions",
        "licence",
        "feature_extractor",
        "config",
        "solver",
        "steps",
        "guidance",
        "evaluations",
    )
    assert [getattr(teacher, key) for key in kept] == [getattr(again, key) for key in kept]
    assert (tmp_path / "again" / "README.md").read_text() == "the card"
    assert sorted(file.name for file in (tmp_path / "again").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_half_precision_is_half_the_size_and_loads_as_fp32(tiny_teacher, tmp_path):
    teacher = load_teacher(str(tiny_teacher))
    save_model(tmp_path / "half", teacher, card="", dtype=torch.float16)
    again = load_teacher(str(tmp_path / "half"))
    for name, tensor in teacher.network.state_dict().items():
        found = again.network.state_dict()[name]
        assert found.dtype == torch.float32
        assert torch.equal(found, tensor.half().float())
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "half", tiny_teacher)]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.parametrize(
    "kind",
    [
        {"class": "DhariwalUNet", "model_channels": 64, "attn_resolutions": [4]},
        {"class": "SongUNet", "embedding_type": "fourier", "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]},
    ],
    ids=lambda kind: kind["class"],
)
def test_every_kind_of_network_is_kept(kind, tmp_path):
    """Also what is drawn once and never trained, NCSN++'s frequencies."""
    sizes = {"img_resolution": 8, "in_channels": 1, "out_channels": 1, "channel_mult": [1, 2], "num_blocks": 1}
    config = {"network": {"model_channels": 16} | sizes | kind}
    first, second = (build_part(config, "network").eval() for _ in range(2))
    for parameter in first.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_weights(tmp_path / "weights", first)
    load_weights(tmp_path / "weights", second)
    x, noise = torch.randn(2, 1, 8, 8), torch.randn(2)
    assert first(x, noise).any()
    assert torch.equal(first(x, noise), second(x, noise))


def test_a_loaded_model_is_frozen_and_in_evaluation_mode(tiny_teacher):
    teacher = load_model(str(tiny_teacher))
    assert not any(p.requires_grad for p in teacher.network.parameters())
    assert not teacher.denoiser.training


def test_channels_last_is_stored_as_any_other(tiny_teacher, tmp_path):
    teacher = load_teacher(str(tiny_teacher)).to(torch.device("cpu"))
    save_model(tmp_path / "last", teacher, card="")
    assert (tmp_path / "last" / "model.safetensors").read_bytes() == (tiny_teacher / "model.safetensors").read_bytes()


@pytest.mark.parametrize("place", ["teacher", "student"])
def test_a_runs_folder_stands_for_its_model(place, tiny_teacher, tmp_path):
    shutil.copytree(tiny_teacher, tmp_path / "run" / place)
    assert load_model(str(tmp_path / "run")).name == "tiny"


def test_a_student_is_its_generator_and_no_teacher(model, rng):
    teacher = load_teacher(str(model))
    change(model, kind="student")
    student = load_model(str(model))
    assert isinstance(student, Student)
    assert (student.evaluations, teacher.evaluations) == (1, 35)
    z, cond = student.sample_inputs(3, rng=rng)
    assert torch.equal(student.images(z, cond), Generator(teacher.denoiser)(z, cond))
    with pytest.raises(ValueError, match="is a student, expected a teacher"):
        load_teacher(str(model))


def test_guidance_doubles_the_evaluations(model):
    change(model, guidance=2.0)
    assert load_teacher(str(model)).evaluations == 70


def test_an_unknown_name_suggests_the_nearest(monkeypatch, model):
    monkeypatch.setattr(load, "bundled_models", lambda: {"fashion": model, "fashion-student": model})
    assert "; did you mean 'fashion-student'? A model of" in refused("fashon-student", "unknown model 'fashon-student'")
    assert "did you mean" not in refused("something-else", "Known: fashion")


def test_a_folder_that_holds_no_model_is_said_so(tmp_path):
    (tmp_path / "other").touch()
    refused(tmp_path, "holds no config.json, student/ or teacher/")


@pytest.mark.parametrize("name", ["a.ckpt", "a.pth", "a.txt", "empty"])
def test_a_path_of_no_model_is_described(name, tmp_path):
    (tmp_path / name).touch() if "." in name else (tmp_path / name).mkdir()
    words = {"a.txt": "unknown kind", "empty": "empty folder"}.get(name, "from_single_file.*save_pretrained")
    refused(tmp_path / name, rf"{name} is an? .*{words}")


def test_missing_weights_are_named(model):
    (model / "model.safetensors").unlink()
    refused(model, r"model\.safetensors does not exist")


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_weights_cut_short_are_named(keep, model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(model, r"model\.safetensors is truncated, damaged or not a safetensors file")


@pytest.mark.parametrize("damage", ["other names", "one more", "one less", "other shapes"])
def test_foreign_weights_are_named(damage, model):
    file = model / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    name = "map_layer0.weight"
    if damage == "other names":
        tensors = {f"module.{key}": tensor for key, tensor in tensors.items()}
    elif damage == "one more":
        tensors["extra"] = torch.zeros(2)
    elif damage == "one less":
        del tensors[name]
    else:
        tensors[name] = tensors[name].T[:5].contiguous()
    save_file(tensors, file)
    refused(model, r"model\.safetensors(: map_layer0\.weight is \(5, 64\)| is not of this network: \d+ names differ)")


def test_refused_weights_leave_the_network_as_it_was(model, tiny_teacher):
    network = load_model(str(tiny_teacher)).network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    save_file({name: torch.zeros(1) for name in before}, model / "model.safetensors")
    with pytest.raises(ValueError, match="the network's is"):
        load_weights(model / "model.safetensors", network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    "text", ["", "{", "\xff\xfe", "[]", "null", "3", "{}", '{"kind": "feature_extractor"}', '{"kind": 1}']
)
def test_a_description_that_is_not_ours_is_named(text, model):
    (model / "config.json").write_bytes(text.encode("latin-1"))
    refused(model, r"config\.json")


@pytest.mark.parametrize("key", ["name", "network", "schedule", "denoiser", "shape", "solver", "steps", "guidance"])
def test_a_description_that_lacks_something_says_what(key, model):
    edit_json(model / "config.json", remove=key)
    refused(model, f"config.json cannot be used: .*{key}")


@pytest.mark.parametrize(
    "changes",
    [
        {"network": None},
        {"network": {"class": "SongUNet"}},
        {"network": {"class": "SongUNet", "img_resolution": "8", "in_channels": 1, "out_channels": 1}},
        {"network": {"class": "SongUNet", "img_resolution": 8, "in_channels": -1, "out_channels": 1}},
        {"network": {"class": "SongUNet", "img_resolution": 8, "in_channels": 1, "out_channels": 1, "patch_size": 0}},
        {"network": {"class": ["SongUNet"]}},
        {"schedule": {"class": "EDM", "sigma_min": -1}},
        {"schedule": {"class": "EDM", "odd": 1}},
        {"shape": 8},
        {"shape": [1, 8]},
        {"shape": [1, 8, 0]},
        {"shape": "abc"},
        {"steps": 0},
        {"guidance": "2"},
        {"guidance": -1.0},
        {"classes": ["one", "two"]},
        {"solver": "euler"},
        {"solver": ["heun"]},
        {"steps": "many"},
        {"steps": True},
        {"guidance": 1e30},
        {"guidance": math.nan},
        {"licence": 3},
        {"licence": ["MIT"]},
        {"licence": "MIT\nlicense: other"},
        {"name": None},
        {"name": {"a": 1}},
        {"name": "x" * 10**6},
        {"feature_extractor": ["fashion-classifier"]},
        {"classes": "abcdefghij"},
        {"classes": list(range(10))},
        {"classes": None},
        {"denoiser": {"class": "EDMDenoiser", "sigma_data": "0.5"}},
        {"denoiser": {"class": "EDMDenoiser", "net": 3}},
        {"denoiser": ["EDMDenoiser"]},
        {"schedule": {"class": "EDM", "bins": 1e3}},
    ],
)
def test_a_description_that_makes_no_sense_is_one_line(changes, model):
    change(model, **changes)
    refused(model, r"config\.json cannot be used")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("num_blocks", value) for value in (10**4, 10**9, 10**30, -1, 1.5, True, None, [1])),
        *(("model_channels", value) for value in (2**30, 2**40, 0)),
        *(("channel_mult", value) for value in ([1] * 10**6, [2**60], [2**20, 2**20], [], 3, ["1"], [0])),
        *(("attn_resolutions", value) for value in (8, [[8]], "8")),
        *(("img_resolution", value) for value in (2**20, 2**40, 7)),
        *(("label_dim", value) for value in (10**9, 3)),
        *(("dropout", value) for value in ("0.1", math.inf, [0.1])),
        *(("embedding_type", value) for value in ("x", 3, ["positional"])),
        *(("resample_filter", value) for value in ("11", [math.nan, 1])),
        ("odd", 1),
    ],
    ids=lambda value: f"{value!r:.20}",
)
def test_arguments_of_a_network_are_checked_before_any_memory_is_taken(argument, value, model):
    network = json.loads((model / "config.json").read_text())["network"]
    change(model, network=network | {argument: value})
    seconds, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(model, r"config\.json cannot be used|model\.safetensors")
    assert time.monotonic() - seconds < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200e3  # kilobytes


@pytest.mark.parametrize("side", [2**20, 2**30])
def test_a_sample_that_does_not_fit_in_memory_is_refused(side, model):
    network = json.loads((model / "config.json").read_text())["network"]
    change(model, network=network | {"img_resolution": side, "attn_resolutions": []}, shape=[1, side, side])
    refused(model, r"config\.json cannot be used: it needs .* GB of memory, this computer has")


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "Generator", "UNetBlock", "", None, ["EDM"], {}])
@pytest.mark.parametrize("part", ["network", "schedule", "denoiser"])
def test_no_other_class_is_ever_built(name, part, model):
    config = json.loads((model / "config.json").read_text())
    spec = {**(config["network"] if part == "network" else {}), "class": name, "command": "false"}
    change(model, **{part: spec})
    assert "whose class is one of" in refused(model, rf"config\.json cannot be used: {part} is")
    with pytest.raises(ValueError, match="whose class is one of"):
        build_part({part: {"class": name}}, part)


def test_nan_in_weights_reaches_the_images(model, rng):
    """Loading hides nothing: what is stored is what answers."""
    file = model / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    tensors["map_layer0.bias"][3] = math.nan
    save_file(tensors, file)
    teacher = load_teacher(str(model))
    assert isinstance(teacher, Teacher)
    assert not torch.isfinite(teacher.images(*teacher.sample_inputs(2, rng=rng))).any()


def test_one_changed_digit_is_detected(model):
    file = model / "config.json"
    text = file.read_text()
    for number, character in enumerate(text):
        if character.isdigit():
            file.write_text(f"{text[:number]}{(int(character) + 1) % 10}{text[number + 1 :]}")
            refused(model, r"config\.json")


def test_a_model_without_checksums_is_used_and_named_once(model, tiny_teacher, capsys):
    weights = load_file(model / "model.safetensors")
    save_file(weights, model / "model.safetensors")
    (model / "config.json").write_text(json.dumps(read_entries(model / "config.json")))
    for _ in range(2):
        found = load_teacher(str(model))
    assert found.config == load_teacher(str(tiny_teacher)).config
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" is not verified")[0] for line in lines] == [
        f"dmdistill: {model / name}" for name in ("config.json", "model.safetensors")
    ]
