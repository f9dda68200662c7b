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
from skimage.draw import polygon2mask
from tool_exports import SIZE, box, masks_of, region, task, write_json
from written_files import save

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


def png(pixels):
    return cv2.imencode(".png", pixels)[1].tobytes()


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


def test_outlines_turn_clockwise_and_do_not_meet_themselves():
    ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool)  # its hole opens at a corner
    (rings,) = outlines(ring)
    assert [np.unique(points, axis=0).shape == points.shape for points in rings] == [True, True]
    areas = [np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2 for x, y in (r.T for r in rings)]
    assert areas == [8, -1]
    assert [len(rings) for rings in outlines(np.eye(2) > 0)] == [1, 1]  # by edges, not by corners


@given(st.integers(0, 2**32 - 1), st.integers(3, 9), st.tuples(*[st.integers(0, 8)] * 2))
def test_polygons_agree_with_scikit_image_and_halves_make_the_whole(seed, corners, cut):
    ring = np.random.default_rng(seed).uniform(-5, 25, (corners, 2))  # no centre on an outline
    expected = polygon2mask((20, 18), ring[:, ::-1] - 0.5)
    np.testing.assert_array_equal(inside([ring], (20, 18)), expected)
    line = [[cut[0] + 0.5, 0], [cut[1] + 0.5, 9]]  # through centres of pixels
    left, right = (
        inside([np.array([[side, 0], *line, [side, 9]], float)], (9, 9)) for side in (0, 9)
    )
    np.testing.assert_array_equal(left ^ right, True)


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
    path = write_json(tmp_path / "export.json", task(annotations))
    found = label_studio.find(path, str(images))
    expected = box(0, 0, 2, 2) + box(0, 5, 2, 7) + box(3, 0, 6, 4, 2)
    assert found.description.classes == CLASSES
    assert masks_of(found) == {
        "a": {"user 3": expected.tolist(), "zoe@x.org": np.zeros(SIZE, int).tolist()}
    }
    assert "An annotation by user 4 that was cancelled. (1)" in found.left_out


def test_label_studio_rectangles_are_turned(tmp_path, images):
    turned = region("rectanglelabels", ["cell"], x=50, y=0, width=50, height=50, rotation=90)
    path = write_json(
        tmp_path / "e.json",
        task([{"id": 1, "completed_by": 1, "result": [turned]}]),
    )
    # From the corner (4, 0), 4 to the right and 3 down; turned by a quarter, 4 down and 3 to the
    # left, in pixels and not in per cent, which differ in width and height.
    mask = masks_of(label_studio.find(path, str(images)))["a"]["user 1"]
    assert mask == box(0, 1, 4, 4).tolist()


def test_label_studio_takes_the_last_of_a_person_and_labels_of_their_own_tag(tmp_path, images):
    def drawn(number, points, day):
        shape = {"points": points}
        results = [region("polygon", [], **shape), region("labels", ["cell"], **shape)]
        results.append({"type": "brush", "id": "loose", "value": {}})
        return {"id": number, "completed_by": 1, "updated_at": day, "result": results}

    annotations = [
        drawn(1, [[0, 0], [50, 0], [50, 50], [0, 50]], "2026-02-01"),
        drawn(2, [[50, 50], [100, 50], [100, 100], [50, 100]], "2026-01-01"),
    ]
    path = write_json(tmp_path / "e.json", task(annotations))
    found = label_studio.find(path, str(images))
    assert masks_of(found)["a"]["user 1"] == box(0, 0, 3, 4).tolist()
    assert "A brush without a label. (1)" in found.left_out
    assert any("that a later one of the same task replaces. (1)" in line for line in found.left_out)


def test_label_studio_names_that_begin_like_an_upload_stay(tmp_path, images):
    for name in ("20230101-a", "20230102-a"):
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(images / f"{name}.png")
    annotations = [{"id": 1, "completed_by": 1, "result": []}]
    tasks = [
        entry
        for name in ("20230101-a", "20230102-a", "0a1b2c3d-a")
        for entry in task(annotations, image=f"/data/local-files/?d=images/{name}.png")
    ]
    path = write_json(tmp_path / "e.json", tasks)
    names = [case.name for case in label_studio.find(path, str(images)).cases]
    assert names == ["20230101-a", "20230102-a", "a"]


