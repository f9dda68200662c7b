"""The end of the training: pixels that are drawn, the last fit, and what is calibrated on them."""

import copy
import math
import re

import pytest
import torch
from squares import QUIET, Squares, images, make_loader, make_module
from torch import Tensor

from tax_lightning.consensus import disagreement
from tax_lightning.metrics import Dispute
from tax_lightning.models.kernel_bank import KernelBank
from tax_lightning.models.network import DISPUTE_THRESHOLD
from tax_lightning.modules import calibration
from tax_lightning.modules.calibration import (
    HATCHED,
    PixelSample,
    calibrate_annotators,
    dispute_threshold,
    finish,
    fit_kernels,
    kernel_logits,
    log_annotator_probs,
    sample_pixels,
    trust_cases,
)
from tax_lightning.modules.schedule import Schedule

pytestmark = QUIET


def module_of_squares():
    return make_module(schedule=Schedule(enabled=False))


def own_segmentations(bank: KernelBank, pixels: PixelSample) -> Tensor:
    return log_annotator_probs(kernel_logits(bank, pixels), pixels)


# ---------------------------------------------------------------------- pixels


@pytest.fixture
def _eight_of_each_image(monkeypatch):
    monkeypatch.setattr(calibration, "LEAST_PER_IMAGE", 8)
    monkeypatch.setattr(calibration, "MOST_PIXELS", 1)


@pytest.mark.usefixtures("_eight_of_each_image")
def test_half_of_the_pixels_are_disputed_and_the_draw_depends_on_the_image_alone():
    module = module_of_squares()
    (first,) = sample_pixels(module, make_loader(), ["disputed"])
    backwards = [Squares()[i] for i in reversed(range(12))]
    (second,) = sample_pixels(module, make_loader(backwards, batch_size=5), ["disputed"])
    for name, mine, other in zip(PixelSample._fields, first, second, strict=True):
        torch.testing.assert_close(mine, other, msg=name)
    for image in first.image.unique():
        assert (
            disagreement(first.at(first.image == image).masks).tolist() == [True] * 4 + [False] * 4
        )


@pytest.mark.usefixtures("_eight_of_each_image")
def test_an_even_draw_has_as_many_disputed_pixels_as_the_images(monkeypatch):
    monkeypatch.setattr(calibration, "MOST_PIXELS", 1)
    monkeypatch.setattr(calibration, "LEAST_PER_IMAGE", 400)
    disputed, even = sample_pixels(module_of_squares(), make_loader(), ["disputed", "even"])
    masks = torch.stack(Squares().masks)
    share = (masks.amax(1) > masks.amin(1)).float().mean().item()
    assert disagreement(even.masks).float().mean().item() == pytest.approx(share, abs=0.03)
    assert disagreement(disputed.masks).float().mean() > share + 0.1


@pytest.mark.usefixtures("_eight_of_each_image")
def test_pixels_that_nobody_labelled_are_not_drawn():
    absent = {i: [0, 1, 2] for i in range(10)} | {10: [0, 1]}
    loader = make_loader(Squares(absent=absent))
    (pixels,) = sample_pixels(module_of_squares(), loader, ["disputed"])
    assert len(pixels.image) == 4 + 8  # one annotator disputes nothing
    assert pixels.labelled.any(dim=1).all()


@torch.no_grad()
def test_a_pixel_holds_what_the_network_says_there(monkeypatch):
    module, where = module_of_squares(), []
    drawn = calibration._drawn
    monkeypatch.setattr(calibration, "_drawn", lambda *a: where.append(drawn(*a)) or where[-1])
    (pixels,) = sample_pixels(module, make_loader(Squares(2)), ["disputed"])
    output = module.network.eval()(images(2))

    def there(values: Tensor) -> Tensor:
        """Of ``[B, ..., H, W]`` the places that were drawn ``[M, ...]``."""
        flat = zip(values.flatten(-2), where, strict=True)
        return torch.cat([image[..., places].movedim(-1, 0) for image, places in flat])

    own = own_segmentations(module.network.bank, pixels)
    torch.testing.assert_close(own, there(output.log_annotator_probs), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pixels.log_who, there(output.log_who))
    torch.testing.assert_close(pixels.within, there(output.within))
    masks = there(torch.stack(Squares(2).masks))
    assert torch.equal(pixels.masks, masks)
    assert torch.equal(pixels.right.int().argmax(1), masks.mode(1).values)  # of three a majority


# ---------------------------------------------------------------------- the last fit


