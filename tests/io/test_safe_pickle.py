"""Checkpoints that are pickles: what EDM writes comes back, and nothing that a file requests is run."""

import collections
import copyreg
import io
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from dmdistill.io.restricted_unpickler import OPCODES, Budget, Name, Record, RestrictedUnpickler, load_restricted
from dmdistill.io.safe_pickle import read_pickle

START = b"\x80\x04"


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def read(folder, data):
    file = folder / "file.pkl"
    file.write_bytes(data if isinstance(data, bytes) else pickle.dumps(data, protocol=4))
    return read_pickle(file)


def refused(folder, data, match):
    with pytest.raises(ValueError, match=match) as caught:
        read(folder, data)
    assert "\n" not in str(caught.value)
    assert "file.pkl" in str(caught.value)


def text(word):
    return b"\x8c" + bytes([len(word)]) + word.encode()


VALUES = {
    "tensors": [torch.arange(6.0).reshape(2, 3), torch.tensor(3, dtype=torch.int64), torch.zeros(0, 2).half()],
    "view": torch.arange(24.0).reshape(2, 3, 4)[:, 1:, ::2].transpose(0, 2),
    "kinds": [torch.ones(3).to(kind) for kind in (torch.bfloat16, torch.float64, torch.uint8, torch.bool, torch.int16)],
    "parameter": nn.Parameter(torch.randn(3, 2)),
    "numbers": [0, 1, -1, 300, 70000, 2**40, -(2**70), 1.5, float("inf"), True, None],
    "texts": ["", "é\n", "x" * 300, b"\x00\xff", b"y" * 300],
    "containers": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}, set(), {"a", "b"}],
    "ordered": collections.OrderedDict(a=1, b=[2]),
    "scalars": [np.float64(0.25), np.float32(0.5), np.int64(7), np.bool_(True)],
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b) and type(b) is torch.Tensor
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("key", VALUES)
def test_values_and_tensors_come_back(key, protocol, tmp_path):
    data = pickle.dumps([VALUES[key], VALUES[key]], protocol=protocol)
    found = read(tmp_path, data)
    assert same([VALUES[key]] * 2, found)
    if isinstance(VALUES[key], list | dict):
        assert found[0] is found[1]


