"""Single files of Stable Diffusion as teachers: the same model as the pipeline's folder that they were made of."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from dmdistill.commands.cli import main
from dmdistill.core.denoisers import VDenoiser
from dmdistill.models.diffusers_folder import resolve_folder
from dmdistill.models.load import load_model, load_teacher
from helpers.edits import edit_json
from helpers.single_files import write_single_file
from helpers.tiny_models import save_student

FAMILIES = {
    "1": ("stable_diffusion", {}),
    "2": ("stable_diffusion", {"prediction": "v_prediction", "activation": "gelu"}),
    "xl": ("sdxl", {}),
}

MISSING = {
    "unet": "model.diffusion_model.out.2.weight",
    "vae": "first_stage_model.decoder.conv_in.bias",
    "encoder": "cond_stage_model.transformer.text_model.final_layer_norm.weight",
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DMDISTILL_CACHE", str(folder))
    return folder


@pytest.fixture
def file(tiny_pipeline, tmp_path):
    """A single file of Stable Diffusion 1, with its configs beside it."""
    return write_single_file(tiny_pipeline("stable_diffusion"), tmp_path / "tiny.safetensors")


@pytest.mark.parametrize("key", FAMILIES)
def test_a_single_file_is_the_pipeline_that_it_was_made_of(key, tiny_pipeline, tmp_path):
    family, options = FAMILIES[key]
    folder = tiny_pipeline(family, **options)
    file = write_single_file(folder, tmp_path / "tiny.safetensors")
    teacher, expected = load_teacher(str(file)), load_teacher(str(folder))
    assert (teacher.name, teacher.config["source"]) == ("tiny", str(file.resolve()))
    assert type(teacher.denoiser) is type(expected.denoiser)
    for name in ("network", "autoencoder"):
        theirs = getattr(expected, name).state_dict()
        ours = getattr(teacher, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    ours, theirs = (model.text.encode(["a red square"]) for model in (teacher, expected))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_file_is_converted_once_in_its_precision(file, cache):
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    folder = resolve_folder(str(file))
    assert resolve_folder(str(file)) == folder
    assert [path.name for path in (cache / "single-files").glob("*") if path.is_dir()] == [folder.name]
    for part in ("unet", "vae", "text_encoder"):
        (weights,) = (folder / part).glob("*.safetensors")
        assert {tensor.dtype for tensor in load_file(weights).values() if tensor.is_floating_point()} == {torch.float16}
    edit_json(file.with_suffix("") / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    changed = resolve_folder(str(file))
    assert changed != folder
    assert json.loads((changed / "scheduler/scheduler_config.json").read_text())["prediction_type"] == "v_prediction"


def test_what_a_file_says_of_its_prediction_goes_before_the_configs(tiny_pipeline, tmp_path):
    """The usual configs of Stable Diffusion XL say that the noise is predicted."""
    options = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    file = write_single_file(tiny_pipeline("sdxl", **options), tmp_path / "tiny.safetensors")
    usual = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}
    edit_json(file.with_suffix("") / "scheduler/scheduler_config.json", **usual)
    denoiser = load_teacher(str(file)).denoiser
    assert isinstance(denoiser, VDenoiser)
    assert denoiser.schedule.alpha(torch.tensor([999.0])) == 0


def test_students_of_a_single_file_are_exported(file, tmp_path):
    """Adapters' cards load the file; a checkpoint's card names the configs beside it."""
    for rank in (0, 2):
        save_student(str(file), tmp_path / f"student-{rank}", rank=rank)
        for form in ("diffusers", "single-file"):
            main(["export", str(tmp_path / f"student-{rank}"), str(tmp_path / f"{form}-{rank}"), "--format", form])
    cards = {path.parent.name: path.read_text() for path in tmp_path.glob("*/README.md")}
    for form in ("diffusers-2", "single-file-2"):
        assert 'StableDiffusionPipeline.from_single_file(\n    "path/to/the/teacher/tiny.safetensors"' in cards[form]
    assert 'config="path/to/the/teacher/tiny"' in cards["single-file-0"]
    assert isinstance(load_model(str(tmp_path / "diffusers-0")).network.model.config.cross_attention_dim, int)


def test_a_file_without_configs_says_what_is_missing(file, tmp_path, monkeypatch, error_line):
    def offline(*_, **__):
        raise OSError("no network\nmore lines")

    monkeypatch.setattr("diffusers.loaders.single_file.snapshot_download", offline)
    shutil.rmtree(file.with_suffix(""))
    line = error_line("info", file)
    assert f"{file} cannot be read as a StableDiffusionPipeline: a file has no configs and no tokenizer" in line
    assert f"tokenizer/ and each config.json) into {file.with_suffix('')}, as they did not come from the hub" in line
    assert line.endswith("no network\n")


@pytest.mark.parametrize(
    "damage", [*MISSING, "cut", "text", "part", "student", "shape", "class", "config", "tokenizer"]
)
def test_what_is_no_teacher_is_one_clear_line(damage, file, cache, error_line):
    tensors, configs = load_file(file), file.with_suffix("")
    metadata, name = {"format": "pt"}, MISSING.get(damage, "model.diffusion_model.out.2.weight")
    if damage == "part":
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("cond_stage_model.")}
    elif damage == "student":
        metadata["dmdistill_kind"] = "student"
    elif damage in MISSING:
        del tensors[name]
    elif damage == "shape":
        tensors[name] = torch.zeros(2, 3)
    elif damage == "class":
        edit_json(configs / "model_index.json", _class_name="FluxPipeline")
    elif damage == "config":
        (configs / "vae/config.json").unlink()
    elif damage == "tokenizer":
        shutil.rmtree(configs / "tokenizer")
    save_file(tensors, file, metadata=metadata)
    if damage in ("cut", "text"):
        file.write_bytes(file.read_bytes()[:1000] if damage == "cut" else b"no tensors")
    words = {
        "cut": "cut short, damaged or no safetensors file",
        "text": "cut short, damaged or no safetensors file",
        "part": "is no checkpoint of Stable Diffusion 1, 2 or XL: expected a file with U-Net",
        "student": "is an exported student: give the folder of the student or run",
        "unet": "cannot be read as a StableDiffusionPipeline: some of its weights are missing",
        "vae": "cannot be read as a StableDiffusionPipeline: some of its weights are missing",
        "encoder": "1 weights of its text_encoder are missing, first 'final_layer_norm.weight'",
        "shape": "cannot be read as a StableDiffusionPipeline: with the configs in",
        "class": f"{configs} is of the class 'FluxPipeline', the file beside it is a StableDiffusionPipeline",
        "config": f"{configs}/vae holds no config.json",
        "tokenizer": f"{configs}/tokenizer holds no tokenizer.json and no vocab.json",
    }
    assert words[damage] in error_line("info", file)
    assert [path for path in (cache / "single-files").glob("*") if path.is_dir()] == []
