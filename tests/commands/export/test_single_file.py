"""Students as single files: diffusers' own loader makes the same image of them; the names are the published ones."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from diffusers.loaders.single_file_utils import (
    CHECKPOINT_KEY_NAMES,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)

from dmdistill.commands.cli import main
from dmdistill.commands.export.original_names import autoencoder_tensors, unet_tensors
from dmdistill.commands.prompts import with_prompt_texts
from dmdistill.models.load import load_model
from helpers.tiny_models import save_student

XL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
UNETS = {  # the published configs: the number of tensors in a file, names there
    "1.5": ({"cross_attention_dim": 768}, 686, [CHECKPOINT_KEY_NAMES["v1"], CHECKPOINT_KEY_NAMES["v2"]]),
    "xl": (XL, 1680, ["model.diffusion_model.input_blocks.7.1.transformer_blocks.9.attn2.to_k.weight"]),
}
STEPS = {"timesteps": [999.0, 749.0, 499.0, 249.0], "transition": "sde"}
STUDENTS = {  # family, options of its pipeline, rank, the student's steps
    "1": ("stable_diffusion", {}, 0, {}),
    "2": ("stable_diffusion", {"prediction": "v_prediction", "activation": "gelu"}, 0, {}),
    "xl": ("sdxl", {}, 0, {}),
    "1-lora": ("stable_diffusion", {}, 2, {}),
    "xl-v": ("sdxl", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, 0, {}),
    "xl-lora": ("sdxl", {}, 2, {}),
    "steps": ("stable_diffusion", {}, 0, STEPS),
}


@pytest.mark.parametrize("key", UNETS)
def test_a_unets_names_are_those_that_diffusers_converts_back(key):
    """Of the published sizes, without memory."""
    config, count, known = UNETS[key]
    with torch.device("meta"):
        network = diffusers.UNet2DConditionModel(**config)
    state = network.state_dict()
    original = {f"model.diffusion_model.{name}": one for name, one in unet_tensors(state, network.config).items()}
    assert len(original) == count == len(state)
    assert set(known) <= original.keys()
    back = convert_ldm_unet_checkpoint(original, network.config)
    assert {name: id(tensor) for name, tensor in back.items()} == {name: id(tensor) for name, tensor in state.items()}


def test_an_autoencoders_names_are_those_that_diffusers_converts_back():
    types = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(**types, block_out_channels=(4, 8, 16, 16), layers_per_block=2, norm_num_groups=2)
    state = model.state_dict()
    original = {f"first_stage_model.{name}": one for name, one in autoencoder_tensors(state, 4).items()}
    assert len(original) == 248  # as in the published files
    assert original["first_stage_model.decoder.mid.attn_1.proj_out.weight"].shape == (16, 16, 1, 1)
    assert "first_stage_model.decoder.up.1.block.0.nin_shortcut.weight" in original
    back = convert_ldm_vae_checkpoint(original, model.config)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_layers_without_an_original_name_are_refused():
    state = {"encoder_hid_proj.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"layer encoder_hid_proj.weight has no name.*only --format diffusers"):
        unet_tensors(state, {"layers_per_block": 2, "up_block_types": []})


def export(key, tiny_pipeline, folder, *flags):
    """The teacher's folder, the student's and that of its single file."""
    family, options, rank, steps = STUDENTS[key]
    teacher = tiny_pipeline(family, **options)
    save_student(str(teacher), folder / "student", rank=rank, **steps)
    main(["export", str(folder / "student"), str(folder / "out"), "--format", "single-file", *flags])
    return teacher, folder / "student", folder / "out"


def run_card(out: Path, teacher: Path):
    """The pipeline that the card's code loads, with the places of the files filled in."""
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), flags=re.S)
    code = code.replace("this folder, or its name on the hub", str(out)).replace(
        "path/to/the/teacher", str(teacher.parent)
    )
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # of arguments that were renamed, such as torch_dtype
        exec(code.replace("path/to/", f"{out}/"), names)
    return names["pipeline"]


@pytest.mark.parametrize("key", ["1", "2", "xl", "xl-v", "1-lora", "xl-lora"])
def test_diffusers_makes_the_same_image_of_the_file(key, tiny_pipeline, tmp_path):
    teacher, folder, out = export(key, tiny_pipeline, tmp_path)
    pipeline = run_card(out, teacher)
    pipeline.set_progress_bar_config(disable=True)
    student = with_prompt_texts(load_model(str(folder)), ["a red square"])
    z = torch.randn(1, *student.shape, generator=torch.Generator().manual_seed(3))
    ours = (student.images(z, student.condition(torch.tensor([0]))) / 2 + 0.5).clamp(0, 1)
    options = {"latents": z, "guidance_scale": 0, "num_inference_steps": 1, "height": 16, "width": 16}
    theirs = torch.from_numpy(pipeline("a red square", **options, output_type="np").images).permute(0, 3, 1, 2)
    assert (theirs - ours).abs().max() < 1e-5 * ours.std()


def test_the_card_says_what_other_interfaces_need(tiny_pipeline, tmp_path):
    _, _, out = export("steps", tiny_pipeline, tmp_path, "--save-dtype", "fp16")
    card = (out / "README.md").read_text()
    assert "CFG scale 1 (no guidance), steps: 4, at the timesteps 999 749 499 249\n# sampler lcm" in card
    (file,) = out.glob("*.safetensors")
    with safe_open(file, "pt") as tensors:
        assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"F16"}  # noqa: SIM118


def test_what_cannot_be_one_file_is_one_clear_line(tiny_teacher, tiny_pipeline, tmp_path, error_line):
    for number, teacher in enumerate((tiny_teacher, tiny_pipeline("sd3"))):
        save_student(str(teacher), tmp_path / f"student-{number}")
        line = error_line("export", tmp_path / f"student-{number}", tmp_path / "out", "--format", "single-file")
        assert "cannot be one file: expected a student of Stable Diffusion 1, 2 or XL, or --format diffusers" in line
        assert not (tmp_path / "out").exists()