def test_persistent_objects_become_records_and_their_source_stays_a_text(edm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inner = edm.Persistent("Inner", {"weight": nn.Parameter(torch.ones(2)), "_init_kwargs": {"size": 2}})
    edm.dump(tmp_path / "file.pkl", {"ema": edm.Persistent("Outer", {"inner": inner}), "again": inner})
    found = read_pickle(tmp_path / "file.pkl")
    outer = found["ema"]
    assert (type(outer), outer.kind, outer.state["inner"].kind) == (Record, "Outer", "Inner")
    assert outer.state["inner"] is found["again"]
    assert found["again"].state["_init_kwargs"] == {"size": 2}
    assert torch.equal(found["again"].state["weight"], torch.ones(2))
    assert not (tmp_path / "canary").exists()
    assert not any(name.startswith(("_imported_module_", "torch_utils")) for name in sys.modules)


def test_modules_of_torch_become_records(tmp_path):
    found = read(tmp_path, nn.ModuleDict())
    assert (type(found), found.kind) == (Record, "ModuleDict")
    assert found.state["_modules"] == {}


COMMAND = text("touch canary")
ATTACKS = {
    "GLOBAL REDUCE": b"cposix\nsystem\n" + COMMAND + b"\x85R.",
    "STACK_GLOBAL REDUCE": text("posix") + text("system") + b"\x93" + COMMAND + b"\x85R.",
    "dotted STACK_GLOBAL": text("os") + text("path.os.system") + b"\x93" + COMMAND + b"\x85R.",
    "INST": b"(" + COMMAND + b"iposix\nsystem\n.",
    "OBJ": b"(cposix\nsystem\n" + COMMAND + b"o.",
    "NEWOBJ": b"csubprocess\nPopen\n" + b"]" + b"(" + text("touch") + text("canary") + b"e\x85\x81.",
    "NEWOBJ_EX": b"csubprocess\nPopen\n" + b"]" + b"(" + text("touch") + text("canary") + b"e\x85}\x92.",
    "EXT1": b"\x82\xf0" + COMMAND + b"\x85R.",
    "EXT2": b"\x83\xf0\x00" + COMMAND + b"\x85R.",
    "EXT4": b"\x84\xf0\x00\x00\x00" + COMMAND + b"\x85R.",
    "eval": b"cbuiltins\neval\n" + text("open('canary','w')") + b"\x85R.",
    "exec of protocol 2": b"c__builtin__\nexec\n" + text("open('canary','w')") + b"\x85R.",
    "getattr": b"cbuiltins\ngetattr\n" + b"cos\npath\n" + text("os") + b"\x86R" + b"0.",
    "hub": b"ctorch\nhub.load\n" + COMMAND + b"\x85R.",
    "storage": None,
    "torch.load": b"ctorch.serialization\nload\n" + COMMAND + b"\x85R.",
    "partial": b"cfunctools\npartial\ncposix\nsystem\n" + COMMAND + b"\x86R)R.",
    "name without a call": b"cposix\nsystem\n.",
    "name of no module": b"cno_such_module\nname\n.",
    "PERSID": b"Pcanary\n.",
    "BINPERSID": COMMAND + b"Q.",
}
LIVE = ["GLOBAL REDUCE", "STACK_GLOBAL REDUCE", "dotted STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "eval"]
LIVE += ["exec of protocol 2", "storage", "partial"]


def attack(name):
    if name != "storage":
        return (b"\x80\x02" if name == "exec of protocol 2" else START) + ATTACKS[name]
    inner = io.BytesIO()
    torch.save(Call(eval, "open('canary', 'w')"), inner, _use_new_zipfile_serialization=False)
    return pickle.dumps(Call(torch.storage._load_from_bytes, inner.getvalue()), protocol=4)


@pytest.fixture
def extension():
    copyreg.add_extension("posix", "system", 0xF0)
    yield
    copyreg.remove_extension("posix", "system", 0xF0)


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_that_a_file_requests_is_run(name, tmp_path, monkeypatch, extension):
    monkeypatch.chdir(tmp_path)
    refused(tmp_path, attack(name), "cannot be read as a checkpoint: it (asks for|uses|refers)|storage")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", LIVE)
def test_the_attacks_are_real(name, tmp_path, monkeypatch, extension):
    """Python's own reader falls for them."""
    monkeypatch.chdir(tmp_path)
    try:
        pickle.loads(attack(name))
    except (TypeError, pickle.UnpicklingError):
        assert name == "partial"
    assert (tmp_path / "canary").exists()


RECORD = b"ctorch.nn.modules.container\nModuleDict\n)\x81"
NAME = b"ccollections\nOrderedDict\n"


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (NAME + b"}" + text("__call__") + text("x") + b"sb.", "treats a Name as a Record"),
        (NAME + b"N}" + text("calls") + text("x") + b"s\x86b.", "treats a Name as a Record"),
        (NAME + b")R}" + text("x") + text("y") + b"sb.", "treats a dict as a Record"),
        (RECORD + b"}b}b.", "changes a ModuleDict that is complete"),
        (NAME + b")R)R.", "calls a dict"),
        (text("eval") + b")R.", "calls a str"),
        (RECORD + b")R.", "calls a Record"),
        (NAME + NAME + b"R.", "calls a Name"),
        (NAME + text("x") + b"\x85R.", "takes 0 positional arguments"),
        (NAME + b"a.", "takes more|treats|list index"),
        (b"](" + RECORD + b"\x90.", "treats a list as a set"),
        (b"}" + b"K\x01K\x02s.", "uses a int where a name belongs"),
        (b"}" + b"))s.", "uses a tuple where a name belongs"),
        (b"\x8f()\x90.", "uses a tuple where a name belongs"),
        (b"]" + NAME + NAME + b"\x93.", "requires str"),
    ],
)
def test_only_a_record_has_a_state_and_only_a_name_can_be_called(data, match, tmp_path):
    refused(tmp_path, START + data, match)


