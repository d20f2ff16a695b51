"""Configs of others: read as diffusers reads them, or refused in one line that names file, option and value."""

import json
import math
import resource
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

diffusers = pytest.importorskip("diffusers")

from dmdistill.models.diffusers_folder import weights_variant
from dmdistill.models.diffusers_pipeline import load_diffusers
from dmdistill.models.load import load_model
from helpers.tiny_models import unet2d, unet2d_network


def write(folder, scheduler=None, **changes):
    """A pipeline of a UNet2DModel of 3 x 8 x 8 pixels."""
    network = unet2d_network(**changes)
    diffusers.DDPMPipeline(unet=network, scheduler=scheduler or diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


def change(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refused(folder, *words):
    """The one line with which a folder is refused; it holds the words."""
    seconds, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r".") as caught:
        load_model(str(folder))
    line = str(caught.value)
    assert "\n" not in line
    assert [word for word in words if word not in line] == [], line
    assert time.monotonic() - seconds < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 1e6  # kilobytes
    return line


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return write(tmp_path_factory.mktemp("ddpm") / "ddpm")


@pytest.fixture
def folder(pipeline, tmp_path):
    """A copy to change."""
    return shutil.copytree(pipeline, tmp_path / "pipeline")


@pytest.mark.parametrize("variance", ["learned", "learned_range", "fixed_small"])
def test_a_learned_variance_is_dropped(variance, tmp_path):
    folder = write(tmp_path / "pipeline", diffusers.DDPMScheduler(variance_type=variance), out_channels=6)
    teacher = load_diffusers(str(folder))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([600.0, 30.0])
    with torch.no_grad():
        expected = teacher.network.model(x, t).sample
        assert expected.shape == (2, 6, 8, 8)
        assert torch.equal(teacher.network(x, t), expected[:, :3])
    assert teacher.images(torch.randn(1, 3, 8, 8)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sample_size": None}, ["unet/config.json", "sample_size", "None"]),
        ({"sample_size": "8"}, ["sample_size"]),
        ({"sample_size": [8]}, ["sample_size", "[8]"]),
        ({"sample_size": [8, 9]}, ["sample_size", "9", "halved"]),
        ({"sample_size": 15}, ["sample_size", "15", "halved"]),
        ({"sample_size": 2**24}, ["GB of memory"]),
        ({"in_channels": 6}, ["unet"]),
        ({"out_channels": 9}, ["unet"]),
        ({"class_embed_type": "timestep"}, ["class_embed_type", "timestep"]),
        ({"class_embed_type": "identity"}, ["class_embed_type", "identity"]),
        ({"layers_per_block": 10**9}, ["unet/config.json"]),
        ({"layers_per_block": 10**4}, ["unet/config.json"]),
        ({"layers_per_block": 0}, ["unet"]),
        ({"layers_per_block": "1"}, ["unet/config.json"]),
        ({"block_out_channels": [2**24, 2**24]}, ["unet/config.json"]),
        ({"block_out_channels": [8, "16"]}, ["unet/config.json"]),
        ({"block_out_channels": []}, ["unet/config.json"]),
        ({"block_out_channels": 8}, ["unet/config.json"]),
        ({"down_block_types": ["DownBlock2D"]}, ["unet/config.json"]),
        ({"down_block_types": ["os.system", "DownBlock2D"]}, ["unet/config.json"]),
        ({"norm_num_groups": 0}, ["unet/config.json"]),
        ({"num_class_embeds": 10**9}, ["unet/config.json"]),
        ({"num_class_embeds": 5}, ["unet", "lacks", "class_embedding"]),
        ({"act_fn": "magic"}, ["unet/config.json"]),
        ({"time_embedding_type": 3}, ["unet/config.json"]),
        ({"_class_name": "AutoencoderKL"}, ["AutoencoderKL"]),
        ({"_class_name": ["UNet2DModel"]}, ["unet"]),
        ({"extra": "x" * 10**6}, ["unet/config.json"]),
        ({"extra": math.nan}, ["unet/config.json"]),
    ],
    ids=lambda value: f"{value!r:.50}" if isinstance(value, dict) else "",
)
def test_a_networks_config_is_checked_before_memory_is_taken(changes, words, folder):
    change(folder / "unet" / "config.json", **changes)
    if "_class_name" in changes:
        shutil.copytree(folder / "scheduler", folder / "unet" / "scheduler")
        refused(folder / "unet", *words)
    else:
        refused(folder, *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"beta_schedule": "cosine"}, ["DDPMScheduler", "cosine"]),
        ({"num_train_timesteps": "1000"}, ["DDPMScheduler"]),
        ({"num_train_timesteps": 10**12}, ["scheduler_config.json"]),
        ({"num_train_timesteps": 0}, ["scheduler"]),
        ({"num_train_timesteps": -3}, ["scheduler"]),
        ({"trained_betas": [0.1, "0.2"]}, ["DDPMScheduler"]),
        ({"trained_betas": [0.1, 2.0]}, ["scheduler"]),
        ({"beta_end": None}, ["scheduler"]),
        ({"beta_start": 0.5, "beta_end": -1.0}, ["scheduler"]),
        ({"prediction_type": ["epsilon"]}, ["prediction_type"]),
        ({"clip_sample_range": "1"}, ["scheduler"]),
        ({"clip_sample_range": -1.0}, ["scheduler"]),
        ({"_class_name": "UNet2DModel"}, ["UNet2DModel"]),
        ({"_class_name": "DiffusionPipeline"}, ["DiffusionPipeline"]),
        ({"_class_name": ["DDPMScheduler"]}, ["scheduler"]),
        ({"_class_name": None}, ["scheduler"]),
    ],
    ids=lambda value: f"{value!r:.50}" if isinstance(value, dict) else "",
)
def test_a_schedulers_config_is_checked(changes, words, folder):
    change(folder / "scheduler" / "scheduler_config.json", **changes)
    refused(folder, str(folder), *words)


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize(
    "text", ["[]", "3", "null", "{", '"a"', "[" * 10**5, "\xff", "{}", '{"a": ' * 50 + "1" + "}" * 50]
)
def test_files_of_other_forms_are_named(file, text, folder):
    (folder / file).write_bytes(text.encode("latin-1"))
    refused(folder, str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"unet": None},
        {"unet": []},
        {"unet": ["diffusers"]},
        {"unet": "UNet2DModel"},
        {"unet": ["diffusers", None]},
        {"unet": ["diffusers", "Magic"]},
        {"unet": ["mine", "DiffusionPipeline"]},
        {"unet": {"a": 1}},
        {"vae": ["diffusers", "AutoencoderKL"]},
        {"vqvae": 3},
    ],
    ids=repr,
)
def test_an_index_of_other_components_is_refused(changes, folder):
    change(folder / "model_index.json", **changes)
    refused(folder, str(folder))


