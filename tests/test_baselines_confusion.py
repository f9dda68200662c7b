"""Confusion matrices of the annotators: what they are, what they do, and that they are found."""

import math

import pytest
import torch
from baseline_scenes import ANNOTATORS, adam, loader, make, make_trainer, scenes, stacked
from torch import nn
from torch.utils.data import DataLoader

from tax_lightning.baselines import ConfusionGlobal, ConfusionPixel

BOTH = pytest.mark.parametrize("kind", [ConfusionGlobal, ConfusionPixel])


@BOTH
@pytest.mark.parametrize("classes", [2, 3, 8])
def test_matrices_start_near_the_identity(kind, classes):
    module = kind(ANNOTATORS, [f"class {c}" for c in range(classes)], network=nn.Conv2d(3, 4, 1))
    matrices = module.log_confusion(torch.randn(2, 4, 5, 6)).exp()
    expected = torch.full((classes, classes), 0.05 / (classes - 1)).fill_diagonal_(0.95)
    expected = expected[None, None, :, :, None, None].expand_as(matrices)
    torch.testing.assert_close(matrices, expected)


@BOTH
@torch.no_grad()
def test_annotators_are_the_truth_times_their_matrix_whose_rows_sum_to_1(kind):
    module, images = make(kind).eval(), stacked("image")[:2]
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    matrices = module.log_confusion(module.network.features(images)).exp()
    matrices, output = matrices.expand(2, 3, 3, 3, 24, 24), module(images)
    torch.testing.assert_close(matrices.sum(dim=3), torch.ones(2, 3, 3, 24, 24))
    expected = torch.einsum("bihw,bnijhw->bnjhw", output.log_probs.exp(), matrices)
    torch.testing.assert_close(output.log_annotator_probs.exp(), expected)
    torch.testing.assert_close(output.log_probs, module.network(images))


@BOTH
def test_what_is_nearly_certain_has_a_slope(kind):
    module = make(kind)
    nn.init.zeros_(module.network.head.weight)
    module.network.head.bias.data = torch.tensor([200.0, 0.0, -200.0])
    logits = module.confusion if kind is ConfusionGlobal else module.confusion.bias
    logits.data *= 100  # the identity but for e^-364
    output = module(stacked("image")[:1])
    loss = module.loss.between(output.log_annotator_probs, torch.full((1, 3, 24, 24), 2))
    loss.backward()
    assert loss.item() > 100
    # In probabilities the label had none, and nothing a slope.
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().max() > 0.1


@BOTH
def test_the_trace_is_asked_for_after_the_warm_up_only(kind):
    heard = []

    class Heard(kind):
        def terms(self, batch):
            heard.append(sorted(terms := super().terms(batch)))
            return terms

    make_trainer(max_epochs=4).fit(make(Heard, warm_up=0.5), loader())
    assert heard == [["annotator"]] * 4 + [["annotator", "trace"]] * 4


def test_the_trace_by_hand_and_its_weight():
    module = make(ConfusionGlobal, warm_up=0.0, trace_weight=2.0)
    module.confusion.data[0] = torch.tensor([[0.6, 0.2, 0.2], [0.3, 0.3, 0.4], [0, 0, 1.0]]).log()
    module._total_steps, module._trainer = 1, make_trainer()
    terms = module.terms({"image": stacked("image")[:1], "masks": scenes()[0]["masks"][None]})
    assert terms["trace"].item() == pytest.approx((0.6 + 0.3 + 1.0 + 2 * 3 * 0.95) / 3, abs=1e-5)
    assert module.weights == {"trace": 2.0}


@BOTH
def test_a_known_confusion_is_found(kind):
    """Ana is right; Ben takes a third of the cells for debris; C misses a fifth of both."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 3, (24, 32, 32), generator=generator)
    chance = torch.rand(2, *truth.shape, generator=generator)
    ben = torch.where((truth == 1) & (chance[0] < 1 / 3), 2, truth)
    c = torch.where((truth > 0) & (chance[1] < 1 / 5), 0, truth)
    noise = 0.1 * torch.randn(24, 3, 32, 32, generator=generator)
    images = nn.functional.one_hot(truth, 3).movedim(3, 1) + noise
    masks = torch.stack([truth, ben, c], dim=1)
    samples = [{"image": image, "masks": mask} for image, mask in zip(images, masks, strict=True)]
    module = make(kind, network=nn.Conv2d(3, 8, 1), optimizer=adam(3e-2, weight_decay=0.0))
    make_trainer(max_epochs=60).fit(module, DataLoader(samples, batch_size=12))
    expected = torch.eye(3).repeat(3, 1, 1)
    expected[1, 1] = torch.tensor([0, 2 / 3, 1 / 3])
    expected[2, 1:] = torch.tensor([[1 / 5, 4 / 5, 0], [1 / 5, 0, 4 / 5]])
    for n, name in enumerate(ANNOTATORS):
        said = module.predict(images, annotator=name).movedim(1, 3)
        rows = torch.stack([said[truth == label].mean(dim=0) for label in range(3)])
        torch.testing.assert_close(rows, expected[n], atol=0.05, rtol=0)
    assert (module.predict(images).argmax(dim=1) == truth).float().mean() > 0.99


def test_the_warm_up_is_a_share_of_a_run_with_an_end():
    for share in (-0.1, 1.5, math.inf):
        with pytest.raises(ValueError, match=rf"^warm_up={share}: expected a share of the run"):
            make(ConfusionGlobal, warm_up=share)
    with pytest.raises(
        ValueError, match=r"^trainer\.max_epochs=-1: the warm-up needs to know where"
    ):
        make_trainer(max_epochs=-1).fit(make(ConfusionGlobal), loader())
