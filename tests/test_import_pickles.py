"""Pickles of pictures: what is read, and that nothing else is run."""

import builtins
import copyreg
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tax_lightning.importers.pickles import load_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "crops.pickle"


@pytest.fixture
def canary(tmp_path) -> Path:
    return tmp_path / "canary"


class Call:
    """Unpickles to what a function returns, in the ordinary reader."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def load(file: Path, content: bytes):
    file.write_bytes(content)
    return load_pickle(file)


def with_names_of_numpy_1(content: bytes, protocol: int) -> bytes:
    """From protocol 4 on, names are written behind their length, and all in a frame of a length."""
    if protocol < 4:
        return content.replace(b"cnumpy._core.", b"cnumpy.core.")
    for name in (b"multiarray", b"numeric"):
        texts = b"numpy._core." + name, b"numpy.core." + name
        content = content.replace(*(bytes([len(text)]) + text for text in texts))
    assert content[2:3] == pickle.FRAME
    return content[:2] + content[11:]  # frames are optional


# What is read


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("old_names", [False, True])
def test_arrays_and_plain_values_of_every_protocol(file, protocol, old_names):
    images = {
        "floats": np.linspace(0, 1, 12).reshape(3, 4),
        "by columns": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        "big-endian": np.arange(4, dtype=">u2"),
        "bool": np.eye(3, dtype=bool),
        "text": np.array(["ab", "c"]),
        "empty": np.zeros((0, 3), np.uint8),
    }
    plain = {"a": [1, 2.5, None, True, "ü"], "b": (b"\x00\xff", bytearray(b"\xe9"), {1}, 2j)}
    content = pickle.dumps({"images": images, "plain": plain}, protocol)
    if old_names:
        content = with_names_of_numpy_1(content, protocol)
    read = load(file, content)
    assert read["plain"] == plain
    for name, image in images.items():
        np.testing.assert_array_equal(read["images"][name], image)
        dtype = np.asarray(read["images"][name]).dtype
        assert dtype.newbyteorder("=") == image.dtype.newbyteorder("=")


@given(
    hnp.arrays(
        hnp.integer_dtypes() | hnp.floating_dtypes() | hnp.boolean_dtypes(),
        hnp.array_shapes(min_dims=0, min_side=0),
    ),
    st.sampled_from(PROTOCOLS),
)
def test_any_array_of_numbers_comes_back(tmp_path_factory, array, protocol):
    file = tmp_path_factory.mktemp("pickles") / "array.pickle"
    read = load(file, pickle.dumps([array, array[()]], protocol))
    np.testing.assert_array_equal(read[0], array)
    np.testing.assert_array_equal(read[1], array[()])
    assert read[0].dtype.newbyteorder("=") == array.dtype.newbyteorder("=")


@pytest.mark.parametrize("protocol", PROTOCOLS[:3])
def test_arrays_that_python_2_wrote(file, protocol):
    """There, the values of an array are text of one byte a character."""
    values = np.array([1, 200, 3], np.uint8)
    text = b"S'\\x01\\xc8\\x03'\n" if protocol == 0 else b"U\x03\x01\xc8\x03"
    content = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I3\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\n"
        + text
        + b"tb."
    )
    np.testing.assert_array_equal(load(file, content), values)


@pytest.fixture
def pydicom(monkeypatch):
    """Classes pickled as those of pydicom are, whether or not it is installed."""
    uid, valuerep, multival = (
        ModuleType(f"pydicom.{name}") for name in ("uid", "valuerep", "multival")
    )
    for module, name, base in ((uid, "UID", str), (valuerep, "DSfloat", float)):
        setattr(module, name, type(name, (base,), {"__module__": module.__name__}))

    class MultiValue:
        def __init__(self, constructor, values):
            self.type_constructor, self._list = constructor, list(map(constructor, values))

    MultiValue.__module__, MultiValue.__qualname__ = multival.__name__, "MultiValue"
    multival.MultiValue = MultiValue
    monkeypatch.setitem(sys.modules, "pydicom", ModuleType("pydicom"))
    for module in (uid, valuerep, multival):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return uid.UID, valuerep.DSfloat, multival.MultiValue


@pytest.mark.parametrize("protocol", PROTOCOLS[2:])
def test_classes_of_pydicom_are_read_without_it(file, pydicom, monkeypatch, protocol):
    uid, number, values = pydicom
    spacing = number("0.7")
    spacing.original_string = "0.70"
    content = pickle.dumps([uid("1.2.3"), spacing, values(number, ["1.5", "2"])], protocol)
    for name in ("pydicom", "pydicom.uid", "pydicom.valuerep", "pydicom.multival"):
        monkeypatch.setitem(sys.modules, name, None)  # an import would fail
    read = load(file, content)
    assert read == ["1.2.3", 0.7, [1.5, 2.0]]
    assert [isinstance(value, kind) for value, kind in zip(read, (str, float, list), strict=True)]


# What is refused


def malicious(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that write the canary, or try to, and what the message must name."""
    command = f"touch {canary}"
    source = f"open({str(canary)!r}, 'w').close()"
    dumps = pickle.dumps
    posix = os.system.__module__
    text = command.encode()
    packed = b"\x8c" + bytes([len(text)]) + text
    pieces = {
        "os.system": (dumps(Call(os.system, command)), f"{posix}.system"),
        "eval": (dumps(Call(eval, source)), "builtins.eval"),
        "eval of Python 2": (dumps(Call(eval, source), 2), "__builtin__.eval"),
        "getattr": (dumps(Call(getattr, Call(__import__, "os"), "system")), "builtins.getattr"),
        "numpy.testing": (
            b"cnumpy.testing._private.utils\nrunstring\n(V%s\n}tR." % source.encode(),
            "numpy.testing._private.utils.runstring",
        ),
        "a codec": (b"c_codecs\nencode\n(Va\nVidna\ntR.", "_codecs.encode with the codec 'idna'"),
        "codec of a bytearray": (dumps(Call(bytearray, "a", "idna")), "the codec 'idna'"),
        "memory": (dumps(Call(bytearray, 2**62)), "a bytearray of int"),
        "dotted name": (b"\x80\x04\x8c\x08builtins\x8c\x0fset.__class__.x\x93.", "set.__class__"),
        "STACK_GLOBAL": (
            b"\x80\x04\x8c\x02os\x8c\x06system\x93" + packed + b"\x85R.",
            "os.system",
        ),
        "INST": (b"(V%s\nios\nsystem\n." % text, "os.system"),
        "OBJ": (b"(cos\nsystem\nV%s\no." % text, "os.system"),
        "NEWOBJ": (b"\x80\x02csubprocess\nPopen\nV%s\n\x85\x81." % text, "subprocess.Popen"),
        "persistent id": (b"Pabc\n.", "the persistent object 'abc'"),
        "persistent id, binary": (b"\x80\x02K\x07Q.", "the persistent object 7"),
        "pydicom": (b"cpydicom.filereader\ndcmread\n(Vx\ntR.", "pydicom.filereader.dcmread"),
        "own class": (b"ctax_lightning.importers.pickles\nload_pickle\n.", "load_pickle"),
        "in a list in a dict": (dumps({"a": [Call(os.system, command)]}), f"{posix}.system"),
    }
    objects = np.empty(1, object)
    objects[0] = Call(os.system, command)
    pieces["in an array of objects"] = (dumps(objects), "numpy.dtype('|O')")
    pieces["array of objects"] = (dumps(np.array([None, 1], object)), "numpy.dtype('|O')")
    records = np.array([(1, None)], [("a", "i4"), ("b", "O")])
    pieces["array of records"] = (dumps(records), "numpy.dtype('|V")
    pieces["scalar of objects"] = (
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(VO8\nI0\nI1\ntRc%s\nsystem\ntR."
        % posix.encode(),
        "numpy.dtype('|O')",
    )
    pieces["fields by state"] = (
        b"cnumpy\ndtype\n(Vi8\nI0\nI1\ntR(I3\nV|\nN(Va\nt}I8\nI1\nI0\ntb.",
        "numpy.dtype with fields",
    )
    pieces["values of a list"] = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"
        b"(I1\n(I1\ntcnumpy\ndtype\n(Vi8\nI0\nI1\ntRI00\n(lI1\natb.",
        "an array whose values are no bytes",
    )
    pieces["another class of array"] = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cbuiltins\nset\n(I0\ntVb\ntR.",
        "an array of the class <class 'set'>",
    )
    pieces["a change of a function"] = (b"ccodecs\nencode\n}b.", "a change of a function")
    return pieces