@pytest.mark.parametrize(
    "metadata",
    ["[]", "3", '{"classes": [1]}', '{"classes": "ab"}', '{"name": 3}', '{"licence": ["MIT"]}', '{"name": "a\\nb"}'],
)
def test_metadata_of_other_forms_is_refused(metadata, folder):
    (folder / "dmdistill.json").write_text(metadata)
    refused(folder, "dmdistill.json")


@pytest.mark.parametrize("damage", ["lacks one", "cut short", "other shapes", "empty"])
def test_weights_of_another_network_are_refused(damage, folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    if damage == "lacks one":
        del weights["conv_in.bias"]
    elif damage == "other shapes":
        weights["conv_in.bias"] = torch.zeros(3)
    save_file(weights if damage != "empty" else {}, file)
    if damage == "cut short":
        file.write_bytes(file.read_bytes()[:-5])
    refused(folder, str(folder / "unet"))


@pytest.mark.parametrize("name", ["LCM", "TCD", "CMStochasticIterative", "FlowMatchLCM"])
def test_a_consistency_model_is_refused_by_name(name, tmp_path):
    kind = getattr(diffusers, f"{name}Scheduler", None)
    if kind is None:
        pytest.skip(f"this diffusers has no {name}Scheduler")
    refused(write(tmp_path / "pipeline", kind()), f"{name}Scheduler", "consistency model")


@pytest.mark.parametrize(
    ("scheduler", "options", "words"),
    [
        ("EulerDiscrete", {"timestep_type": "continuous", "prediction_type": "v_prediction"}, ["timestep_type"]),
        ("DPMSolverMultistep", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, ["use_flow_sigmas"]),
        ("FlowMatchEulerDiscrete", {"invert_sigmas": True}, ["invert_sigmas"]),
        ("EDMEuler", {"prediction_type": "v_prediction"}, ["prediction_type", "v_prediction"]),
    ],
)
def test_options_that_change_the_meaning_of_time_are_refused_by_name(scheduler, options, words, tmp_path):
    made = getattr(diffusers, f"{scheduler}Scheduler")(**options)
    refused(write(tmp_path / "pipeline", made), f"{scheduler}Scheduler", *words)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_train_timesteps": 0},
        {"num_train_timesteps": "1000"},
        {"shift": "3"},
        {"shift": 0.0},
        {"shift": math.inf},
        {"use_dynamic_shifting": True, "max_shift": None},
        {"use_dynamic_shifting": True, "base_image_seq_len": 4096},
    ],
    ids=repr,
)
def test_a_flows_config_is_checked(changes, tmp_path):
    folder = write(tmp_path / "pipeline", diffusers.FlowMatchEulerDiscreteScheduler())
    change(folder / "scheduler" / "scheduler_config.json", **changes)
    refused(folder, str(folder), "FlowMatchEulerDiscreteScheduler")


