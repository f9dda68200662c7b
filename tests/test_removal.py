from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc

from tax_lightning.metrics.removal import Removal, removal_effects

KEYS = ["who_flip_rate", "who_necessity", "who_sufficiency", "who_deletion_auroc", "who_locality"]


def rows(*lines: tuple[float, ...]) -> torch.Tensor:
    """One line of pixels an annotator ``[1, N, 1, W]``."""
    return torch.tensor(lines)[None, :, None]


def two_classes(second: torch.Tensor) -> torch.Tensor:
    """Logarithms of probabilities ``[B, N, 2, H, W]`` from those of the second class."""
    return torch.stack([1 - second, second], 2).log()


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def values(result: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in result.items()}


#                disputed  disputed  unanimous  nobody labelled
MASKS = rows((1, 0, 1, 255), (0, 1, 1, 255), (0, 0, 255, 255))
EVERYONE = torch.ones(1, 3, dtype=torch.bool)
WHO = rows((0.5, 0.2, 0.1, 0.6), (0.3, 0.5, 0.1, 0.2), (0.2, 0.3, 0.8, 0.2))
SECOND = rows((0.9, 0.2, 0.9, 0.9), (0.2, 0.6, 0.6, 0.2), (0.4, 0.8, 0.2, 0.1))


def test_values_by_hand():
    result = values(removal_effects(WHO.log(), two_classes(SECOND), MASKS, EVERYONE))
    # 1st pixel: .45 + .06 + .08 = .59; without Ada .14 / .5 = .28, without Ben .53 / .7 and
    # without Cem .51 / .8 above a half: only Ada's removal flips, she is named, and says the same.
    # 2nd pixel: .04 + .3 + .24 = .58; without Ada .54 / .8, without Ben .28 / .5 = .56, without
    # Cem .34 / .7 = .486: only Cem's removal flips; Ben is named, and says the same.
    assert result["who_flip_rate"] == pytest.approx(1 / 2)
    assert result["who_necessity"] == pytest.approx(1 / 2 - 1 / 4)
    assert result["who_sufficiency"] == 1
    # Flips at shares .5 and .3, none at .3, .2, .2 and .5: of 8 pairs 5 are larger and 2 equal, of
    # .5 and .5, .3 and .3; the .3 is smaller than the other .5.
    assert result["who_deletion_auroc"] == pytest.approx((5 + 2 / 2) / 8)
    # 3rd pixel: .09 + .06 + .16 = .31; Cem is named. The 4th has no label, and counts nowhere.
    p = (0.59, 0.58, 0.31)
    ada = [abs(a - b) for a, b in zip(p, (0.14 / 0.5, 0.54 / 0.8, 0.22 / 0.9), strict=True)]
    ben = [abs(a - b) for a, b in zip(p, (0.53 / 0.7, 0.28 / 0.5, 0.25 / 0.9), strict=True)]
    cem = [abs(a - b) for a, b in zip(p, (0.51 / 0.8, 0.34 / 0.7, 0.15 / 0.2), strict=True)]
    locality = (
        ada[0] / ((ada[1] + ada[2]) / 2)
        + ben[1] / ((ben[0] + ben[2]) / 2)
        + cem[2] / ((cem[0] + cem[1]) / 2)
    ) / 3
    assert result["who_locality"] == pytest.approx(locality, rel=1e-5)


def test_logits_by_hand():
    # Logits 3, -1 and -1 with shares .5, .25 and .25: 1 when mixed. Without the first -1, without
    # another 3 * 2 / 3 - 1 / 3 = 5 / 3. The 2nd pixel is unanimous, and the second is named there.
    log_who = rows((0.5, 0.25), (0.25, 0.5), (0.25, 0.25)).log()
    log_probs = two_classes(rows((3.0, 3.0), (-1.0, -1.0), (-1.0, -1.0)).sigmoid())
    masks = rows((1, 0), (0, 0), (0, 0))
    result = values(removal_effects(log_who, log_probs, masks, EVERYONE, mixing="logit"))
    assert result["who_necessity"] == result["who_sufficiency"] == 1
    assert result["who_deletion_auroc"] == 1
    # At the 2nd pixel 0 when mixed; without the first -1, without the second 1.
    first = (sigmoid(1) - sigmoid(-1)) / (sigmoid(0) - sigmoid(-1))
    second = (sigmoid(1) - sigmoid(0)) / (sigmoid(5 / 3) - sigmoid(1))
    assert result["who_locality"] == pytest.approx((first + second) / 2, rel=1e-5)


