from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tax_lightning.metrics.purity import (
    Purity,
    attribute_information,
    events,
    prototype_consistency,
    prototype_purity,
)

NONE = 255
KINDS = ("purity", "purity_ami", "consistency")


def test_events_by_hand():
    #                       agree  miss add other unlabelled unknown agree
    masks = torch.tensor([[[[1, 0, 2, 2, 255, 1, 0]], [[2, 2, 0, 1, 0, 0, 0]]]])
    reference = torch.tensor([[[1, 1, 0, 1, 1, 255, 0]]])
    expected = [[[[0, 1, 2, 3, NONE, NONE, 0]], [[3, 3, 0, 0, 1, NONE, 0]]]]
    assert events(masks, reference).tolist() == expected
    assert events(masks.byte(), reference.byte()).tolist() == expected


def test_purity_by_hand():
    values = torch.tensor([[[0, 0, 1, NONE], [3, 3, 3, 3]], [[NONE] * 4, [1, 2, 0, 3]]])
    usage = torch.tensor([[3, 1], [50, 4]])  # 2/3, 1, nothing known, 1/4
    assert prototype_purity(values, usage) == pytest.approx((3 * 2 / 3 + 1 + 4 / 4) / 8)
    assert prototype_purity(values, torch.tensor([[0, 0], [50, 0]])).isnan()


def test_information_by_hand():
    assert attribute_information(torch.tensor([[[4, 4]], [[2, 2]]])) == pytest.approx(1)
    # Each prototype has one of each value: no information, less than chance has (1/3 of log 2):
    # (0 - log(2) / 3) / (log 2 - log(2) / 3)
    assert attribute_information(torch.tensor([[[0, 1], [0, 1]]])) == pytest.approx(-0.5, abs=1e-5)
    # pixels without a value do not count
    values = torch.tensor([[[0, 1, NONE], [0, NONE, 1]]])
    assert attribute_information(values) == pytest.approx(-0.5, abs=1e-5)
    assert attribute_information(torch.tensor([[[3, 3], [3, 3]]])) == 0
    assert attribute_information(torch.tensor([[[0, NONE], [1, NONE]]])).isnan()
    assert attribute_information(torch.full((1, 2, 3), NONE)).isnan()


def test_consistency_by_hand():
    values = torch.zeros(1, 4, 6, dtype=torch.long)
    near = torch.zeros(1, 4, 6, 2, dtype=torch.bool)
    near[0, 0, :5, 1] = True  # 5 of 6: consistent
    near[0, 1, :4, 0] = near[0, 1, 2:, 1] = True  # 4 of 6 and 4 of 6: not
    values[0, 2, 5], near[0, 2, 1:, 0] = NONE, True  # 4 of 5 that are known: consistent
    values[0, 3, 4:], near[0, 3] = NONE, True  # too few images
    assert prototype_consistency(values, near) == pytest.approx(2 / 3)
    assert prototype_consistency(values[:, 3:], near[:, 3:]).isnan()


def image(similarity: float, value: int, size: int = 3) -> dict:
    """An image that shows ``value`` at its one pixel that is similar to the only prototype."""
    maps = torch.full((1, size, size), 0)
    maps[0, 1, 1] = value
    cosine = torch.full((1, 1, 1, size, size), -0.5)
    cosine[..., 1, 1] = similarity
    return {"similarity": cosine, "attributes": {"class": maps}}


def test_the_ten_most_similar_images_are_kept_each_once():
    metric = Purity(1, 1, {"class": 3})
    for i in range(6):
        metric.update(**image(0.1 * i, value=1))  # the first two of these are dropped
    for i in range(6):
        metric.update(**image(0.95 - 0.1 * i, value=2))
    result = metric.compute()
    assert result["purity/class"] == pytest.approx(6 / 10)
    expected = sorted([0.1 * i for i in range(2, 6)] + [0.95 - 0.1 * i for i in range(6)])
    assert metric.kept[0, 0, :, 0].flip(0).tolist() == pytest.approx(expected)


