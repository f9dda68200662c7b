import numpy as np
import pytest
from made_up import make_source, make_sources
from reading import places_of, says, written

from tax_lightning.explanation import Example, PrototypeSource
from tax_lightning.palette import annotator_palette
from tax_lightning.visualization.annotations import SourcePatch
from tax_lightning.visualization.gallery import (
    PrototypeCard,
    read_cards,
    render_card,
    render_gallery,
    shown_examples,
)

BODY, TITLE = 14, 18
BLUE, ORANGE = annotator_palette(2)


def full_card(source=None, colour=BLUE, use=0.12):
    """A card whose pixel lies in a green image, and whose examples lie in red ones."""
    source = source or make_source("Ana", 2)
    patches = {
        source.taken_from: SourcePatch(np.full((46, 46, 3), (10, 200, 90), np.uint8), 17, 20)
    }
    for n, example in enumerate(shown_examples(source)):
        if example not in patches:
            patches[example] = SourcePatch(np.full((46, 46, 3), (200, 10, n), np.uint8), 23, 23)
    return PrototypeCard(source, colour, patches, use)


def test_a_card_says_whose_it_is_where_it_is_from_and_what_its_examples_are():
    card = render_card(full_card())
    assert says(card, "Ana · prototype 2", TITLE)
    facts = ("train-7 at y 4, x 3, labelled cell", "the first reason at 12% of the disputed")
    for text in (*facts, "cell", "like it: 0.90", "background", "like it: 0.50"):
        assert says(card, text, BODY), text
    shown = (card == (200, 10, 1)).all(axis=2).sum()
    assert 0.85 * 88**2 < shown < 88**2  # less its mark


def test_the_crop_shows_the_pixel_in_a_ring():
    card = render_card(full_card())
    rows, cols = np.nonzero((card == BLUE).all(axis=2))
    top = rows[rows > 10].min()  # below the bar at the head of the card
    crop = card[top + 4 : top + 188, cols.min() + 4 : cols.min() + 188]
    y, x = 4 * 17 + 2, 4 * 20 + 2
    assert (crop[y - 3 : y + 3, x - 3 : x + 3] == (10, 200, 90)).all()
    rows, cols = np.nonzero((crop != (10, 200, 90)).any(axis=2))
    assert abs((rows.min() + rows.max()) / 2 - y) <= 1
    assert abs((cols.min() + cols.max()) / 2 - x) <= 1
    assert rows.max() - rows.min() < 32


def test_only_the_most_similar_example_of_a_class_is_shown():
    labels = ("cell", "cell", "background", "cell")
    examples = tuple(Example(label, "a", y, 0, 0.5) for y, label in enumerate(labels))
    source = PrototypeSource("Ana", 0, True, examples[0], examples)
    assert [example.y for example in shown_examples(source)] == [0, 2]


def test_the_pruned_the_unprojected_and_the_lost_are_said_to_be_so():
    pruned = full_card(make_source(active=False)).facts
    assert pruned[-1] == "pruned: no training pixel is like it, so it decides nothing"
    nowhere = PrototypeCard(make_source(sample_id=""), BLUE)
    assert nowhere.facts == ("not yet projected: no training pixel",)
    assert says(render_card(nowhere), "Ana · prototype 0", TITLE)
    lost = PrototypeCard(make_source(), BLUE)
    assert lost.facts[1:] == ("(the training image is not at hand)",)
    assert places_of(np.full((184, 184, 3), 238, dtype=np.uint8), render_card(lost))


def test_the_gallery_has_four_cards_in_a_row():
    cards = [full_card(make_source("Ana", k)) for k in range(5)]
    picture = render_gallery(cards)
    places = [places_of(written(f"Ana · prototype {k}", TITLE), picture) for k in range(5)]
    rows, columns = zip(*(place for (place,) in places), strict=True)
    assert rows[0] == rows[1] == rows[2] == rows[3] < rows[4]
    # Letters do not begin at once.
    np.testing.assert_allclose(columns, [18 + k * (304 + 16) for k in (0, 1, 2, 3, 0)], atol=2)
    assert says(render_gallery(cards[:1]), "Prototypes", 21)
    with pytest.raises(ValueError, match="no cards, expected at least one prototype"):
        render_gallery([])


def test_long_names_and_any_image_shape_fit():
    long = "a radiologist with a very long name indeed"
    card = full_card(make_source(long, 0, "/data/" + "very/" * 30 + "deep"))
    for size in ((1, 48), (48, 1), (1, 1)):
        patch = SourcePatch(np.zeros((*size, 3), dtype=np.uint8), 0, 0)
        shown = PrototypeCard(card.source, BLUE, dict.fromkeys(card.patches, patch))
        assert render_card(shown).shape[1] == render_card(full_card()).shape[1]


def test_every_training_image_is_read_once():
    asked = []

    def read(name):
        asked.append(name)
        return np.full((100, 120, 3), 90, np.uint8)

    cards = read_cards(make_sources(("Ana", "Ben")), read)
    assert asked == ["b", "train-7"]
    assert [(c.source.annotator, c.source.kernel, c.colour) for c in cards] == [
        (name, kernel, colour)
        for name, colour in (("Ana", BLUE), ("Ben", ORANGE))
        for kernel in range(3)
    ]
    patch = cards[-1].patches[cards[-1].source.taken_from]
    assert (patch.y, patch.x) == (4, 3)
    patch = cards[-1].patches[cards[-1].source.example("background")]
    assert (patch.y, patch.x) == (1, 1)
