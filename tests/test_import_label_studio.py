"""Label Studio: addresses, labels, bitmasks and pictures as the tool writes them."""

import base64

import cv2
import numpy as np
import pytest
from tool_exports import SIZE, box, masks_of, region, task, write_json

from tax_lightning.importers import label_studio


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
    path = write_json(tmp_path / "e.json", task([annotation]))
    assert masks_of(label_studio.find(path, str(images)))["a"]["user 1"] == box(1, 2, 3, 5).tolist()


def test_label_studio_regions_without_a_label_do_not_say_that_there_is_nothing(tmp_path, images):
    loose = {"type": "polygon", "id": "x", "value": {"points": [[0, 0], [50, 0], [50, 50]]}}
    annotations = [
        {"id": 1, "completed_by": 1, "result": [loose]},
        {"id": 2, "completed_by": 2, "result": None},
    ]
    path = write_json(tmp_path / "e.json", task(annotations))
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
    annotations = [{"id": 1, "completed_by": 1, "result": []}]
    path = write_json(tmp_path / "e.json", task(annotations, image=address))
    assert [case.name for case in label_studio.find(path, str(images)).cases] == [name]
