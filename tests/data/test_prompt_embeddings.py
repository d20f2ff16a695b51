"""Encoded prompts: each once, stored, completed after a stop, selected by number."""

import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmdistill.data.prompt_embeddings import Prompts, PromptSet, encode_prompts
from dmdistill.data.shards import rows_in_memory
from helpers.process_group_tests import together

TEXTS = ["red", "green", "red", "blue and green", "sky", "night", "red", "a", "b"]  # 7 in 9


class Encoder:
    """Encoder of a prompt's letters, which records its calls."""

    def __init__(self, id="letters", *, dtype=torch.float32, stop_at=None):
        self.id, self.dtype, self.stop_at = id, dtype, stop_at
        self.calls = []

    def encode(self, prompts):
        if self.stop_at is not None and len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append(list(prompts))
        rows = torch.stack([row(text) for text in prompts])
        return {"prompt_embeds": rows.to(self.dtype), "pooled_prompt_embeds": rows.sum(2).to(self.dtype)}

    def empty(self):
        self.calls.append([])
        return {"prompt_embeds": torch.full((1, 4, 3), 0.5), "pooled_prompt_embeds": torch.full((1, 4), 7.0)}


def row(text):
    """4 x 3 numbers that are another text's too seldom to matter."""
    return torch.rand(4, 3, generator=torch.Generator().manual_seed(hash(text) % 2**31))


def encode(folder, texts=TEXTS, encoder=None, **options):
    return encode_prompts(texts, encoder or Encoder(), folder, **{"batch": 2, "shard_size": 3} | options)


def select_all(prompts):
    return prompts.select(torch.arange(len(prompts)))


def test_each_number_is_its_text(tmp_path):
    prompts = select_all(encode(tmp_path))
    assert torch.equal(prompts.tensors["prompt_embeds"], torch.stack([row(text) for text in TEXTS]))
    assert torch.equal(prompts.tensors["pooled_prompt_embeds"], torch.stack([row(text).sum(1) for text in TEXTS]))
    some = encode(tmp_path).select(torch.tensor([8, 2, 5, 2]))
    assert torch.equal(some.tensors["prompt_embeds"], torch.stack([row(TEXTS[i]) for i in (8, 2, 5, 2)]))


def test_a_text_that_comes_twice_is_encoded_once(tmp_path):
    encoder = Encoder()
    encode(tmp_path, encoder=encoder)
    calls = [text for batch in encoder.calls for text in batch]
    assert sorted(calls) == sorted(set(TEXTS))
    assert encoder.calls == [[], ["red", "green"], ["blue and green"], ["sky", "night"], ["a"], ["b"]]


def test_stored_prompts_are_not_encoded_again(tmp_path):
    first, again = Encoder(), Encoder()
    made, opened = encode(tmp_path, encoder=first), encode(tmp_path, encoder=again, batch=5)
    assert again.calls == []
    for name, tensor in select_all(made).tensors.items():
        assert torch.equal(tensor, select_all(opened).tensors[name])
    shuffled = Encoder()
    encode(tmp_path, texts=[*TEXTS, "red", "b"], encoder=shuffled)  # more of the same
    assert shuffled.calls == []


@pytest.mark.parametrize("change", [{"encoder": "other"}, {"texts": TEXTS[:-1]}, {"texts": TEXTS[::-1]}])
def test_other_texts_and_other_encoders_lie_beside(change, tmp_path):
    encode(tmp_path)
    other = Encoder(change.get("encoder", "letters"))
    encode(tmp_path, texts=change.get("texts", TEXTS), encoder=other)
    assert other.calls != []
    again = Encoder()
    encode(tmp_path, encoder=again)
    assert again.calls == []


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_an_interrupted_encoding_is_completed(stop, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path, encoder=Encoder(stop_at=stop))
    rest = Encoder()
    prompts = encode(tmp_path, encoder=rest)
    complete = [["red", "green"], ["blue and green"], ["sky", "night"], ["a"], ["b"]]
    assert rest.calls == complete[{1: 0, 2: 0, 4: 2}[stop] :]  # finished shards stay
    assert torch.equal(select_all(prompts).tensors["prompt_embeds"], torch.stack([row(text) for text in TEXTS]))
    assert [file.name for file in tmp_path.rglob(".*")] == []  # nothing temporary


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_storage_is_the_encoders_and_what_is_told_is_fp32(dtype, tmp_path):
    prompts = encode(tmp_path, encoder=Encoder(dtype=dtype))
    file = next(tmp_path.rglob("shard-00001.safetensors"))
    assert {tensor.dtype for name, tensor in load_file(file).items() if name != "crc32"} == {dtype}
    rows = select_all(prompts).tensors["prompt_embeds"]
    assert rows.dtype == torch.float32
    assert torch.equal(rows, torch.stack([row(text) for text in TEXTS]).to(dtype).float())
    assert select_all(prompts).empty["pooled_prompt_embeds"].dtype == torch.float32


