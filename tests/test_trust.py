"""Trust in annotators: the simplest weights that are not worse on held-out images."""

import pytest
import torch

from tax_lightning.explanation import TRUST_KINDS
from tax_lightning.models.trust import Trust, TrustCases


def cases(evidence, right, images=20):
    """One case a row, spread over images in turn."""
    rows = len(evidence)
    image = torch.arange(rows) * images // rows
    return TrustCases(evidence, right, torch.ones(rows), image)


def told_by(right, strength):
    """Evidence that is larger for whoever is right, with noise."""
    return strength * right.float() + torch.randn(right.shape)


def one_right(rows, shares):
    """Exactly one of the annotators is right, as often as the shares say."""
    index = torch.multinomial(torch.tensor(shares), rows, replacement=True)
    return torch.nn.functional.one_hot(index, len(shares)).bool()


def test_evidence_that_tells_who_is_right_is_followed():
    right = one_right(2000, [0.3, 0.3, 0.4])
    trust = Trust(3)
    trust.fit(cases(told_by(right, 3.0), right))
    uniform, _, image = trust.scores
    assert trust.kind == "image"
    assert image < 0.6 * uniform
    assert uniform == pytest.approx(torch.tensor(3.0).log())


def test_without_evidence_the_better_annotator_gets_a_constant_weight():
    """The best constant is known: each annotator's share of being right."""
    right = one_right(4000, [0.7, 0.2, 0.1])
    trust = Trust(3)
    trust.fit(cases(torch.randn(4000, 3), right))
    assert trust.kind == "constant"
    torch.testing.assert_close(
        trust(torch.randn(1, 3, 1, 1)).exp().flatten(), right.float().mean(0), atol=0.02, rtol=0
    )
    assert torch.equal(trust(torch.zeros(1, 3, 1, 1)), trust(torch.ones(1, 3, 1, 1)))
    torch.testing.assert_close(trust.constant, trust(torch.zeros(1, 3, 1, 1)).flatten())


def test_equal_annotators_without_evidence_weigh_the_same():
    right = one_right(2000, [1.0, 1.0, 1.0])
    trust = Trust(3)
    trust.fit(cases(torch.randn(2000, 3), right))
    assert trust.kind == "uniform"
    torch.testing.assert_close(
        trust(torch.randn(1, 3, 2, 2)).exp(), torch.full((1, 3, 2, 2), 1 / 3)
    )


def test_overconfident_evidence_is_scaled_down():
    """Scale and share of right pixels are known: evidence of +-2 s, right as often as +-s say."""
    truth = torch.randn(4000)
    first = torch.rand(4000) < truth.sigmoid()
    trust = Trust(2)
    evidence = torch.stack([2 * truth, torch.zeros(4000)], dim=1)
    trust.fit(cases(evidence, torch.stack([first, ~first], dim=1)))
    assert trust.scale == pytest.approx(0.5, abs=0.06)


def test_evidence_is_followed_though_few_images_mislead_about_who_is_better():
    """In each half of the images another annotator is right more often; the evidence tells who."""
    first = one_right(400, [0.9, 0.1])
    second = one_right(400, [0.1, 0.9])
    right = torch.stack([first, second], 1).flatten(0, 1)
    evidence = told_by(right, 1.5)
    image = torch.arange(800) % 2 + 2 * (torch.arange(800) // 200)
    trust = Trust(2)
    trust.fit(TrustCases(evidence, right, torch.ones(800), image))
    assert trust.kind == "image"
    assert not trust.offset.any()


def test_those_who_did_not_label_take_no_part():
    right = one_right(2000, [0.8, 0.2])
    evidence = torch.zeros(2000, 3)
    evidence[:, 2] = -torch.inf
    trust = Trust(3)
    trust.fit(cases(evidence, torch.cat([right, torch.zeros(2000, 1).bool()], dim=1)))
    assert trust.scores[0] == pytest.approx(torch.tensor(2.0).log())
    assert trust.scores.isfinite().all()


def test_too_few_cases_change_nothing():
    right = one_right(50, [1.0, 1.0])
    trust = Trust(2)
    trust.fit(cases(told_by(right, 5.0), right))
    assert trust.scale == 1
    assert trust.scores.isnan().all()


def test_reset_forgets_the_fit():
    right = one_right(500, [0.9, 0.1])
    trust = Trust(2)
    trust.fit(cases(torch.zeros(500, 2), right))
    assert trust.kind == "constant"
    trust.reset()
    assert {name: value.tolist() for name, value in trust.state_dict().items()}.keys() == set(
        Trust(2).state_dict()
    )
    assert trust.kind == "image"
    assert len(trust.scores) == len(TRUST_KINDS)
