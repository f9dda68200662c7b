"""Pickles of pictures, read without running the code that a pickle may hold."""

import copyreg
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

_PLAIN_KINDS = "biufcSU"  # NumPy's kinds of values that are nothing but bytes


class _Refused(pickle.UnpicklingError):
    """Something that a pickle of pictures has no need of."""


class _Plain:
    """Stands in for a class of pydicom: of what is noted beside the value nothing counts."""

    def __new__(cls, value: Any = "", *_: object) -> Any:  # noqa: ANN401 - text or a number
        """Take the value alone."""
        return super().__new__(cls, value)  # type: ignore[call-arg]

    def __setstate__(self, state: object) -> None:
        """Nothing but the value counts."""


class UID(_Plain, str):
    """Stands in for ``pydicom.uid.UID``: the text of an identifier."""


class DSfloat(_Plain, float):
    """Stands in for ``pydicom.valuerep.DSfloat``: the number of a decimal string."""


class MultiValue(list[Any]):
    """Stands in for ``pydicom.multival.MultiValue``: a list."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over the values; their constructor is not called."""
        self[:] = state["_list"]


class _Array(np.ndarray[Any, Any]):
    """An array under construction, whose state is looked at before NumPy sees it."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, values = state
        if isinstance(values, str):  # written by Python 2
            values = values.encode("latin1")
        if not isinstance(values, bytes):
            raise _Refused("an array whose values are no bytes")
        checked = (1, shape, _plain(dtype), bool(by_columns), values)
        super().__setstate__(checked)  # type: ignore[arg-type]  # NumPy wants Python's own bool


class _DType:
    """What a pickle says about the type of an array's values."""

    def __init__(self, code: str, *_: object) -> None:
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in _PLAIN_KINDS:
            raise _Refused(f"an array of numpy.dtype({self.dtype.str!r})")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *parts = state
        if parts[:3] != [None, None, None]:  # an array in each value, or names and fields
            raise _Refused("an array of numpy.dtype with fields")
        self.dtype = self.dtype.newbyteorder(order)


def _plain(dtype: object) -> np.dtype[Any]:
    if not isinstance(dtype, _DType):
        raise _Refused(f"an array whose type of values is {dtype!r}")
    return dtype.dtype


class _Function:
    """A function that a pickle may call, and of which it can change nothing."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:  # noqa: ANN401 - whatever the pickle holds
        return self._call(*args)

    def __setstate__(self, state: object) -> NoReturn:
        raise _Refused("a change of a function")


_NDARRAY = object()  # the class numpy.ndarray, good only to be handed to `_reconstruct`


def _reconstruct(kind: object, *_: object) -> _Array:
    if kind is not _NDARRAY:
        raise _Refused(f"an array of the class {kind!r}")
    return _Array((0,), np.uint8)


def _frombuffer(
    values: bytes | bytearray, dtype: object, shape: tuple[int, ...], order: str = "C"
) -> npt.NDArray[Any]:
    flat = np.frombuffer(bytes(values), _plain(dtype))
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: object, value: bytes) -> Any:  # noqa: ANN401 - a scalar of that type
    return np.frombuffer(value, _plain(dtype), count=1)[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """The bytes of protocols 0 to 2, which are written as text; no other codec is looked up."""
    if encoding not in ("latin1", "latin-1"):
        raise _Refused(f"_codecs.encode with the codec {encoding!r}")
    return str(text).encode("latin1")


def _bytearray(values: bytes | str = b"", encoding: str = "latin1") -> bytearray:
    if isinstance(values, str):
        return bytearray(_encode(values, encoding))
    if not isinstance(values, bytes):
        raise _Refused(f"a bytearray of {type(values).__name__}")
    return bytearray(values)


_ADMITTED: dict[str, Any] = {
    "builtins.bytearray": _Function(_bytearray),
    "builtins.bytes": _Function(lambda: b""),
    "builtins.complex": complex,
    "builtins.dict": dict,
    "builtins.frozenset": frozenset,
    "builtins.list": list,
    "builtins.set": set,
    "builtins.slice": slice,
    "builtins.tuple": tuple,
    "codecs.encode": _Function(_encode),
    "numpy.dtype": _DType,
    "numpy.ndarray": _NDARRAY,
    "pydicom.multival.MultiValue": MultiValue,
    "pydicom.uid.UID": UID,
    "pydicom.valuerep.DSfloat": DSfloat,
} | {
    f"numpy.{core}.{name}": function
    for core in ("core", "_core")
    for name, function in {
        "multiarray._reconstruct": _Function(_reconstruct),
        "multiarray.scalar": _Function(_scalar),
        "numeric._frombuffer": _Function(_frombuffer),
    }.items()
}
_OTHER_NAMES = {"__builtin__": "builtins", "_codecs": "codecs"}  # of Python 2, and of C


class _Unpickler(pickle.Unpickler):
    """Knows the classes listed above, and no others."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - as the parent
        """What stands for a class, which is never imported."""
        place = f"{_OTHER_NAMES.get(module, module)}.{name}"
        if place not in _ADMITTED:
            raise _Refused(f"{module}.{name}")
        return _ADMITTED[place]

    def persistent_load(self, pid: object) -> NoReturn:
        """Objects outside of the file are none of its pictures."""
        raise _Refused(f"the persistent object {pid!r}")


def load_pickle(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """Read a pickle that holds arrays of numbers and plain values, and run nothing of it.

    A pickle is a program: the standard reader calls whatever function a file names. This one
    admits plain values, containers, NumPy's arrays and scalars of numbers and text, and a few
    classes of pydicom by stand-ins; it imports nothing. It does not limit how much memory a file
    asks for.

    Args:
        path: The file, of any protocol.

    Returns:
        Its content. Arrays may be of a subclass of `numpy.ndarray`, and `numpy.asarray` takes that
        off.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file asks for another class or function, which the message names, or is
            no whole pickle.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "crops.pickle")
        ...     _ = file.write_bytes(pickle.dumps({"image": np.eye(2)}))
        ...     load_pickle(file)["image"].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file, expected a pickle of pictures.")
    copyreg.clear_extension_cache()  # classes found there would not be asked for by name
    try:
        with path.open("rb") as stream:
            return _Unpickler(stream, encoding="latin1").load()
    except _Refused as error:
        raise ValueError(
            f"{path} was refused: it asks for {error}. Expected arrays of numbers, plain values "
            "and pydicom's UID, DSfloat and MultiValue: anything else in a pickle can run code. "
            "Get the file from its publisher, or save it again with plain values only."
        ) from error
    except Exception as error:  # of a damaged file the reader raises what it meets
        raise ValueError(
            f"{path} cannot be read as a pickle of arrays ({type(error).__name__}: {error}). "
            "Download it again."
        ) from error