def make_bank(kernels: int = 1, classes: int = 2) -> KernelBank:
    bank = KernelBank(2, kernels, classes, channels=3, kernel_size=1)
    torch.nn.init.normal_(bank.weight)
    torch.nn.init.normal_(bank.bias, std=0.5)
    return bank


@torch.no_grad()
def labelled_by(bank: KernelBank, count: int) -> PixelSample:
    """Random pixels, labelled by chance as the kernels say."""
    annotators, kernels, classes = bank.bias.shape
    pixels = PixelSample(
        patches=torch.randn(count, 3),
        within=torch.randn(count, annotators, kernels).softmax(2),
        log_who=torch.randn(count, annotators).log_softmax(1),
        masks=torch.zeros(count, annotators).long(),
        right=torch.zeros(count, classes).bool(),
        image=torch.arange(count) % 4,
    )
    probs = own_segmentations(bank, pixels).exp()
    masks = torch.multinomial(probs.flatten(0, 1), 1).view(count, annotators)
    return pixels._replace(masks=masks)


def loss_of(bank: KernelBank, pixels: PixelSample) -> float:
    own = own_segmentations(bank, pixels)
    return -own.gather(2, pixels.masks.unsqueeze(2)).mean().item()


def test_the_fit_comes_close_to_the_kernels_that_labelled(monkeypatch):
    monkeypatch.setattr(calibration, "FIT_RATE", 0.1)
    truth, bank = make_bank(), make_bank()
    held_out = labelled_by(truth, 2000)
    before = loss_of(bank, held_out)
    fit_kernels(bank, labelled_by(truth, 2000), held_out)
    assert loss_of(bank, held_out) < before - 0.1
    assert loss_of(bank, held_out) == pytest.approx(loss_of(truth, held_out), abs=0.02)


def test_the_fit_with_the_smallest_held_out_loss_is_kept():
    truth = make_bank()
    held_out, training = labelled_by(truth, 500), labelled_by(truth, 500)
    wrong = training._replace(masks=1 - training.masks)
    bank = copy.deepcopy(truth)
    fit_kernels(bank, wrong, held_out)  # every step does harm
    assert torch.equal(bank.weight, truth.weight)
    fit_kernels(bank, wrong.at(slice(0)), held_out)  # nothing to learn from
    assert torch.equal(bank.weight, truth.weight)
    fit_kernels(bank, wrong, held_out.at(slice(0)))  # nobody can tell
    assert loss_of(bank, held_out) > loss_of(truth, held_out) + 0.03


# ---------------------------------------------------------------------- calibration


def test_a_known_scale_and_offset_are_found_again():
    truth, scale = make_bank(classes=3), torch.tensor([0.5, 3.0])
    offset = torch.tensor([[0.6, -0.2, -0.4], [0.0, 0.5, -0.5]])
    pixels, bank = labelled_by(truth, 40_000), copy.deepcopy(truth)
    with torch.no_grad():
        bank.bias.sub_(offset.unsqueeze(1)).div_(scale.view(-1, 1, 1))
        bank.weight.div_(scale.view(-1, 1, 1, 1, 1, 1))
    found_scale, found_offset = calibrate_annotators(bank, pixels)
    torch.testing.assert_close(found_scale, scale, rtol=0.05, atol=0)
    torch.testing.assert_close(found_offset, offset, rtol=0, atol=0.1)
    assert loss_of(bank, pixels) <= loss_of(truth, pixels) + 1e-4


def test_kernels_that_were_changed_say_what_the_scaled_ones_said():
    bank = make_bank(kernels=2, classes=3)
    pixels, before = labelled_by(make_bank(2, 3), 500), copy.deepcopy(bank)
    scale, offset = calibrate_annotators(bank, pixels)
    logits = kernel_logits(before, pixels) * scale.view(-1, 1, 1) + offset.unsqueeze(1)
    scaled = log_annotator_probs(logits, pixels)
    torch.testing.assert_close(own_segmentations(bank, pixels), scaled, atol=1e-5, rtol=1e-5)
    assert loss_of(bank, pixels) < loss_of(before, pixels)


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
def test_kernels_that_are_sure_and_wrong_stay_finite_and_get_no_worse(size):
    # The line search of LBFGS tries scales that overflow where they are not bounded.
    bank = make_bank(kernels=2, classes=3)
    pixels, before = labelled_by(make_bank(2, 3), 500), copy.deepcopy(bank)
    pixels = pixels._replace(patches=size * pixels.patches)
    scale, offset = calibrate_annotators(bank, pixels)
    assert ((scale >= 0.0999) & (scale <= 10.001)).all()
    assert offset.isfinite().all()
    assert loss_of(bank, pixels) <= loss_of(before, pixels)


