from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tax_lightning.metrics import RelativeArea, relative_area
from tax_lightning.metrics.tendency import rank_agreement

NAMES = ("Ada", "Ben", "Cem")
EVERYONE = torch.ones(1, 3, dtype=torch.bool)


def areas(*sizes: int) -> torch.Tensor:
    """One image with as many foreground pixels an annotator ``[1, N, 1, 8]``, of both classes."""
    line = torch.arange(8)
    return torch.stack([(line < size) * (1 + line % 2) for size in sizes])[None, :, None]


def everywhere(labels: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(labels, dtype=torch.bool)


def test_relative_area_by_hand():
    labels = areas(2, 4, 6)
    torch.testing.assert_close(
        relative_area(labels, everywhere(labels)), torch.tensor([[0.5, 1.0, 1.5]])
    )


def test_absent_annotators_and_ignored_pixels_do_not_count():
    labels = areas(2, 4, 8)
    counted = everywhere(labels)
    counted[:, 2] = False
    counted[:, 1, :, 3:] = False
    found = relative_area(labels, counted)
    torch.testing.assert_close(found[0, :2], torch.tensor([2 / 2.5, 3 / 2.5]))
    assert found[0, 2].isnan()


def test_an_image_without_foreground_is_left_out():
    labels = torch.cat([areas(0, 0, 0), areas(0, 2, 4)])
    found = relative_area(labels, everywhere(labels))
    assert found[0].isnan().all()
    assert found[1].tolist() == [0, 1, 2]


def test_metric_by_hand():
    metric = RelativeArea(NAMES)
    masks = torch.cat([areas(2, 4, 6), areas(0, 0, 0), areas(2, 2, 8)])
    predicted = torch.cat([areas(4, 4, 4), areas(0, 3, 6), areas(1, 5, 7)])
    present = torch.tensor([[True, True, True], [True, True, True], [True, True, False]])
    masks[2, 2] = 255
    metric.update(annotator_prediction=predicted, masks=masks, present=present)
    result = {name: float(value) for name, value in metric.compute().items()}
    true = [(0.5 + 1) / 2, (1 + 1) / 2, 1.5]  # the second image has no foreground in the masks
    found = [(1 + 0 + 1 / 3) / 3, (1 + 1 + 5 / 3) / 3, (1 + 2) / 2]
    assert result == {
        **{f"relative_area_true/{name}": pytest.approx(true[n]) for n, name in enumerate(NAMES)},
        **{
            f"relative_area_predicted/{name}": pytest.approx(found[n])
            for n, name in enumerate(NAMES)
        },
        "relative_area_spearman": pytest.approx(1, abs=1e-5),
        "relative_area_error": pytest.approx(np.abs(np.subtract(true, found)).mean()),
    }


def test_reversed_tendencies_have_correlation_minus_one():
    metric = RelativeArea(NAMES)
    metric.update(annotator_prediction=areas(6, 4, 2), masks=areas(1, 4, 7), present=EVERYONE)
    assert metric.compute()["relative_area_spearman"] == pytest.approx(-1, abs=1e-5)


@pytest.mark.parametrize(
    ("predicted", "true"),
    [
        ([1.0, 2.0], [1.0, 2.0]),  # too few
        ([1.0, 2.0, torch.nan], [1.0, 2.0, 3.0]),  # too few on both sides
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]),  # all equal
        ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]),
        ([], []),
    ],
)
def test_rank_agreement_without_a_case(predicted, true):
    assert rank_agreement(torch.tensor(predicted), torch.tensor(true)).isnan()


def test_nan_without_a_case():
    metric = RelativeArea(NAMES)
    empty = areas(0, 0, 0)
    metric.update(annotator_prediction=empty, masks=empty, present=EVERYONE)
    nobody = torch.zeros_like(EVERYONE)
    metric.update(annotator_prediction=areas(1, 2, 3), masks=areas(1, 2, 3), present=nobody)
    assert all(value.isnan() for value in metric.compute().values())


@settings(max_examples=50)
@given(hnp.arrays(np.int64, (2, 3, 2, 3), elements=st.integers(0, 2)))
def test_relative_areas_average_to_one(labels):
    labels = torch.from_numpy(labels)
    found = relative_area(labels, everywhere(labels))
    drawn = (labels > 0).flatten(1).any(1)
    assert (found[drawn] >= 0).all()
    torch.testing.assert_close(found[drawn].mean(1), torch.ones(int(drawn.sum())))
    assert found[~drawn].isnan().all()


def test_wrong_shapes_are_named():
    metric = RelativeArea(NAMES)
    with pytest.raises(
        ValueError, match=r"`annotator_prediction` has shape \[1, 2, 1, 8\], expected \[B=1, N=3"
    ):
        metric.update(annotator_prediction=areas(1, 2), masks=areas(1, 2, 3), present=EVERYONE)
    with pytest.raises(ValueError, match=r"`masks` has shape \[1, 2, 1, 8\], expected \[B=1, N=3"):
        metric.update(annotator_prediction=areas(1, 2), masks=areas(1, 2), present=EVERYONE)