def test_the_decision_follows_the_mixing():
    # Logits 4 and -1.5 with shares .3 and .7: .15 mixed, the second class; probabilities
    # .3 * .982 + .7 * .182 = .422, the first class. The second annotator, named, says the first.
    log_probs = two_classes(rows((4.0,), (-1.5,)).sigmoid())
    arguments = (rows((0.3,), (0.7,)).log(), log_probs, rows((1,), (0,)), EVERYONE[:, :2])
    by_logit = values(removal_effects(*arguments, mixing="logit"))
    by_prob = values(removal_effects(*arguments, mixing="prob"))
    assert (by_logit["who_sufficiency"], by_prob["who_sufficiency"]) == (0, 1)
    assert (by_logit["who_necessity"], by_prob["who_necessity"]) == (-1, 1)


def test_a_named_annotator_who_does_not_decide():
    # Ada decides both disputed pixels alone, Ben is named.
    log_who = rows((0.8, 0.8), (0.1, 0.1), (0.1, 0.1)).log()
    log_probs = two_classes(rows((0.9, 0.9), (0.1, 0.1), (0.1, 0.1)))
    masks = rows((1, 1), (0, 0), (0, 0))
    claimed = rows((0.1, 0.2), (0.9, 0.8), (0.0, 0.0))
    honest = values(removal_effects(log_who, log_probs, masks, EVERYONE))
    control = values(removal_effects(log_who, log_probs, masks, EVERYONE, named=claimed))
    assert [honest[key] for key in KEYS[:4]] == [1, 1, 1, 1]
    assert [control[key] for key in KEYS[:3]] == [0, pytest.approx(-1 / 2), 0]
    assert control["who_deletion_auroc"] == 1 / 2  # above Cem's shares, below Ben's
    # Nobody is named in one place and not in another.
    assert math.isnan(honest["who_locality"])
    assert math.isnan(control["who_locality"])


def test_one_hot_shares():
    # Whoever is named decides alone; the others then do with equal shares what they would.
    log_who = rows((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)).log()
    second = rows((0.9, 0.4, 0.8), (0.3, 0.7, 0.4), (0.4, 0.2, 0.6))
    masks = rows((1, 0, 1), (0, 1, 0), (0, 0, 1))
    result = values(removal_effects(log_who, two_classes(second), masks, EVERYONE))
    assert result["who_flip_rate"] == pytest.approx(2 / 3)  # at the 3rd pixel .8 and .4 give .6
    assert result["who_necessity"] == pytest.approx(2 / 3)
    assert result["who_sufficiency"] == 1
    # Flips at share 1, 1; none at 1 and six times 0.
    assert result["who_deletion_auroc"] == pytest.approx((6 + 1 / 2) / 7)
    assert result["who_locality"] == math.inf


def test_annotators_who_say_the_same_explain_nothing():
    second = torch.rand(2, 1, 4, 4).expand(2, 3, 4, 4)
    log_who = torch.randn(2, 3, 4, 4).log_softmax(1)
    masks = torch.arange(3).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    present = EVERYONE.expand(2, 3)
    result = values(removal_effects(log_who, two_classes(second), masks, present))
    assert [result[key] for key in KEYS[:3]] == [0, 0, 1]
    assert math.isnan(result["who_deletion_auroc"])
    assert math.isnan(result["who_locality"])  # and is no ratio of rounding errors


def test_an_annotator_without_effect_is_left_out_of_locality():
    # Cem has the least share and is never named; Ada and Ben decide one pixel each.
    log_who = rows((0.9, 0.1), (0.1, 0.9), (0.0, 0.0)).log()
    log_probs = two_classes(rows((0.9, 0.9), (0.2, 0.2), (0.2, 0.2)))
    masks = rows((1, 0), (0, 1), (0, 0))
    result = values(removal_effects(log_who, log_probs, masks, EVERYONE))
    # p = .83 and .27; without Ada .2, .2; without Ben .9, .9.
    ratios = (0.83 - 0.2) / (0.27 - 0.2), (0.9 - 0.27) / (0.9 - 0.83)
    assert result["who_locality"] == pytest.approx(sum(ratios) / 2, rel=1e-5)
    assert result["who_deletion_auroc"] == pytest.approx(1)  # Ben's removal flips the 2nd pixel


def random_batch(images: int, annotators: int = 4) -> dict[str, torch.Tensor]:
    shape = (images, annotators, 8, 8)
    return {
        "log_who": (2 * torch.randn(shape)).log_softmax(1),
        "log_annotator_probs": torch.randn(images, annotators, 3, 8, 8).log_softmax(2),
        "masks": torch.tensor([0, 1, 2, 255])[torch.randint(4, shape)],
        "present": torch.rand(images, annotators) < 0.8,
        "named": (4 * torch.randn(shape)).softmax(1),
    }


