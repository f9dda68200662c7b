"""Where annotators disagree, by hand and against plain loops over pixels."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_maps import computed, everyone
from small_maps import maps as rows

from tax_lightning.metrics import Dispute, Votes


def probs_of(*lines: tuple[float, ...]) -> torch.Tensor:
    """p_n(1) at a line of pixels for each annotator, as ``[1, N, 2, 1, W]``."""
    second = torch.tensor(lines)[None, :, None, None]
    return torch.cat([1 - second, second], dim=2)


def dispute(own: torch.Tensor, masks: torch.Tensor, threshold: float = 0.1) -> dict[str, float]:
    batch = {"annotator_probs": own, "probs": own.mean(1), "masks": masks}
    return computed(Dispute(threshold), **batch, present=everyone(masks.shape[1]))


# ---------------------------------------------------------------------- dispute


def test_dispute_by_hand():
    #              disputed  disputed  alike  alike  one label
    masks = rows((0, 0, 1, 0, 0), (1, 0, 1, 0, 255), (1, 1, 1, 0, 255))
    own = probs_of((0.0, 0.5, 0.5, 0.0, 0.5), (1.0, 0.5, 1.0, 0.0, 0.5), (1.0, 0.5, 1.0, 0.0, 0.5))
    found = dispute(own, masks)
    # Of three pairs 2/3, 1/2, (1/2 + 1/2 + 0) / 3 and none would differ; 2, 2, 0 and 0 do.
    assert found["dispute_predicted"] == pytest.approx((2 / 3 + 1 / 2 + 1 / 3 + 0) / 4)
    assert found["dispute_real"] == pytest.approx((2 + 2) / 12)
    assert found["dispute_auroc"] == 1
    # The result is 2/3, 1/2, 5/6 and 0: of the four pairs all are in order too.
    assert found["dispute_auroc_entropy"] == 1
    assert found["open_though_unanimous"] == 1 / 2
    # One annotator of three differs, and that is enough; neither pixel is hatched.
    assert found["hatched_though_disputed"] == 0
    assert dispute(own, masks, threshold=0.6)["hatched_though_disputed"] == 1 / 2


def test_the_control_knows_the_result_alone():
    """The result is .3 at both pixels; only at the first do the annotators differ."""
    found = dispute(probs_of((0.0, 0.3), (0.6, 0.3)), rows((0, 0), (1, 0)))
    assert (found["dispute_auroc"], found["dispute_auroc_entropy"]) == (1, 0.5)


def test_with_four_annotators_one_who_differs_is_not_enough():
    #            one of four  two of four  one of three  two of four, three labels
    masks = rows((0, 0, 0, 0), (0, 0, 0, 1), (0, 1, 1, 2), (1, 1, 255, 0))
    own = torch.zeros(1, 4, 3, 1, 4)
    own[:, :, 0] = 1  # all would say 0, so that it is hatched
    own[:, :2, :, 0, 3] = torch.tensor([0.0, 0.0, 1.0])  # but at the last pixel
    assert dispute(own, masks)["hatched_though_disputed"] == 1 / 2
    no_case = dispute(own[..., [0, 2]], masks[..., [0, 2]])
    assert math.isnan(no_case["hatched_though_disputed"])


# ---------------------------------------------------------------------- votes


def said_if_disputed(probs, labelled, decided) -> dict[int, float]:
    """How probably each says what is decided, over all labels that are not all the same."""
    total, says = 0.0, dict.fromkeys(labelled, 0.0)
    for labels in itertools.product(range(probs.shape[1]), repeat=len(labelled)):
        if len(set(labels)) > 1:
            pairs = list(zip(labelled, labels, strict=True))
            chance = math.prod(float(probs[n, c]) for n, c in pairs)
            total += chance
            for n, c in pairs:
                says[n] += chance * (c == decided)
    return {n: value / total for n, value in says.items()}


def in_loops(annotator_probs, prediction, masks) -> dict[str, float]:
    """Some values of :class:`Votes`, pixel by pixel."""
    ranks, exchanged, errors, squares, shares = [], [], [], [], []
    table: dict[tuple[int, int], list[bool]] = {}
    images, annotators, height, width = masks.shape
    for b, y, x in itertools.product(range(images), range(height), range(width)):
        labels = {n: int(masks[b, n, y, x]) for n in range(annotators)}
        labels = {n: label for n, label in labels.items() if label != 255}
        if len(set(labels.values())) < 2:
            continue
        decided = int(prediction[b, y, x])
        says = annotator_probs[b, :, decided, y, x].tolist()
        agree = [n for n, label in labels.items() if label == decided]
        dissent = [n for n, label in labels.items() if label != decided]
        shares.append(len(agree) / len(labels))
        given = said_if_disputed(annotator_probs[b, :, :, y, x], list(labels), decided)
        expected = sum(given.values()) / len(labels)
        errors.append(annotators * abs(expected - shares[-1]))
        for n in labels:
            squares.append((1 - given[n] - (n in dissent)) ** 2)
            table.setdefault((decided, n), []).append(n in dissent)
        if agree and dissent:
            for kept, at in ((ranks, 0), (exchanged, -1)):
                pairs = [(says[i + at], says[j + at]) for i in agree for j in dissent]
                kept.append(statistics.mean((a > b) + (a == b) / 2 for a, b in pairs))
    median = statistics.median_low(shares) if shares else 0
    labelled = sum(map(len, table.values()))
    spread = sum(len(t) * statistics.mean(t) * (1 - statistics.mean(t)) for t in table.values())

    def mean(values) -> float:
        return sum(values) / len(values) if values else math.nan

    return {
        "within_auc": mean(ranks),
        "within_auc_exchanged": mean(exchanged),
        "votes_error": mean(errors),
        "votes_error_constant": annotators * mean([abs(share - median) for share in shares]),
        "dissent_brier": mean(squares),
        "dissent_real": mean([dissents for row in table.values() for dissents in row]),
        "dissent_brier_table": spread / labelled if labelled else math.nan,
    }


def random_batch(images: int, annotators: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """With unlabelled pixels, an absent annotator, and probabilities that are often equal."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randint(4, (images, *shape, 2, 3), generator=generator)

    masks = torch.tensor([0, 1, 2, 255])[drawn(annotators)]
    present = torch.rand(images, annotators, generator=generator) < 0.8
    own = (1 + drawn(annotators, 3)).double()
    return {
        "annotator_probs": own / own.sum(2, keepdim=True),
        "prediction": drawn().clamp(max=2),
        "masks": masks.masked_fill(~present[:, :, None, None], 255),
        "present": present,
    }


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_votes_equal_plain_loops(seed, annotators):
    batch = random_batch(2, annotators, seed)
    expected = in_loops(*(batch[k] for k in ("annotator_probs", "prediction", "masks")))
    found = computed(Votes(annotators, classes=3), **batch)
    # Shares of votes are counted in thousandths.
    assert {k: found[k] for k in expected} == pytest.approx(expected, abs=2e-3, nan_ok=True)