@pytest.mark.parametrize("kind", ["unet", "dit"])
@pytest.mark.parametrize("steps", [1000, 500])
def test_a_flow_is_evaluated_at_the_schedulers_timesteps(kind, steps, tmp_path):
    """sigma times num_train_timesteps, as diffusers' training scripts and pipelines have it."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=steps)
    folder = unet2d(tmp_path / "flow", scheduler)
    if kind == "dit":
        shutil.rmtree(folder)
        network = diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=4, in_channels=3, out_channels=3, num_layers=1,
            norm_num_groups=1, sample_size=8, num_embeds_ada_norm=5,
        )  # fmt: skip
        network.save_pretrained(folder)
        scheduler.save_pretrained(folder / "scheduler")
    teacher = load_diffusers(str(folder))
    passed = []
    teacher.network.model.register_forward_pre_hook(
        lambda module, args, kwargs: passed.append(args[1].tolist()), with_kwargs=True
    )
    cond = teacher.condition(torch.tensor([0, 1])) if teacher.conditions is not None else None
    teacher.denoiser(torch.randn(2, 3, 8, 8), torch.tensor([1.0, 0.25]), cond)
    assert passed == [[steps, 0.25 * steps]]


@pytest.mark.parametrize(("name", "file"), [("vae", "AutoencoderKL"), ("vqvae", "VQModel")])
def test_autoencoders_of_either_name_decode_latents(name, file, tmp_path):
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (4, 8), "latent_channels": 3, "norm_num_groups": 4, "scaling_factor": 0.4}
    autoencoder = getattr(diffusers, file)(**kinds, **sizes).eval()
    folder = write(tmp_path / "pipeline", diffusers.DDIMScheduler(clip_sample=False))
    autoencoder.save_pretrained(folder / name)
    change(folder / "model_index.json", **{name: ["diffusers", file]})
    teacher = load_diffusers(str(folder))
    latents = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = autoencoder.decode(latents / 0.4).sample
    assert expected.shape == (2, 3, 16, 16)
    torch.testing.assert_close(teacher.decode(latents), expected)
    shutil.rmtree(folder / name)
    refused(folder, f"{name}/config.json")


@pytest.mark.parametrize(
    ("names", "variant"),
    [
        (["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"], None),
        (["model.fp16.safetensors"], "fp16"),
        (["diffusion_pytorch_model.fp16-00001-of-00002.safetensors"], "fp16"),
        (["diffusion_pytorch_model-00001-of-00002.safetensors"], None),
        (["diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.bf16.safetensors"], "bf16"),
    ],
)
def test_the_usual_weights_are_read_else_the_variant_that_is_there(names, variant, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    assert weights_variant(tmp_path) == variant


@pytest.mark.parametrize(
    "names", [[], ["diffusion_pytorch_model.non_ema.safetensors"], ["lora.safetensors"], ["model.bin"]]
)
def test_without_usable_weights_the_folder_is_named(names, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"holds no \.safetensors"):
        weights_variant(tmp_path)


def test_a_pipeline_in_half_precision_only_is_read(tmp_path):
    network = unet2d_network().half()
    pipeline = diffusers.DDPMPipeline(unet=network, scheduler=diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    teacher = load_diffusers(str(tmp_path / "half"))
    for name, weight in teacher.network.model.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, network.state_dict()[name].float())
