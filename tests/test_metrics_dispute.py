"""Where annotators disagree: every value against plain loops over pixels and pairs."""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_maps import computed, everyone
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from tax_lightning.metrics import Dispute, Votes

N, C = 4, 3


def random_batch(seed: int, images: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(images, N, generator=generator) < 0.8
    masks = torch.randint(C, (images, N, 5, 6), generator=generator)
    masks[0, 0, 0] = 255
    return {
        "annotator_probs": torch.randn(images, N, C, 5, 6, generator=generator).softmax(2),
        "prediction": torch.randint(C, (images, 5, 6), generator=generator),
        "masks": masks.masked_fill(~present[:, :, None, None], 255),
        "present": present,
    }


def by_loops(batch: dict[str, Tensor]) -> dict[str, float]:
    """What Votes says, pixel by pixel."""
    errors, shares, squares, table, ranks = [], [], [], {}, []
    masks, probs = batch["masks"], batch["annotator_probs"]
    for b, y, x in itertools.product(*map(range, (len(masks), 5, 6))):
        said = {n: int(masks[b, n, y, x]) for n in range(N) if masks[b, n, y, x] != 255}
        if len(set(said.values())) < 2:
            continue
        decided = int(batch["prediction"][b, y, x])
        p = {n: float(probs[b, n, decided, y, x]) for n in said}
        dissent = {n: label != decided for n, label in said.items()}
        shares.append(1 - sum(dissent.values()) / len(said))
        errors.append(abs(sum(p.values()) / len(said) - shares[-1]) * N)
        squares += [(1 - p[n] - dissent[n]) ** 2 for n in said]
        for n in said:
            table.setdefault((decided, n), []).append(dissent[n])
        pairs = [(p[i], p[j]) for i in said for j in said if not dissent[i] and dissent[j]]
        if pairs:
            ranks.append(
                statistics.mean((first > second) + (first == second) / 2 for first, second in pairs)
            )
    median = statistics.median_low(shares)
    rates = [(len(cell), sum(cell) / len(cell)) for cell in table.values()]
    labels = sum(count for count, _ in rates)
    real = sum(count * rate for count, rate in rates) / labels
    return {
        "votes_error": statistics.mean(errors),
        "votes_error_constant": N * statistics.mean(abs(share - median) for share in shares),
        "dissent_real": real,
        "dissent_brier": statistics.mean(squares),
        "dissent_brier_constant": real * (1 - real),
        "dissent_brier_table": sum(count * rate * (1 - rate) for count, rate in rates) / labels,
        "within_auc": statistics.mean(ranks),
    }


@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_votes_and_dissent_are_those_of_plain_loops(seed):
    batch = random_batch(seed)
    found = computed(Votes(N, C), **batch)
    for name, value in by_loops(batch).items():
        assert found[name] == pytest.approx(value, abs=2e-3), name


def test_constants_and_exchanged_annotators_by_hand():
    """Ana always says what is decided, Ben never: constants know that, the model does not."""
    masks = torch.tensor([[1, 1], [0, 0]]).view(1, 2, 1, 2)
    probs = torch.tensor([[0.4, 0.6], [0.6, 0.9]])  # of class 1, by annotator and pixel
    batch = {"masks": masks, "present": everyone(2), "prediction": torch.ones(1, 1, 2).long()}
    batch["annotator_probs"] = torch.stack([1 - probs, probs], dim=1).view(1, 2, 2, 1, 2)
    found = computed(Votes(2, 2), **batch)
    assert (found["within_auc"], found["within_auc_exchanged"]) == (0, 1)
    assert found["within_auc_constant"] == found["within_auc_table"] == 1
    assert found["dissent_brier_table"] == 0
    assert found["dissent_brier_constant"] == 1 / 4
    assert found["dissent_predicted"] == pytest.approx((0.6 + 0.4 + 0.4 + 0.1) / 4)


def dispute(d_of: Tensor, masks: Tensor, threshold: float = 0.1) -> dict[str, float]:
    """Two annotators of whom one is sure and the other says class 1 with probability d."""
    sure = torch.zeros_like(d_of)
    own = torch.stack([sure, d_of] + [sure] * (masks.shape[1] - 2), dim=1)
    probs = torch.stack([1 - own, own], dim=2)
    present = everyone(masks.shape[1])
    return computed(
        Dispute(threshold), annotator_probs=probs, probs=probs.mean(1), masks=masks, present=present
    )


def test_dispute_by_hand():
    d = torch.tensor([0.05, 0.2, 0.6, 0.05]).view(1, 1, 4)
    masks = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1]]).view(1, 2, 1, 4)
    found = dispute(d, masks)
    assert found["dispute_predicted"] == pytest.approx(0.9 / 4)
    assert found["dispute_real"] == 3 / 4
    assert found["hatched_though_disputed"] == pytest.approx(1 / 3)
    assert found["open_though_unanimous"] == 0
    assert found["dispute_auroc"] == pytest.approx((1 + 1 + 1 / 2) / 3)  # the last ties
    assert dispute(d, masks, threshold=0.01)["open_though_unanimous"] == 1


def test_of_more_than_three_annotators_two_must_differ_to_be_clearly_disputed():
    masks = torch.tensor([[0, 0], [1, 1], [0, 1], [0, 0]]).view(1, 4, 1, 2)
    d = torch.zeros(1, 1, 2)
    assert dispute(d, masks[:, :3])["hatched_though_disputed"] == 1
    found = dispute(d, masks)
    assert found["hatched_though_disputed"] == 1  # only the second pixel counts
    metric = Dispute()
    probs = torch.full((1, 4, 2, 1, 2), 0.5)
    metric.update(annotator_probs=probs, probs=probs[:, 0], masks=masks, present=everyone(4))
    assert metric.disputed.tolist() == [0, 1]


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_the_area_under_the_curve_is_that_of_torchmetrics(seed):
    batch = random_batch(seed)
    del batch["prediction"]
    metric = Dispute()
    metric.update(probs=batch["annotator_probs"].mean(1), **batch)
    labelled = batch["masks"] != 255
    cases = labelled.sum(1) > 1
    differ = batch["masks"].masked_fill(~labelled, -1).amax(1) > batch["masks"].amin(1)
    p = batch["annotator_probs"]
    same = sum((p[:, i] * p[:, j]).sum(1) for i, j in itertools.permutations(range(N), 2))
    d = 1 - same / (N * (N - 1))
    expected = binary_auroc(d[cases], differ[cases].long())
    assert metric.compute()["dispute_auroc"] == pytest.approx(float(expected), abs=0.01)


def test_two_updates_are_one_and_a_reset_forgets():
    batch = random_batch(3, images=3)
    metric = Votes(N, C)
    for images in (slice(0, 1), slice(1, 3)):
        metric.update(**{name: value[images] for name, value in batch.items()})
    found = {name: float(value) for name, value in metric.compute().items()}
    whole = computed(Votes(N, C), **batch)
    # Which annotator an exchanged weight is said to be does not depend on the batch.
    assert found == pytest.approx(whole, abs=1e-5)
    metric.reset()
    metric.update(**batch)
    assert {k: float(v) for k, v in metric.compute().items()} == pytest.approx(whole, abs=1e-5)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="`annotators` is 0, expected at least 1"):
        Votes(0, 2)
    batch = random_batch(0)
    with pytest.raises(ValueError, match="`prediction` has shape"):
        Votes(N, C).update(**batch | {"prediction": batch["prediction"][:, :2]})
