"""A small valid export for every source of ``tax import``, made as the tests of the sources do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import test_import_arrays
import test_import_bubil
import test_import_dicom_seg
import test_import_imapp
import test_import_lidc
import test_import_seg_nrrd
import test_import_volumes
from layouts_pictures import write_chase, write_drive, write_gleason, write_riga_image, write_stare
from tool_exports import SIZE, box, region, task, write_json
from written_files import save

from tax_lightning.exporters import coco as to_coco
from tax_lightning.exporters import label_studio as to_label_studio
from tax_lightning.exporters.layers import Layer, Segmented

SQUARE = [[1.0, 1.0], [4.0, 1.0], [4.0, 3.0], [1.0, 3.0], [1.0, 1.0]]
PEOPLE = ("Ann", "Bob")
Arguments = tuple[Path, list[str]]


def _made_by(fixture: Any, *more: Any) -> Callable[[Path], Arguments]:
    """The export that a fixture makes in a folder."""

    def make(folder: Path) -> Arguments:
        return fixture.__wrapped__(*more, folder), []

    return make


def _images(folder: Path) -> list[str]:
    for name in "ab":
        save(folder / "images" / f"{name}.png", np.zeros(SIZE, np.uint8))
    return ["--images", str(folder / "images")]


def _arrays(folder: Path) -> Arguments:
    for number, write in enumerate(
        (
            test_import_arrays.npz_keys,
            test_import_arrays.npz_stack,
            test_import_arrays.mat_struct,
            test_import_arrays.new_mat,
            test_import_arrays.hdf5,
        )
    ):
        part = folder / str(number)
        part.mkdir()
        write(part)
        (made,) = part.iterdir()
        made.rename(folder / f"{number}{made.suffix}")
        part.rmdir()
    return folder, []


def _coco(folder: Path) -> Arguments:
    options = _images(folder)
    layers = [Layer(name, ("background", "cell"), box(1, 1, 3, 4)) for name in PEOPLE]
    to_coco.write([Segmented(n, f"{n}.png", tuple(layers)) for n in "ab"], folder / "out")
    return folder / "out", options


def _cvat(folder: Path) -> Arguments:
    options = _images(folder)
    (folder / "jobs").mkdir()
    for name in PEOPLE:
        (folder / "jobs" / f"{name}.xml").write_text(
            """<annotations><version>1.1</version><meta><job><labels><label><name>debris</name>
            </label><label><name>cell</name></label></labels></job></meta>
            <image id="0" name="a.png" width="8" height="6">
            <mask label="debris" rle="0, 2, 1, 1" left="1" top="1" width="2" height="2"/>
            <polygon label="cell" points="0.0,0.0;8.0,0.0;8.0,3.0;0.0,3.0" z_order="1"/>
            <box label="cell" xtl="4" ytl="1" xbr="6" ybr="2" rotation="90.00"/>
            <ellipse label="cell" cx="4" cy="4" rx="2" ry="1"/>
            </image><image id="1" name="b.png" width="8" height="6"/></annotations>"""
        )
    return folder / "jobs", options


def _dicom_seg(folder: Path) -> Arguments:
    series = test_import_dicom_seg.series.__wrapped__(folder)
    return test_import_dicom_seg.root.__wrapped__(series, folder), []


def _drawn(person: str) -> list[dict[str, Any]]:
    """Regions of Label Studio of several kinds."""
    corners = [[0, 50], [50, 50], [50, 100], [0, 100]]
    stroke = to_label_studio.encoded(box(0, 1, 2, 4) > 0)
    sides = {"x": 10, "y": 20, "width": 40, "height": 30, "rotation": 30}
    return [
        {
            "id": PEOPLE.index(person) + 5,
            "completed_by": {"email": person},
            "result": [
                region("polygonlabels", ["debris"], points=corners),
                region("brushlabels", ["cell"], rle=stroke),
                region("rectanglelabels", ["cell"], **sides),
            ],
        }
    ]


def _label_studio(folder: Path) -> Arguments:
    options = _images(folder)
    drawn = [one for person in PEOPLE for one in _drawn(person)]
    write_json(folder / "x/a.json", task(drawn) + task(drawn, "/data/upload/1/0a1b2c3d-b.png"))
    return folder / "x", options


def _label_studio_png(folder: Path) -> Arguments:
    options = _images(folder)
    given = [{"id": 5, "completed_by": 1, "result": []}, {"id": 6, "completed_by": 2}]
    path = write_json(folder / "tasks.json", task(given))
    for number in (5, 6):
        name = f"task-7-annotation-{number}-by-{number - 4}-tag-cell-0.png"
        save(folder / "png" / name, box(0, 0, 2, 2, 255))
    return folder / "png", [*options, "--tasks", str(path)]


def _labelme(folder: Path) -> Arguments:
    options = _images(folder)
    shapes = [
        {"label": "cell", "points": SQUARE[:-1], "shape_type": "polygon"},
        {"label": "debris", "points": [[5, 4], [7, 6]], "shape_type": "rectangle"},
        {"label": "cell", "points": [[5, 4], [6, 4]], "shape_type": "circle"},
    ]
    for name in PEOPLE:
        for image in "ab":
            size = {"imageHeight": SIZE[0], "imageWidth": SIZE[1]}
            content = {"imagePath": f"{image}.png", "shapes": shapes} | size
            write_json(folder / f"x/{name}/{image}.json", content)
    return folder / "x", options


def _lidc(folder: Path) -> Arguments:
    return test_import_lidc.write_form(folder, "nested"), []


def _lidc_pickle(folder: Path) -> Arguments:
    return test_import_lidc.write_form(folder, "pickle"), []


def _qubiq(folder: Path) -> Arguments:
    return test_import_volumes.organ(folder / "brain-tumor", (6, 4, 4)), []


def _qupath(folder: Path) -> Arguments:
    options = _images(folder)
    properties = {"classification": {"name": "cell"}}
    geometry = {"type": "Polygon", "coordinates": [SQUARE]}
    feature = {"type": "Feature", "geometry": geometry, "properties": properties}
    for name in PEOPLE:
        for image in "ab":
            content = {"type": "FeatureCollection", "features": [feature]}
            write_json(folder / f"q/{name}/{image}.geojson", content)
    return folder / "q", options


def _riga(folder: Path) -> Arguments:
    for number in (1, 2):
        write_riga_image(folder / "MESSIDOR", number, ".tif")
    return folder, ["--sources", "[MESSIDOR]"]


def _supervisely(folder: Path) -> Arguments:
    options = _images(folder)
    corners = {"exterior": SQUARE, "interior": []}
    objects = [
        {"labelerLogin": name, "classTitle": "cell", "geometryType": "polygon", "points": corners}
        for name in PEOPLE
    ]
    size = {"height": SIZE[0], "width": SIZE[1]}
    for image in "ab":
        write_json(folder / f"p/ds/ann/{image}.png.json", {"objects": objects, "size": size})
    return folder / "p", options


EXPORTS: dict[str, Callable[[Path], Arguments]] = {
    "arrays": _arrays,
    "bubil": _made_by(test_import_bubil.root),
    "chase": lambda folder: (write_chase(folder, 2), []),
    "coco": _coco,
    "cvat": _cvat,
    "dicom_seg": _dicom_seg,
    "drive": lambda folder: (write_drive(folder, 2), []),
    "gleason": lambda folder: (write_gleason(folder, 4, 3, 12), []),
    "imapp": _made_by(test_import_imapp.root),
    "label_studio": _label_studio,
    "label_studio_png": _label_studio_png,
    "labelme": _labelme,
    "lidc": _lidc,
    "lidc (pickle)": _lidc_pickle,
    "ms_lesion": _made_by(test_import_volumes.lesions),
    "nifti": _made_by(test_import_volumes.curvas),
    "npc170": _made_by(test_import_arrays.npc),
    "qubiq": _qubiq,
    "qupath": _qupath,
    "riga": _riga,
    "seg_nrrd": _made_by(test_import_seg_nrrd.root),
    "stare": lambda folder: (write_stare(folder, 2), []),
    "supervisely": _supervisely,
}
"""Source, perhaps with the kind of its files -> function that writes an export into a folder and
returns what is imported and the options of the command."""
