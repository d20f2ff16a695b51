"""Lists of prompts from text files, tables and data sets."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dmdistill.io.errors import first_line, import_optional

__all__ = ["read_prompts"]

COLUMNS = ("prompt", "caption", "text")  # of a table, the first that is there
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def read_prompts(source: Path | str) -> list[str]:
    """Read the prompts of a source; blank ones are skipped.

    Args:
        source: a .txt file of one prompt per line; a .csv or .tsv table or a .parquet file, with a column "prompt",
            "caption" or "text"; or "hf:OWNER/NAME[:COLUMN]", the training split of a data set of the Hub.

    Raises:
        ValueError: the source is missing, of another kind, damaged, or holds no prompts.
    """
    if str(source).startswith("hf:"):
        return strip_prompts(read_hub(str(source)), source)
    file = Path(source).expanduser()
    if file.suffix.lower() not in READERS:
        raise ValueError(f"prompts from {source}: expected a file ending in {', '.join(READERS)}, or hf:OWNER/NAME")
    if not file.is_file():
        raise ValueError(f"{file} does not exist" if not file.exists() else f"{file} is no file")
    try:
        return strip_prompts(READERS[file.suffix.lower()](file), file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from None


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


def read_table(file: Path) -> list[str]:
    """Read the prompts of a table whose first line names its columns; the separator is found by that line."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        separator = find_separator(lines.readline(), file)
        lines.seek(0)
        rows = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
        try:
            names = [name.strip() for name in next(rows)]
            column, prompts = names.index(choose_column(names, file)), []
            for row in rows:
                if any(map(str.strip, row[len(names) :])):
                    raise ValueError(
                        f"{file}, line {rows.line_num}, has {len(row)} fields and the header {len(names)}: put prompts "
                        f"that contain {SEPARATORS[separator]} in double quotes"
                    )
                prompts += row[column : column + 1]
        except csv.Error as error:
            raise ValueError(f"{file}, line {rows.line_num}, is no row of a table: {error}") from None
    return prompts


def find_separator(header: str, file: Path) -> str:
    """Return the separator with which a header names a column of prompts. ValueError, saying what it has, for none."""
    headers = {}
    for separator in SEPARATORS:
        headers[separator] = next(csv.reader([header], delimiter=separator, skipinitialspace=True), [])
        if set(COLUMNS) & {name.strip() for name in headers[separator]}:
            return separator
    longest = max(headers.values(), key=len)  # of equals the first, by commas
    names = ", ".join(repr(name.strip()) for name in longest) or "none"
    raise ValueError(f"{file} has the columns {names} by its first line, which must name one of {', '.join(COLUMNS)}")


def read_parquet(file: Path) -> list[Any]:
    """Read by pyarrow, whatever else is installed: pandas reads the format through it too."""
    parquet, arrow = import_optional("pyarrow.parquet", str(file)), import_optional("pyarrow", str(file))
    try:
        table = parquet.ParquetFile(file)
        column = choose_column(table.schema_arrow.names, file)
        return table.read(columns=[column])[column].to_pylist()
    except (OSError, arrow.ArrowException) as error:
        raise ValueError(f"{file} is truncated, damaged or not a Parquet file: {first_line(error)}") from None


def read_hub(source: str) -> list[Any]:
    """Read a column of the training split of a data set of the Hub."""
    name, _, column = source.removeprefix("hf:").partition(":")
    datasets = import_optional("datasets", source)
    try:
        data = datasets.load_dataset(name, split="train")
    except Exception as error:  # of any class, from the network's to the format's
        raise ValueError(f"{source} cannot be loaded: {first_line(error)}") from None
    return list(data[choose_column(data.column_names, source, given=column)])


READERS = {".txt": read_lines, ".csv": read_table, ".tsv": read_table, ".parquet": read_parquet}


def choose_column(names: Sequence[str], source: Path | str, *, given: str = "") -> str:
    """Return the column given, else the first of `COLUMNS` that is there, else the only one. ValueError for none."""
    for name in [given] if given else COLUMNS:
        if name in names:
            return name
    if len(names) == 1 and not given:
        return names[0]
    present = ", ".join(map(repr, names)) or "none"
    raise ValueError(f"{source} has the columns {present}; expected {repr(given) if given else ', '.join(COLUMNS)}")
