"""Checks of what is decoded anyway."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tax_lightning.data.checks import QuickChecks
from tax_lightning.data.samples import RawSample

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)


def square(top=4, left=4, side=6):
    mask = np.zeros((16, 16), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def said(samples, annotators=("Ann", "Bob", "Cem")):
    checks = QuickChecks(annotators[: len(samples[0][1])], "background")
    for number, (image, masks) in enumerate(samples):
        masks = np.stack(masks)
        checks.add(RawSample(f"s{number}", image, masks, np.ones(len(masks), bool)))
    return {finding.kind: finding for finding in checks.findings()}


def test_masks_as_they_should_be():
    assert said([(GREY, [square(), square(5), square(5, 5)])] * 4) == {}


@pytest.mark.parametrize(
    ("masks", "who"),
    [
        ([square(), 1 - square(5), square(5, 5)], "Object and background of Bob look swapped"),
        ([1 - square(), square(5)], "Object and background of Ann look swapped"),
        ([1 - square()] * 2, "Object and background look swapped: all annotators"),
    ],
)
def test_object_and_background_swapped(masks, who):
    found = said([(GREY, masks)] * 3)
    assert list(found) == ["polarity"]
    assert found["polarity"].title == who


def test_dice_of_an_inverted_mask_by_hand():
    # 36 pixels; Bob's 220 are all others. Inverted: 2 * 36 / (36 + 36) = 1; as they are 0.
    found = said([(GREY, [square(), 1 - square(), square()])])
    assert "mean Dice 1.00 inverted, 0.00 as they are" in found["polarity"].text


def test_everybodys_masks_are_empty():
    found = said([(GREY, [0 * square()] * 2)] * 3)
    assert list(found) == ["nothing-drawn"]
    assert found["nothing-drawn"].text.startswith("All 6 masks hold background alone.")


def test_the_masks_of_one_are_empty():
    found = said([(GREY, [square(), 0 * square()])] * 3)
    assert found["nothing-drawn"].title == "All masks of Bob are empty"
    assert said([(GREY, [square(), 0 * square()])] * 2) == {}  # two may be chance


def test_unlabelled_and_absent_are_not_empty():
    checks = QuickChecks(["Ann", "Bob"], "background")
    for _ in range(3):
        masks = np.stack([square(), np.full((16, 16), 255, np.uint8)])
        checks.add(RawSample("s", GREY, masks, np.array([True, False])))
    assert checks.sentences() == []


def test_images_without_contrast():
    masks = [square(), square(5)]
    red = np.zeros((16, 16, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    found = said([(GREY, masks), (red, masks)])
    assert list(found) == ["constant"]
    assert found["constant"].title == "1 of 2 images show nothing"
    assert "s1" in found["constant"].text


@pytest.mark.parametrize(("kind", "white"), [(np.float32, 1.0), (np.uint16, 65535)])
def test_twelve_bits_in_sixteen(kind, white):
    image = (GREY / 255 * (4095 / 65535) * white).astype(kind)
    found = said([(image, [square(), square(5)])])
    assert list(found) == ["range"]
    assert "between 0.0%" in found["range"].text
    assert "and 6.2% (white" in found["range"].text


def test_from_many_threads_as_from_one():
    samples = [
        RawSample(f"s{i}", GREY, np.stack([square(), 1 - square(i % 5)]), np.ones(2, bool))
        for i in range(40)
    ]
    one, many = (QuickChecks(["Ann", "Bob"], "background") for _ in range(2))
    for sample in samples:
        one.add(sample)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(many.add, samples))
    assert many.sentences() == one.sentences() != []