def test_a_records_state_changes_nothing_of_it(tmp_path):
    state = {"__class__": "x", "__setstate__": "y", "kind": "z"}
    found = read(tmp_path, START + RECORD + pickle.dumps(state, protocol=4)[2:-1].replace(b"\x94", b"") + b"b.")
    assert (type(found), found.kind, found.state) == (Record, "ModuleDict", state)


STORAGE = torch.arange(6.0).untyped_storage()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((0, (7,), (1,)), "reaches outside"),
        ((1, (6,), (1,)), "reaches outside"),
        ((0, (2, 2), (5, 1)), "reaches outside"),
        ((7, (0,), (1,)), "reaches outside"),
        ((6, (), ()), "reaches outside"),
        ((0, (10**12,), (0,)), "reaches outside"),
        ((0, (2**40, 2**40), (0, 0)), "reaches outside"),
        ((0, (2**70,), (1,)), "no numbers"),
        ((-1, (2,), (1,)), "no numbers"),
        ((0, (-2,), (1,)), "no numbers"),
        ((5, (3,), (-1,)), "no numbers"),
        ((0.0, (2,), (1,)), "no numbers"),
        ((True, (2,), (1,)), "no numbers"),
        ((0, [2], (1,)), "no numbers|no storage, size"),
        ((0, (2, 2), (1,)), "no storage, size"),
        ((0, (1,) * 5000, (1,) * 5000), "no storage, size"),
    ],
)
def test_a_tensor_stays_within_its_storage(arguments, match, tmp_path):
    storage = torch.storage.TypedStorage(wrap_storage=STORAGE, dtype=torch.float32, _internal=True)
    call = torch._utils._rebuild_tensor_v2
    found = read(tmp_path, Call(call, storage, 1, (2, 2), (3, 1), False, collections.OrderedDict()))
    assert found.tolist() == [[1.0, 2.0], [4.0, 5.0]]
    refused(tmp_path, Call(call, storage, *arguments, False, collections.OrderedDict()), match)


def saved(count=3, claimed=None, pid=None, name="FloatStorage", order=True):
    """torch.save's bytes of a storage of floats, with lies in it."""
    kind = type(name, (), {})
    kind.__module__, kind.__qualname__ = "torch", name
    file = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": order}):
        pickle.dump(value, file, protocol=2)
    if pid is None:
        typed = b"X\x07\x00\x00\x00storagectorch\n" + name.encode() + b"\nX\x01\x00\x00\x00kX\x03\x00\x00\x00cpu"
        number = pickle.dumps(count if claimed is None else claimed, protocol=2)[2:-1]
        pid = b"(" + typed + number + b"Nt"
    file.write(b"\x80\x02" + pid + b"Q.")
    pickle.dump(["k"], file, protocol=2)
    file.write(struct.pack("<q", count) + bytes(4 * count))
    return file.getvalue()


def stored(data):
    return Call(torch.storage._load_from_bytes, data)


def test_a_true_storage_is_read(tmp_path):
    assert torch.equal(read(tmp_path, stored(saved())), torch.zeros(3))


