"""A teacher of text to image, trained here: `dmdistill teach --kind stable-diffusion`."""

import dataclasses

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from dmdistill.commands.distill.command import distill
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.evaluate.command import evaluate
from dmdistill.commands.evaluate.config import EvaluateConfig
from dmdistill.commands.options import ComputeOptions, change
from dmdistill.commands.teach import command as teaching
from dmdistill.commands.teach import text_to_image
from dmdistill.commands.teach.config import NetworkOptions, TeachConfig
from dmdistill.data.fashion_captions import write_captioned_images
from dmdistill.data.idx_images import load_idx_images
from dmdistill.data.prompt_embeddings import encode_texts
from dmdistill.io.file_hashes import hash_files
from dmdistill.models.load import load_model, load_teacher
from dmdistill.training.signals import TrainingStopped
from helpers.configs import configure
from helpers.tiny_pipelines import tiny_stable_diffusion


@pytest.fixture(scope="session")
def captioned(idx_folder, tmp_path_factory):
    """Forty images of 16 x 16 with captions."""
    data = load_idx_images(idx_folder)
    data = dataclasses.replace(data, images=data.images[:40], labels=data.labels[:40])
    file = tmp_path_factory.mktemp("captioned") / "fashion-text.zip"
    write_captioned_images(file, data)
    return file


@pytest.fixture
def lesson(captioned, tmp_path):
    def build(name="teaching", **changes):
        base = configure(
            TeachConfig,
            kind="stable-diffusion",
            data=captioned,
            out=tmp_path / name,
            network=NetworkOptions(model_channels=8, channel_mult=(1, 2), group_channels=4),
            autoencoder_channels=8,
            autoencoder_steps=4,
            text_channels=8,
            text_layers=1,
            steps=4,
            batch=4,
            warmup=2,
            ema_halflife=2.0,
            log_every=2,
            save_every=4,
            compute=ComputeOptions(device="cpu", precision="fp32", threads=1),
        )
        return change(base, **changes)

    return build


def weights(config):
    return hash_files(sorted((config.out / "teacher").rglob("*.safetensors")), "")


def test_diffusers_draws_the_same_image(lesson):
    """By its own pipeline, scheduler, tokenizer and text encoder, guided."""
    config = lesson()
    taught = teaching.teach(config)
    assert taught("a dark wide bag", count=2).shape == (2, 1, 16, 16)
    assert "text-to-image" in (config.out / "teacher" / "README.md").read_text()
    teacher = load_teacher(str(config.out))
    assert (teacher.name, teacher.shape, teacher.licence) == ("fashion-text", (4, 4, 4), "MIT")
    assert (teacher.feature_extractor, teacher.solver, teacher.steps) == ("fashion-classifier", "pndm", 50)
    assert teacher.guidance == 3
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(config.out / "teacher")
    pipeline.set_progress_bar_config(disable=True)
    assert len(pipeline.tokenizer.tokenize("a photo of")) == 3
    options = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, **options)
    z, prompt = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)), "a dark wide bag"
    x = pipeline(prompt, latents=z, num_inference_steps=1, guidance_scale=3.0, output_type="latent").images
    prompts = encode_texts([prompt], teacher.text, device=teacher.device)
    ours = dataclasses.replace(teacher, solver="ddim", steps=1, guidance=3.0, conditions=prompts)
    made = ours.generate(z, ours.condition(torch.tensor([0])))
    torch.testing.assert_close(made / x.std(), x / x.std(), rtol=0, atol=1e-4)
    image = pipeline.vae.decode(x / pipeline.vae.config.scaling_factor).sample
    torch.testing.assert_close(ours.decode(x), image)


@pytest.mark.parametrize("stopped_in", ["autoencoder", "teacher"])
def test_teaching_resumes_bit_for_bit(stopped_in, lesson, terminated):
    whole, stopped = lesson("whole"), lesson("stopped")
    teaching.teach(whole)
    if stopped_in == "autoencoder":
        terminated(text_to_image, "from_uint8", 2)
    else:
        terminated(teaching, "denoising_loss", 2)
    with pytest.raises(TrainingStopped, match="15"):
        teaching.teach(stopped)
    assert stopped.out.is_dir()
    teaching.teach(dataclasses.replace(stopped, resume=stopped.out))
    assert weights(whole) == weights(stopped)


def test_latents_have_unit_spread_and_half_precision_is_stored(lesson):
    config = lesson(save_dtype="fp16")
    taught = teaching.teach(config)
    x = torch.cat(list(text_to_image.image_batches(teaching.load_labelled_images(config.data).images, taught.device)))
    assert taught.autoencoder.encode(x).std().item() == pytest.approx(1, abs=1e-3)
    loaded = load_teacher(str(config.out))
    assert loaded.autoencoder.scale == taught.autoencoder.scale
    assert next(loaded.autoencoder.model.parameters()).dtype in (torch.float16, torch.float32)


def test_a_student_is_distilled_and_judged_by_its_prompts(lesson, tmp_path):
    config = lesson()
    teaching.teach(config)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dark bag\na bright wide coat\n", encoding="utf-8")
    run = configure(
        DistillConfig,
        teacher=str(config.out),
        prompts=str(prompts),
        out=tmp_path / "run",
        method="dmd2",
        lambda_reg=0.0,
        batch_reg=32,
        pair_count=10000,
        guidance=3.0,
        steps=1,
        batch=2,
        evaluate_images=4,
        report_images=0,
        compute=config.compute,
    )
    distill(run)
    options = {"prompts": str(prompts), "images": 4, "compute": config.compute}
    report = evaluate(EvaluateConfig(str(run.out), metrics="frechet,alignment", **options))
    assert set(report["metrics"]) == {"frechet_fashion-classifier", "alignment"}
    assert 0 <= report["metrics"]["alignment"] <= 1
    assert load_model(str(run.out)).text is not None


@pytest.mark.parametrize("which", ["captions", "sides"])
def test_images_that_it_cannot_learn_from_are_refused(which, lesson, captioned, idx_folder):
    config = lesson(data=idx_folder) if which == "captions" else lesson(side=20)
    message = "have no captions" if which == "captions" else "20 x 20 pixels, expected multiples of 8"
    with pytest.raises(ValueError, match=message):
        teaching.teach(config)
    assert not config.out.exists()


@pytest.mark.parametrize(("scale", "guidance", "evaluations"), [(None, 1.0, 51), (0, 0, 102), (2.5, 2.5, 102)])
def test_a_folder_may_name_the_guidance_of_its_teacher(scale, guidance, evaluations, tmp_path):
    folder = tiny_stable_diffusion(tmp_path / "pipeline")
    if scale is not None:
        (folder / "dmdistill.json").write_text(f'{{"guidance": {scale}}}')
    teacher = load_teacher(str(folder))
    assert (teacher.guidance, teacher.evaluations) == (guidance, evaluations)


def test_a_guidance_that_cannot_be_is_refused(tmp_path):
    folder = tiny_stable_diffusion(tmp_path / "pipeline")
    (folder / "dmdistill.json").write_text('{"guidance": "much"}')
    with pytest.raises(ValueError, match="guidance is 'much', expected a number"):
        load_teacher(str(folder))
