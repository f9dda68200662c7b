"""Exports of annotation tools that tests write, of images with 6 rows and 8 columns."""

import json

import numpy as np

SIZE = (6, 8)


def masks_of(found):
    """Image -> annotator -> class ids."""
    return {
        case.name: {name: mask().tolist() for name, mask in case.masks.items()}
        for case in found.cases
    }


def box(top, left, bottom, right, value=1, size=SIZE):
    """A mask with a value in a rectangle."""
    mask = np.zeros(size, np.uint8)
    mask[top:bottom, left:right] = value
    return mask


def write_json(path, content):
    """A file with this content; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def task(annotations, image="/data/upload/1/0a1b2c3d-a.png", **data):
    """What Label Studio exports of one task."""
    return [{"id": 7, "data": {"image": image} | data, "annotations": annotations}]


def region(kind, labels, **value):
    """A region of Label Studio."""
    size = {"original_width": SIZE[1], "original_height": SIZE[0]}
    return {"type": kind, "value": {kind: labels} | value} | size