@pytest.mark.parametrize(
    "data",
    [
        saved(claimed=2),
        saved(claimed=10**18),
        saved(claimed=10**30000),
        saved(claimed=-1),
        saved(name="DoubleStorage"),
        saved(name="hub"),
        saved(order=False),
        saved()[:-1],
        saved() + b"x",
        saved()[:20],
        saved(pid=b"N"),
        saved(pid=b"ctorch\nFloatStorage\n)R"),
        saved(pid=b"cposix\nsystem\nX\x0c\x00\x00\x00touch canary\x85R"),
        b"",
        b"PK\x03\x04",
        "text",
        7,
    ],
    ids=range(17),
)
def test_a_storage_that_lies_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(tmp_path, stored(data), "cannot be read as a checkpoint")
    assert not (tmp_path / "canary").exists()


def many(function, argument, times):
    """One argument, remembered and given to a function again and again: a small file with large wishes."""
    remembered = [pickle.dumps(value, protocol=4)[2:-1] for value in (function, (argument,))]
    calls = b"j\x00\x01\x00\x00j\x01\x01\x00\x00R" * times
    return START + remembered[0] + b"r\x00\x01\x00\x00" + remembered[1] + b"r\x01\x01\x00\x00](" + calls + b"e."


@pytest.mark.parametrize(
    "data",
    [
        many(torch.storage._load_from_bytes, saved(250_000), 20_000),
        many(set, ["word"] * 200_000, 20_000),
    ],
    ids=["storage", "set"],
)
def test_a_small_file_cannot_allocate_much(data, tmp_path):
    began = time.perf_counter()
    refused(tmp_path, data, "asks for more than it holds")
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    "data",
    [
        b"\x8b\xff\xff\xff\x7f",  # LONG4
        b"B\xff\xff\xff\xff",  # BINBYTES
        b"\x8e" + b"\xff" * 7 + b"\x7f",  # BINBYTES8
        b"\x96" + b"\xff" * 7 + b"\x7f",  # BYTEARRAY8
        b"\x8d" + b"\xff" * 7 + b"\x7f",  # BINUNICODE8
        b"\x95" + b"\xff" * 8,  # FRAME
        b"X\xff\xff\xff\xff",
        b"I" + b"9" * 100_000 + b"\n.",
        b"j\xff\xff\xff\xff.",
        b"(" * 100_000 + b".",
        b"\x97.",  # NEXT_BUFFER
        b"\x98.",
        b"",
        b".",
        b"\xff",
        b"\x80\x04N",
    ],
    ids=range(16),
)
def test_claimed_sizes_are_not_allocated(data, tmp_path):
    refused(tmp_path, START + data, "cannot be read as a checkpoint")


def test_an_empty_a_missing_and_a_foreign_file_are_named(tmp_path):
    refused(tmp_path, b"", "cannot be read")
    refused(tmp_path, b"<html>404 Not Found</html>", "cannot be read")
    with pytest.raises(ValueError, match=r"nothing\.pkl does not exist"):
        read_pickle(tmp_path / "nothing.pkl")


def test_deep_and_circular_values_do_no_harm(tmp_path):
    deep = read(tmp_path, START + b"]" * 200_000 + b"a" * 199_999 + b".")
    assert len(deep) == 1
    assert len(read(tmp_path, START + b"N" + b"\x85" * 200_000 + b".")) == 1
    circle = []
    circle.append(circle)
    assert (lambda found: found[0] is found)(read(tmp_path, circle))
    assert read(tmp_path, START + b"K\x01r\xff\xff\xff\xffj\xff\xff\xff\xff\x86.") == (1, 1)
    twice = b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(100))
    assert len(read(tmp_path, START + b")\x94" + twice + b".")) == 2  # a tree of 2^100 leaves


def inert(value):
    """Only values, containers, tensors, records and names are in it."""
    seen, todo = set(), [value]
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if type(one) in (list, tuple, set):
            todo.extend(one)
        elif type(one) is dict:
            todo.extend([*one, *one.values()])
        elif type(one) is Record:
            todo.extend([one.kind, one.state])
        else:
            assert type(one) in (str, bytes, int, float, bool, type(None), torch.Tensor, Name)


