"""Prompts through a pipeline's own encoders: what its network would be fed, to the last bit."""

import json
import re
import resource
import shutil
import time

import pytest
import torch

from dmdistill.commands.export.guidance import leave_unguided
from dmdistill.data.prompt_embeddings import encode_prompts
from dmdistill.models.diffusers_pipeline import load_diffusers
from dmdistill.models.diffusers_text import PipelineText

diffusers = pytest.importorskip("diffusers")

PROMPTS = ["a red square", "", "Blue circle, 3 of them: " + "very " * 9 + "blue", "red"]
KINDS = {
    "stable_diffusion": ("stable_diffusion", {}),
    "sdxl": ("sdxl", {}),
    "sdxl-without-zeros": ("sdxl", {"zeros": False}),
    "sd3": ("sd3", {}),
    "sd3-without-t5": ("sd3", {"t5": False}),
    "flux": ("flux", {}),
}
WIDTHS = {
    "stable_diffusion": {"prompt_embeds": (16, 12)},
    "sdxl": {"prompt_embeds": (16, 32), "pooled_prompt_embeds": (14,)},
    "sd3": {"prompt_embeds": (16 + 256, 32), "pooled_prompt_embeds": (24,)},
    "flux": {"prompt_embeds": (512, 32), "pooled_prompt_embeds": (12,)},
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tiny_pipeline):
    family, options = KINDS[kind]
    return tiny_pipeline(family, **options)


@pytest.fixture(scope="module")
def encoder(folder):
    return PipelineText(folder)


@pytest.fixture(scope="module")
def whole(folder):
    """The full pipeline."""
    index = json.loads((folder / "model_index.json").read_text())
    absent = {name: None for name, part in index.items() if part == [None, None]}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def fed(pipeline, prompts):
    """What the network is told in the first step of sampling: the null prompts of guidance, if any, and the prompts."""
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    seen = {}

    class Seen(Exception):  # noqa: N818
        pass

    def look(_, arguments, options):
        seen.update(options)
        raise Seen

    hook = network.register_forward_pre_hook(look, with_kwargs=True)
    try:
        pipeline(prompts, num_inference_steps=1, guidance_scale=4.0, height=16, width=16)
    except Seen:
        pass
    finally:
        hook.remove()
    pooled = seen.get("pooled_projections", (seen.get("added_cond_kwargs") or {}).get("text_embeds"))
    return {"prompt_embeds": seen["encoder_hidden_states"]} | (
        {"pooled_prompt_embeds": pooled} if pooled is not None else {}
    )


def test_the_network_is_told_what_its_pipeline_tells_it(encoder, whole):
    expected, made = fed(whole, PROMPTS), encoder.encode(PROMPTS)
    assert made.keys() == expected.keys()
    for name, tensor in made.items():
        assert torch.equal(tensor, expected[name][-4:])


def test_the_null_prompt_is_what_its_pipeline_leads_away_from(kind, encoder, whole):
    """Asked alone: in a batch of another size products are rounded otherwise."""
    if kind == "flux":
        pytest.skip("Flux's pipeline leads away from nothing unless it is told what")
    expected, empty = fed(whole, PROMPTS[:1]), encoder.empty()
    assert empty.keys() == expected.keys()
    for name, tensor in empty.items():
        assert torch.equal(torch.cat([tensor, encoder.encode(PROMPTS[:1])[name]]), expected[name])


def test_shapes_are_the_familys(kind, encoder):
    widths = WIDTHS[kind.partition("-")[0]]
    assert {name: tuple(tensor.shape) for name, tensor in encoder.encode(PROMPTS).items()} == {
        name: (4, *shape) for name, shape in widths.items()
    }
    assert {name: tuple(tensor.shape) for name, tensor in encoder.empty().items()} == {
        name: (1, *shape) for name, shape in widths.items()
    }
    assert {tensor.dtype for tensor in encoder.encode(PROMPTS).values()} == {torch.float32}
    assert not any(tensor.requires_grad for tensor in encoder.encode(PROMPTS).values())


def test_prompts_differ_and_the_empty_one_is_zero_where_the_pipeline_says_so(kind, encoder):
    made, empty = encoder.encode(PROMPTS), encoder.empty()
    for name, tensor in made.items():
        assert not torch.equal(tensor[0], tensor[2])
        assert torch.allclose(tensor[1], empty[name][0], atol=1e-5) == (kind != "sdxl")
        assert (empty[name].abs().max() == 0) == (kind == "sdxl")


def test_only_text_encoders_are_loaded_and_they_are_released(folder, tmp_path):
    """Neither the network's weights nor the autoencoder's are asked for."""
    bare = shutil.copytree(folder, tmp_path / "bare")
    for part in ("unet", "transformer", "vae"):
        for file in (bare / part).glob("*.safetensors"):
            file.unlink()
    encoder = PipelineText(bare)
    _ = encoder.id  # asks for files alone
    assert encoder.pipeline is None
    first = encoder.encode(PROMPTS[:1])
    assert encoder.pipeline.vae is None
    encoder.release()
    assert encoder.pipeline is None
    assert torch.equal(encoder.encode(PROMPTS[:1])["prompt_embeds"], first["prompt_embeds"])


def test_prompts_are_kept_as_they_were_encoded(kind, encoder, tmp_path):
    told = encode_prompts(PROMPTS, encoder, tmp_path, batch=4)
    picked = told.select(torch.tensor([3, 0, 1]))
    for name, tensor in encoder.encode(PROMPTS).items():
        assert torch.equal(picked.tensors[name], tensor[[3, 0, 1]])
        assert torch.equal(picked.null().tensors[name], encoder.empty()[name].expand_as(tensor[:3]))


