"""CLIP's tokenizer with a vocabulary of the words of a set of captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from dmdistill.io.errors import import_optional

__all__ = ["train_tokenizer"]

WORDS = 2000  # the most frequent ones, which become tokens
END = "</w>"  # of a word
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def train_tokenizer(captions: Sequence[str], *, length: int) -> Any:
    """Return a CLIPTokenizer of transformers whose tokens are bytes and the frequent words of captions.

    The same captions give the same tokenizer, which the trainer of the library tokenizers does not promise.

    Args:
        captions: to learn from.
        length: tokens of a prompt at most, with those of its start and end.
    """
    bytes_ = sorted(import_optional("tokenizers", "a tokenizer", extra="diffusers").pre_tokenizers.ByteLevel.alphabet())
    kind = import_optional("transformers", "a tokenizer", extra="diffusers").CLIPTokenizer
    base = [*bytes_, *(byte + END for byte in bytes_)]
    backend = kind(vocab=numbered([*base, *SPECIAL]), merges=[]).backend_tokenizer
    words = Counter[str]()
    for text, count in Counter(captions).items():
        pieces = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
        words.update({piece: count * times for piece, times in Counter(piece for piece, _ in pieces).items()})
    frequent = sorted(words.items(), key=lambda item: (-item[1], item[0]))[:WORDS]
    merges = list(byte_pair_merges(dict(frequent)))
    tokens = [*base, *dict.fromkeys("".join(pair) for pair in merges), *SPECIAL]
    return kind(vocab=numbered(tokens), merges=merges, model_max_length=length)


def numbered(tokens: Sequence[str]) -> dict[str, int]:
    """Return tokens with their numbers."""
    return {token: number for number, token in enumerate(tokens)}


def byte_pair_merges(words: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield the merges of byte-pair encoding (Sennrich et al. 2016) until every word is one token.

    Each is of the most frequent pair of neighbours, the first in the alphabet of equally frequent ones.

    Args:
        words: that are counted, with their counts.
    """
    splits = {word: [*word[:-1], word[-1] + END] for word in words}
    while counts := pair_counts(words, splits):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        for word, parts in splits.items():
            if best in pairwise(parts):
                splits[word] = merged(parts, best)
        yield best


def pair_counts(words: Mapping[str, int], splits: Mapping[str, Sequence[str]]) -> Counter[tuple[str, str]]:
    """Count the pairs of neighbouring parts of words."""
    counts = Counter[tuple[str, str]]()
    for word, parts in splits.items():
        for pair in pairwise(parts):
            counts[pair] += words[word]
    return counts


def merged(parts: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """Return parts with each occurrence of a pair as one part, from left to right."""
    result: list[str] = []
    for part in parts:
        if result and (result[-1], part) == pair:
            result[-1] += part
        else:
            result.append(part)
    return result