def test_only_eligible_pixels_stand_for_a_prototype():
    #              3 pixels: classes 0, 1, 2
    similarity = torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.6, 0.5], [1.0, 1.0, 1.0]])
    eligible = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 0]], dtype=torch.bool)
    labels = torch.tensor([[[0, 1, 2]]])
    metric = Purity(1, 3, {"class": 3})
    metric.update(
        similarity=similarity[None, None, :, None],
        eligible=eligible[None, None, :, None],
        attributes={"class": labels},
    )
    assert metric.kept[0, :, 0, 0].tolist() == pytest.approx([0.9, 0.5, -math.inf])
    assert metric.kept[0, :, 0, 1].tolist() == [0, 2, NONE]
    assert metric.usage.tolist() == [[2, 1, 0]]


def test_an_attribute_may_differ_by_annotator_and_be_unknown():
    similarity = torch.tensor([0.1, 0.9]).expand(1, 2, 1, 1, 2)
    metric = Purity(2, 1, {"event": 4, "class": 2})
    metric.update(
        similarity=similarity, attributes={"event": torch.tensor([[[[0, 3]], [[1, NONE]]]])}
    )
    assert metric.kept[:, 0, 0, 1].tolist() == [3, NONE]
    result = metric.compute()
    assert result["purity/event"] == 1
    assert result["purity/class"].isnan()  # the batch lacked it


def test_near_is_a_box_of_a_sixth_of_the_side():
    side = 50  # 0.16 of it is 8
    counted = {}
    for offset in (8, 9):
        metric = Purity(1, 1, {"class": 2})
        for _ in range(5):
            labels = torch.zeros(1, side, 2 * side, dtype=torch.long)
            labels[0, 20 + offset, 30 - 2 * offset] = 1
            cosine = torch.zeros(1, 1, 1, side, 2 * side)
            cosine[..., 20, 30] = 1
            metric.update(similarity=cosine, attributes={"class": labels})
        counted[offset] = metric.kept[0, 0, :5, 3].tolist()
    assert counted == {8: [1] * 5, 9: [0] * 5}


@settings(max_examples=20)
@given(
    hnp.arrays(np.int64, (2, 2, 13, 7), elements=st.sampled_from([0, 1, 2, NONE])),
    hnp.arrays(np.float32, (2, 2, 2, 13, 7), elements=st.floats(-1, 1, width=32)),
)
def test_near_is_what_a_search_of_the_box_finds(labels, similarity):
    metric = Purity(2, 2, {"class": 3})
    metric.update(
        similarity=torch.from_numpy(similarity), attributes={"class": torch.from_numpy(labels)}
    )
    down, right = 2, 1  # 0.16 * 13 and 0.16 * 7
    found = []
    for b in range(2):
        for n in range(2):
            for k in range(2):
                y, x = divmod(int(similarity[b, n, k].argmax()), 7)
                box = labels[
                    b, n, max(0, y - down) : y + down + 1, max(0, x - right) : x + right + 1
                ]
                row = [similarity[b, n, k, y, x], labels[b, n, y, x]]
                found.append((n, k, (*row, *(float((box == v).any()) for v in range(3)))))
    for n in range(2):
        for k in range(2):
            expected = sorted(row for m, j, row in found if (m, j) == (n, k))
            assert sorted(map(tuple, metric.kept[n, k, :2].tolist())) == expected


def test_the_shuffled_control_keeps_the_values_but_not_their_places():
    metric = Purity(1, 2, {"class": 4})
    for value in (1, 2):  # prototype 0 sees only 1, prototype 1 only 2
        for _ in range(10):
            batch = image(0.9, value)
            similarity = torch.full((1, 1, 2, 3, 3), -0.5)
            similarity[:, :, value - 1] = batch["similarity"][:, :, 0]
            metric.update(similarity=similarity, attributes=batch["attributes"])
    result = metric.compute()
    assert result["purity/class"] == 1
    assert result["purity_ami/class"] == pytest.approx(1, abs=1e-4)
    assert 0.5 <= result["purity_shuffled/class"] < 0.9
    assert result["purity_ami_shuffled/class"] < 0.5
    torch.testing.assert_close(metric.compute(), result)  # seeded