def test_the_null_prompt_is_the_empty_one_in_every_row(tmp_path):
    prompts = encode(tmp_path).select(torch.tensor([1, 4, 6, 0, 3]))
    null = prompts.null()
    assert len(null) == 5
    assert torch.equal(null.tensors["prompt_embeds"], torch.full((5, 4, 3), 0.5))
    assert torch.equal(null.tensors["pooled_prompt_embeds"], torch.full((5, 4), 7.0))
    both = null.concat(prompts)
    assert len(both) == 10
    for name, tensor in prompts.tensors.items():
        assert torch.equal(both[slice(5, 10)].tensors[name], tensor)
        assert torch.equal(both[slice(0, 5)].tensors[name], null.tensors[name])
    assert torch.equal(both.null().tensors["prompt_embeds"], torch.full((10, 4, 3), 0.5))
    moved = prompts.to(torch.device("cpu"))
    assert isinstance(moved, Prompts)
    assert torch.equal(moved.null().tensors["prompt_embeds"], null.tensors["prompt_embeds"])


@pytest.mark.parametrize("index", [[9], [0, -1], [1, 99]])
def test_numbers_of_no_prompt_are_refused(index, tmp_path):
    with pytest.raises(ValueError, match="expected 0 to 8"):
        encode(tmp_path).select(torch.tensor(index))


def test_no_prompts_are_prompts_too(tmp_path):
    none = encode(tmp_path).select(torch.tensor([], dtype=torch.int64))
    assert none.tensors["prompt_embeds"].shape == (0, 4, 3)
    assert len(none) == 0


def test_a_set_tells_itself_from_others(tmp_path):
    names = {str(encode(tmp_path, texts=texts)) for texts in (TEXTS, TEXTS[:-1], TEXTS[::-1], [*TEXTS, "red"])}
    assert len(names) == 4
    assert str(encode(tmp_path)).startswith("9 prompts ")
    assert str(encode(tmp_path, texts=["a\nb"])) != str(encode(tmp_path, texts=["a b"]))
    assert str(encode(tmp_path)) == str(encode(tmp_path / "x", encoder=Encoder("other"), shard_size=2))


def test_shards_need_not_be_files():
    rows = {"prompt_embeds": torch.arange(6.0).reshape(3, 2)}
    prompts = PromptSet(["a", "b", "c"], rows_in_memory(rows), {"prompt_embeds": torch.zeros(1, 2)})
    assert prompts.select(torch.tensor([2, 0])).tensors["prompt_embeds"].tolist() == [[4, 5], [0, 1]]


@pytest.mark.parametrize("damage", ["cut short", "fewer rows", "other names"])
def test_a_spoiled_shard_is_one_clear_line(damage, tmp_path):
    encode(tmp_path)
    file = next(tmp_path.rglob("shard-00001.safetensors"))
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    if damage == "cut short":
        file.write_bytes(file.read_bytes()[:-5])
    elif damage == "fewer rows":
        save_file({name: tensor[:2].contiguous() for name, tensor in tensors.items()}, file)
    else:
        save_file({"prompt_embeds": tensors["prompt_embeds"]}, file)
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors") as caught:
        encode(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("texts", "options"), [([], {}), (TEXTS, {"batch": 0}), (TEXTS, {"shard_size": 0})])
def test_numbers_below_one_are_refused_before_anything_is_written(texts, options, tmp_path):
    with pytest.raises(ValueError, match="expected 1 or more"):
        encode(tmp_path, texts=texts, **options)
    assert list(tmp_path.iterdir()) == []


def test_nan_is_never_stored(tmp_path):
    class Broken(Encoder):
        def encode(self, prompts):
            return {name: tensor / 0 for name, tensor in super().encode(prompts).items()}

    with pytest.raises(ValueError, match="NaN or infinity in prompt_embeds"):
        encode(tmp_path, encoder=Broken())
    assert list(tmp_path.rglob("shard*")) == []


class SlowEncoder(Encoder):
    """Encoder that takes its time and notes each text in a file."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def encode(self, prompts):
        time.sleep(0.1)
        with self.file.open("a") as file:
            file.writelines(f"{text}\n" for text in prompts)
        return super().encode(prompts)


def encode_slowly(folder):
    encode(folder / "prompts", encoder=SlowEncoder(folder / "texts"))


def test_of_processes_that_want_the_same_prompts_one_encodes_them(tmp_path):
    """Those of torchrun: each would load the text encoders."""
    together(2, encode_slowly, tmp_path)
    assert sorted((tmp_path / "texts").read_text().splitlines()) == sorted(set(TEXTS))
