from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_maps import computed, everyone
from small_maps import maps as rows
from torchmetrics.functional.classification import binary_auroc

from tax_lightning.metrics import Removal, WhoAccuracy, disagreement


def row(*values: float) -> torch.Tensor:
    """One image of one line of pixels ``[1, 1, W]``."""
    return torch.tensor(values)[None, None]


#               only Ada  only Ben  two right  none right  agreed  unknown
MASKS = rows((1, 0, 1, 0, 1, 1), (0, 1, 1, 0, 1, 0), (0, 0, 0, 1, 1, 0))
REFERENCE = row(1, 1, 1, 2, 1, 255)
EXPERT = row(0, 1, 1, 0, 0, 0)
WHO = rows(
    (0.6, 0.5, 0.80, 1.0, 1.0, 1.0),
    (0.3, 0.4, 0.15, 0.0, 0.0, 0.0),
    (0.1, 0.1, 0.05, 0.0, 0.0, 0.0),
)
BATCH = {"who": WHO, "masks": MASKS, "present": everyone(3), "reference": REFERENCE}
WITHOUT_ADA = torch.tensor([[False, True, True]])


def accuracy(**batch: torch.Tensor) -> dict[str, float]:
    return computed(WhoAccuracy(), **batch)


def test_disagreement_is_between_labels_only():
    masks = rows((0, 0, 0, 255, 255), (0, 1, 255, 255, 1), (0, 0, 255, 255, 2))
    assert disagreement(masks, everyone(3)).tolist() == [[[False, True, False, False, True]]]
    assert not disagreement(masks, torch.tensor([[True, False, True]])).any()
    assert not disagreement(masks, ~everyone(3)).any()


def test_values_by_hand():
    found = accuracy(**BATCH, expert=EXPERT)
    # D1 holds two pixels: share .5 and wrong, .6 and right. Of 15 groups 7 hold the one, 7 the
    # other, and one holds half a fifteenth of the pixels of each, whose errors cancel in part.
    assert found["who_accuracy_d1"] == pytest.approx(1 / 2)
    assert found["who_chance_d1"] == pytest.approx(1 / 3)
    assert found["who_ece_d1"] == pytest.approx(7 / 15 * 0.5 + 7 / 15 * 0.4 + 0.1 / 30)
    # Four disputed pixels; Ada is named, and right at two. On average 1/3, 1/3, 2/3, 0 are.
    assert found["who_agreement_lift"] == pytest.approx((1 / 2 - 1 / 3) / (1 - 1 / 3))
    # 4th pixel: the expert is wrong; 5th: undisputed; 6th: the reference is unknown.
    assert found["who_accuracy_expert"] == pytest.approx(2 / 4)  # right at the 1st and 4th
    assert found["who_ceiling_expert"] == pytest.approx((1 + 1 + 1 / 2 + 0) / 4)
    assert found["who_chance_expert"] == pytest.approx(1 / 3)
    # Errors -.5, .4, -.8, 0 in the order of their shares, 3.75 groups each: the 4th group has .2 of
    # the first and .2 / 3 of the second, the 8th .4 / 3 of two.
    cancelled = 2 * (0.2 / 3 * 0.4) + 2 * (0.4 / 3 * 0.4)
    assert found["who_ece_expert"] == pytest.approx((0.5 + 0.4 + 0.8 - cancelled) / 4)
    # Against the expert: both others, both others, one of two, one of two.
    assert found["majority_overrules_expert"] == pytest.approx((1 + 1 + 1 / 2 + 1 / 2) / 4)
    parts = [(0.6, 0.3, 0.1), (0.5, 0.4, 0.1), (0.8, 0.15, 0.05)]  # two more are certain
    entropy = -sum(share * math.log(share) for part in parts for share in part) / math.log(3)
    assert found["who_entropy_disputed"] == pytest.approx(entropy / 5)
    assert found["who_entropy_unanimous"] == 0


