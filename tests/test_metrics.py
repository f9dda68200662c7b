from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from tax_lightning.metrics import segmentation_metrics

ANNOTATORS = ("Ada", "Ben", "Cem")
CLASSES = ("background", "disc", "cup")
KERNELS = 4
KEYS = {
    *(f"dice/{name}" for name in (*ANNOTATORS, "mean")),
    *(f"fused_{kind}/{name}" for kind in ("dice", "iou") for name in (*CLASSES[1:], "mean")),
    "ged2",
    *(f"who_{kind}_d1" for kind in ("accuracy", "chance")),
    *(f"who_{kind}_owner" for kind in ("accuracy", "ceiling", "chance")),
    *(f"prototype_usage/{name}" for name in (*ANNOTATORS, "mean")),
    *(f"relative_area_{side}/{name}" for side in ("true", "predicted") for name in ANNOTATORS),
    "relative_area_spearman",
    "relative_area_error",
}


def make_batch(images: int, seed: int) -> dict[str, Tensor]:
    """Random inputs of all metrics, with absent annotators and unknown pixels."""
    generator = torch.Generator().manual_seed(seed)

    def labels(*shape: int) -> Tensor:
        return torch.randint(3, (images, *shape, 6, 6), generator=generator)

    masks, reference, owner = labels(3), labels(), labels()
    masks[:, :, :1], reference[:, :, :1], owner[:, 1:2] = 255, 255, 255
    present = torch.rand(images, 3, generator=generator) < 0.8
    who = torch.randn(images, 3, 6, 6, generator=generator).softmax(1)
    within = torch.randn(images, 3, KERNELS, 6, 6, generator=generator).softmax(2)
    return {
        "prediction": labels(),
        "annotator_prediction": labels(3),
        "masks": masks.masked_fill(~present[:, :, None, None], 255),
        "present": present,
        "reference": reference,
        "who": who,
        "owner": owner,
        "within": within,
    }


def results(*batches: dict[str, Tensor]) -> dict[str, Tensor]:
    metrics = segmentation_metrics(ANNOTATORS, CLASSES, KERNELS)
    for batch in batches:
        metrics.update(**batch)
    return metrics.compute()


SHARDS = ((5,), (2, 1))  # images of each batch of each process


def shard(rank: int) -> list[dict[str, Tensor]]:
    return [make_batch(images, seed=10 * rank + i) for i, images in enumerate(SHARDS[rank])]


def reduce_in_process(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=Path(folder, "rendezvous").as_uri(), rank=rank, world_size=2
    )
    torch.save(results(*shard(rank)), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.timeout(120)
def test_two_processes_give_the_result_of_one(tmp_path):
    spawn(reduce_in_process, args=(str(tmp_path),), nprocs=2)
    expected = results(*shard(0), *shard(1))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_batches_give_the_result_of_one_batch():
    batches = [make_batch(images, seed=images) for images in (1, 4, 2)]
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    found = results(*batches)
    assert set(found) == KEYS
    assert all(value.isfinite() for value in found.values())
    torch.testing.assert_close(found, results(whole), rtol=1e-5, atol=1e-6)


def test_prefix_reset_and_forward():
    metrics = segmentation_metrics(ANNOTATORS, CLASSES, KERNELS).clone(prefix="val/")
    batch = make_batch(3, seed=0)
    values = metrics(**batch)
    assert set(values) == {f"val/{name}" for name in KEYS}
    metrics.reset()
    metrics.update(**batch)
    torch.testing.assert_close(metrics.compute(), values, equal_nan=True)


def test_what_the_data_lack_is_nan_and_the_rest_is_not():
    batch = make_batch(4, seed=1)
    del batch["reference"], batch["owner"]
    missing = {name for name, value in results(batch).items() if value.isnan()}
    assert missing == {name for name in KEYS if name.startswith(("fused_", "who_"))}


def test_metrics_without_a_case_yet_stay_apart():
    # In the first batch nobody disagrees, so that both "who" metrics hold the same zeros.
    first, second = make_batch(2, seed=2), make_batch(2, seed=3)
    first["masks"] = torch.zeros_like(first["masks"])
    found = results(first, second)
    assert found["who_chance_d1"].isfinite()
    assert found["who_accuracy_d1"] != found["who_accuracy_owner"]
