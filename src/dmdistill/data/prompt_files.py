"""Lists of prompts from text files, tables and data sets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dmdistill.data.tables import TABLES, choose_column, naming_bad_text, read_columns
from dmdistill.io.errors import first_line, import_optional

__all__ = ["PROMPT_COLUMNS", "read_prompts"]

PROMPT_COLUMNS = ("prompt", "caption", "text")  # of a table, the first that is there


def read_prompts(source: Path | str) -> list[str]:
    """Read the prompts of a source; blank ones are skipped.

    Args:
        source: a .txt file of one prompt per line; a .csv, .tsv, .jsonl or .parquet table with a column "prompt",
            "caption" or "text"; or "hf:OWNER/NAME[:COLUMN]", the training split of a data set of the Hub.

    Raises:
        ValueError: the source is missing, of another kind, damaged, or holds no prompts.
    """
    if str(source).startswith("hf:"):
        return strip_prompts(read_hub(str(source)), source)
    file = Path(source).expanduser()
    if (ending := file.suffix.lower()) in TABLES:
        return strip_prompts(read_columns(file, PROMPT_COLUMNS)[0], file)
    if ending != ".txt":
        endings = ", ".join([".txt", *TABLES])
        raise ValueError(f"prompts from {source}: expected a file ending in {endings}, or hf:OWNER/NAME")
    if not file.is_file():
        raise ValueError(f"{file} {'is no file' if file.exists() else 'does not exist'}: expected a file of prompts")
    with naming_bad_text(file):
        return strip_prompts(read_lines(file), file)


def strip_prompts(texts: Iterable[Any], source: Path | str) -> list[str]:
    """Return the texts that are not blank, without space around them. ValueError where one is no text."""
    given = [text for text in texts if text is not None]
    if odd := [text for text in given if not isinstance(text, str)]:
        raise ValueError(f"{source} holds {type(odd[0]).__name__} where prompts are expected: {odd[0]!r}")
    prompts = [text.strip() for text in given if text.strip()]
    if not prompts:
        raise ValueError(f"{source} holds no prompts")
    return prompts


def read_lines(file: Path) -> list[str]:
    """Read the lines of a text file. Other line breaks of Unicode than line feed and return are part of a prompt."""
    with file.open(encoding="utf-8-sig") as lines:
        return list(lines)


def read_hub(source: str) -> list[Any]:
    """Read a column of the training split of a data set of the Hub."""
    name, _, column = source.removeprefix("hf:").partition(":")
    datasets = import_optional("datasets", source)
    try:
        data = datasets.load_dataset(name, split="train")
    except Exception as error:  # of any class, from the network's to the format's
        raise ValueError(f"{source} cannot be loaded: {first_line(error)}") from None
    return list(data[choose_column(data.column_names, source, [column] if column else PROMPT_COLUMNS)])