def test_label_studio_strokes_have_soft_edges(tmp_path, images):
    for values, expected in (((0, 100, 200), [0, 0, 1]), ((0, 1, 1), [0, 1, 1])):
        patch = label_studio.covered(np.array([values], np.uint8))
        assert patch.pixels[0].tolist() == expected


def test_label_studio_strokes_of_its_own_library(tmp_path, images):
    """Written by label-studio-sdk 2.1.2: converter.brush.mask2rle of the masks in the same file."""
    known = json.loads((FILES / "label_studio_brush.json").read_text())
    for entry in known:
        mask = np.array(entry["mask"], np.uint8)
        values = label_studio.decoded(entry["rle"]).reshape(*mask.shape, 4)[..., 3]
        np.testing.assert_array_equal(values, mask)


# The others


def test_labelme_copies_of_an_image_are_one_and_other_images_are_not(tmp_path):
    for name in ("Ann", "Bob"):
        save(tmp_path / name / "a.png", box(0, 0, 1, 1))
        write_json(tmp_path / name / "a.json", {"imagePath": "a.png", "shapes": []})
    (case,) = labelme.find(tmp_path).cases
    assert (case.name, sorted(case.masks)) == ("a", ["Ann", "Bob"])
    save(tmp_path / "Bob" / "a.png", box(0, 0, 1, 2))
    with pytest.raises(ValueError, match=r"'a.png' may be .*Ann.a\.png or .*Bob.a\.png, which"):
        labelme.find(tmp_path)


def test_qupath_finds_images_whose_names_have_several_suffixes(tmp_path, images):
    save(images / "slide.ome.tif", box(0, 0, 1, 1))
    for name in ("slide", "slide.ome", "slide.ome.tif"):
        path = write_json(tmp_path / name / "q/Ann" / f"{name}.geojson", [])
        found = qupath.find(path.parent.parent, str(images))
        assert [case.name for case in found.cases] == ["slide.ome"]
    save(images / "slide.rgb.png", box(0, 0, 1, 1))
    with pytest.raises(ValueError, match=r"'slide' may be the image slide\.\w+\.\w+ or slide"):
        qupath.find(tmp_path / "slide" / "q", str(images))


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
    assert any("A points by Ann" in line for line in found.left_out)


def test_cvat_boxes_and_ellipses_are_turned(tmp_path, images):
    big = (20, 20)
    Image.fromarray(np.zeros(big, np.uint8)).save(images / "big.png")
    shape = """<annotations><meta><job><labels><label><name>debris</name></label>
        <label><name>cell</name></label></labels></job></meta>
        <image id="0" name="big.png" width="20" height="20"><{} z_order="0"/></image>
        </annotations>"""
    masks = {}
    for name, drawn in {
        "box": 'box label="cell" xtl="4" ytl="8" xbr="16" ybr="12" rotation="90.00"',
        "ellipse": 'ellipse label="cell" cx="10" cy="10" rx="6" ry="2" rotation="90.00"',
    }.items():
        folder = tmp_path / name / "Ann"  # unpacked as the tool's archive is
        folder.mkdir(parents=True)
        (folder / "annotations.xml").write_text(shape.format(drawn))
        found = from_cvat.find(tmp_path / name, str(images))
        assert found.description.classes == ("background", "debris", "cell")
        masks[name] = np.array(masks_of(found)["big"]["Ann"])
    assert (masks["box"] == box(4, 8, 16, 12, 2, big)).all()
    y, x = np.mgrid[:20, :20] + 0.5
    assert (masks["ellipse"] == 2 * ((x - 10) ** 2 / 4 + (y - 10) ** 2 / 36 < 1)).all()


def test_labelme_has_a_folder_an_annotator(tmp_path, images):
    shapes = [
        {"label": "cell", "points": [[1, 1], [4, 1], [4, 3], [1, 3]], "shape_type": "polygon"},
        {"label": "cell", "points": [[5, 4], [7, 6]], "shape_type": "rectangle"},
        {"label": "cell", "points": [[5, 4], [7, 6]], "shape_type": "line"},
        {
            "label": "_background_",
            "points": [[1.0, 1.0], [2.0, 2.0]],
            "shape_type": "mask",
            "mask": base64.b64encode(png(np.array([[255, 0], [255, 0]], np.uint8))).decode(),
        },
    ]
    write_json(tmp_path / "x/Ann/a.json", {"imagePath": "..\\images\\a.png", "shapes": shapes})
    write_json(tmp_path / "x/Bob/a.json", {"imagePath": "a.png", "shapes": []})
    found = labelme.find(tmp_path / "x", str(images))
    expected = box(1, 2, 3, 4) + box(4, 5, 6, 7)
    assert found.description.classes == ("_background_", "cell")
    assert masks_of(found) == {"a": {"Ann": expected.tolist(), "Bob": np.zeros(SIZE, int).tolist()}}
    assert len(found.left_out) == 2  # the line, and the order of the classes


