"""The end of a training: kernels fitted to the end, annotators, dispute and trust calibrated."""

from __future__ import annotations

import pytest
import torch
from squares import QUIET, Squares, make_loader, make_module
from torch import Tensor

from tax_lightning.models.kernel_bank import KernelBank
from tax_lightning.modules.calibration import (
    HATCHED,
    PixelSample,
    calibrate_annotators,
    dispute_threshold,
    finish,
    fit_kernels,
    log_annotator_probs,
    sample_pixels,
    trust_cases,
)

pytestmark = QUIET


def pixels_of(bank: KernelBank, probs: Tensor | None = None, count: int = 4000) -> PixelSample:
    """Pixels with random features, one kernel an annotator, labels drawn from probabilities."""
    n, k, c = bank.bias.shape
    patches = torch.randn(count, bank.weight[0, 0, 0].numel())
    sample = PixelSample(
        patches,
        torch.zeros(count, n, k).log_softmax(dim=2),
        torch.zeros(count, n),
        torch.zeros(count, n, dtype=torch.long),
        torch.zeros(count, c, dtype=torch.bool),
        torch.arange(count) // (count // 10),
    )
    drawn_from = log_annotator_probs(bank, sample).exp() if probs is None else probs
    masks = torch.multinomial(drawn_from.flatten(0, 1), 1).view(count, n)
    return sample._replace(masks=masks)


# ---------------------------------------------------------------------- the sample


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return make_module().eval()


def test_sampled_pixels_are_those_that_the_network_decodes(module):
    sample, _ = sample_pixels(module, make_loader(Squares(3)))
    (batch,) = list(make_loader(Squares(3)))[:1]
    output = module.network(batch["image"].float())
    everywhere = output.log_annotator_probs.movedim((1, 2), (-2, -1)).flatten(0, 2)  # [P, N, C]
    found = log_annotator_probs(module.network.bank, sample)
    exact = {"compute_mode": "donot_use_mm_for_euclid_dist"}
    distance = torch.cdist(found.flatten(1), everywhere.flatten(1), **exact).min(dim=1)
    assert distance.values.max() < 1e-4
    labels = batch["masks"].movedim(1, -1).flatten(0, 2)
    assert (sample.masks == labels[distance.indices]).float().mean() > 0.95  # or one just like it


