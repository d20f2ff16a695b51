"""Models whose weights stay in their files: the same networks, without the memory."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmdistill.distributed.stored_weights import is_stored, iterate_state
from dmdistill.models.fingerprint import fingerprint
from dmdistill.models.load import load_teacher
from helpers.tiny_models import dit, unet2d
from helpers.tiny_pipelines import FAMILIES


def assert_same_model(name):
    """The parameters take no memory, and read from the files they are those of the loaded model; so are the buffers."""
    lazy, whole = load_teacher(name, lazy=True), load_teacher(name)
    assert is_stored(whole.network)
    assert all(parameter.is_meta and not parameter.requires_grad for parameter in lazy.network.parameters())
    for mine, theirs in zip(iterate_state(lazy.network), iterate_state(whole.network), strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)
    assert dict(lazy.network.named_buffers()).keys() == (buffers := dict(whole.network.named_buffers())).keys()
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in lazy.network.named_buffers())
    assert not any(part.training for part in lazy.network.modules())
    assert fingerprint(lazy) == fingerprint(whole)
    assert lazy.config == whole.config
    lazy.to(torch.device("cpu"), torch.bfloat16)
    assert lazy.denoiser.precision == torch.bfloat16


def test_a_folder_of_ours_is_left_on_disk(tiny_teacher):
    assert_same_model(str(tiny_teacher))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pipeline_is_left_on_disk(family, tiny_pipeline):
    pytest.importorskip("diffusers")
    assert_same_model(str(tiny_pipeline(family)))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_files_of_a_variant_and_of_several_parts_are_left_on_disk(variant, tmp_path):
    """Half precision is read as fp32; the other variant in the folder is not read."""
    diffusers = pytest.importorskip("diffusers")
    folder = unet2d(tmp_path / "unet", diffusers.DDPMScheduler())
    file = folder / "diffusion_pytorch_model.safetensors"
    network = diffusers.UNet2DModel.from_pretrained(folder)
    (network.half() if variant else network).save_pretrained(folder, variant=variant, max_shard_size="20KB")
    if variant:
        file.unlink()
    assert len(list(folder.glob("*-of-*.safetensors"))) > 1
    if variant is None:
        file.unlink(missing_ok=True)
    assert_same_model(str(folder))


def test_positions_are_computed_and_an_old_checkpoint_is_converted(tmp_path):
    """A transformer's buffers are not in its files. Names that only diffusers can convert are loaded as ever."""
    diffusers = pytest.importorskip("diffusers")
    assert_same_model(str(dit(tmp_path / "dit")))
    folder = unet2d(tmp_path / "unet", diffusers.DDPMScheduler())
    file = folder / "diffusion_pytorch_model.safetensors"
    renamed = {name.replace("to_q", "query").replace("to_k", "key"): one for name, one in load_file(file).items()}
    renamed = {n.replace("to_v", "value").replace("to_out.0", "proj_attn"): one for n, one in renamed.items()}
    save_file(renamed, file, metadata={"format": "pt"})
    old = load_teacher(str(folder), lazy=True)
    assert old.device.type == "cpu"
    assert not is_stored(old.network)