def test_labelme_turned_rectangles_are_four_corners(tmp_path, images):
    diamond = [[4, 0], [7, 3], [4, 6], [1, 3]]
    shape = {"label": "cell", "points": diamond, "shape_type": "oriented_rectangle"}
    write_json(tmp_path / "x/Ann/a.json", {"imagePath": "a.png", "shapes": [shape]})
    mask = masks_of(labelme.find(tmp_path / "x", str(images)))["a"]["Ann"]
    # A centre on the outline belongs to what is on its right.
    assert [np.flatnonzero(row).tolist() for row in np.array(mask)] == [
        [3],
        [2, 3, 4],
        [1, 2, 3, 4, 5],
        [1, 2, 3, 4, 5],
        [2, 3, 4],
        [3],
    ]


def test_supervisely_polygons_have_holes_and_bitmaps_a_place(tmp_path, images):
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[:, 1:] = 255
    data = base64.b64encode(zlib.compress(png(rgba))).decode()
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
            # its own library draws corners as pixels, also those of holes
            "ann": (box(1, 1, 6, 6) - box(2, 2, 5, 5)).tolist(),
            "bob": box(3, 5, 5, 7).tolist(),
        }
    }
    assert "An image that nobody drew on. (1)" in found.left_out


def test_supervisely_images_of_one_name_are_told_apart_by_data_set(tmp_path):
    for number in (1, 2):
        folder = tmp_path / f"ds{number}"
        (folder / "img").mkdir(parents=True)
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(folder / "img" / "a.png")
        corners = {"exterior": [[number, number], [4, 4]], "interior": []}
        drawn = {"geometryType": "rectangle", "points": corners}
        objects = [drawn | {"labelerLogin": "ann", "classTitle": "cell"}]
        size = {"height": SIZE[0], "width": SIZE[1]}
        write_json(folder / "ann/a.png.json", {"objects": objects, "size": size})
    assert masks_of(supervisely.find(tmp_path)) == {
        f"ds{number}/img/a": {"ann": box(number, number, 5, 5).tolist()} for number in (1, 2)
    }


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


def test_qupath_writes_a_single_object_without_a_list(tmp_path, images):
    square = {"type": "Polygon", "coordinates": [[[1, 1], [4, 1], [4, 3], [1, 3], [1, 1]]]}
    feature = {"type": "Feature", "geometry": square, "properties": {"objectType": "annotation"}}
    write_json(tmp_path / "q/Ann/a.geojson", feature)
    found = qupath.find(tmp_path / "q", str(images))
    assert found.description.classes == ("background", "object")
    assert masks_of(found)["a"]["Ann"] == box(1, 1, 3, 4).tolist()