def test_a_value_that_is_everywhere_makes_the_control_consistent_too():
    metric = Purity(1, 1, {"class": 2})
    for _ in range(5):
        metric.update(**image(0.9, value=0))
    result = metric.compute()
    assert result["consistency/class"] == result["consistency_shuffled/class"] == 1


def make_batch(images: int, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(3, (images, 2, 6, 6), generator=generator)
    reference = torch.randint(3, (images, 6, 6), generator=generator)
    return {
        "similarity": torch.rand(images, 2, 3, 6, 6, generator=generator),
        "eligible": torch.rand(images, 2, 3, 6, 6, generator=generator) < 0.2,
        "attributes": {"class": reference, "event": events(masks, reference)},
    }


def results(*batches: dict) -> dict[str, Tensor]:
    metric = Purity(2, 3, {"class": 3, "event": 4})
    for batch in batches:
        metric.update(**batch)
    return metric.compute()


def joined(*batches: dict) -> dict:
    whole = {name: torch.cat([b[name] for b in batches]) for name in ("similarity", "eligible")}
    names = batches[0]["attributes"]
    maps = {name: torch.cat([b["attributes"][name] for b in batches]) for name in names}
    return whole | {"attributes": maps}


def test_batches_give_the_result_of_one_batch_and_forward_too():
    batches = [make_batch(images, seed=images) for images in (1, 14, 0, 5)]
    expected = results(joined(*batches))
    assert set(expected) == {
        f"{kind}{shuffled}/{name}"
        for kind in KINDS
        for shuffled in ("", "_shuffled")
        for name in ("class", "event")
    }
    assert all(value.isfinite() for value in expected.values())
    torch.testing.assert_close(results(*batches), expected)
    metric = Purity(2, 3, {"class": 3, "event": 4})
    for batch in batches:
        metric(**batch)
    torch.testing.assert_close(metric.compute(), expected)
    metric.reset()
    metric.update(**make_batch(0, seed=0))
    assert all(value.isnan() for value in metric.compute().values())


def test_two_processes_give_the_result_of_one():
    mine, theirs = Purity(2, 3, {"class": 3, "event": 4}), Purity(2, 3, {"class": 3, "event": 4})
    mine.update(**make_batch(9, seed=0))
    theirs.update(**make_batch(9, seed=1))
    by_shape = {state.shape: state for state in (theirs.kept, theirs.usage)}
    mine.distributed_available_fn = lambda: True
    mine.dist_sync_fn = lambda state, group: [state, by_shape[state.shape]]
    expected = results(make_batch(9, seed=0), make_batch(9, seed=1))
    torch.testing.assert_close(mine.compute(), expected)
    mine.dist_sync_fn = lambda state, group: [by_shape[state.shape], state]
    mine.update(**make_batch(2, seed=2))  # its own state is back, and goes on
    expected = results(make_batch(9, seed=1), make_batch(9, seed=0), make_batch(2, seed=2))
    torch.testing.assert_close(mine.compute(), expected)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="`kernels` is 0, expected at least 1"):
        Purity(1, 0, {"class": 2})
    with pytest.raises(ValueError, match="`event` is 0, expected at least 1"):
        Purity(1, 1, {"event": 0})
    metric = Purity(1, 1, {"class": 2})
    with pytest.raises(ValueError, match="attribute 'class' has the value 2, expected 0 to 1, or"):
        metric.update(**image(0.9, value=2))
    batch = image(0.9, value=1)
    with pytest.raises(ValueError, match=r"attribute 'event' is not among \['class'\]"):
        metric.update(similarity=batch["similarity"], attributes={"event": torch.zeros(1, 3, 3)})
    with pytest.raises(ValueError, match=r"`class` has shape \[1, 2, 2\], expected \[B=1, H=3"):
        metric.update(similarity=batch["similarity"], attributes={"class": torch.zeros(1, 2, 2)})
    with pytest.raises(ValueError, match=r"`usage` has shape \[1\], expected \[N=1, K=2\]"):
        prototype_purity(torch.zeros(1, 2, 3), torch.zeros(1))
