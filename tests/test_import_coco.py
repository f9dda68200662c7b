"""COCO: run lengths as pycocotools writes them, and what does not fit or tells no area."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco
from tool_exports import SIZE, masks_of, write_json

from tax_lightning.exporters.outlines import runs
from tax_lightning.importers import coco as from_coco

small_masks = arrays.arrays(
    np.uint8, st.tuples(*[st.integers(1, 7)] * 2), elements=st.integers(0, 1)
)


@given(small_masks)
def test_run_lengths_of_coco_are_those_of_its_own_library(labels):
    mask = np.asfortranarray(labels > 0, np.uint8)
    assert from_coco.unpacked(coco.encode(mask)["counts"].decode()) == runs(mask.T > 0)


def test_run_lengths_of_coco_beyond_one_character():
    mask = np.zeros((300, 200), np.uint8, order="F")
    mask[7:250, 3:180:5] = 1
    mask[:, 190:] = 1
    assert from_coco.unpacked(coco.encode(mask)["counts"].decode()) == runs(mask.T > 0)


@pytest.mark.parametrize(
    ("segmentation", "text"),
    [
        ({"size": [*SIZE], "counts": [3, 4]}, "run lengths of 7 pixels for an image of 8 x 6"),
        ({"size": [*SIZE], "counts": "34"}, "run lengths of 7 pixels for an image of 8 x 6"),
        ({"size": [*SIZE], "counts": "z"}, "hold the character 'z'"),
        ({"size": [*SIZE], "counts": "1P"}, "end early"),
        ({"size": [6, 9], "counts": [54]}, "run lengths of 9 x 6 pixels, but the image has 8 x 6"),
        ([[0, 0, 1, 1, 2, 2, 3]], "an outline has 7 numbers"),
    ],
)
def test_run_lengths_and_outlines_of_coco_that_do_not_fit(tmp_path, images, segmentation, text):
    document = {
        "images": [{"id": 0, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{"image_id": 0, "category_id": 1, "segmentation": segmentation}],
    }
    with pytest.raises(ValueError, match=rf"Ann\.json: .*{text}"):
        masks_of(from_coco.find(write_json(tmp_path / "Ann.json", document), str(images)))


def test_boxes_of_coco_do_not_say_that_there_is_nothing(tmp_path, images):
    document = {
        "images": [{"id": id, "file_name": f"{id}.png"} for id in "ab"],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {"image_id": "a", "category_id": 1, "segmentation": [], "bbox": [0, 0, 2, 2]}
        ],
    }
    found = from_coco.find(write_json(tmp_path / "Ann.json", document), str(images))
    assert masks_of(found) == {"b": {"Ann": np.zeros(SIZE, int).tolist()}}
    assert "An annotation without a segmentation. (1)" in found.left_out
