"""Libraries of our extras, which are imported when a file needs them."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

_EXTRAS = {
    "h5py": "hdf5",
    "litdata": "streaming",
    "nibabel": "volumes",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "pycocotools.mask": "tools",
    "pydicom": "dicom",
    "pylidc": "pylidc",
    "slicerio": "slicer",
}


def needed(library: str) -> ModuleType:
    """A library, of which the extra is named if it is not installed.

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    try:
        return import_module(library)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"These files need {library.partition('.')[0]}, which is not installed ({error}): "
            f'pip install "tax-lightning[{_EXTRAS[library]}]".'
        ) from error


def check_exported(path: Path) -> None:
    """Refuse a file that a model cannot be exported to, or whose libraries are missing.

    Raises:
        ModuleNotFoundError: If a library is not installed.
        ValueError: If its suffix is neither that of ONNX nor that of ``torch.export``.
    """
    if path.suffix not in (".onnx", ".pt2"):
        raise ValueError(
            f"TO: {path} ends in {path.suffix!r}, expected .onnx (ONNX) or .pt2 (torch.export)."
        )
    for library in ("onnx", "onnxruntime", "onnxscript") if path.suffix == ".onnx" else ():
        needed(library)
