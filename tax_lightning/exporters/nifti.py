"""NIfTI: a file for each layer of a volume, ``VOLUME/LAYER.nii.gz``, on the grid of its source.

Slices are put together by what ``samples.csv`` says of them; those that are not in the data set,
such as slices that nobody drew on, are 0. The names of the classes stand as a comment in the
header. The folder is read again by ``tax import nifti`` with ``--masks "{name}/{annotator}.nii*"``,
where the images lie beside the layers.

Source: Cox et al., "A (sort of) new image data format standard: NIfTI-1", NeuroImage 22, 2004.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tax_lightning.exporters.layers import Segmented
from tax_lightning.exporters.slices import assembled, file_name

_COMMENT = 6  # code of a header's extension that holds text


def write(images: Iterable[Segmented], folder: Path) -> list[Path]:
    """Write the layers of all volumes; returns the files.

    Args:
        images: The slices of a volume one after the other.
        folder: Where to; made if it is missing.
    """
    nibabel = _nibabel()
    files = []
    for whole in assembled(images):
        path = folder / file_name(whole.volume) / f"{file_name(whole.layer)}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nibabel.Nifti1Image(whole.labels, whole.affine)
        image.header.set_xyzt_units("mm")
        names = "\n".join(f"{place} {name}" for place, name in enumerate(whole.classes))
        image.header.extensions.append(
            nibabel.nifti1.Nifti1Extension(_COMMENT, names.encode("utf-8"))
        )
        nibabel.save(image, path)
        files.append(path)
    return files


def _nibabel() -> Any:  # noqa: ANN401 - a module
    try:
        import nibabel
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "NIfTI files need nibabel, which is not installed: "
            'pip install "tax-lightning[volumes]".'
        ) from error
    return nibabel
