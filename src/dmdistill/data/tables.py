"""Columns of tables: .csv and .tsv, .jsonl, .parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dmdistill.io.errors import first_line, import_optional

__all__ = ["TABLES", "choose_column", "naming_bad_text", "read_columns"]

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
Choices = Sequence[str]  # names of a column, of which a table has the first that is there


def read_columns(file: Path, *choices: Choices) -> list[list[Any]]:
    """Read columns of a table, each under the first of its possible names that the table has.

    Args:
        file: whose ending is one of `TABLES`. The first line of a .csv or .tsv file names its columns, and its
            separator is found by that line; a .jsonl file has one JSON object a line.
        choices: names that each column may have.

    Returns:
        The columns, all of as many values: text in a .csv or .tsv file; None where a row has no value.

    Raises:
        ValueError: the file is missing, damaged, or has no such columns.
    """
    if not file.is_file():
        raise ValueError(f"{file} does not exist" if not file.exists() else f"{file} is no file")
    with naming_bad_text(file):
        return TABLES[file.suffix.lower()](file, choices)


@contextmanager
def naming_bad_text(file: Path) -> Iterator[None]:
    """Raise a ValueError that names a file where its text is not UTF-8."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def read_separated(file: Path, choices: Sequence[Choices]) -> list[list[Any]]:
    """Read columns of a table whose first line names its columns; the separator is found by that line."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        separator = find_separator(lines.readline(), file, choices)
        lines.seek(0)
        rows = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
        try:
            names = [name.strip() for name in next(rows)]
            places = [names.index(choose_column(names, file, choice)) for choice in choices]
            columns: list[list[Any]] = [[] for _ in places]
            for row in rows:
                if any(map(str.strip, row[len(names) :])):
                    raise ValueError(
                        f"{file}, line {rows.line_num}, has {len(row)} fields and the header {len(names)}: put texts "
                        f"that contain {SEPARATORS[separator]} in double quotes"
                    )
                if row:  # no blank line
                    for column, place in zip(columns, places, strict=True):
                        column.append(row[place] if place < len(row) else None)
        except csv.Error as error:
            raise ValueError(f"{file}, line {rows.line_num}, is no row of a table: {error}") from None
    return columns


def find_separator(header: str, file: Path, choices: Sequence[Choices]) -> str:
    """Return the separator with which a header names all columns. ValueError, saying what it has, for none."""
    headers = {}
    for separator in SEPARATORS:
        header_names = next(csv.reader([header], delimiter=separator, skipinitialspace=True), [])
        headers[separator] = [name.strip() for name in header_names]
        if all(set(choice) & set(headers[separator]) for choice in choices):
            return separator
    names = ", ".join(map(repr, max(headers.values(), key=len))) or "none"  # of equals the first, by commas
    needed = " and one of ".join(", ".join(choice) for choice in choices)
    raise ValueError(f"{file} has the columns {names} by its first line, which must name one of {needed}")


def read_json_lines(file: Path, choices: Sequence[Choices]) -> list[list[Any]]:
    """Read columns of JSON objects, one a line; the first names the columns."""
    rows: list[dict[str, Any]] = []
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line) if line.strip() else None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file}, line {number}, is no JSON: {first_line(error)}") from None
            if row is not None and not isinstance(row, dict):
                raise ValueError(f"{file}, line {number}, holds a {type(row).__name__}, expected an object: {{...}}")
            rows += [row] if row is not None else []
    names = [choose_column(list(rows[0]) if rows else [], file, choice) for choice in choices]
    return [[row.get(name) for row in rows] for name in names]


def read_parquet(file: Path, choices: Sequence[Choices]) -> list[list[Any]]:
    """Read by pyarrow, whatever else is installed: pandas reads the format through it too."""
    parquet, arrow = import_optional("pyarrow.parquet", str(file)), import_optional("pyarrow", str(file))
    try:
        table = parquet.ParquetFile(file)
        names = [choose_column(table.schema_arrow.names, file, choice) for choice in choices]
        columns = table.read(columns=names)
        return [columns[name].to_pylist() for name in names]
    except (OSError, arrow.ArrowException) as error:
        raise ValueError(f"{file} is truncated, damaged or not a Parquet file: {first_line(error)}") from None


TABLES = {".csv": read_separated, ".tsv": read_separated, ".jsonl": read_json_lines, ".parquet": read_parquet}


def choose_column(names: Sequence[str], source: Path | str, choices: Choices) -> str:
    """Return the first of the choices that is there, else the only column. ValueError, saying what is there, if none.

    With one choice, a request, the only column is not taken for it.
    """
    for name in choices:
        if name in names:
            return name
    if len(names) == 1 and len(choices) > 1:
        return names[0]
    present = ", ".join(map(repr, names)) or "none"
    expected = repr(choices[0]) if len(choices) == 1 else ", ".join(choices)
    raise ValueError(f"{source} has the columns {present}; expected {expected}")
