from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from tax_lightning.metrics import segmentation_metrics

ANNOTATORS = ("Ada", "Ben", "Cem")
CLASSES = ("background", "disc", "cup")
KERNELS = 4
KEYS = {
    *(f"dice/{name}" for name in (*ANNOTATORS, "mean")),
    *(f"fused_{kind}/{name}" for kind in ("dice", "iou") for name in (*CLASSES[1:], "mean")),
    "ged2",
    *(f"who_{kind}_d1" for kind in ("accuracy", "chance", "ece")),
    *(f"who_{kind}_expert" for kind in ("accuracy", "ceiling", "chance", "ece")),
    *("who_agreement_lift", "who_entropy_disputed", "who_entropy_unanimous"),
    "majority_overrules_expert",
    *("prototypes_in_use", "prototypes_idle"),
    *(f"relative_area_{side}/{name}" for side in ("true", "predicted") for name in ANNOTATORS),
    "relative_area_spearman",
    "relative_area_error",
    *(f"dice_soft/{name}" for name in (*CLASSES[1:], "mean")),
    *(f"dice_max/{name}" for name in ("predictions", "annotators", "mean")),
    "dice_match",
    "ece_reference",
    "ece_annotators",
    *("dispute_auroc", "dispute_auroc_entropy", "dispute_ece", "dispute_predicted"),
    *("dispute_real", "hatched_though_disputed", "open_though_unanimous"),
    *("votes_error", "votes_error_constant", "dissent_predicted", "dissent_real"),
    *("dissent_ece", "dissent_brier", "dissent_brier_constant", "dissent_brier_table"),
    *(f"{kind}/{name}" for kind in ("votes", "weight") for name in ANNOTATORS),
    *("within_auc", "within_auc_constant", "within_auc_table", "within_auc_exchanged"),
}


DISPUTE = ("dispute_", "hatched_", "open_", "votes", "dissent_", "within_")


def make_metrics(**options) -> MetricCollection:
    return segmentation_metrics(ANNOTATORS, CLASSES, **{"kernels": KERNELS, "sets": True} | options)


def make_batch(images: int, seed: int) -> dict[str, Tensor]:
    """Random inputs of all metrics, with absent annotators and unknown pixels."""
    generator = torch.Generator().manual_seed(seed)

    def labels(*shape: int) -> Tensor:
        return torch.randint(3, (images, *shape, 6, 6), generator=generator)

    masks, reference, expert = labels(3), labels(), labels()
    masks[:, :, :1], reference[:, :, :1], expert[:, 1:2] = 255, 255, 255
    present = torch.rand(images, 3, generator=generator) < 0.8
    who = torch.randn(images, 3, 6, 6, generator=generator).softmax(1)
    reason = torch.randint(3 * KERNELS, (images, 6, 6), generator=generator)
    annotator_probs = torch.randn(images, 3, 3, 6, 6, generator=generator).softmax(2)
    return {
        "prediction": labels(),
        "annotator_prediction": labels(3),
        "masks": masks.masked_fill(~present[:, :, None, None], 255),
        "present": present,
        "reference": reference,
        "who": who,
        "expert": expert,
        "reason": reason,
        "probs": annotator_probs.mean(1),
        "annotator_probs": annotator_probs,
    }


def results(*batches: dict[str, Tensor], **options) -> dict[str, Tensor]:
    metrics = make_metrics(**options)
    for batch in batches:
        metrics.update(**batch)
    return metrics.compute()


def test_batches_give_the_result_of_one_batch():
    batches = [make_batch(images, seed=images) for images in (1, 4, 2)]
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    found = results(*batches)
    assert set(found) == KEYS
    assert all(value.isfinite() for value in found.values())
    torch.testing.assert_close(found, results(whole), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(make_batch(1, seed=0)))
def test_a_tensor_that_does_not_fit_the_others_is_named_by_each_metric(name):
    batch = make_batch(2, seed=0)
    batch[name] = batch[name][..., :2]
    for metric in make_metrics().values():
        given = metric._filter_kwargs(**batch)
        if name in given:
            with pytest.raises(ValueError, match=r"has shape .*, expected .*; pass tensors of one"):
                metric.update(**given)


def test_prefix_reset_and_forward():
    metrics = make_metrics().clone(prefix="val/")
    batch = make_batch(3, seed=0)
    values = metrics(**batch)
    assert set(values) == {f"val/{name}" for name in KEYS}
    metrics.reset()
    metrics.update(**batch)
    torch.testing.assert_close(metrics.compute(), values, equal_nan=True)


def test_what_the_data_lack_is_nan_and_the_rest_is_not():
    batch = make_batch(4, seed=1)
    del batch["reference"], batch["expert"]
    missing = {name for name, value in results(batch).items() if value.isnan()}
    of_the_truth = ("fused_", "who_", "ece_reference", "majority")
    expected = {name for name in KEYS if name.startswith(of_the_truth)}
    assert missing == expected - {"who_entropy_disputed", "who_entropy_unanimous"}


def test_absent_annotators_and_images_without_labels_do_not_count():
    batch, nothing = make_batch(3, seed=2), make_batch(3, seed=3)
    nothing["masks"][0] = 255
    nothing["present"][1:] = False
    nothing["reference"] = torch.full_like(nothing["reference"], 255)
    torch.testing.assert_close(results(batch, nothing), results(batch), equal_nan=True)


def test_empty_masks_met_by_empty_predictions_are_right():
    batch = make_batch(2, seed=6)
    for name in ("prediction", "annotator_prediction", "masks", "reference"):
        batch[name] = torch.zeros_like(batch[name])
    batch["annotator_probs"] = torch.eye(3)[0].view(1, 1, 3, 1, 1).expand(2, 3, 3, 6, 6)
    found = results(batch)
    right = ("dice/", "fused_dice/mean", "dice_soft/mean", "dice_max", "dice_match")
    assert all(found[name] == 1 for name in found if name.startswith(right))
    assert found["ged2"] == 0
    assert found["fused_dice/cup"].isnan()  # in neither map: no case


def test_samples_are_paired_with_nobody():
    batch = make_batch(4, seed=5)
    batch["annotator_prediction"] = torch.randint(3, (4, 16, 6, 6))
    batch["annotator_probs"] = torch.randn(4, 16, 3, 6, 6).softmax(2)
    found = results(batch, kernels=None, who=False, named=False)
    of_others = ("dice/", "relative_area", "weight/", "who_", "prototypes_", "majority_", *DISPUTE)
    assert set(found) == {name for name in KEYS if not name.startswith(of_others)}
    assert all(value.isfinite() for value in found.values())


def test_the_annotations_themselves_are_the_best_answer():
    masks = torch.randint(3, (4, 3, 6, 6))
    probs = torch.nn.functional.one_hot(masks, 3).movedim(-1, 2).float()
    batch = make_batch(4, seed=6) | {
        "prediction": masks[:, 0],
        "annotator_prediction": masks,
        "masks": masks,
        "present": torch.ones(4, 3, dtype=torch.bool),
        "reference": masks[:, 0],
        "probs": probs[:, 0],
        "annotator_probs": probs,
    }
    found = {name: float(value) for name, value in results(batch, who=False).items()}
    for name, value in found.items():
        if name in ("ged2", "ece_reference", "relative_area_error"):
            assert value == pytest.approx(0, abs=1e-6), name
        elif name.startswith(("dice", "fused")):
            assert value == pytest.approx(1), name
