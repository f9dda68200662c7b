import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reading import places_of, says, written

from tax_lightning.explanation import PrototypeSource
from tax_lightning.visualization.annotations import SourcePatch
from tax_lightning.visualization.gallery import (
    PrototypeCard,
    card_facts,
    render_card,
    render_gallery,
)

BODY, TITLE = 14, 18
FAINT = (105, 105, 105)
BLUE, ORANGE = (0, 114, 178), (230, 159, 0)
OTHERS = (("train-8", 3, 3, 0.91), ("train-9", 4, 4, 0.85), ("train-1", 5, 5, 0.75))


def source_of(annotator="Ana", kernel=2, **changes):
    source = PrototypeSource(annotator, kernel, "train-7", 31, 40, 0.97, "cell", True, OTHERS, 0.9)
    return dataclasses.replace(source, **changes)


def full_card(**changes):
    """A card of an image of 60 x 120 pixels, of which the crop shows 46 x 46."""
    crop = np.full((46, 46, 3), (10, 200, 90), dtype=np.uint8)
    nearest = tuple(
        SourcePatch(np.full((46, 46, 3), (200, 10, n), dtype=np.uint8), 23, 23) for n in range(3)
    )
    return dataclasses.replace(
        PrototypeCard(
            source_of(),
            BLUE,
            use=0.12,
            patch=SourcePatch(crop, 17, 20),  # so the crop begins at row 14, column 20
            image=np.full((60, 120, 3), (10, 200, 90), dtype=np.uint8),
            size=(60, 120),
            nearest=nearest,
        ),
        **changes,
    )


def test_a_card_says_whose_it_is_where_it_is_from_and_what_was_measured():
    card = render_card(full_card())
    assert says(card, "Ana · prototype 2", TITLE)
    for text in (
        "from train-7 at y 31, x 40",
        "labelled: cell",
        "decides: 12% of the disputed pixels",
        "nearest pixels with one label: 90%",
        "similarity when taken: 0.97",
    ):
        assert says(card, text, BODY), text
    for sample_id, _, _, similarity in OTHERS:
        assert says(card, sample_id, BODY, FAINT)
        assert says(card, f"{similarity:.2f}", BODY, FAINT)


def test_what_was_not_measured_is_left_out():
    source = source_of(similarity=float("nan"), label="", purity=None)
    assert card_facts(PrototypeCard(source, BLUE)) == ("from train-7 at y 31, x 40",)
    card = PrototypeCard(source, BLUE, use=float("nan"))
    assert len(card_facts(card)) == 1


def test_the_dead_and_the_unprojected_are_said_to_be_so():
    pruned = card_facts(PrototypeCard(source_of(active=False), BLUE))
    assert any("decides nothing" in fact for fact in pruned)
    nowhere = source_of(sample_id="", nearest=(), similarity=float("nan"))
    assert card_facts(PrototypeCard(nowhere, BLUE)) == ("not yet projected: no training pixel",)
    card = render_card(PrototypeCard(nowhere, BLUE))
    assert says(card, "Ana · prototype 2", TITLE)
    assert not says(card, "next nearest, in other images:", BODY, FAINT)


def crop_of(card):
    """The enlarged crop within its frame, of 184 pixels a side: four a pixel of the patch."""
    rows, cols = np.nonzero((card == BLUE).all(axis=2))
    top = rows[rows > 10].min()  # below the bar at the head of the card
    frame = card[top : top + 192, cols.min() : cols.min() + 192]
    assert (frame[:4] == BLUE).all()
    assert (frame[:, -4:] == BLUE).all()
    return frame[4:-4, 4:-4]


def test_the_crop_shows_the_pixel_in_a_ring():
    crop = crop_of(render_card(full_card()))
    y, x = 4 * 17 + 2, 4 * 20 + 2
    assert (crop[y - 3 : y + 3, x - 3 : x + 3] == (10, 200, 90)).all()
    ring = (crop != (10, 200, 90)).any(axis=2)
    rows, cols = np.nonzero(ring)
    assert abs((rows.min() + rows.max()) / 2 - y) <= 1
    assert abs((cols.min() + cols.max()) / 2 - x) <= 1
    assert rows.max() - rows.min() < 32


