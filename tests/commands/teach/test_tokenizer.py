"""CLIP's tokenizer trained on captions."""

import pytest

pytest.importorskip("transformers")

from dmdistill.commands.teach.tokenizer import byte_pair_merges, train_tokenizer


def test_merges_are_of_the_most_frequent_pairs():
    """Worked by hand: aa is in 5 + 2 words' letters, then a's end, and ties go by the alphabet."""
    merges = list(byte_pair_merges({"aab": 5, "aac": 2}))
    assert merges == [("a", "a"), ("aa", "b</w>"), ("aa", "c</w>")]
    assert list(byte_pair_merges({"ab": 1, "cd": 1})) == [("a", "b</w>"), ("c", "d</w>")]
    assert list(byte_pair_merges({"a": 3})) == []
    assert list(byte_pair_merges({"aaa": 1})) == [("a", "a"), ("aa", "a</w>")]


def test_words_of_the_captions_are_tokens_and_all_other_text_is_bytes(tmp_path):
    tokenizer = train_tokenizer(["a dark T-shirt", "an ankle boot, dark"], length=16)
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    for one in (tokenizer, loaded):
        assert one.tokenize("A DARK  ankle boot, t-shirt") == [
            f"{word}</w>" for word in ("a", "dark", "ankle", "boot", ",", "t", "-", "shirt")
        ]
        assert one.unk_token not in one.tokenize("zebra 7 émile 猫")
        ids = one(["dark", ""], padding="max_length", truncation=True, max_length=16).input_ids
        start, end = one.bos_token_id, one.eos_token_id
        assert ids[1] == [start] + 15 * [end]
        assert ids[0][:1] + ids[0][2:] == [start] + 14 * [end]


def test_the_same_captions_give_the_same_tokenizer():
    captions = [f"{a}{b} {b}{a}" for a in "abcdef" for b in "uvwxyz"]
    texts = [train_tokenizer(order, length=8).backend_tokenizer.to_str() for order in (captions, captions[::-1])]
    assert texts[0] == texts[1]
