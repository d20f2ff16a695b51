"""Prompts from files and data sets: every one once, in order, or one clear line."""

import sys
from types import ModuleType

import pytest

from dmdistill.data.prompt_files import read_prompts

TWO = ["a red square", "ein grünes Quadrat, groß"]


def test_a_text_file_has_one_a_line(tmp_path):
    file = tmp_path / "p.txt"
    file.write_bytes("\ufeffa red square\r\n\n   \n  ein grünes Quadrat, groß  ".encode())
    assert read_prompts(file) == read_prompts(str(file)) == TWO


@pytest.mark.parametrize(
    "table",
    [
        'text,prompt,caption\nx,a red square,y\nx,"ein grünes Quadrat, groß",y\n',
        'text,caption\nx,a red square\nx,\nx\nx,"ein grünes Quadrat, groß"\n',
        'number,text\n1,a red square\n2,"ein grünes Quadrat, groß"\n',
        "number;prompt\n1;a red square\n2;ein grünes Quadrat, groß\n",
        "number\tcaption\n1\ta red square\n2\tein grünes Quadrat, groß\n",
        "number|text\n1|a red square\n2|ein grünes Quadrat, groß\n",
        'prompt;number\r\n"a red square";1\r\nein grünes Quadrat, groß;\r\n',
        '\ufeffprompt\na red square,\n"ein grünes Quadrat, groß"\n',
        'number, prompt\n1, a red square\n2, "ein grünes Quadrat, groß"\n',
    ],
)
def test_a_table_has_a_column_of_them(table, tmp_path):
    file = tmp_path / "p.csv"
    file.write_text(table, encoding="utf-8")
    assert read_prompts(file) == TWO


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("id,prompt\n1,a red square, seen from above\n", 2),
        ("prompt\na square\na red square, seen from above\n", 3),
        ("id;prompt\n1;a\n2;b\n3;a red square; seen from above\n", 4),
    ],
)
def test_a_row_with_more_fields_than_the_header_is_named(table, line, tmp_path):
    """Its prompt has a separator without quotes, and would lose what comes after."""
    (tmp_path / "p.csv").write_text(table)
    with pytest.raises(ValueError, match=rf"p\.csv, line {line}, .*double quotes"):
        read_prompts(tmp_path / "p.csv")


@pytest.mark.parametrize("table", ["a red square\na blue circle\n", "cat\ndog\n", "a,b\nc,d\n", "1;a red square\n"])
def test_a_table_without_a_header_is_refused(table, tmp_path):
    """Its first prompt would be lost as the name of a column."""
    (tmp_path / "p.csv").write_text(table)
    with pytest.raises(ValueError, match=r"p\.csv has the columns .* by its first line"):
        read_prompts(tmp_path / "p.csv")


def test_a_quote_that_does_not_end_is_refused(tmp_path):
    """All rows that follow would be one prompt."""
    (tmp_path / "p.csv").write_text('prompt\n"a red square\na blue circle\n')
    with pytest.raises(ValueError, match=r"p\.csv, line 3, is no row"):
        read_prompts(tmp_path / "p.csv")


@pytest.mark.parametrize("mark", "\v\f\x1c\x1d\x1e\x85\u2028\u2029")
def test_other_line_breaks_of_unicode_end_no_prompt(mark, tmp_path):
    (tmp_path / "p.txt").write_bytes(f"a{mark}b\rc\r\nd\n".encode())
    assert read_prompts(tmp_path / "p.txt") == [f"a{mark}b", "c", "d"]
    (tmp_path / "p.csv").write_bytes(f"prompt\na{mark}b\nc\n".encode())
    assert read_prompts(tmp_path / "p.csv") == [f"a{mark}b", "c"]


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "p.txt").write_text("a\n")
    assert read_prompts("~/p.txt") == ["a"]


def test_a_quoted_line_break_ends_no_prompt(tmp_path):
    (tmp_path / "p.csv").write_text('prompt\n"two\nlines"\n')
    assert read_prompts(tmp_path / "p.csv") == ["two\nlines"]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("p.txt", b"", "p.txt holds no prompts"),
        ("p.txt", b"\n  \n", "p.txt holds no prompts"),
        ("p.txt", b"good\n\xff\xfe", "p.txt is not UTF-8 text: invalid start byte at byte 5"),
        ("p.csv", b"prompt\n\xff", "p.csv is not UTF-8 text"),
        ("p.csv", b"", "p.csv has the columns none by its first line, .* prompt, caption, text"),
        ("p.csv", b"prompt\n", "p.csv holds no prompts"),
        (
            "p.csv",
            b"name,Prompt\na,b\n",
            "p.csv has the columns 'name', 'Prompt' by .* prompt, caption",
        ),
        ("p.csv", b"prompt\n" + b"x" * 200_000, "p.csv, line 2, is no row"),
        ("p.json", b"[]", "p.json: expected a file ending in .txt, .csv, .tsv, .jsonl, .parquet, or hf:OWNER/NAME"),
        ("p", b"", "expected a file ending in"),
    ],
)
def test_what_holds_no_prompts_is_one_clear_line(name, content, match, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=match) as caught:
        read_prompts(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.txt does not exist"):
        read_prompts(tmp_path / "nothing.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(ValueError, match=r"folder\.txt is no file"):
        read_prompts(tmp_path / "folder.txt")


@pytest.mark.parametrize(("source", "package"), [("p.parquet", "pyarrow"), ("hf:someone/captions", "datasets")])
def test_a_missing_package_is_named(source, package, tmp_path, monkeypatch):
    for module in list(sys.modules):
        if module.partition(".")[0] == package:
            monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=f"{source} needs {package} \\(.*\\): pip install {package}"):
        read_prompts(source)


def test_parquet_is_a_table_too(tmp_path):
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(arrow.table({"url": ["x"] * 3, "caption": [TWO[0], None, TWO[1]]}), tmp_path / "p.parquet")
    assert read_prompts(tmp_path / "p.parquet") == TWO
    parquet.write_table(arrow.table({"text": [1, 2]}), tmp_path / "n.parquet")
    with pytest.raises(ValueError, match="holds int where prompts are expected: 1"):
        read_prompts(tmp_path / "n.parquet")
    parquet.write_table(arrow.table({"a": [1], "b": ["x"]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="has the columns 'a', 'b'; expected"):
        read_prompts(tmp_path / "c.parquet")
    (tmp_path / "d.parquet").write_bytes((tmp_path / "p.parquet").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"d\.parquet is truncated, damaged"):
        read_prompts(tmp_path / "d.parquet")


class Table:
    """A data set's columns."""

    column_names = ("image", "caption", "long")

    def __getitem__(self, name):
        return {"caption": TWO, "long": [f"{text}, in detail" for text in TWO]}[name]


@pytest.fixture
def hub(monkeypatch):
    """Stands for `datasets`, which knows one data set."""

    def load_dataset(name, *, split):
        if (name, split) != ("someone/captions", "train"):
            raise FileNotFoundError(f"{name} is not there\nand more lines of this")
        return Table()

    module = ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_data_set_of_the_hub_has_a_column_of_them(hub):
    assert read_prompts("hf:someone/captions") == TWO
    assert read_prompts("hf:someone/captions:long") == [f"{text}, in detail" for text in TWO]
    with pytest.raises(ValueError, match="has the columns 'image', 'caption', 'long'; expected 'short'"):
        read_prompts("hf:someone/captions:short")
    with pytest.raises(ValueError, match=r"hf:no/thing cannot be loaded: no/thing is not there$"):
        read_prompts("hf:no/thing")