@pytest.mark.parametrize(
    ("source", "name", "content", "text"),
    [
        (label_studio, "a.json", "{}", "Expected an export of Label Studio"),
        (
            label_studio,
            "a.json",
            '[{"id": 1, "data": {}}]',
            "name no image file|lacks 'annotations'",
        ),
        (label_studio, "a.json", "[" * 9999, "cannot be read as JSON"),
        (from_coco, "a.json", '{"images": []}', "lacks 'categories'. Expected a COCO file"),
        (from_coco, "a.json", "[1]", "is built otherwise"),
        (from_cvat, "a.xml", "<annotations/>", "xpected an export"),
        (
            from_cvat,
            "a.xml",
            '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
            "declares a document type",
        ),
        (from_cvat, "a.xml", "\ufeff<a/>".encode("utf-16"), "is not in UTF-8"),
        (from_cvat, "a.xml", "<a", "cannot be read as XML"),
        (labelme, "Ann/a.json", '{"imagePath": "a.png"}', "lacks 'shapes'"),
        (labelme, "Ann/a.json", '{"imagePath": "z.png", "shapes": []}', "'z.png' is not below"),
        (
            labelme,
            "Ann/a.json",
            '{"imagePath": null, "shapes": []}',
            "None as the name of an image",
        ),
        (
            labelme,
            "Ann/a.json",
            '{"imagePath": "a.png", "shapes": [{"label": 5, "points": [[0, 0], [1, 1]]}]}',
            "The label 5 is no text",
        ),
        (
            labelme,
            "Ann/a.json",
            '{"imagePath": "a.png", "shapes": [{"label": "c", "points": [], "shape_type": "st"}]}',
            "'st' is not read",
        ),
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
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((ValueError, FileNotFoundError), match=text) as caught:
        source.find(tmp_path / "in", str(images))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("tool", ["label_studio", "coco", "cvat", "labelme", "supervisely"])
def test_what_was_drawn_on_another_size_is_refused(tmp_path, images, tool):
    root, size = tmp_path / "in", {"height": 60, "width": 80}
    if tool == "label_studio":
        square = region("polygonlabels", ["cell"], points=[[0, 0], [50, 0], [50, 50]])
        square |= {"original_width": 80, "original_height": 60}
        annotation = {"id": 1, "completed_by": 1, "result": [square]}
        write_json(root / "a.json", task([annotation]))
    elif tool == "coco":
        listed = [{"id": 1, "file_name": "a.png"} | size]
        write_json(root / "Ann.json", {"images": listed, "categories": [], "annotations": []})
    elif tool == "cvat":
        root.mkdir()
        (root / "Ann.xml").write_text(
            '<annotations><image id="0" name="a.png" width="80" height="60"/></annotations>'
        )
    elif tool == "labelme":
        sides = {"imageHeight": 60, "imageWidth": 80}
        write_json(root / "Ann/a.json", {"imagePath": "a.png", "shapes": []} | sides)
    else:
        points = {"exterior": [[1, 1], [2, 2]], "interior": []}
        drawn = {"geometryType": "rectangle", "points": points}
        drawn |= {"labelerLogin": "ann", "classTitle": "cell"}
        write_json(root / "ann/a.png.json", {"objects": [drawn], "size": size})
    source = {"coco": from_coco, "cvat": from_cvat, "label_studio": label_studio}
    source |= {"labelme": labelme, "supervisely": supervisely}
    with pytest.raises(ValueError, match=r"is 8 x 6, but by .* it was drawn on 80 x 60"):
        source[tool].find(root, str(images))


def test_two_files_for_the_same_are_refused(tmp_path, images):
    for name in ("a.png", "../images/a.png"):
        path = tmp_path / "x/Ann" / f"{len(name)}.json"
        write_json(path, {"imagePath": name, "shapes": []})
    with pytest.raises(ValueError, match=r"'Ann' drew .*a.png' in .*json and in .*json"):
        labelme.find(tmp_path / "x", str(images))


def test_ignored_regions_are_unknown_and_channels_are_the_most(tmp_path, images):
    Image.fromarray(np.zeros((*SIZE, 4), np.uint8)).save(images / "b.png")
    square = {"type": "Polygon", "coordinates": [[[1, 1], [4, 1], [4, 3], [1, 3], [1, 1]]]}
    label = {"classification": {"name": "Ignore*"}}
    write_json(tmp_path / "q/Ann/a.geojson", [{"geometry": square, "properties": label}])
    write_json(tmp_path / "q/Ann/b.geojson", [])
    found = qupath.find(tmp_path / "q", str(images), CLASSES)
    assert masks_of(found)["a"]["Ann"] == box(1, 1, 3, 4, 255).tolist()
    assert found.description.channels == ("red", "green", "blue")


def test_classes_keep_the_order_given_and_must_hold_every_label(tmp_path, images):
    shapes = [{"label": "cell", "points": [[0, 0], [2, 0], [2, 2]], "shape_type": "polygon"}]
    write_json(tmp_path / "x/Ann/a.json", {"imagePath": "a.png", "shapes": shapes})
    found = labelme.find(tmp_path / "x", str(images), ["nothing", "debris", "cell"])
    assert np.max(masks_of(found)["a"]["Ann"]) == 2
    with pytest.raises(ValueError, match="the label 'cell' is not among nothing, nucleus"):
        labelme.find(tmp_path / "x", str(images), ["nothing", "nucleus"])
