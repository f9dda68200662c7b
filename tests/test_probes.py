from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tax_lightning.explanation import PrototypeSource
from tax_lightning.metrics import probes
from tax_lightning.metrics.probes import (
    patch_insertion,
    prototype_insertion,
    prototype_integrity,
    stability,
)


def source(y: int, x: int, kernel: int = 0, sample_id: str = "a", active: bool = True):
    return PrototypeSource("Ana", kernel, sample_id, y, x, 0.9, "cell", active, ())


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
        return SimpleNamespace(log_who=who.log(), log_within=within.log())

    return output_of


BRIGHT = [
    [source(0, 0, 0, ""), source(0, 0, 1, "")],
    [source(20, 20), source(20, 20, 1, active=False)],
]


def test_insertion_of_each_prototype_adds_up_to_that_of_all():
    images = {"a": torch.zeros(1, 40, 40), "b": torch.zeros(1, 40, 40)}
    images["a"][:, 10:30, 10:30] = 1
    sources = [
        [source(5, 5), source(0, 0, 1, "")],
        [source(20, 20), source(5, 5, 1, "b", active=False)],
    ]
    dark = torch.zeros(3, 1, 40, 40)
    arguments = (bright_if_all_around_is(3), sources, images.__getitem__, dark)
    assert prototype_insertion(*arguments, size=8) == {(0, 0): 1.0, (1, 0): 1.0}
    small = prototype_insertion(*arguments, size=4)  # the model sees the dark around it
    assert small == {(0, 0): 1.0, (1, 0): 0.0}
    assert patch_insertion(*arguments, sizes=(4,))["insertion_4"] == sum(small.values()) / 2
    assert prototype_insertion(*arguments, size=41) == {}  # fits no image
    assert all(math.isnan(value) for value in patch_insertion(*arguments, sizes=(41,)).values())


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
    with pytest.raises(ValueError, match=r"`read\('a'\)` has shape \[3, 40, 40\], expected \[D=1"):
        patch_insertion(model, BRIGHT, lambda _: torch.ones(3, 40, 40), images)
    with pytest.raises(ValueError, match=r"pixel \(20, 20\) of 'a', which has 9 x 9 pixels"):
        patch_insertion(model, BRIGHT, lambda _: torch.ones(1, 9, 9), images)


def answers(*who: Tensor):
    """A model that gives these weights ``[B, N, H, W]``, one a call, with 2 kernels each."""
    calls = iter(who)

    def output_of(images: Tensor) -> SimpleNamespace:
        weights = next(calls)
        shares = torch.tensor([0.6, 0.4]).view(1, 1, 2, 1, 1)
        shares = shares.expand(*weights.shape[:2], 2, *weights.shape[2:])
        return SimpleNamespace(log_who=weights.log(), log_within=shares.log())

    return output_of


def line(*weights: tuple[float, ...]) -> Tensor:
    """Weights of the annotators at each pixel of a line, ``[N, 1, W]``."""
    return torch.tensor(weights).T[:, None]


A, B, C = (0.7, 0.2, 0.1), (0.2, 0.7, 0.1), (0.1, 0.2, 0.7)


def test_stability_by_hand():
    clean = torch.stack([line(A, A, A, B), line(B, B, B, B)])
    noisy = torch.stack([line(A, A, B, B), line(B, B, B, B)])
    result = stability(answers(clean, noisy), torch.zeros(2, 3, 1, 4))
    assert result["stability_top_kernel"] == pytest.approx(7 / 8)
    assert result["stability_who_distance"] == pytest.approx(0.5 / 8)
    # A leads 3 then 2 pixels, 2 of them both times; B 5 then 6; C nowhere, so it does not count
    assert result["stability_who_iou"] == pytest.approx((2 / 3 + 5 / 6) / 2)
    # with the other image: AAAB against BBBB, and BBBB against AABB
    assert result["stability_top_kernel_shuffled"] == pytest.approx(3 / 8)
    assert result["stability_who_distance_shuffled"] == pytest.approx(0.5 * 5 / 8)
    assert result["stability_who_iou_shuffled"] == pytest.approx((0 + 3 / 8) / 2)


def test_who_appears_on_one_side_only_counts_as_zero():
    result = stability(answers(line(A, A)[None], line(A, C)[None]), torch.zeros(1, 3, 1, 2))
    assert result["stability_who_iou"] == pytest.approx((1 / 2 + 0) / 2)
    shuffled = {name: value for name, value in result.items() if name.endswith("_shuffled")}
    assert len(shuffled) == 3
    assert all(math.isnan(value) for value in shuffled.values())  # there is no other image


def test_the_noise_is_normal_clipped_and_seeded(monkeypatch):
    images, seen = torch.rand(2, 3, 64, 64), []

    def output_of(batch: Tensor) -> SimpleNamespace:
        seen.append(batch)
        who = batch.softmax(1)
        return SimpleNamespace(log_who=who.log(), log_within=torch.zeros(2, 3, 1, 64, 64))

    first = stability(output_of, images)
    assert torch.equal(seen[0], images)
    noise = seen[1] - images
    assert noise.abs().max() == pytest.approx(0.25, abs=1e-6)
    assert noise.mean().abs() < 0.01
    share_clipped = 2 * (1 - 0.5 * (1 + math.erf(1.25 / math.sqrt(2))))  # beyond 1.25 deviations
    assert (noise.abs() > 0.2499).float().mean() == pytest.approx(share_clipped, abs=0.01)
    assert stability(output_of, images) == first
    assert stability(output_of, images, seed=1) != first
    assert 0.5 < first["stability_top_kernel"] < 1
    assert first["stability_top_kernel"] > first["stability_top_kernel_shuffled"] + 0.2
    monkeypatch.setattr(probes, "_NOISE", 0)
    exact = stability(output_of, images)
    assert exact["stability_top_kernel"] == exact["stability_who_iou"] == 1
    assert exact["stability_who_distance"] == 0