def by_pixels(log_who, log_annotator_probs, masks, present, named, mixing) -> dict[str, float]:
    """The definitions, pixel by pixel and annotator by annotator."""
    images, annotators, height, width = masks.shape

    def combine(shares, probs):
        shares = shares / shares.sum()
        if mixing == "prob":
            return (shares[:, None] * probs).sum(0)
        return (shares[:, None] * probs.log()).sum(0).softmax(0)

    cases, shares_named, flips, changes = [], [], [], []
    for b, y, x in torch.cartesian_prod(*map(torch.arange, (images, height, width))).tolist():
        who = log_who[b, :, y, x].double().exp()
        probs = log_annotator_probs[b, :, :, y, x].double().exp()
        labels = {int(v) for v in masks[b, present[b], y, x]} - {255}
        p = combine(who, probs)
        top = int(named[b, :, y, x].argmax())
        flip = []
        for n in range(annotators):
            others = [m for m in range(annotators) if m != n]
            rest = combine(who[others], probs[others])
            flip.append(bool(rest.argmax() != p.argmax()))
            if labels:
                changes.append((n, n == top, float((rest - p).abs().sum() / 2)))
        if len(labels) > 1:
            own = bool(probs[top].argmax() == p.argmax())
            other = (sum(flip) - flip[top]) / (annotators - 1)
            cases.append((flip[top], flip[top] - other, own))
            flips += flip
            shares_named += named[b, :, y, x].tolist()

    def mean(annotator, inside):
        found = [value for n, at, value in changes if (n, at) == (annotator, inside)]
        return sum(found) / len(found) if found else math.nan

    ratios = torch.tensor([mean(n, True) / mean(n, False) for n in range(annotators)])
    rates = torch.tensor(cases).float().mean(0).tolist()
    auroc = float(binary_auroc(torch.tensor(shares_named).float(), torch.tensor(flips).long()))
    return dict(zip(KEYS, [*rates, auroc, float(ratios.nanmean())], strict=True))


@pytest.mark.parametrize("mixing", ["prob", "logit"])
@pytest.mark.parametrize("annotators", [2, 4])
def test_values_agree_with_their_definitions(mixing, annotators):
    batch = random_batch(3, annotators)
    batch["present"][0] = True
    expected = by_pixels(**batch, mixing=mixing)
    result = values(removal_effects(**batch, mixing=mixing))
    assert all(math.isfinite(value) for value in result.values())
    auroc = expected.pop("who_deletion_auroc")
    assert result.pop("who_deletion_auroc") == pytest.approx(auroc, abs=1e-3)  # of bins
    assert result == pytest.approx(expected, rel=1e-4)


def claims_for_the_first(shares: torch.Tensor, decides: torch.Tensor) -> dict[str, torch.Tensor]:
    """Disputed pixels in a row for which shares of the first of two annotators are claimed.

    The first does have nearly all the weight; the second would decide otherwise only as told.
    """
    probs = torch.stack([torch.where(decides, 0.9, 0.2), torch.full_like(shares, 0.2)])
    weights = torch.tensor([0.999, 0.001]).log().view(1, 2, 1, 1)
    return {
        "log_who": weights.expand(1, 2, 1, len(shares)),
        "log_annotator_probs": two_classes(probs[None, :, None]),
        "masks": torch.tensor([1, 0]).view(1, 2, 1, 1).expand(1, 2, 1, len(shares)),
        "present": torch.ones(1, 2, dtype=torch.bool),
        "named": torch.stack([shares, 1 - shares])[None, :, None],
    }


def test_deletion_auroc_tells_shares_near_one_apart():
    # Shares of .9933 to .999994: 7 of 1024 bins of equal width would hold them all.
    shares = torch.linspace(5, 12, 200).sigmoid()
    decides = torch.arange(200) >= 100
    result = removal_effects(**claims_for_the_first(shares, decides))
    assert float(result["who_deletion_auroc"]) == 1
    # The other way round the 100 flips are below 100 of the others, and above the 200 small ones.
    result = removal_effects(**claims_for_the_first(shares, ~decides))
    assert float(result["who_deletion_auroc"]) == pytest.approx(200 / 300, abs=1e-6)


def test_deletion_auroc_of_equal_shares_is_a_half():
    batch = random_batch(2)
    batch["named"] = torch.full_like(batch["named"], 1 / 4)
    assert float(removal_effects(**batch)["who_deletion_auroc"]) == 1 / 2


