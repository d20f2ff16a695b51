"""Calls of an exported pipeline of our own: classes by name or number, their count, and what is refused."""

import json

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers.pipelines.pipeline_loading_utils import _get_custom_components_and_folders

from dmdistill.commands.cli import main
from dmdistill.models.load import load_model
from helpers.tiny_models import save_student, unet2d


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_teacher):
    """Folders of exported students: with ten named classes, five without names, and without classes."""
    folder, exported = tmp_path_factory.mktemp("call"), {}
    unnamed = unet2d(folder / "unet-classes", diffusers.DDPMScheduler(), num_class_embeds=5)
    plain = unet2d(folder / "unet", diffusers.DDPMScheduler())
    for kind, teacher in {"named": tiny_teacher, "unnamed": unnamed, "plain": plain}.items():
        save_student(str(teacher), folder / "students" / kind)
        main(["export", str(folder / "students" / kind), str(folder / kind)])
        exported[kind] = folder / kind
    return exported


@pytest.fixture(scope="module")
def load(exported, tmp_path_factory):
    """Load one of them by its kind, once."""
    pipelines, modules = {}, str(tmp_path_factory.mktemp("modules"))

    def load(kind):
        if kind not in pipelines:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("diffusers.utils.constants.HF_MODULES_CACHE", modules)
                source = exported[kind]
                pipelines[kind] = diffusers.DiffusionPipeline.from_pretrained(source, trust_remote_code=True)
        return pipelines[kind]

    return load


def generate(pipeline, **arguments):
    return pipeline(generator=torch.Generator().manual_seed(0), output_type="pt", **arguments).images


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        (["bee", "ant"], [1, 0]),
        ([" Bee", "ANT"], [1, 0]),
        (["bee", 0, "2"], [1, 0, 2]),
        ([3, 4], [3, 4]),
        (torch.tensor([3, 4]), [3, 4]),
        ("bee", [1]),
        (3, [3]),
    ],
)
def test_classes_have_names_and_numbers_and_say_how_many_images_there_are(labels, numbers, load):
    images = generate(load("named"), class_labels=labels)
    expected = generate(load("named"), class_labels=torch.tensor(numbers), batch_size=len(numbers))
    assert images.shape == (len(numbers), 1, 8, 8)
    assert torch.equal(images, expected)
    others = [(number + 1) % 10 for number in numbers]
    assert not torch.equal(images, generate(load("named"), class_labels=others))


def test_a_name_means_the_class_that_it_means_in_this_package(load, exported):
    classes = load_model(str(exported["named"])).conditions
    for name in classes.names:
        assert load("named").class_numbers(name) == [classes.number(name)]


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("named", {"class_labels": ["hat"]}, r"class_labels has 'hat', .*expected 0 to 9 or one of ant, bee, .*"),
        ("named", {"class_labels": [3, 10]}, r"class_labels has 10, .*expected 0 to 9 or one of ant, bee"),
        ("named", {"class_labels": [-1]}, r"class_labels has -1"),
        ("named", {"class_labels": [2.5]}, r"class_labels has 2.5"),
        ("named", {"class_labels": [3, 4], "batch_size": 3}, r"2 class_labels for 3 images, expected one per image"),
        ("named", {"class_labels": []}, r"0 class_labels for 1 images"),
        ("named", {"batch_size": 0}, r"batch_size is 0, expected 1 or more"),
        ("plain", {"batch_size": -2}, r"batch_size is -2, expected 1 or more"),
        ("named", {"noise": torch.zeros(0, 1, 8, 8)}, r"batch_size is 0, expected 1 or more"),
        ("named", {"noise": torch.zeros(2, 3, 8, 8)}, r"noise has shape \[2, 3, 8, 8\], expected \[2, 1, 8, 8\]"),
        ("unnamed", {"class_labels": ["hat"]}, r"class_labels has 'hat', .*expected 0 to 4$"),
        ("plain", {"class_labels": [0]}, r"class_labels are given, and the model has no classes"),
    ],
)
def test_what_cannot_be_generated_is_refused_in_words(kind, arguments, words, load):
    with pytest.raises(ValueError, match=words):
        generate(load(kind), **arguments)


@pytest.mark.parametrize(("kind", "channels"), [("named", 1), ("unnamed", 3), ("plain", 3)])
def test_a_call_without_arguments_makes_one_image(kind, channels, load):
    assert generate(load(kind)).shape == (1, channels, 8, 8)
    assert generate(load(kind), batch_size=3).shape == (3, channels, 8, 8)


@pytest.mark.parametrize("kind", ["named", "unnamed", "plain"])
def test_diffusers_takes_no_setting_in_the_index_for_a_component(kind, exported):
    """As it would a list of names, of a pipeline on the hub."""
    files = [str(file.relative_to(exported[kind])) for file in exported[kind].rglob("*")]
    index = json.loads((exported[kind] / "model_index.json").read_text())
    components, _ = _get_custom_components_and_folders("name", index, files)
    assert set(components) == ({"unet"} if kind == "named" else set())


def test_the_card_names_the_classes(exported):
    card = (exported["named"] / "README.md").read_text()
    assert 'class_labels=["ant", "bee", ' in card
    assert "\nClasses: 0 ant, 1 bee, " in card
    card = (exported["unnamed"] / "README.md").read_text()
    assert "class_labels=[0, 1, 2, 3]" in card
    assert "\nClasses: the numbers from 0 to 4, which have no names.\n" in card
    assert "lasses" not in (exported["plain"] / "README.md").read_text()


def test_a_name_with_braces_stays_whole_in_the_card(exported, tmp_path):
    """Braces are places for words in a text that is formatted."""
    folder = exported["named"].parent / "students" / "named"
    student = load_model(str(folder))
    names = ["{x}", "a }", *student.config["classes"][2:]]
    copy = tmp_path / "student"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    config.pop("crc32", None)
    (copy / "config.json").write_text(json.dumps(config | {"classes": names}))
    main(["export", str(copy), str(tmp_path / "out")])
    assert 'class_labels=["{x}", "a }", ' in (tmp_path / "out" / "README.md").read_text()
