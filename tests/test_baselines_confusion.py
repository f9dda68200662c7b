"""Confusion matrices of the annotators: what they are, what they do, and that they are found."""

import math

import pytest
import torch
from baseline_scenes import ANNOTATORS, CLASSES, images, loader, make, make_trainer, scenes
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from tax_lightning.baselines import ConfusionGlobal, ConfusionPixel
from tax_lightning.baselines.confusion import nearly_identity

BOTH = pytest.mark.parametrize("kind", [ConfusionGlobal, ConfusionPixel])
pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:You have overridden `on_before_batch_transfer` in"),
]


@given(classes=st.integers(2, 8))
def test_matrices_start_near_the_identity(classes):
    matrix = nearly_identity(classes).softmax(dim=1)
    torch.testing.assert_close(matrix.diagonal(), torch.full((classes,), 0.95))
    off = matrix[~torch.eye(classes, dtype=torch.bool)]
    torch.testing.assert_close(off, torch.full_like(off, 0.05 / (classes - 1)))


@BOTH
def test_at_the_start_annotators_say_nearly_what_the_network_says(kind):
    module = make(kind)
    features = module.network.features(images()[:2])
    matrices = module.log_confusion(features).exp()
    expected = nearly_identity(3).softmax(dim=1)[None, None, :, :, None, None]
    torch.testing.assert_close(matrices, expected.expand_as(matrices))


@BOTH
@torch.no_grad()
def test_rows_sum_to_1_and_annotators_are_the_truth_times_their_matrix(kind):
    module = make(kind).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    seen = images()[:2]
    matrices = module.log_confusion(module.network.features(seen)).exp()
    assert matrices.shape[1:4] == (3, 3, 3)
    total = matrices.sum(dim=3)
    torch.testing.assert_close(total, torch.ones_like(total))
    output = module(seen)
    matrices = matrices.expand(2, -1, -1, -1, 24, 24)
    expected = torch.einsum("bihw,bnijhw->bnjhw", output.log_probs.exp(), matrices)
    torch.testing.assert_close(output.log_annotator_probs.exp(), expected)
    torch.testing.assert_close(output.log_probs, module.network(seen))


def test_one_matrix_at_one_pixel_by_hand():
    module = make(ConfusionGlobal, network=nn.Conv2d(3, 1, 1))
    matrix = torch.tensor([[0.8, 0.2, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    module.confusion.data[1] = matrix.log()
    nn.init.zeros_(module.network.head.weight)
    module.network.head.bias.data = torch.tensor([0.5, 0.25, 0.25]).log()
    said = module.predict(torch.zeros(1, 3, 1, 1), annotator="Ben").flatten()
    # 0.5 x 0.8 + 0.25 x 0.5, then 0.5 x 0.2 + 0.25 x 0.5
    torch.testing.assert_close(said, torch.tensor([0.525, 0.225, 0.25]))


@BOTH
def test_what_is_nearly_certain_has_a_slope(kind):
    module = make(kind)
    nn.init.zeros_(module.network.head.weight)
    module.network.head.bias.data = torch.tensor([200.0, 0.0, -200.0])
    bank = module.confusion if kind is ConfusionGlobal else module.confusion.biases[0]
    bank.data *= 100  # the identity but for e^-364
    masks = torch.full((1, 3, 24, 24), 2)
    output = module(images()[:1])
    loss = module.loss.between(output.log_annotator_probs, masks)
    loss.backward()
    assert loss.item() > 100
    # In probabilities the label had none, and nothing a slope.
    assert torch.isfinite(bank.grad).all()
    assert bank.grad.abs().max() > 0.1


# ---------------------------------------------------------------------- training


@BOTH
def test_the_trace_is_asked_for_after_the_warm_up_only(kind):
    heard = []

    class Heard(kind):
        def terms(self, batch):
            terms = super().terms(batch)
            heard.append({name: float(term.detach()) for name, term in terms.items()})
            return terms

    module = make(Heard, warm_up=0.5)
    make_trainer(max_epochs=4).fit(module, loader())
    assert [sorted(terms) for terms in heard] == [["annotator"]] * 4 + [["annotator", "trace"]] * 4


def test_the_trace_by_hand_and_its_weight():
    module = make(ConfusionGlobal, warm_up=0.0, trace_weight=2.0)
    module.confusion.data[0] = torch.tensor([[0.6, 0.2, 0.2], [0.3, 0.3, 0.4], [0, 0, 1.0]]).log()
    module._total_steps = 1
    module._trainer = make_trainer()
    batch = {"image": images()[:1], "masks": scenes()[0]["masks"][None]}
    terms = module.terms(batch)
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
    seen = nn.functional.one_hot(truth, 3).movedim(3, 1) + noise
    samples = [
        {"image": image, "masks": torch.stack(masks)}
        for image, *masks in zip(seen, truth, ben, c, strict=True)
    ]
    module = make(
        kind,
        network=nn.Conv2d(3, 8, 1),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-2, weight_decay=0.0),
    )
    make_trainer(max_epochs=60).fit(module, DataLoader(samples, batch_size=12))
    right = torch.eye(3)
    expected = torch.stack([right, right, right])
    expected[1, 1] = torch.tensor([0, 2 / 3, 1 / 3])
    expected[2, 1:, 0] += 1 / 5
    expected[2, 1, 1] = expected[2, 2, 2] = 4 / 5
    for n, name in enumerate(ANNOTATORS):
        said = module.predict(seen, annotator=name).movedim(1, 3)
        rows = torch.stack([said[truth == label].mean(dim=0) for label in range(3)])
        torch.testing.assert_close(rows, expected[n], atol=0.05, rtol=0)
    if kind is ConfusionGlobal:  # one that is predicted at each pixel could hold the truth itself
        matrices = module.confusion.detach().softmax(dim=2)
        torch.testing.assert_close(matrices, expected, atol=0.05, rtol=0)
    assert (module.predict(seen).argmax(dim=1) == truth).float().mean() > 0.99


def test_the_warm_up_needs_an_end():
    trainer = make_trainer(max_epochs=-1)
    message = r"^trainer\.max_epochs=-1: the warm-up needs to know where the run ends"
    with pytest.raises(ValueError, match=message):
        trainer.fit(make(ConfusionGlobal), loader())


@pytest.mark.parametrize("share", [-0.1, 1.5, math.inf])
def test_the_warm_up_is_a_share(share):
    with pytest.raises(ValueError, match=rf"^warm_up={share}: expected a share of the run"):
        ConfusionGlobal(ANNOTATORS, CLASSES, warm_up=share, network=nn.Conv2d(3, 4, 1))