@torch.no_grad()
@pytest.mark.parametrize("annotators", [3, 4])
def test_the_threshold_hatches_the_stated_share(annotators):
    bank = KernelBank(annotators, 1, 2, channels=3, kernel_size=1)
    pixels = labelled_by(bank, 5000)
    pixels.masks[::3, 0] = 255
    own = own_segmentations(bank, pixels).exp().permute(1, 2, 0)[None, :, :, None]
    metric = Dispute(dispute_threshold(bank, pixels))
    masks, present = pixels.masks.T[None, :, None], torch.ones(1, annotators).bool()
    metric.update(annotator_probs=own, probs=own.mean(1), masks=masks, present=present)
    assert metric.compute()["hatched_though_disputed"] == pytest.approx(HATCHED, abs=1e-3)
    alike = pixels._replace(masks=torch.ones_like(pixels.masks))
    assert dispute_threshold(bank, alike) == DISPUTE_THRESHOLD


def test_trust_cases_by_hand():
    #         one right, a tie, all alike, unknown, nobody right
    masks = [[1, 0, 0], [1, 0, 255], [1, 1, 1], [1, 0, 1], [1, 0, 0]]
    right = [[0, 1, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]]
    log_who = torch.randn(5, 3).log_softmax(1)
    empty = torch.zeros(5, 1)
    pixels = PixelSample(
        *(empty, empty, log_who, torch.tensor(masks), torch.tensor(right).bool()),
        image=torch.arange(5),
    )
    cases = trust_cases(pixels)
    first, second = log_who[0].tolist(), [*log_who[1, :2].tolist(), -math.inf]
    assert cases.evidence.tolist() == [first, second, second]
    # At the tie those who say 0 are right in one half, those who say 1 in the other.
    assert cases.right.int().tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert cases.weight.tolist() == [1, 0.5, 0.5]
    assert cases.image.tolist() == [0, 1, 1]


# ---------------------------------------------------------------------- all of it


@pytest.fixture
def _short(monkeypatch):
    monkeypatch.setattr(calibration, "FIT_STEPS", 20)


@pytest.mark.usefixtures("_short")
def test_everything_is_fitted_and_told():
    module = module_of_squares()
    words = finish(module, make_loader(), make_loader())
    kinds = ("as trained", "with the kernels", "calibrated")
    before, fitted, calibrated = (float(re.search(rf"([\d.]+) {kind}", words)[1]) for kind in kinds)
    assert calibrated < fitted < before
    (pixels,) = sample_pixels(module, make_loader(), ["even"])
    own = own_segmentations(module.network.bank, pixels)
    labels = pixels.masks.unsqueeze(2)
    assert -own.gather(2, labels).mean().item() == pytest.approx(calibrated, abs=1e-3)
    assert module.network.dispute_threshold != DISPUTE_THRESHOLD
    assert module.network.trust.scores.isfinite().all()
    assert re.search(r"\n  Dr. C: scale [\d.]+, offset background [+-][\d.]+, cell [+-]", words)
    assert f"Kept: {module.network.trust.kind}, as" in words


@pytest.mark.usefixtures("_short")
def test_those_to_keep_and_trust_stay_bit_for_bit():
    module = module_of_squares()
    network = module.network
    network.trust.scale.fill_(1.7)
    before = copy.deepcopy(network.state_dict())
    words = finish(module, make_loader(), make_loader(), keep=2)
    assert words.count("scale 1.00, offset background +0.00, cell +0.00") == 2
    # What pictures hatch is measured with the kernels as they are in the end.
    (pixels,) = sample_pixels(module, make_loader(), ["even"])
    assert network.dispute_threshold == pytest.approx(dispute_threshold(network.bank, pixels))
    for name, value in network.state_dict().items():
        if name.startswith("bank."):
            assert torch.equal(value[:2], before[name][:2]), name
            assert not torch.equal(value[2:], before[name][2:]), name
        elif name.startswith("trust."):
            torch.testing.assert_close(value, before[name], atol=0, rtol=0, equal_nan=True)


@pytest.mark.usefixtures("_short")
def test_without_other_images_kernels_and_trust_are_fitted_and_nothing_is_calibrated(monkeypatch):
    module = module_of_squares()
    monkeypatch.delattr(calibration, "calibrate_annotators")
    before = module.network.bank.weight.detach().clone()
    assert finish(module, make_loader(), []) is None
    assert not torch.equal(module.network.bank.weight, before)
    assert module.network.dispute_threshold == torch.tensor(DISPUTE_THRESHOLD)
    assert module.network.trust.scores.isfinite().all()
