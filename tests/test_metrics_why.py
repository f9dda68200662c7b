from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_maps import computed
from torch import Tensor

from tax_lightning.metrics import PrototypeUsage, Purity

# ---------------------------------------------------------------------- use of the prototypes

NAMES = ("Ada", "Ben")


def usage(within: Tensor) -> dict[str, float]:
    return computed(PrototypeUsage(NAMES[: within.shape[1]], within.shape[2]), within=within)


def test_usage_by_hand():
    shares = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0]])
    found = usage(shares[None, :, :, None, None].expand(-1, -1, -1, 2, 2))
    assert found["prototype_usage/Ada"] == pytest.approx(1)
    assert found["prototype_usage/Ben"] == pytest.approx(0.5)
    assert found["prototype_usage/mean"] == pytest.approx(0.75)
    # At each pixel one kernel does all, yet over the image both are used alike.
    assert usage(torch.eye(2)[None, None, :, None])["prototype_usage/Ada"] == pytest.approx(1)


def test_pruned_share_by_hand():
    # Over three pixels Ada's first and third prototypes lead; Ben's first leads alone.
    within = torch.tensor(
        [
            [[0.6, 0.1, 0.1], [0.3, 0.3, 0.3], [0.1, 0.6, 0.6], [0.0, 0.0, 0.0]],
            [[0.4, 0.4, 0.4], [0.3, 0.3, 0.3], [0.2, 0.2, 0.2], [0.1, 0.1, 0.1]],
        ]
    )[None, :, :, None]
    found = usage(within)
    assert [found[f"prototype_pruned/{n}"] for n in (*NAMES, "mean")] == [2 / 4, 3 / 4, 5 / 8]
    assert all(math.isnan(value) for value in usage(within[..., :0]).values())


@settings(max_examples=50)
@given(hnp.arrays(np.float32, (2, 2, 3, 2, 2), elements=st.floats(-8, 8, width=32)))
def test_usage_is_between_one_kernel_and_all(scores):
    within = torch.from_numpy(scores).softmax(2)
    found, low = usage(within), usage(within.bfloat16())
    for name in NAMES:
        assert 1 / 3 - 1e-5 <= found[f"prototype_usage/{name}"] <= 1 + 1e-5
        assert 0 <= found[f"prototype_pruned/{name}"] <= 2 / 3 + 1e-5
        key = f"prototype_usage/{name}"
        assert low[key] == pytest.approx(found[key], abs=0.02)


# ---------------------------------------------------------------------- purity

NONE = 255


def kept(classes: list[list[list[int]]], usage: list[list[int]]) -> dict[str, float]:
    """What a metric says that has kept pixels of these classes ``[N, K, T]``."""
    classes = torch.tensor(classes)
    metric = Purity(*classes.shape[:2], classes=5)
    metric.kept = torch.stack([torch.ones(classes.shape), classes.float()], dim=-1)
    metric.usage = torch.tensor(usage)
    metric._update_count = 1
    return {name: float(value) for name, value in metric.compute().items()}


def test_purity_by_hand():
    classes = [[[0, 0, 1, NONE], [3, 3, 3, 3]], [[NONE] * 4, [1, 2, 0, 3]]]
    found = kept(classes, [[3, 1], [50, 4]])  # 2/3, 1, nothing known, 1/4
    assert found["purity/class"] == pytest.approx((3 * 2 / 3 + 1 + 4 / 4) / 8)
    assert math.isnan(kept(classes, [[0, 0], [50, 0]])["purity/class"])


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([[[4, 4]], [[2, 2]]], 1),
        # Each prototype has one of each class: no information, less than chance has (1/3 of log 2):
        # (0 - log(2) / 3) / (log 2 - log(2) / 3). Pixels without a class do not count.
        ([[[0, 1, NONE], [0, NONE, 1]]], -0.5),
        ([[[3, 3], [3, 3]]], 0),
        ([[[0, NONE], [1, NONE]]], math.nan),
        ([[[NONE] * 3] * 2], math.nan),
    ],
)
def test_information_by_hand(classes, expected):
    found = kept(classes, [[1] * len(row) for row in classes])["purity_ami/class"]
    assert found == pytest.approx(expected, abs=1e-5, nan_ok=True)


def image(similarity: float, value: int) -> dict[str, Tensor]:
    """An image that shows ``value`` at its one pixel that is similar to the only prototype."""
    classes, cosine = torch.zeros(1, 3, 3, dtype=torch.long), torch.full((1, 1, 1, 3, 3), -0.5)
    classes[0, 1, 1], cosine[..., 1, 1] = value, similarity
    return {"similarity": cosine, "reference": classes}


