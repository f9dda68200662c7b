"""Files that tests write."""

import gzip
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
    """Pixels in the format of the name: a picture, perhaps in a gzip file, or a NIfTI volume."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if ".nii" in path.suffixes:
        import nibabel

        nibabel.save(nibabel.Nifti1Image(pixels, np.diag([-1, 1, 3, 1])), path)
        return path
    image = Image.fromarray(pixels)
    if mode is not None:
        image = image.convert(mode)
    if path.suffix == ".gz":
        stream = BytesIO()
        image.save(stream, "PPM")
        path.write_bytes(gzip.compress(stream.getvalue(), mtime=0))
    else:
        image.save(path, **options)
    return path