def test_an_absent_annotator_is_never_named():
    # Ben and Cem differ at the 2nd to 4th pixel; Ben is named, and alone right at two. His shares
    # are .4 : .1 and .15 : .05; at the 4th pixel neither has a share, so that each gets a half.
    unlabelled = MASKS.masked_fill(~WITHOUT_ADA[:, :, None, None], 255)
    for masks in (MASKS, unlabelled):  # presence rules, whatever the masks hold
        batch = BATCH | {"masks": masks, "present": WITHOUT_ADA}
        found = accuracy(**batch, expert=row(255, 1, 1, 2, 255, 1))
        assert found["who_accuracy_d1"] == 1
        assert found["who_chance_d1"] == 1 / 2
        assert found["who_agreement_lift"] == pytest.approx((2 / 3 - 1 / 3) / (1 - 1 / 3))
        assert found["who_ece_d1"] == pytest.approx((0.2 + 0.25) / 2)
        # Ben is named at the 4th pixel too, whose expert is Cem: errors -.5, .25, .2.
        assert found["who_ece_expert"] == pytest.approx((0.5 + 0.25 + 0.2) / 3)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ((1, 0, 0, 1, 1), 1 / 2),  # two to two
        ((1, 0, 0, 1, 2), 1),  # two of one kind to one
        ((1, 0, 2, 1, 1), 0),
        ((1, 0, 2, 255, 1), 1 / 2),
        ((1, 0, 255, 255, 255), 1),
    ],
)
def test_the_majority_overrules_the_expert_where_it_outvotes_them(labels, expected):
    masks = torch.tensor(labels).view(1, -1, 1, 1)
    found = accuracy(
        who=masks.float(),
        masks=masks,
        present=everyone(len(labels)),
        reference=row(1),
        expert=row(0),
    )
    assert found["majority_overrules_expert"] == expected


def test_the_best_and_the_worst():
    masks, expert = rows((1, 0, 1), (0, 1, 0)), row(0, 1, 0)
    batch = {"masks": masks, "present": everyone(2), "reference": row(1, 1, 1), "expert": expert}
    best = accuracy(**batch, who=(masks == 1).float())
    worst = accuracy(**batch, who=(masks != 1).float())
    for name, limits in {
        "who_accuracy_d1": (1, 0),
        "who_accuracy_expert": (1, 0),
        "who_agreement_lift": (1, -1),
        "who_ece_d1": (0, 1),
        "who_ece_expert": (0, 1),
    }.items():
        assert (best[name], worst[name]) == limits


