"""Label Studio: addresses, labels, bitmasks and pictures as the tool writes them."""

import base64

import cv2
import numpy as np
import pytest
from tool_exports import SIZE, box, masks_of, region, task, write_json
from written_files import save

from tax_lightning.importers import label_studio, label_studio_png


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


@pytest.mark.parametrize("listing", ["json", "min", "csv"])
def test_label_studio_pictures_hold_the_strokes_of_a_list_of_tasks(tmp_path, images, listing):
    address = "/data/upload/1/0a1b2c3d-a.png"
    if listing == "json":
        given = [{"id": 5, "completed_by": 1, "result": []}, {"id": 6, "completed_by": 2}]
        path = write_json(tmp_path / "tasks.json", task(given))
    else:
        rows = [
            {"id": 7, "image": address, "annotator": who, "annotation_id": number}
            for who, number in ((1, 5), (2, 6))
        ]
        path = write_json(tmp_path / "tasks.json", rows)
        if listing == "csv":
            path = tmp_path / "tasks.csv"
            lines = [",".join(map(str, row.values())) for row in rows]
            path.write_text("\n".join([",".join(rows[0]), *lines]))
    for number, stroke in enumerate((box(0, 0, 2, 2, 255), box(4, 4, 6, 8, 255))):
        save(tmp_path / f"png/task-7-annotation-5-by-1-tag-b-c-{number}.png", stroke)
    found = label_studio_png.find(tmp_path / "png", str(path), str(images))
    assert found.description.classes == ("background", "b-c")
    both = box(0, 0, 2, 2) + box(4, 4, 6, 8)
    assert masks_of(found) == {"a": {"user 1": both.tolist(), "user 2": np.zeros(SIZE).tolist()}}


def test_label_studio_pictures_of_nobody_and_other_names(tmp_path, images):
    path = write_json(tmp_path / "tasks.json", task([{"id": 5, "completed_by": 1}]))
    save(tmp_path / "png/task-7-annotation-9-by-1-my-tag-cell-0.png", box(0, 0, 2, 2, 255))
    found = label_studio_png.find(tmp_path / "png", str(path), str(images), tag="my-tag")
    assert "An annotation in pictures that was not taken or listed. (1)" in found.left_out
    with pytest.raises(ValueError, match=r"by-PERSON-other-LABEL-I\.png, as Label Studio"):
        label_studio_png.find(tmp_path / "png", str(path), str(images), tag="other")
