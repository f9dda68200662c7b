from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tax_lightning.explanation import Example, PrototypeSource
from tax_lightning.metrics.probes import patch_insertion, prototype_integrity


def source(y: int, x: int, kernel: int = 0, sample_id: str = "a", active: bool = True):
    pixel = Example("cell", sample_id, y, x, 0.9) if sample_id else None
    return PrototypeSource("Ana", kernel, active, pixel, ())


class Reader:
    """Images whose pixels are their embeddings, and a count of what was read and encoded."""

    def __init__(self, **images: Tensor) -> None:
        self.images = images
        self.read_ids: list[str] = []
        self.passes = 0

    def __call__(self, sample_id: str) -> Tensor:
        self.read_ids.append(sample_id)
        return self.images[sample_id]

    def output_of(self, images: Tensor) -> SimpleNamespace:
        self.passes += 1
        assert images.shape[0] == 1
        assert not torch.is_grad_enabled()
        return SimpleNamespace(embedding=F.normalize(images, dim=1))


def test_prototype_integrity_encodes_each_image_once_and_skips_what_has_no_source():
    a, b = torch.zeros(2, 3, 4), torch.zeros(2, 5, 2)
    a[:, 0, 3], a[:, 2, 1], b[:, 4, 0] = (
        torch.tensor([1.0, 0.0]),
        torch.tensor([0.6, 0.8]),
        torch.tensor([0.0, 1.0]),
    )
    reader = Reader(a=a, b=b)
    sources = [
        [source(0, 3), source(4, 0, 1, "b"), source(0, 0, 2, "gone", active=False)],
        [source(2, 1), source(-1, -1, 1, ""), source(0, 3, 2)],
    ]
    vectors = torch.tensor([1.0, 0.0]).repeat(2, 3, 1)
    result = prototype_integrity(reader.output_of, sources, vectors, reader)
    cosines = [1, 0, 0.6, 1]
    assert result == pytest.approx({"integrity_min": 0, "integrity_mean": sum(cosines) / 4})
    assert sorted(reader.read_ids) == ["a", "b"]
    assert reader.passes == 2


def test_prototype_integrity_names_what_does_not_fit():
    reader = Reader(a=torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match=r"is pixel \(3, 0\) of 'a', which has 3 x 4 pixels"):
        prototype_integrity(reader.output_of, [[source(3, 0)]], torch.ones(1, 1, 2), reader)
    with pytest.raises(
        ValueError,
        match=r"rows of length \[1\], expected as many as `unit_vectors`, of shape \[1, 2, 2",
    ):
        prototype_integrity(reader.output_of, [[source(0, 0)]], torch.ones(1, 2, 2), reader)


def bright_if_all_around_is(reach: int):
    """A model of 2 annotators with 2 kernels: (1, 0) wins where a box of pixels is bright."""

    def output_of(images: Tensor) -> SimpleNamespace:
        darkest = -F.max_pool2d(-images[:, :1], 2 * reach + 1, stride=1, padding=reach)
        bright = darkest.squeeze(1).clamp(0.01, 0.99)
        who = torch.stack([1 - bright, bright], dim=1)
        within = (
            torch.tensor([0.9, 0.1]).view(1, 1, 2, 1, 1).expand(*who.shape[:2], 2, *who.shape[2:])
        )
        return SimpleNamespace(log_who=who.log(), within=within)

    return output_of


BRIGHT = [
    [source(0, 0, 0, ""), source(0, 0, 1, "")],
    [source(20, 20), source(20, 20, 1, active=False)],
]


def test_the_share_of_prototypes_that_win_where_their_patch_is_pasted():
    images = {"a": torch.zeros(1, 40, 40), "b": torch.zeros(1, 40, 40)}
    images["a"][:, 10:30, 10:30] = 1
    sources = [
        [source(5, 5), source(0, 0, 1, "")],
        [source(20, 20), source(5, 5, 1, "b", active=False)],
    ]
    dark = torch.zeros(3, 1, 40, 40)
    arguments = (bright_if_all_around_is(3), sources, images.__getitem__, dark)
    found = patch_insertion(*arguments, sizes=(8, 4, 41))
    assert found["insertion_8"] == 1
    assert found["insertion_4"] == 1 / 2  # the model sees the dark around the bright one's patch
    assert math.isnan(found["insertion_41"])  # fits no image
    assert math.isnan(found["insertion_41_random"])


def test_the_control_loses_where_only_the_source_carries_the_reason():
    bright = torch.zeros(1, 40, 40)
    bright[:, 17:24, 17:24] = 1
    arguments = (bright_if_all_around_is(3), BRIGHT, lambda sample_id: bright)
    result = patch_insertion(*arguments, torch.zeros(20, 1, 30, 30), sizes=(8,), seed=1)
    assert result == {"insertion_8": 1, "insertion_8_random": 0}
    with_other_kernel = [BRIGHT[0], [BRIGHT[1][1], source(20, 20, 1)]]  # (1, 1) never wins
    result = patch_insertion(
        arguments[0], with_other_kernel, *arguments[2:], torch.zeros(2, 1, 9, 9), (8,)
    )
    assert result == {"insertion_8": 0, "insertion_8_random": 0}


@pytest.mark.parametrize(("y", "x"), [(0, 0), (0, 39), (39, 39), (1, 20)])
def test_a_patch_at_the_border_is_moved_inside_and_judged_at_the_source_pixel(y, x):
    image = torch.zeros(1, 40, 40)
    image[:, y, x] = 1
    sources = [BRIGHT[0], [source(y, x), BRIGHT[1][1]]]
    result = patch_insertion(
        bright_if_all_around_is(0),
        sources,
        lambda sample_id: image,
        torch.zeros(9, 1, 20, 20),
        (16,),
    )
    assert result["insertion_16"] == 1


def test_insertion_leaves_the_images_alone_and_is_seeded():
    images, seen = torch.zeros(3, 1, 24, 24), []

    def output_of(batch: Tensor) -> SimpleNamespace:
        seen.append(batch.clone())
        return bright_if_all_around_is(0)(batch)

    def run(seed: int) -> Tensor:
        seen.clear()
        patch_insertion(output_of, BRIGHT, lambda _: torch.ones(1, 40, 40), images, (4,), seed)
        return torch.stack(seen)

    first, again, other = run(0), run(0), run(1)
    assert not images.any()
    assert (first.sum((-1, -2)) == 16).all()
    assert torch.equal(first[0], first[1])  # the control is pasted at the same places
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_insertion_names_what_does_not_fit():
    model, images = bright_if_all_around_is(0), torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match="`sizes` is 0, expected at least 1"):
        patch_insertion(model, BRIGHT, lambda _: torch.ones(1, 40, 40), images, sizes=(0,))
    with pytest.raises(ValueError, match=r"`read\(...\)` has shape \[3, 40, 40\], expected \[D=1"):
        patch_insertion(model, BRIGHT, lambda _: torch.ones(3, 40, 40), images)
    with pytest.raises(ValueError, match=r"pixel \(20, 20\) of 'a', which has 9 x 9 pixels"):
        patch_insertion(model, BRIGHT, lambda _: torch.ones(1, 9, 9), images)
