"""Label Studio: addresses, labels, bitmasks and pictures as the tool writes them."""

import base64
import json

import cv2
import numpy as np
import pytest
from written_files import save

from tax_lightning.importers import label_studio

SIZE = (6, 8)


@pytest.fixture
def images(tmp_path):
    """A folder with the images a.png and b.png."""
    for name in "ab":
        save(tmp_path / "images" / f"{name}.png", np.zeros(SIZE, np.uint8))
    return tmp_path / "images"


def masks_of(found):
    """Image -> annotator -> class ids."""
    return {
        case.name: {name: mask().tolist() for name, mask in case.masks.items()}
        for case in found.cases
    }


def write_json(path, content):
    path.write_text(json.dumps(content))
    return path


def box(top, left, bottom, right, value=1):
    mask = np.zeros(SIZE, np.uint8)
    mask[top:bottom, left:right] = value
    return mask


def task(annotations, image="/data/upload/1/0a1b2c3d-a.png"):
    return [{"id": 7, "data": {"image": image}, "annotations": annotations["annotations"]}]


def region(kind, labels, **value):
    size = {"original_width": SIZE[1], "original_height": SIZE[0]}
    return {"type": kind, "value": {kind: labels} | value} | size


def test_label_studio_pictures_hold_the_strokes_alone(tmp_path, images):
    stroke = region("brushlabels", ["a", "b-c"], rle=[]) | {"from_name": "my-tag"}
    square = region("polygonlabels", ["d"], points=[[50, 50], [100, 50], [100, 100], [50, 100]])
    annotations = [{"id": 5, "completed_by": 1, "result": [stroke, square]}]
    path = write_json(tmp_path / "export.json", task({"annotations": annotations}))
    pictures = tmp_path / "pictures"
    picture = pictures / "task-7-annotation-5-by-1-my-tag-a-b-c-0.png"
    save(picture, box(0, 0, 2, 2, 255))
    found = label_studio.find(path, str(images), pictures=str(pictures))
    assert found.description.classes == ("background", "a", "b-c", "d")
    assert masks_of(found)["a"]["user 1"] == (box(0, 0, 2, 2, 2) + box(3, 4, 6, 8, 3)).tolist()
    picture.rename(pictures / "task-7-annotation-6-by-1-my-tag-a-b-c-0.png")
    with pytest.raises(ValueError, match="task 7 has strokes in its annotation 5, but pictures"):
        label_studio.find(path, str(images), pictures=str(pictures))


def test_label_studio_bitmasks_are_opaque_where_drawn(tmp_path, images):
    black = np.zeros((*SIZE, 4), np.uint8)
    black[1:3, 2:5, 3] = 255
    address = "data:image/png;base64,"
    address += base64.b64encode(cv2.imencode(".png", black)[1].tobytes()).decode()
    annotation = {
        "id": 1,
        "completed_by": 1,
        "result": [region("bitmasklabels", ["cell"], imageDataURL=address)],
    }
    path = write_json(tmp_path / "e.json", task({"annotations": [annotation]}))
    assert masks_of(label_studio.find(path, str(images)))["a"]["user 1"] == box(1, 2, 3, 5).tolist()


def test_label_studio_regions_without_a_label_do_not_say_that_there_is_nothing(tmp_path, images):
    loose = {"type": "polygon", "id": "x", "value": {"points": [[0, 0], [50, 0], [50, 50]]}}
    annotations = [
        {"id": 1, "completed_by": 1, "result": [loose]},
        {"id": 2, "completed_by": 2, "result": None},
    ]
    path = write_json(tmp_path / "e.json", task({"annotations": annotations}))
    found = label_studio.find(path, str(images))
    assert masks_of(found)["a"].keys() == {"user 2"}
    assert "A polygon without a label. (1)" in found.left_out


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://b.s3.amazonaws.com/x/a.png?AWSAccessKeyId=AK&Signature=s", "a"),
        ("/data/local-files/?d=x%2Fa.png", "a"),
        ("s3://bucket/x/b#1%20.png", "b#1%20"),
        ("/data/upload/3/0a1b2c3d-b%231%2520.png", "b#1%20"),
    ],
)
def test_label_studio_images_lie_at_all_kinds_of_addresses(tmp_path, images, address, name):
    (images / "b.png").rename(images / "b#1%20.png")
    annotations = {"annotations": [{"id": 1, "completed_by": 1, "result": []}]}
    path = write_json(tmp_path / "e.json", task(annotations, image=address))
    assert [case.name for case in label_studio.find(path, str(images)).cases] == [name]