@given(
    height=st.integers(50, 400),
    width=st.integers(50, 400),
    y=st.floats(0, 1),
    x=st.floats(0, 1),
)
def test_the_box_stands_where_the_crop_lies_in_the_image(height, width, y, x):
    row, column = round(y * (height - 1)), round(x * (width - 1))
    top, left = (max(0, min(p - 24, size - 48)) for p, size in ((row, height), (column, width)))
    patch = SourcePatch(np.zeros((48, 48, 3), np.uint8), row - top, column - left)
    card = full_card(
        source=source_of(y=row, x=column),
        patch=patch,
        image=np.full((height, width, 3), (10, 200, 90), dtype=np.uint8),
        size=(height, width),
    )
    picture = render_card(card)
    shown = (picture == (10, 200, 90)).all(axis=2)
    boxed = np.zeros_like(shown)
    rows, cols = np.nonzero(shown)
    # The thumbnail is all of one colour but for the lines of the box.
    zoom = 104 / max(height, width)
    above, before = 4 + 8 + 25 + 8, 184 + 2 * 4 + 8
    area = picture[above : above + round(height * zoom), before : before + round(width * zoom)]
    boxed = ~(area == (10, 200, 90)).all(axis=2)
    rows, cols = np.nonzero(boxed)
    expected = np.multiply((top, left, top + 48, left + 48), zoom)
    found = (rows.min(), cols.min(), rows.max() + 1, cols.max() + 1)
    np.testing.assert_allclose(found, expected, atol=1)


def test_nearest_stand_below_in_their_order_and_may_be_missing():
    card = full_card()
    picture = render_card(card)
    lefts = [np.nonzero((picture == (200, 10, n)).all(axis=2))[1].min() for n in range(3)]
    assert lefts == sorted(lefts)
    assert len(set(lefts)) == 3
    picture = render_card(full_card(nearest=(None, *card.nearest[1:])))
    assert not (picture == (200, 10, 0)).all(axis=2).any()
    assert places_of(np.full((92, 92, 3), 238, dtype=np.uint8), picture)


def test_without_its_image_a_card_has_an_empty_frame():
    picture = render_card(PrototypeCard(source_of(), BLUE, nearest=(None, None, None)))
    assert places_of(np.full((184, 184, 3), 238, dtype=np.uint8), picture)
    assert says(picture, "labelled: cell", BODY)


def test_the_gallery_has_a_row_for_each_annotator():
    experts = [("Ana", BLUE)] * 3 + [("Ben", ORANGE)] * 5
    cards = [full_card(source=source_of(n, k), colour=c) for k, (n, c) in enumerate(experts)]
    picture = render_gallery(cards)
    places = [
        places_of(written(f"{name} · prototype {kernel}", TITLE), picture)
        for kernel, (name, _) in enumerate(experts)
    ]
    rows, columns = zip(*(place for (place,) in places), strict=True)
    assert rows[0] == rows[1] == rows[2] < rows[3]
    assert rows[3] == rows[4] == rows[5] == rows[6] < rows[7]
    margin, step = 18, 304 + 16
    places = [margin + k * step for k in (0, 1, 2, 0, 1, 2, 3, 0)]
    np.testing.assert_allclose(columns, places, atol=2)  # letters do not begin at once
    for text in ("ring: the pixel", "box: where the patch lies in its image"):
        assert says(picture, text, BODY)


def test_one_card_makes_a_gallery_and_none_does_not():
    picture = render_gallery([full_card()])
    assert says(picture, "Prototypes of Ana", 21)
    assert says(picture, "Ana · prototype 2", TITLE)
    with pytest.raises(ValueError, match="no cards, expected at least one prototype"):
        render_gallery([])


def test_long_names_and_any_image_shape_fit():
    source = source_of(
        "a radiologist with a very long name indeed", sample_id="/data/" + "very/" * 30 + "deep"
    )
    usual = render_card(full_card())
    for size in ((1, 1000), (1000, 1), (1, 1)):
        image = np.zeros((*size, 3), dtype=np.uint8)
        patch = SourcePatch(image[:48, :48], 0, 0)
        card = full_card(
            source=dataclasses.replace(source, y=0, x=0),
            image=image,
            size=size,
            patch=patch,
        )
        assert render_card(card).shape[1] == usual.shape[1]