def test_half_of_the_pixels_are_disputed_and_the_draw_depends_on_the_images_alone(
    module, monkeypatch
):
    monkeypatch.setattr("tax_lightning.modules.calibration.MOST_PER_IMAGE", 100)
    sample, _ = sample_pixels(module, make_loader(Squares(6), batch_size=2))
    other, _ = sample_pixels(module, make_loader(Squares(6), batch_size=3))
    for mine, theirs in zip(sample, other, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert len(sample.image) == 600
    assert sample.disputed.float().mean() == 0.5


# ---------------------------------------------------------------------- the fit


def test_kernels_are_fitted_to_the_labels_and_the_best_of_others_is_kept():
    truth, bank = KernelBank(2, 1, 2, 4, 1), KernelBank(2, 1, 2, 4, 1)
    with torch.no_grad():
        truth.weight.mul_(4)
    training, held_out = pixels_of(truth), pixels_of(truth)
    before = loss_of(bank, held_out)
    reached = fit_kernels(bank, training, held_out)
    assert 0 < reached <= 1
    assert loss_of(bank, held_out) < loss_of(truth, held_out) + 0.01 < before
    kept = bank.weight.detach().clone()
    wrong = held_out._replace(masks=1 - held_out.masks)  # every step makes these worse
    assert fit_kernels(bank, training, wrong) < 0.2
    assert loss_of(bank, wrong) <= loss_of(bank_with(bank, kept), wrong) + 1e-6


def loss_of(bank: KernelBank, sample: PixelSample) -> float:
    own = log_annotator_probs(bank, sample).gather(2, sample.masks.unsqueeze(2))
    return float(-own.mean())


def bank_with(bank: KernelBank, weight: Tensor) -> KernelBank:
    other = KernelBank(2, 1, 2, 4, 1)
    other.load_state_dict({"weight": weight, "bias": bank.bias.detach()})
    return other


def test_a_known_scale_and_offset_are_found_and_folded_into_the_kernels():
    bank = KernelBank(2, 2, 2, 4, 1)
    with torch.no_grad():
        bank.weight.mul_(4)
    sample = pixels_of(bank, count=20_000)
    # The labels are drawn from what the kernels would say at half the scale, shifted for Ben.
    known = {
        "scale": torch.tensor([0.5, 0.5]),
        "offset": torch.tensor([[0.0, 0.0], [-0.6, 0.6]]),
    }
    probs = log_annotator_probs(bank, sample, **known).exp()
    masks = torch.multinomial(probs.flatten(0, 1), 1).view(-1, 2)
    scale, offset = calibrate_annotators(bank, sample._replace(masks=masks))
    torch.testing.assert_close(scale, known["scale"], atol=0.05, rtol=0)
    torch.testing.assert_close(offset, known["offset"], atol=0.06, rtol=0)
    torch.testing.assert_close(log_annotator_probs(bank, sample).exp(), probs, atol=0.03, rtol=0)


# ---------------------------------------------------------------------- dispute and trust


def test_the_threshold_hatches_the_stated_share_of_what_is_clearly_disputed():
    bank = KernelBank(5, 1, 2, 4, 1)
    with torch.no_grad():
        bank.weight.mul_(4)
    sample = pixels_of(bank)
    threshold = dispute_threshold(bank, sample)
    probs = log_annotator_probs(bank, sample).exp()
    same = probs.sum(1).square() - probs.square().sum(1)
    d = 1 - same.sum(1) / 20
    cells = (sample.masks == 1).sum(1)
    clear = (cells >= 2) & (cells <= 3)
    assert (d[clear] < threshold).float().mean() == pytest.approx(HATCHED, abs=0.01)


def test_cases_of_trust_by_hand():
    """One right, a tie that counts half to each side, all right, one who did not label."""
    masks = torch.tensor([[1, 0, 0], [1, 0, 255], [1, 1, 1], [255, 0, 1]])
    right = torch.tensor([[False, True], [True, True], [False, True], [False, True]])
    sample = PixelSample(
        torch.zeros(4, 1),
        torch.zeros(4, 3, 1),
        torch.arange(12.0).view(4, 3),
        masks,
        right,
        torch.arange(4),
    )
    cases = trust_cases(sample)
    assert cases.image.tolist() == [0, 1, 1, 3]
    assert cases.weight.tolist() == [1, 0.5, 0.5, 1]
    assert cases.right.tolist() == [
        [True, False, False],
        [False, True, False],
        [True, False, False],
        [False, False, True],
    ]
    assert cases.evidence[0].tolist() == [0, 1, 2]
    assert cases.evidence[3].tolist() == [-torch.inf, 10, 11]


# ---------------------------------------------------------------------- all of it


def test_the_end_is_told_in_words_and_lowers_the_loss(module):
    calibration = finish(module, make_loader(), make_loader(Squares(4)))
    before, fitted, calibrated = calibration.loss
    assert calibrated <= fitted < before
    words = calibration.words(module.annotators, module.classes)
    assert f"{before:.3f} as trained" in words
    assert "Dr. C: scale" in words
    assert f"Kept: {module.network.trust.kind}." in words


def test_without_validation_images_annotators_are_not_calibrated():
    module = make_module().eval()
    assert finish(module, make_loader(), []) is None
    assert module.network.dispute_threshold == pytest.approx(0.1)


def test_annotators_to_keep_stay_bit_for_bit():
    module = make_module().eval()
    before = module.network.bank.weight.detach().clone()
    finish(module, make_loader(), make_loader(Squares(4)), keep=2)
    after = module.network.bank.weight
    assert torch.equal(after[:2], before[:2])
    assert not torch.equal(after[2], before[2])
    assert module.network.trust.scores.isnan().all()


def test_where_nobody_is_known_to_be_right_all_weigh_the_same():
    module = make_module(reference="none").eval()
    finish(module, make_loader(), make_loader(Squares(4)))
    assert module.network.trust.kind == "uniform"
