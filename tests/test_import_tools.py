"""Exports of annotation tools: known files, what their own libraries write, and round trips."""

import base64
import json
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as coco

from tax_lightning.exporters import FORMATS
from tax_lightning.exporters import coco as to_coco
from tax_lightning.exporters import cvat as to_cvat
from tax_lightning.exporters import label_studio as to_label_studio
from tax_lightning.exporters import qupath as to_qupath
from tax_lightning.exporters.layers import Layer, Segmented
from tax_lightning.exporters.outlines import outlines, runs
from tax_lightning.files import file_name
from tax_lightning.importers import coco as from_coco
from tax_lightning.importers import cvat as from_cvat
from tax_lightning.importers import label_studio, labelme, qupath, supervisely
from tax_lightning.importers.shapes import from_runs, inside

FILES = Path(__file__).parent / "files"
CLASSES = ("background", "cell", "debris")
SIZE = (6, 8)


@pytest.fixture
def images(tmp_path):
    """A folder with the images a.png and b.png."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "ab":
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(folder / f"{name}.png")
    return folder


def masks_of(found):
    """Image -> annotator -> class ids."""
    return {
        case.name: {name: mask().tolist() for name, mask in case.masks.items()}
        for case in found.cases
    }


def box(top, left, bottom, right, value=1, size=SIZE):
    mask = np.zeros(size, np.uint8)
    mask[top:bottom, left:right] = value
    return mask


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


# Shapes

small_masks = arrays.arrays(
    np.uint8, st.tuples(*[st.integers(1, 7)] * 2), elements=st.integers(0, 2)
)


@given(small_masks)
def test_outlines_give_the_mask_again(labels):
    mask = labels > 0
    again = np.zeros_like(mask)
    for rings in outlines(mask):
        again |= inside(rings, mask.shape)
    np.testing.assert_array_equal(again, mask)


@given(small_masks)
def test_runs_give_the_mask_again(labels):
    np.testing.assert_array_equal(from_runs(runs(labels > 0), labels.shape), labels > 0)
    stroke = label_studio.decoded(to_label_studio.encoded(labels > 0))
    np.testing.assert_array_equal(stroke.reshape(*labels.shape, 4)[..., 3] > 0, labels > 0)


def test_a_pixel_belongs_to_a_polygon_by_its_centre():
    triangle = np.array([[0, 0], [4, 0], [0, 4]], float)
    rows = inside([triangle], (4, 4)).astype(int).tolist()
    assert rows[0][:3] == [1, 1, 1]
    assert (rows[2][0], rows[1][3], rows[3][1]) == (1, 0, 0)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=20)
@given(data=st.data())
def test_what_is_exported_is_imported(name, data, tmp_path_factory):
    if name not in ("coco", "cvat", "label_studio", "qupath"):
        pytest.skip("a format of volumes, which is tested with its importer")
    folder = tmp_path_factory.mktemp("round")
    labels = {
        (image, layer): data.draw(arrays.arrays(np.uint8, SIZE, elements=st.integers(0, 2)))
        for image in "ab"
        for layer in ("result", "Zoë")
    }
    for image in "ab":
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(folder / f"{image}.png")
    segmented = [
        Segmented(i, f"{i}.png", tuple(Layer(n, CLASSES, labels[i, n]) for n in ("result", "Zoë")))
        for i in "ab"
    ]
    writers = {
        "coco": to_coco,
        "cvat": to_cvat,
        "label_studio": to_label_studio,
        "qupath": to_qupath,
    }
    written = writers[name].write(segmented, folder / "out")
    if name == "label_studio":  # predictions are what the tool takes; it gives annotations
        tasks = json.loads(written[0].read_text())
        for task in tasks:
            task["annotations"] = [
                {"completed_by": {"email": p["model_version"]}, "result": p["result"]}
                for p in task.pop("predictions")
            ]
        written[0].write_text(json.dumps(tasks))
    readers = {"coco": from_coco, "cvat": from_cvat, "label_studio": label_studio, "qupath": qupath}
    found = readers[name].find(folder / "out", str(folder), CLASSES)
    got = masks_of(found)
    for (image, layer), expected in labels.items():
        # Files are called for a layer by a name that every file system takes.
        (person,) = {layer, file_name(layer)} & got[image].keys()
        assert got[image][person] == expected.tolist()


# Label Studio


def task(annotations, **data):
    return [{"id": 7, "data": {"image": "/data/upload/1/0a1b2c3d-a.png"} | data} | annotations]


def region(kind, labels, **value):
    size = {"original_width": SIZE[1], "original_height": SIZE[0]}
    return {"type": kind, "value": {kind: labels} | value} | size


def test_label_studio_tells_empty_from_cancelled_and_merges_strokes(tmp_path, images):
    stroke = [to_label_studio.encoded(box(0, left, 2, left + 2) > 0) for left in (0, 5)]
    regions = [
        region("polygonlabels", ["debris"], points=[[0, 50], [50, 50], [50, 100], [0, 100]]),
        *(region("brushlabels", ["cell"], rle=rle, format="rle") for rle in stroke),
        {"type": "choices", "value": {"choices": ["good"]}},
    ]
    annotations = [
        {"id": 1, "completed_by": 3, "result": regions},
        {"id": 2, "completed_by": {"email": "zoe@x.org"}, "result": [], "ground_truth": True},
        {"id": 3, "completed_by": 4, "was_cancelled": True, "result": regions},
    ]
    path = write_json(tmp_path / "export.json", task({"annotations": annotations}))
    found = label_studio.find(path, str(images))
    expected = box(0, 0, 2, 2) + box(0, 5, 2, 7) + box(3, 0, 6, 4, 2)
    assert found.description.classes == CLASSES
    assert masks_of(found) == {
        "a": {"user 3": expected.tolist(), "zoe@x.org": np.zeros(SIZE, int).tolist()}
    }
    assert "1 annotation(s) by user 4 that were cancelled." in found.left_out


def test_label_studio_rectangles_are_turned(tmp_path, images):
    turned = region("rectanglelabels", ["cell"], x=50, y=0, width=50, height=25, rotation=90)
    path = write_json(
        tmp_path / "e.json",
        task({"annotations": [{"id": 1, "completed_by": 1, "result": [turned]}]}),
    )
    # 4 x 1.5 pixels, turned by a quarter in the tool's own units of per cent.
    mask = np.array(masks_of(label_studio.find(path, str(images)))["a"]["user 1"])
    assert mask[:3, 2:4].all()
    assert mask.sum() == 6


def test_label_studio_strokes_of_its_own_library(tmp_path, images):
    """Written by label-studio-sdk 2.1.2: converter.brush.mask2rle of the masks in the same file."""
    known = json.loads((FILES / "label_studio_brush.json").read_text())
    for entry in known:
        mask = np.array(entry["mask"], np.uint8)
        values = label_studio.decoded(entry["rle"]).reshape(*mask.shape, 4)[..., 3]
        np.testing.assert_array_equal(values, mask)


def test_label_studio_pictures_are_joined_by_task_and_annotation(tmp_path, images):
    annotations = [{"id": 5, "completed_by": 1, "result": []}]
    path = write_json(tmp_path / "export.json", task({"annotations": annotations}))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(box(1, 1, 3, 3, 255)).save(
        pictures / "task-7-annotation-5-by-me@x.org-tag-cell-0.png"
    )
    found = label_studio.find(path, str(images), pictures=str(pictures))
    assert masks_of(found)["a"]["user 1"] == box(1, 1, 3, 3).tolist()


# The others


def test_coco_by_field_and_by_file_with_all_kinds_of_geometry(tmp_path, images):
    grey = box(2, 2, 5, 6)
    compressed = coco.encode(np.asfortranarray(grey))
    kinds = {
        "polygon": [[2, 2, 6, 2, 6, 5, 2, 5]],
        "parts": [[2, 2, 4, 2, 4, 5, 2, 5], [4, 2, 6, 2, 6, 5, 4, 5]],
        "compressed": {"size": [*SIZE], "counts": compressed["counts"].decode()},
        "plain": {"size": [*SIZE], "counts": runs(grey.T > 0)},
    }
    document = {
        "images": [{"id": i, "file_name": f"x/{name}.png"} for i, name in enumerate("ab")],
        "categories": [{"id": 9, "name": "cell"}],
        "annotations": [
            {"image_id": 0, "category_id": 9, "segmentation": given, "annotator": name}
            for name, given in kinds.items()
        ],
    }
    found = from_coco.find(write_json(tmp_path / "c" / "all.json", document), str(images))
    assert masks_of(found) == {"a": dict.fromkeys(kinds, grey.tolist())}
    for annotation in document["annotations"]:
        del annotation["annotator"]
    found = from_coco.find(write_json(tmp_path / "f" / "Ann.json", document).parent, str(images))
    assert masks_of(found)["b"] == {"Ann": np.zeros(SIZE, int).tolist()}


def test_cvat_lays_shapes_over_each_other_by_z_order(tmp_path, images):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/Ann.xml").write_text(
        """<annotations><version>1.1</version><image id="0" name="a.png" width="8" height="6">
        <mask label="debris" rle="0, 2, 1, 1" left="1" top="1" width="2" height="2" z_order="2"/>
        <polygon label="cell" points="0.0,0.0;8.0,0.0;8.0,3.0;0.0,3.0" z_order="1"/>
        <points label="cell" points="1,1"/></image>
        <image id="1" name="b.png" width="8" height="6"/></annotations>"""
    )
    found = from_cvat.find(tmp_path / "jobs", str(images))
    expected = box(0, 0, 3, 8)
    expected[1, 1:3] = expected[2, 2] = 2
    assert masks_of(found) == {
        "a": {"Ann": expected.tolist()},
        "b": {"Ann": np.zeros(SIZE, int).tolist()},
    }
    assert any("A points of 'cell' on a.png by Ann" in line for line in found.left_out)


def test_labelme_has_a_folder_an_annotator(tmp_path, images):
    shapes = [
        {"label": "cell", "points": [[1, 1], [4, 1], [4, 3], [1, 3]], "shape_type": "polygon"},
        {"label": "cell", "points": [[5, 4], [7, 6]], "shape_type": "rectangle"},
        {"label": "cell", "points": [[5, 4], [7, 6]], "shape_type": "line"},
    ]
    write_json(tmp_path / "x/Ann/a.json", {"imagePath": "..\\images\\a.png", "shapes": shapes})
    write_json(tmp_path / "x/Bob/a.json", {"imagePath": "a.png", "shapes": []})
    found = labelme.find(tmp_path / "x", str(images))
    expected = box(1, 1, 3, 4) + box(4, 5, 6, 7)
    assert masks_of(found) == {"a": {"Ann": expected.tolist(), "Bob": np.zeros(SIZE, int).tolist()}}
    assert len(found.left_out) == 2  # the line, and the order of the classes


def test_supervisely_polygons_have_holes_and_bitmaps_a_place(tmp_path, images):
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[:, 1:] = 255
    data = base64.b64encode(zlib.compress(cv2.imencode(".png", rgba)[1].tobytes())).decode()
    square = [[1, 1], [5, 1], [5, 5], [1, 5]]
    hole = [[2, 2], [4, 2], [4, 4], [2, 4]]
    objects = [
        {
            "labelerLogin": "ann",
            "classTitle": "cell",
            "geometryType": "polygon",
            "points": {"exterior": square, "interior": [hole]},
        },
        {
            "labelerLogin": "bob",
            "classTitle": "cell",
            "geometryType": "bitmap",
            "bitmap": {"data": data, "origin": [4, 3]},
        },
    ]
    write_json(tmp_path / "p/ds/ann/a.png.json", {"objects": objects})
    write_json(tmp_path / "p/ds/ann/b.png.json", {"objects": []})
    found = supervisely.find(tmp_path / "p", str(images))
    assert masks_of(found) == {
        "a": {
            "ann": (box(1, 1, 5, 5) - box(2, 2, 4, 4)).tolist(),
            "bob": box(3, 5, 5, 7).tolist(),
        }
    }
    assert "b.png: nobody drew anything on it." in found.left_out


def test_qupath_reads_collections_arrays_and_several_parts(tmp_path, images):
    def feature(kind, coordinates, name="cell"):
        properties = {"classification": {"name": name}}
        return {"geometry": {"type": kind, "coordinates": coordinates}, "properties": properties}

    square = [[1, 1], [4, 1], [4, 3], [1, 3], [1, 1]]
    other = [[5, 4], [7, 4], [7, 6], [5, 6], [5, 4]]
    several = [feature("MultiPolygon", [[square], [other]]), feature("Point", [1, 1])]
    write_json(tmp_path / "q/Ann/a.geojson", {"type": "FeatureCollection", "features": several})
    write_json(tmp_path / "q/Bob/a.png.geojson", [feature("Polygon", [square], "debris")])
    found = qupath.find(tmp_path / "q", str(images))
    assert masks_of(found) == {
        "a": {
            "Ann": (box(1, 1, 3, 4) + box(4, 5, 6, 7)).tolist(),
            "Bob": box(1, 1, 3, 4, 2).tolist(),
        }
    }


@pytest.mark.parametrize(
    ("source", "name", "content", "text"),
    [
        (label_studio, "a.json", "{}", "expected an export of Label Studio"),
        (
            label_studio,
            "a.json",
            '[{"id": 1, "data": {}}]',
            "name no image file|lacks 'annotations'",
        ),
        (label_studio, "a.json", "[" * 9999, "cannot be read as JSON"),
        (from_coco, "a.json", '{"images": []}', "lacks 'categories', expected a COCO file"),
        (from_coco, "a.json", "[1]", "is built otherwise"),
        (from_cvat, "a.xml", "<annotations/>", "expected an export"),
        (
            from_cvat,
            "a.xml",
            '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
            "declares a document type",
        ),
        (from_cvat, "a.xml", "<a", "cannot be read as XML"),
        (labelme, "Ann/a.json", '{"imagePath": "a.png"}', "lacks 'shapes'"),
        (labelme, "Ann/a.json", '{"imagePath": "z.png", "shapes": []}', "'z.png' is not below"),
        (supervisely, "ann/a.png.json", '{"objects": [{}]}', "lacks 'geometryType'"),
        (
            qupath,
            "Ann/a.geojson",
            '[{"geometry": {"type": "Polygon", "coordinates": [[1]]}}]',
            "no list",
        ),
        (qupath, "Ann/a.txt", "", "holds no .geojson files"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, images, source, name, content, text):
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=text) as caught:
        source.find(tmp_path / "in", str(images))
    assert str(tmp_path) in str(caught.value)


def test_classes_keep_the_order_given_and_must_hold_every_label(tmp_path, images):
    shapes = [{"label": "cell", "points": [[0, 0], [2, 0], [2, 2]], "shape_type": "polygon"}]
    write_json(tmp_path / "x/Ann/a.json", {"imagePath": "a.png", "shapes": shapes})
    found = labelme.find(tmp_path / "x", str(images), ["nothing", "debris", "cell"])
    assert np.max(masks_of(found)["a"]["Ann"]) == 2
    with pytest.raises(ValueError, match="the label 'cell' is not among nothing, nucleus"):
        labelme.find(tmp_path / "x", str(images), ["nothing", "nucleus"])