@pytest.mark.parametrize("name", malicious(Path("canary")))
def test_nothing_is_run_and_the_class_is_named(file, canary, name):
    content, named = malicious(canary)[name]
    with pytest.raises(ValueError, match=r"crops\.pickle was refused: it asks for") as caught:
        load(file, content)
    assert named in str(caught.value)
    assert not canary.exists()


def test_the_canary_sings_in_the_ordinary_reader(canary):
    """The pickles above would do what they say."""
    for name in ("os.system", "eval of Python 2", "in an array of objects", "INST", "OBJ"):
        pickle.loads(malicious(canary)[name][0])
        canary.unlink()  # raises where it is absent
    with subprocess.Popen(["true"]):
        pickle.loads(malicious(canary)["STACK_GLOBAL"][0])
    assert canary.exists()


@pytest.fixture
def extension():
    """A function that pickles may call by number, in this process."""
    copyreg.add_extension("builtins", "eval", 240)
    yield b"\x80\x02\x82\xf0"
    copyreg.remove_extension("builtins", "eval", 240)


@pytest.mark.parametrize("seen", [False, True])
def test_the_registry_of_extensions_is_no_way_round(file, canary, extension, seen):
    call = b"V%s\n\x85R." % f"open({str(canary)!r}, 'w').close()".encode()
    if seen:  # the ordinary reader remembers what it found
        assert pickle.loads(extension + b".") is builtins.eval
    with pytest.raises(ValueError, match=r"it asks for (builtins|__builtin__)\.eval\."):
        load(file, extension + call)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["UID", "DSfloat"])