def test_entropy_of_equal_and_one_hot_shares():
    masks = rows((1, 1, 1, 255), (0, 1, 1, 1), (1, 1, 255, 255))  # the last has one label only
    who = rows((1.0, 1 / 3, 0.5, 0.9), (0.0, 1 / 3, 0.5, 0.1), (0.0, 1 / 3, 0.0, 0.0))
    found = accuracy(who=who, masks=masks, present=everyone(3))
    assert found["who_entropy_disputed"] == 0
    assert found["who_entropy_unanimous"] == pytest.approx((1 + math.log(2) / math.log(3)) / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_who_may_have_low_precision(dtype):
    expected = accuracy(**BATCH, expert=EXPERT)
    found = accuracy(**BATCH | {"who": WHO.to(dtype)}, expert=EXPERT)
    assert found == pytest.approx(expected, abs=0.01)


def random_batch(images: int, annotators: int = 4) -> dict[str, torch.Tensor]:
    return {
        "who": torch.randn(images, annotators, 8, 8).softmax(1),
        "masks": torch.tensor([0, 1, 2, 255])[torch.randint(4, (images, annotators, 8, 8))],
        "present": torch.rand(images, annotators) < 0.8,
        "reference": torch.tensor([0, 1, 2, 255])[torch.randint(4, (images, 8, 8))],
        "expert": torch.tensor([0, 1, 2, 3, 255])[torch.randint(5, (images, 8, 8))],
    }


def merged(first: WhoAccuracy | Removal, second: WhoAccuracy | Removal, batch) -> dict[str, float]:
    """The result of two metrics, of which one has seen one image and the other the rest."""
    for metric, images in ((first, slice(0, 1)), (second, slice(1, None))):
        metric.update(**{name: value[images] for name, value in batch.items()})
    first.merge_state(second)
    return {name: float(value) for name, value in first.compute().items()}


def test_parts_of_unequal_size_merge_to_the_whole_in_constant_memory():
    batch, first = random_batch(5), WhoAccuracy()
    size = sum(value.numel() for value in first.metric_state.values())
    whole = accuracy(**batch)
    assert all(math.isfinite(value) for value in whole.values())
    assert merged(first, WhoAccuracy(), batch) == pytest.approx(whole, rel=1e-5)
    assert sum(value.numel() for value in first.metric_state.values()) == size


def test_the_order_of_annotators_does_not_matter():
    batch, order = random_batch(3), torch.tensor([2, 0, 3, 1])
    whole = accuracy(**batch)
    batch |= {name: batch[name][:, order] for name in ("who", "masks", "present")}
    place = torch.full((256,), 255)
    place[order] = torch.arange(4)
    batch["expert"] = place[batch["expert"]]
    assert accuracy(**batch) == pytest.approx(whole, rel=1e-5)


def test_nan_without_a_case():
    nobody_else = accuracy(**BATCH | {"present": torch.tensor([[True, False, False]])})
    assert all(math.isnan(value) for value in nobody_else.values())
    single = {name: BATCH[name][:, :1] for name in ("who", "masks", "present")}
    single |= {"reference": REFERENCE, "expert": 0 * EXPERT}
    assert all(math.isnan(value) for value in accuracy(**single).values())
    without_experts = accuracy(**BATCH)
    missing = {name for name, value in without_experts.items() if math.isnan(value)}
    assert missing == {name for name in without_experts if "expert" in name}


@settings(max_examples=50)
@given(
    hnp.arrays(np.int64, (2, 3, 2, 3), elements=st.sampled_from([0, 1, 2, 255])),
    hnp.arrays(np.int64, (2, 2, 3), elements=st.sampled_from([0, 1, 2, 255])),
    hnp.arrays(np.int64, (2, 2, 3), elements=st.sampled_from([0, 1, 2, 255])),
    hnp.arrays(bool, (2, 3)),
    hnp.arrays(np.float32, (2, 3, 2, 3), elements=st.floats(0, 1, width=32)),
)
def test_values_lie_in_their_ranges(masks, reference, expert, present, who):
    names = ("masks", "reference", "expert", "present", "who")
    batch = dict(zip(names, map(torch.from_numpy, (masks, reference, expert, present, who))))  # noqa: B905
    batch["who"] = batch["who"] / batch["who"].sum(1, keepdim=True).clamp(min=1e-30)
    found = accuracy(**batch)
    lift = found.pop("who_agreement_lift")
    assert math.isnan(lift) or lift <= 1
    assert all(math.isnan(value) or 0 <= value <= 1 + 1e-5 for value in found.values())
    named = torch.arange(3)[:, None, None] == batch["expert"][:, None]
    oracle = accuracy(**batch | {"who": named.float()})["who_accuracy_expert"]
    assert math.isnan(oracle) or oracle == 1


def test_wrong_shapes_are_named():
    for name, value, said in (
        ("masks", MASKS[:, :2], r"`masks` has shape \[1, 2, 1, 6\], expected \[B=1, N=3"),
        ("expert", EXPERT[:, 0], r"`expert` has shape \[1, 6\], expected \[B=1, H=1, W=6\]"),
        ("reference", REFERENCE[:, 0], r"`reference` has shape \[1, 6\]"),
        ("present", everyone(3).long(), "`present` has dtype torch.int64, expected torch.bool"),
    ):
        with pytest.raises(ValueError, match=said):
            accuracy(**{**BATCH, "expert": EXPERT, name: value})


# ---------------------------------------------------------------------- removal

KEYS = ["who_flip_rate", "who_necessity", "who_sufficiency", "who_deletion_auroc"]


def two_classes(second: torch.Tensor) -> torch.Tensor:
    """Logarithms of probabilities ``[B, N, 2, H, W]`` from those of the second class."""
    return torch.stack([1 - second, second], 2).log()


def removal(log_who, log_annotator_probs, masks, present=None, **options) -> dict[str, float]:
    annotators = log_who.shape[1]
    return computed(
        Removal(annotators),
        log_who=log_who,
        log_annotator_probs=log_annotator_probs,
        masks=masks,
        present=everyone(annotators, len(masks)) if present is None else present,
        **options,
    )


def test_removal_by_hand():
    #             disputed  disputed  unanimous  nobody labelled
    masks = rows((1, 0, 1, 255), (0, 1, 1, 255), (0, 0, 255, 255))
    who = rows((0.5, 0.2, 0.1, 0.6), (0.3, 0.5, 0.1, 0.2), (0.2, 0.3, 0.8, 0.2))
    second = rows((0.9, 0.2, 0.9, 0.9), (0.2, 0.6, 0.6, 0.2), (0.4, 0.8, 0.2, 0.1))
    found = removal(who.log(), two_classes(second), masks)
    # 1st pixel: .45 + .06 + .08 = .59; without Ada .14 / .5 = .28, without Ben .53 / .7 and
    # without Cem .51 / .8 above a half: only Ada's removal flips, she is named, and says the same.
    # 2nd pixel: .04 + .3 + .24 = .58; without Ada .54 / .8, without Ben .28 / .5 = .56, without
    # Cem .34 / .7 = .486: only Cem's removal flips; Ben is named, and says the same.
    assert found["who_flip_rate"] == pytest.approx(1 / 2)
    assert found["who_necessity"] == pytest.approx(1 / 2 - 1 / 4)
    assert found["who_sufficiency"] == 1
    # Flips at shares .5 and .3, none at .3, .2, .2 and .5: of 8 pairs 5 are larger and 2 equal, of
    # .5 and .5, .3 and .3; the .3 is smaller than the other .5.
    assert found["who_deletion_auroc"] == pytest.approx((5 + 2 / 2) / 8)


def test_a_named_annotator_who_does_not_decide():
    # Ada decides both disputed pixels alone, Ben is named.
    log_who = rows((0.8, 0.8), (0.1, 0.1), (0.1, 0.1)).log()
    log_probs = two_classes(rows((0.9, 0.9), (0.1, 0.1), (0.1, 0.1)))
    masks, claimed = rows((1, 1), (0, 0), (0, 0)), rows((0.1, 0.2), (0.9, 0.8), (0.0, 0.0))
    assert removal(log_who, log_probs, masks) == dict.fromkeys(KEYS, 1)
    control = removal(log_who, log_probs, masks, named=claimed)
    assert [control[key] for key in KEYS[:3]] == [0, pytest.approx(-1 / 2), 0]
    assert control["who_deletion_auroc"] == 1 / 2  # above Cem's shares, below Ben's


def test_removal_of_one_hot_shares():
    # Whoever is named decides alone; the others then do with equal shares what they would.
    log_who = rows((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)).log()
    second = rows((0.9, 0.4, 0.8), (0.3, 0.7, 0.4), (0.4, 0.2, 0.6))
    found = removal(log_who, two_classes(second), rows((1, 0, 1), (0, 1, 0), (0, 0, 1)))
    # At the 3rd pixel .8 and .4 give .6. Flips at share 1, 1; none at 1 and six times 0.
    expected = [2 / 3, 2 / 3, 1, (6 + 1 / 2) / 7]
    assert [found[key] for key in KEYS] == pytest.approx(expected)


def removal_batch(images: int, annotators: int = 4) -> dict[str, torch.Tensor]:
    batch, shape = random_batch(images, annotators), (images, annotators, 8, 8)
    return {
        "log_who": (2 * torch.randn(shape)).log_softmax(1),
        "log_annotator_probs": torch.randn(images, annotators, 3, 8, 8).log_softmax(2),
        "named": (4 * torch.randn(shape)).softmax(1),
        "masks": batch["masks"],
        "present": batch["present"],
    }


def by_pixels(log_who, log_annotator_probs, masks, present, named) -> dict[str, float]:
    """The definitions, pixel by pixel and annotator by annotator."""
    images, annotators, height, width = masks.shape
    cases, shares_named, flips = [], [], []
    for b, y, x in torch.cartesian_prod(*map(torch.arange, (images, height, width))).tolist():
        if len({int(v) for v in masks[b, present[b], y, x]} - {255}) < 2:
            continue
        who = log_who[b, :, y, x].double().exp()
        probs = log_annotator_probs[b, :, :, y, x].double().exp()
        decision, top = (who[:, None] * probs).sum(0).argmax(), int(named[b, :, y, x].argmax())
        left = [torch.arange(annotators) != n for n in range(annotators)]
        flip = [bool((who[m, None] * probs[m]).sum(0).argmax() != decision) for m in left]
        other = (sum(flip) - flip[top]) / (annotators - 1)
        cases.append((flip[top], flip[top] - other, bool(probs[top].argmax() == decision)))
        flips += flip
        shares_named += named[b, :, y, x].tolist()
    rates = torch.tensor(cases).float().mean(0).tolist()
    auroc = float(binary_auroc(torch.tensor(shares_named).float(), torch.tensor(flips).long()))
    return dict(zip(KEYS, [*rates, auroc], strict=True))


@pytest.mark.parametrize("annotators", [2, 4])
def test_removal_agrees_with_its_definitions(annotators):
    batch = removal_batch(3, annotators)
    batch["present"][0] = True
    found, expected = removal(**batch), by_pixels(**batch)
    auroc = expected.pop("who_deletion_auroc")
    assert found.pop("who_deletion_auroc") == pytest.approx(auroc, abs=1e-3)  # of bins
    assert found == pytest.approx(expected, rel=1e-4)
    low = {name: v.bfloat16() if v.is_floating_point() else v for name, v in batch.items()}
    assert removal(**low) == pytest.approx(removal(**batch), abs=0.03)


def test_deletion_auroc_tells_shares_near_one_apart():
    # Shares of .9933 to .999994: 7 of 1024 bins of equal width would hold them all. The first of
    # two annotators does have nearly all the weight; removing them flips half of the pixels.
    shares, weights = torch.linspace(5, 12, 200).sigmoid(), torch.tensor([0.999, 0.001])
    batch = {
        "log_who": weights.log().view(1, 2, 1, 1).expand(1, 2, 1, 200),
        "masks": torch.tensor([1, 0]).view(1, 2, 1, 1).expand(1, 2, 1, 200),
        "named": torch.stack([shares, 1 - shares])[None, :, None],
    }
    for decides, expected in ((torch.arange(200) >= 100, 1), (torch.arange(200) < 100, 200 / 300)):
        second = torch.stack([torch.where(decides, 0.9, 0.2), torch.full_like(shares, 0.2)])
        found = removal(**batch, log_annotator_probs=two_classes(second[None, :, None]))
        assert found["who_deletion_auroc"] == pytest.approx(expected, abs=1e-6)


def test_the_explanation_of_the_model_beats_a_shuffled_one():
    batch = removal_batch(8)
    batch.pop("named")
    honest = removal(**batch)
    assert honest == removal(**batch, named=batch["log_who"].exp())  # the default
    shuffled = removal(**batch, named=batch["log_who"].exp().roll(1, dims=1))
    assert all(honest[key] > shuffled[key] + 0.1 for key in KEYS)


def test_removals_of_parts_merge_to_the_whole_in_any_order_of_annotators():
    batch = removal_batch(5)
    whole = removal(**batch)
    assert merged(Removal(4), Removal(4), batch) == pytest.approx(whole, rel=1e-5)
    permuted = {name: value[:, [2, 0, 3, 1]] for name, value in batch.items()}
    assert removal(**permuted) == pytest.approx(whole, rel=1e-4)


def test_removal_is_nan_without_a_case():
    batch = removal_batch(2)
    for masks in (0 * batch["masks"], torch.full_like(batch["masks"], 255)):
        assert all(math.isnan(value) for value in removal(**batch | {"masks": masks}).values())
    single = {name: value[:, :1] for name, value in batch.items()}  # nobody would be left
    assert all(math.isnan(value) for value in removal(**single).values())
    alike = batch["log_annotator_probs"][:, :1].expand(-1, 4, -1, -1, -1)
    found = removal(**batch | {"log_annotator_probs": alike})  # they explain nothing
    assert [found[key] for key in KEYS[:3]] == [0, 0, 1]
    assert math.isnan(found["who_deletion_auroc"])


def test_wrong_arguments_of_removal_are_named():
    batch = removal_batch(1)
    with pytest.raises(ValueError, match=r"`named` has shape \[1, 2, 8, 8\], expected \[B=1, N=4"):
        removal(**batch | {"named": batch["named"][:, :2]})
    with pytest.raises(ValueError, match="`num_annotators` is 0, expected at least 1"):
        Removal(0)
    with pytest.raises(ValueError, match=r"`log_who` has shape .*, expected \[B=1, N=2, H, W\]"):
        Removal(2).update(**batch)