def test_the_ten_most_similar_images_are_kept_each_once():
    metric = Purity(1, 1, classes=3)
    for i in range(6):
        metric.update(**image(0.1 * i, value=1))  # the first two of these are dropped
    for i in range(6):
        metric.update(**image(0.95 - 0.1 * i, value=2))
    assert metric.compute()["purity/class"] == pytest.approx(6 / 10)
    expected = sorted([0.1 * i for i in range(2, 6)] + [0.95 - 0.1 * i for i in range(6)])
    assert metric.kept[0, 0, :, 0].flip(0).tolist() == pytest.approx(expected)


def test_only_eligible_pixels_stand_for_a_prototype():
    similarity = torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.6, 0.5], [1.0, 1.0, 1.0]])
    eligible = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 0]], dtype=torch.bool)
    metric = Purity(1, 3, classes=3)
    metric.update(
        similarity=similarity[None, None, :, None],
        eligible=eligible[None, None, :, None],
        reference=torch.tensor([[[0, 1, 2]]]),
    )
    assert metric.kept[0, :, 0, 0].tolist() == pytest.approx([0.9, 0.5, -math.inf])
    assert metric.kept[0, :, 0, 1].tolist() == [0, 2, NONE]
    assert metric.usage.tolist() == [[2, 1, 0]]


def test_the_shuffled_control_keeps_the_classes_but_not_their_places():
    metric = Purity(1, 2, classes=4)
    for value in (1, 2):  # prototype 0 sees only 1, prototype 1 only 2
        for _ in range(10):
            batch = image(0.9, value)
            similarity = torch.full((1, 1, 2, 3, 3), -0.5)
            similarity[:, :, value - 1] = batch["similarity"][:, :, 0]
            metric.update(similarity=similarity, reference=batch["reference"])
    found = metric.compute()
    assert found["purity/class"] == 1
    assert found["purity_ami/class"] == pytest.approx(1, abs=1e-4)
    assert 0.5 <= found["purity_shuffled/class"] < 0.9
    assert found["purity_ami_shuffled/class"] < 0.5
    torch.testing.assert_close(metric.compute(), found)  # seeded


def purity_batch(images: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(images)
    return {
        "similarity": torch.rand(images, 2, 3, 6, 6, generator=generator),
        "eligible": torch.rand(images, 2, 3, 6, 6, generator=generator) < 0.2,
        "reference": torch.randint(3, (images, 6, 6), generator=generator),
    }


def purity(*batches: dict[str, Tensor]) -> dict[str, Tensor]:
    metric = Purity(2, 3, classes=3)
    for batch in batches:
        metric.update(**batch)
    return metric.compute()


def test_purity_of_batches_is_that_of_one_batch():
    batches = [purity_batch(images) for images in (1, 14, 0, 5)]
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    expected = purity(whole)
    assert all(value.isfinite() for value in expected.values())
    torch.testing.assert_close(purity(*batches), expected)
    assert all(value.isnan() for value in purity(purity_batch(0)).values())


def test_purity_of_two_processes_is_that_of_one():
    mine, theirs = Purity(2, 3, classes=3), Purity(2, 3, classes=3)
    mine.update(**purity_batch(9))
    theirs.update(**purity_batch(8))
    by_shape = {state.shape: state for state in (theirs.kept, theirs.usage)}
    mine.distributed_available_fn = lambda: True
    mine.dist_sync_fn = lambda state, group: [state, by_shape[state.shape]]
    torch.testing.assert_close(mine.compute(), purity(purity_batch(9), purity_batch(8)))
    mine.update(**purity_batch(2))  # its own state is back, and goes on
    expected = purity(purity_batch(9), purity_batch(2), purity_batch(8))
    torch.testing.assert_close(mine.compute(), expected)


def test_wrong_arguments_of_usage_and_purity_are_named():
    with pytest.raises(ValueError, match="`kernels` is 0, expected at least 1"):
        PrototypeUsage(["Ada"], kernels=0)
    with pytest.raises(ValueError, match=r"`within` has shape .*, expected \[B=1, N=2, K=2, H, W"):
        PrototypeUsage(NAMES, kernels=2).update(within=torch.zeros(1, 2, 3, 4, 4))
    with pytest.raises(ValueError, match="`classes` is 0, expected at least 1"):
        Purity(1, 1, classes=0)
    with pytest.raises(ValueError, match="`reference` has the class 2, expected 0 to 1, or 255"):
        Purity(1, 1, classes=2).update(**image(0.9, value=2))
    batch = image(0.9, value=1)
    batch["reference"] = batch["reference"][:, :2, :2]
    with pytest.raises(ValueError, match=r"`reference` has shape \[1, 2, 2\], expected \[B=1, H=3"):
        Purity(1, 1, classes=2).update(**batch)