def test_constants_by_hand():
    """Ana dissents at one pixel of four and Ben at three, and the model says nothing of it."""
    masks = rows((1, 1, 0, 0), (0, 0, 1, 1))
    batch = {"masks": masks, "present": everyone(2), "annotator_probs": probs_of(*[[0.5] * 4] * 2)}
    found = computed(Votes(2, 2), **batch, prediction=torch.tensor([[[1, 1, 1, 0]]]))
    assert found["dissent_predicted"] == found["dissent_real"] == 1 / 2
    assert found["dissent_brier"] == found["dissent_brier_constant"] == 1 / 4
    # Where 1 is decided Ana dissents at 1 of 3 and Ben at 2 of 3, where 0 is never and always.
    assert found["dissent_brier_table"] == pytest.approx(3 * (2 / 9) / 4)
    assert found["within_auc"] == found["within_auc_exchanged"] == 1 / 2
    assert found["within_auc_constant"] == found["within_auc_table"] == 3 / 4
    assert found["votes_error"] == found["votes_error_constant"] == 0


# ---------------------------------------------------------------------- both


@pytest.mark.parametrize("make", [Dispute, lambda: Votes(4, 3)], ids=["Dispute", "Votes"])
def test_two_updates_are_one_and_nothing_is_said_without_a_case(make):
    whole, parts = make(), make()
    batch = random_batch(5)
    if isinstance(whole, Dispute):
        batch["probs"] = batch["annotator_probs"].mean(1)
        del batch["prediction"]
    whole.update(**batch)
    for images in (slice(0, 2), slice(2, None)):
        parts.update(**{name: value[images] for name, value in batch.items()})
    torch.testing.assert_close(parts.compute(), whole.compute())
    assert all(value.isfinite() for value in whole.compute().values())
    alone = make()
    alone.update(**batch | {"present": torch.eye(4, dtype=torch.bool)[[0] * 5]})
    assert all(value.isnan() for value in alone.compute().values())
