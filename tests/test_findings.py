"""Cases that mislead who overlooks them are called by name, on data made by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from made_up import TRUSTED, make_explanation

from tax_lightning.explanation import TrustBasis
from tax_lightning.findings import LabelCounts
from tax_lightning.visualization.summary import Summary, findings

NAMES = ("Ana", "Ben", "Cleo", "Dan")


def said(probabilities, masks=None, reference=None, **options):
    """The findings, by kind, of annotators with these probabilities of a cell ``[N, P]``."""
    p = torch.tensor(probabilities, dtype=torch.float32)[None, :, None]
    names, probs = NAMES[: p.shape[1]], torch.stack([1 - p, p], dim=2)
    explanation = make_explanation(torch.zeros(1, 1, p.shape[-1]).long(), annotators=names)
    options |= {"annotator_probs": probs, "probs": probs.mean(dim=1)}
    explanation = dataclasses.replace(explanation, **options)
    labels = [None if given is None else np.array(given) for given in (masks, reference)]
    labels[0] = None if masks is None else labels[0][:, None]
    summary = Summary.of(explanation, *labels)
    return {found.kind: found for found in findings(explanation, summary)}


DIFFER = [[0.9, 0.8, 0.1, 0.2], [0.6, 0.9, 0.2, 0.1], [0.3, 0.7, 0.1, 0.4]]


def test_annotators_who_differ_on_something_that_is_found_need_no_word():
    assert said(DIFFER) == {}
    assert said([[0.6, 0.7]]) == {}  # of one annotator


@pytest.mark.parametrize("probability", [0.6, 0.99])
def test_identical_annotators(probability):
    found = said([[probability, 0.01]] * 3)
    assert list(found) == ["identical"]
    assert found["identical"].title == "The model expects the same of all 3 annotators"


def test_a_duplicate_pair():
    found = said([[0.9, 0.6], [0.2, 0.3], [0.91, 0.6]])
    assert list(found) == ["duplicate"]
    assert found["duplicate"].title == "The model expects nearly the same of Ana and Cleo"
    assert "differ by 0.5% or less on average" in found["duplicate"].text


def test_a_model_that_predicts_nothing():
    found = said([[0.4, 0.1], [0.1, 0.3], [0.0, 0.2]])
    assert list(found) == ["nothing"]
    assert str(found["nothing"]).startswith(
        "warning: The result is background everywhere. The model found nothing at any of 2 pixels"
    )


def test_all_annotators_wrong_alike():
    masks = [[1, 0, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0]]
    found = said(DIFFER, masks, [[1, 1, 1, 0]])  # the second of three pixels that are drawn
    assert list(found) == ["wrong-alike"]
    assert found["wrong-alike"].title == "On 33% of what is drawn all annotators are wrong alike"
    assert said(DIFFER, masks, [[1, 0, 1, 0]]) == {}
    assert said(DIFFER, masks, [[1, 255, 1, 0]]) == {}
    assert said(DIFFER, masks, [[1, 1, 1, 0]], trust=TrustBasis("image", "staple", (3, 2, 1))) == {}


def test_a_majority_of_four_with_ties():
    masks = [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 255, 0]]
    majority = dataclasses.replace(TRUSTED, reference="majority")
    found = said([*DIFFER, [0.8, 0.2, 0.1, 0.1]], masks, trust=majority)
    # 3 to 1, 2 to 2, 1 to 2
    assert found["ties"].title.startswith("On 33% of the pixels where annotators differ their maj")
    assert "as the model expects" not in found["ties"].text
    assert "ties" not in said([*DIFFER, [0.8, 0.2, 0.1, 0.1]], masks)
    expected = said([[0.9] * 3, [0.9, 0.8, 0.7], [0.1] * 3, [0.2, 0.3, 0.8]], trust=majority)
    assert expected["ties"].title.startswith("On 67% of the pixels")
    assert "there, as the model expects:" in expected["ties"].text


@pytest.mark.parametrize(("kind", "score"), [("uniform", "0.69"), ("constant", "0.60")])
def test_an_expert_who_is_invisible_in_the_image(kind, score):
    found = said(DIFFER, trust=TrustBasis(kind, "given", (0.69, 0.6, 0.61)))
    assert list(found) == ["invisible"]
    assert found["invisible"].title == "The images do not show who is right"
    assert "log score of 0.61 on validation images" in found["invisible"].text
    assert f" of {score}, and smaller is better" in found["invisible"].text
    assert said(DIFFER, trust=TrustBasis(kind, "majority", (0.69, 0.6, 0.61))) == {}


def test_trust_that_was_not_measured():
    assert list(said(DIFFER, trust=TrustBasis("image", "given"))) == ["unmeasured"]


def test_one_who_draws_noise():
    rng = np.random.default_rng(0)
    drawn = np.zeros((4, 1000), dtype=int)
    drawn[:, :400] = 1
    drawn[1, 380:420] = 1
    drawn[3] = rng.integers(0, 2, 1000)
    expected = np.linspace(0.2, 0.9, 4)[:, None].repeat(1000, axis=1)
    found = said(expected, drawn)
    assert list(found) == ["noise"]
    assert found["noise"].title == "What Dan draws has nothing to do with what the others draw"
    assert "theirs with each other 0.9" in found["noise"].text
    # What a model learns of noise is the same at every pixel.
    learnt = said([[0.9, 0.1], [0.8, 0.3], [0.7, 0.2], [0.55, 0.55]])
    assert "kappa) with them is 0.00, as the model expects, theirs with" in learnt["noise"].text
    drawn[3] = 0  # nothing is no noise
    assert said(expected, drawn) == {}


def test_types_that_are_no_persons():
    found = said(DIFFER, types=True)
    assert list(found) == ["types"]
    assert found["types"].title == "These are types of annotation, not persons"


def test_slots_that_are_no_persons():
    found = said(DIFFER, persons=False)
    assert list(found) == ["slots"]
    assert found["slots"].text.startswith("Ana, Ben and Cleo are the columns of a table")


def test_kappa_by_hand():
    # first 1100, second 1000: agreed 3/4; by chance 1/2 * 3/4 + 1/2 * 1/4 = 1/2
    counts = LabelCounts.of(np.array([[[1, 1, 0, 0]], [[1, 0, 0, 0]]]), 2)
    assert counts.kappa[0, 1] == pytest.approx((3 / 4 - 1 / 2) / (1 - 1 / 2))


def test_counts_do_not_depend_on_how_much_is_looked_at_at_a_time(monkeypatch):
    rng = np.random.default_rng(1)
    masks, reference = rng.choice([0, 1, 2, 255], (4, 5, 6)), rng.choice([0, 1, 2, 255], (5, 6))
    whole = LabelCounts.of(masks, 3, reference)
    monkeypatch.setattr("tax_lightning.findings._ENTRIES", 100)
    np.testing.assert_equal(
        dataclasses.asdict(LabelCounts.of(masks, 3, reference)), dataclasses.asdict(whole)
    )