def test_the_id_is_of_the_contents(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    same = PipelineText(copy).id
    assert PipelineText(folder).id == same
    assert PipelineText(folder, dtype=torch.bfloat16).id != same
    weights = copy / "text_encoder" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    changed = PipelineText(copy).id
    assert changed != same
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": "other"}))
    assert PipelineText(copy).id not in (same, changed)


def test_half_precision_is_the_pipelines_too(tiny_pipeline):
    folder = tiny_pipeline("sdxl")
    whole = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.bfloat16)
    made = PipelineText(folder, dtype=torch.bfloat16).encode(PROMPTS)
    for name, tensor in fed(whole, PROMPTS).items():
        assert made[name].dtype == torch.bfloat16
        assert torch.equal(made[name], tensor[4:])


@pytest.mark.parametrize(
    ("index", "match"),
    [
        (None, r"model_index\.json does not exist"),
        ("{", r"model_index\.json is not JSON"),
        ("[]", r"model_index\.json holds a list, expected"),
        ('{"_class_name": "KandinskyPipeline"}', "is of the class KandinskyPipeline; prompts are encoded for Stable"),
        ('{"_class_name": ["mine", "Mine"]}', "is of the class"),  # the code of a checkpoint is not run
    ],
)
def test_what_is_no_known_pipeline_is_one_clear_line(index, match, tmp_path):
    if index is not None:
        (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(ValueError, match=match) as caught:
        PipelineText(tmp_path).encode(["a"])
    assert "\n" not in str(caught.value)


@pytest.fixture
def stable_diffusion(tiny_pipeline, tmp_path):
    """A copy to change."""
    return shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "pipeline")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 10**5},
        {"num_hidden_layers": "2"},
        {"num_attention_heads": 0},
        {"hidden_size": 10**6},
        {"vocab_size": 10**12},
        {"vocab_size": 10**6},
        {"max_position_embeddings": 10**9},
        {"architectures": 3, "hidden_size": None},
        {"hidden_act": "magic"},
        {"extra": "x" * 10**6},
    ],
    ids=repr,
)
def test_a_text_encoders_config_is_checked(changes, stable_diffusion):
    file = stable_diffusion / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    seconds, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=re.escape(str(stable_diffusion))) as caught:
        PipelineText(stable_diffusion).encode(["red"])
    assert "\n" not in str(caught.value)
    assert time.monotonic() - seconds < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 1e6  # kilobytes


@pytest.mark.parametrize("text", ["[]", "{", "3", '{"model_max_length": "many"}', ""])
@pytest.mark.parametrize("file", ["tokenizer/tokenizer_config.json", "text_encoder/config.json"])
def test_files_of_other_forms_are_one_line(file, text, stable_diffusion):
    (stable_diffusion / file).write_text(text)
    lines = []
    try:
        PipelineText(stable_diffusion).encode(["red"])
    except ValueError as error:  # a tokenizer may do without its config
        lines.append(str(error))
    assert [line for line in lines if "\n" in line or str(stable_diffusion) not in line] == []


def test_text_encoders_in_half_precision_only_are_read(tiny_pipeline, tmp_path):
    folder = tiny_pipeline("stable_diffusion")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float16, safety_checker=None)
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    assert list((tmp_path / "half").rglob("*.fp16.safetensors")) != []
    teacher = load_diffusers(str(tmp_path / "half"))
    embeds = teacher.text.encode(PROMPTS)["prompt_embeds"]
    assert embeds.dtype == torch.float32
    torch.testing.assert_close(embeds, PipelineText(folder).encode(PROMPTS)["prompt_embeds"], rtol=1e-2, atol=1e-2)


def test_loading_and_encoding_print_nothing(stable_diffusion, capfd, recwarn):
    teacher = load_diffusers(str(stable_diffusion))
    teacher.text.encode(PROMPTS)
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("class_embed_type", "timestep"),
        ("num_class_embeds", 5),
        ("addition_embed_type", "image"),
        ("encoder_hid_dim_type", "ip_image_proj"),
    ],
)
def test_networks_with_other_inputs_are_refused_by_name(option, value, stable_diffusion):
    file = stable_diffusion / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {option: value}))
    with pytest.raises(ValueError, match=r"unet/config\.json") as caught:
        load_diffusers(str(stable_diffusion))
    assert "\n" not in str(caught.value)


def test_an_embedding_of_guidance_may_have_weights_of_zero_only(stable_diffusion):
    """With zeros, as exported students have them, the network is the one without."""
    before = load_diffusers(str(stable_diffusion)).network
    unet = diffusers.UNet2DConditionModel.from_pretrained(stable_diffusion / "unet")
    leave_unguided(unet)
    unet.save_pretrained(stable_diffusion / "unet")
    network = load_diffusers(str(stable_diffusion)).network
    assert network.model.config.time_cond_proj_dim is None
    assert network.state_dict().keys() == before.state_dict().keys()
    torch.nn.init.ones_(unet.time_embedding.cond_proj.weight)
    unet.save_pretrained(stable_diffusion / "unet")
    with pytest.raises(
        ValueError, match=r"unet/config\.json: time_cond_proj_dim 256 is not supported: the network has"
    ):
        load_diffusers(str(stable_diffusion))


@pytest.mark.parametrize("length", [10**9, 10**30, 0, -3, 17, None])
def test_prompts_are_padded_to_positions_of_the_encoder_only(length, stable_diffusion):
    """Padding to 1e9 tokens would end the process."""
    file = stable_diffusion / "tokenizer" / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"model_max_length": length}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(ValueError, match=r"tokenizer: model_max_length is .*, expected an integer from 1 to 16"):
        PipelineText(stable_diffusion).encode(["red"])
