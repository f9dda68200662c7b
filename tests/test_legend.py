import numpy as np
import pytest
import torch
from made_up import make_explanation, quarters

from tax_lightning.visualization.cast import cast_of
from tax_lightning.visualization.legend import (
    image_notes,
    legend_entries,
    mask_notes,
    scale_entries,
)
from tax_lightning.visualization.palette import annotator_palette, uncertainty_colours


def texts(entries):
    return [entry.text for entry in entries]


def test_legend_names_every_annotator_with_colour_and_part():
    leader, unanimous = quarters()
    cast = cast_of(make_explanation(leader, unanimous=unanimous))
    title, *entries = legend_entries(cast)
    assert "share of what is not hatched" in title.text
    assert texts(entries) == ["Ana 33%", "Ben 33%", "Cleo 33%"]
    assert [tuple(entry.chip[0, 0]) for entry in entries] == list(annotator_palette(3))


def test_long_names_stay_distinct():
    names = [f"radiologist-with-a-very-long-name-{i:02d}" for i in range(12)]
    cast = cast_of(make_explanation(torch.zeros(1, 4, 4).long(), annotators=names))
    entries = texts(legend_entries(cast)[1:])
    assert len(set(entries)) == 12
    assert all("…" in text and len(text) < 30 for text in entries)


def test_where_nobody_decides_there_are_names_without_parts():
    leader, _ = quarters()
    cast = cast_of(make_explanation(leader, unanimous=torch.ones_like(leader).bool()))
    assert texts(legend_entries(cast)) == ["Annotators:", "Ana", "Ben", "Cleo"]


@pytest.mark.parametrize(
    ("shape", "kind", "expected"),
    [
        ((4, 6), np.uint8, ["6 x 4 pixels"]),
        ((4, 6, 3), np.uint8, ["6 x 4 pixels"]),
        ((4, 6, 5), np.uint8, ["6 x 4 pixels", "channel 1 of 5"]),
        ((4, 6, 2), np.uint16, ["6 x 4 pixels", "channel 1 of 2", "black 7, white 7"]),
        ((4, 6, 3), np.float32, ["6 x 4 pixels", "black 7, white 7"]),
    ],
)
def test_what_is_not_shown_of_an_image_is_said(shape, kind, expected):
    assert texts(image_notes(np.full(shape, 7, dtype=kind))) == expected


def test_the_scale_bar_runs_between_its_ends():
    low, high, _ = scale_entries()
    assert low.text.startswith("0 ")
    assert high.text.startswith("1 ")
    width = high.chip.shape[1]
    np.testing.assert_array_equal(
        high.chip[0], uncertainty_colours(np.linspace(0, 1, width)[None])[0]
    )
    brightness = high.chip[0].astype(int) @ [299, 587, 114]
    assert (np.diff(brightness) < 0).all()  # told apart without hues too


def test_who_has_no_contour_is_said_with_the_reason():
    explanation = make_explanation(torch.zeros(1, 4, 4).long())
    masks = np.zeros((3, 4, 4), dtype=np.int64)
    masks[0] = 255
    masks[1, 0] = 255  # the rest of it is background
    masks[2, 2] = 1
    assert texts(mask_notes(explanation, masks)) == ["did not label: Ana", "drew nothing: Ben"]
    assert texts(mask_notes(explanation, masks[[2, 2, 2]])) == ["as each of them drew"]
    assert texts(mask_notes(explanation, None)) == ["as the model expects each to draw"]