def test_certain_shares_have_a_bin():
    batch = random_batch(2)
    batch["named"] = torch.nn.functional.one_hot(batch["named"].argmax(1), 4).movedim(-1, 1)
    expected = by_pixels(**batch, mixing="prob")["who_deletion_auroc"]
    assert float(removal_effects(**batch)["who_deletion_auroc"]) == pytest.approx(expected)


def test_parts_of_unequal_size_merge_to_the_whole():
    batch = random_batch(5)
    parts = Removal(4), Removal(4)
    for metric, images in zip(parts, (slice(0, 1), slice(1, 5)), strict=True):
        metric.update(**{name: value[images] for name, value in batch.items()})
    parts[0].merge_state(parts[1])
    whole = values(removal_effects(**batch))
    assert all(math.isfinite(value) for value in whole.values())
    assert values(parts[0].compute()) == pytest.approx(whole, rel=1e-5)


@given(st.permutations(range(4)))
def test_the_order_of_annotators_does_not_matter(order):
    torch.manual_seed(0)
    batch = random_batch(2)
    permuted = {name: value[:, list(order)] for name, value in batch.items()}
    whole = values(removal_effects(**batch))
    assert values(removal_effects(**permuted)) == pytest.approx(whole, rel=1e-4)


def test_the_shares_named_are_those_of_the_model_if_not_given():
    batch = random_batch(2)
    batch["named"] = batch["log_who"].exp()
    metric = Removal(4, "logit")
    metric.update(**{name: value for name, value in batch.items() if name != "named"})
    assert values(metric.compute()) == values(removal_effects(**batch, mixing="logit"))


def test_the_explanation_of_the_model_beats_a_shuffled_one():
    batch = random_batch(8)
    batch.pop("named")
    honest = values(removal_effects(**batch))
    shuffled = values(removal_effects(**batch, named=batch["log_who"].exp().roll(1, dims=1)))
    assert all(honest[key] > shuffled[key] + 0.1 for key in KEYS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_single(dtype):
    batch = random_batch(4)
    low = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in batch.items()
    }
    assert values(removal_effects(**low)) == pytest.approx(
        values(removal_effects(**batch)), abs=0.03, rel=0.03
    )


def test_memory_does_not_grow_with_the_data():
    metric = Removal(4)
    size = sum(value.numel() for value in metric.metric_state.values())
    for _ in range(3):
        metric.update(**random_batch(2))
    assert sum(value.numel() for value in metric.metric_state.values()) == size


def test_nan_without_a_case():
    metric = Removal(3)
    arguments = {"log_who": WHO.log(), "log_annotator_probs": two_classes(SECOND)}
    metric.update(**arguments, masks=torch.full_like(MASKS, 255), present=EVERYONE)
    assert all(value.isnan() for value in metric.compute().values())
    # Unanimous pixels tell of locality only.
    metric.update(**arguments, masks=torch.zeros_like(MASKS), present=EVERYONE)
    result = metric.compute()
    assert [name for name, value in result.items() if not value.isnan()] == ["who_locality"]


def test_a_single_annotator_cannot_be_removed():
    result = removal_effects(
        torch.zeros(1, 1, 1, 4), two_classes(SECOND[:, :1]), MASKS[:, :1], EVERYONE[:, :1]
    )
    assert list(result) == KEYS
    assert all(value.isnan() for value in result.values())


def test_wrong_arguments_are_named():
    log_probs = two_classes(SECOND)
    with pytest.raises(ValueError, match=r"`named` has shape \[1, 2, 1, 4\], expected \[B=1, N=3"):
        removal_effects(WHO.log(), log_probs, MASKS, EVERYONE, named=WHO[:, :2])
    with pytest.raises(ValueError, match=r"`log_annotator_probs` has shape .* expected \[B=1, N=3"):
        removal_effects(WHO.log(), log_probs[:, :2], MASKS, EVERYONE)
    with pytest.raises(ValueError, match=r"`mixing` is 'mean', expected one of prob, logit"):
        removal_effects(WHO.log(), log_probs, MASKS, EVERYONE, mixing="mean")
    with pytest.raises(ValueError, match=r"`mixing` is 'mean', expected one of prob, logit"):
        Removal(3, mixing="mean")
    with pytest.raises(ValueError, match=r"`num_annotators` is 0, expected at least 1"):
        Removal(0)
    with pytest.raises(
        ValueError, match=r"`log_who` has shape \[1, 3, 1, 4\], expected \[B=1, N=2"
    ):
        Removal(2).update(
            log_who=WHO.log(), log_annotator_probs=log_probs, masks=MASKS, present=EVERYONE
        )