def test_stand_ins_cannot_be_changed(file, name):
    """The second part of a state is set attribute by attribute."""
    module = {"UID": "pydicom.uid", "DSfloat": "pydicom.valuerep"}[name]
    content = f"c{module}\n{name}\n(N(dV__str__\ncbuiltins\nset\nstb.".encode()
    with pytest.raises(ValueError, match=r"cannot be read as a pickle of arrays \(TypeError"):
        load(file, content)


# What is broken


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"PK\x03\x04 no pickle", id="another kind"),
        pytest.param(pickle.dumps({"image": np.eye(9)})[:-20], id="cut off"),
        pytest.param(b"\x80\x63.", id="protocol of the future"),
        pytest.param(b"\x80\x02\x82\xf1.", id="an extension that nobody registered"),
        pytest.param(b"ccodecs\nencode\n(I1\nI2\nI3\ntR.", id="wrong arguments"),
        pytest.param(
            b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(Vi8\nI0\nI1\ntRVab\ntR.",
            id="a scalar of text",
        ),
        pytest.param(
            pickle.dumps(np.arange(4, dtype=np.int64), 2).replace(b"K\x04\x85", b"K\x05\x85"),
            id="an array longer than its values",
        ),
    ],
)
def test_broken_files_are_named(file, content):
    with pytest.raises(ValueError, match=r"crops\.pickle cannot be read as a pickle .*again"):
        load(file, content)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_by_the_name_of_the_file(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("pickles") / "any.pickle"
    message = ""
    try:
        load(file, content)
    except ValueError as error:
        message = str(error)
    assert message.startswith((f"{file} was refused", f"{file} cannot be read")) or not message


def test_a_missing_file_is_named(file):
    with pytest.raises(FileNotFoundError, match=r"crops\.pickle is no file"):
        load_pickle(file)
