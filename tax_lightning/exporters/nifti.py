"""NIfTI: a file for each layer of a volume, ``VOLUME/LAYER.nii.gz``, on the grid of its source.

Slices are put together by what ``samples.csv`` says of them; those that are not in the data set,
such as slices that nobody drew on, are 0. The names of the classes stand as a comment in the
header. The folder is read again by ``tax import nifti`` with ``--masks "{name}/{annotator}.nii*"``,
where the images lie beside the layers.

Source: Cox et al., "A (sort of) new image data format standard: NIfTI-1", NeuroImage 22, 2004.
"""

import gzip
from collections.abc import Iterable
from pathlib import Path

from tax_lightning.exporters.layers import Segmented
from tax_lightning.exporters.slices import Whole, write_layers
from tax_lightning.extras import needed

_COMMENT = 6  # code of a header's extension that holds text


def write(images: Iterable[Segmented], folder: Path) -> list[Path]:
    """Write the layers of volumes, whose slices come one after the other."""
    nibabel = needed("nibabel")

    def encode(whole: Whole) -> bytes:
        image = nibabel.Nifti1Image(whole.labels, whole.affine)
        image.header.set_xyzt_units("mm")
        names = "\n".join(f"{place} {name}" for place, name in enumerate(whole.classes))
        comment = nibabel.nifti1.Nifti1Extension(_COMMENT, names.encode("utf-8"))
        image.header.extensions.append(comment)
        return gzip.compress(image.to_bytes(), mtime=0)

    return write_layers(images, folder, ".nii.gz", encode)