def test_damaged_files_are_refused_or_harmless(edm, tmp_path, monkeypatch):
    """Three thousand mutations of a small checkpoint: flipped bytes, cuts, splices."""
    monkeypatch.chdir(tmp_path)
    layer = nn.Linear(2, 3)
    edm.dump(tmp_path / "intact.pkl", {"ema": edm.Persistent("Linear", dict(layer.__dict__)), "scale": np.float64(2)})
    intact = (tmp_path / "intact.pkl").read_bytes()
    rng, refusals = random.Random(0), 0
    for i in range(3000):
        data = bytearray(intact)
        if i % 3 == 0:
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        elif i % 3 == 1:
            del data[rng.randrange(len(data)) :]
        else:
            a, b, length = rng.randrange(len(data)), rng.randrange(len(data)), rng.randint(1, 60)
            data[a : a + rng.randint(0, 60)] = data[b : b + length]
        try:
            inert(read(tmp_path, bytes(data)))
        except ValueError:
            refusals += 1
    assert 1500 < refusals < 2999
    assert not (tmp_path / "canary").exists()


def test_only_needed_opcodes_exist():
    """Every other opcode of Python is refused by name, and has no handler."""
    dangerous = {"INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER", "GET", "PUT", "DUP"}
    assert not OPCODES & dangerous
    for opcode in pickletools.opcodes:
        if opcode.name not in OPCODES:
            assert ord(opcode.code) not in RestrictedUnpickler.dispatch
            argument = b"1\n1\n" if opcode.arg is not None and opcode.arg.n == pickletools.UP_TO_NEWLINE else bytes(8)
            with pytest.raises(ValueError, match="quotes" if opcode.name == "STRING" else f"opcode {opcode.name},"):
                load_restricted(io.BytesIO(opcode.code.encode("latin1") + argument + b"."), {}, Budget(100))


HUGE = {
    "lists": b"]" * 4_000_000 + b".",
    "sets": b"\x8f" * 4_000_000 + b".",
    "numbers": b"(" + b"K\x01" * 2_000_000 + b"t.",
    "memo": b"N" + b"\x94" * 4_000_000 + b".",
    "a key nested deeply": b"}N" + b"\x85" * 400_000 + b"Ns.",
    "storages": None,
}


MEASURE = """
import resource, sys
from pathlib import Path
from dmdistill.io.safe_pickle import read_pickle
for file in sorted(Path(sys.argv[1]).iterdir()):
    before = resource.getrusage(resource.RUSAGE_SELF)
    try:
        read_pickle(file)
    except ValueError as error:
        after = resource.getrusage(resource.RUSAGE_SELF)
        print(after.ru_utime - before.ru_utime, (after.ru_maxrss - before.ru_maxrss) / 1024, error)
"""


def test_time_and_memory_are_bounded(tmp_path):
    """Files of 4 MB that say much are refused, in a process of its own, by at most 5 s of CPU and 200 MB each."""
    call = pickle.dumps(stored(saved(0)), protocol=3)[2:-1]
    for name, data in HUGE.items():
        content = data or b"](" + call * (4_000_000 // len(call)) + b"e."
        (tmp_path / name).write_bytes(START + content)
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == len(HUGE)
    for line in lines:
        seconds, megabytes, message = line.split(" ", 2)
        assert (float(seconds) < 5, float(megabytes) < 200) == (True, True), line
        assert "opcodes" in message or "a tuple where a name belongs" in message


def test_the_largest_checkpoint_has_room(edm, tmp_path):
    """EDM's network for ImageNet has 296 M weights in 541 tensors; opcodes depend only on the number of tensors."""
    layers = {str(i): edm.Persistent("Linear", dict(nn.Linear(2, 3).__dict__)) for i in range(1000)}
    edm.dump(tmp_path / "file.pkl", {"ema": edm.Persistent("Whole", {"_modules": layers})})
    assert len(read_pickle(tmp_path / "file.pkl")["ema"].state["_modules"]) == 1000
