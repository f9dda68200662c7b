"""Libraries of our extras, which are imported when a file needs them."""

from importlib import import_module
from types import ModuleType

_EXTRAS = {
    "h5py": "hdf5",
    "litdata": "streaming",
    "nibabel": "volumes",
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
