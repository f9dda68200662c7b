"""What the method claims, each claim beside a case in which it does not hold.

One claim is about trained models: who is right is learnt. All others hold exactly, for any weights,
and need no training. Two that stand elsewhere: missing labels do not change what is taught of who
(``test_losses.py``), and retraining without an annotator changes the result where that one decided,
which is a measurement with its spread (``experiments/trust``) and no test.
"""

import itertools
import math
from typing import NamedTuple

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from tax_lightning.consensus import disagreement
from tax_lightning.losses import LossWeights
from tax_lightning.metrics import WhoAccuracy
from tax_lightning.models.mixture import probs_of
from tax_lightning.models.network import TAXNetwork
from tax_lightning.modules.schedule import Schedule
from tax_lightning.modules.tax import TAXLightningModule

ANNOTATORS = ("Ana", "Ben", "Cleo", "Dan", "Eve")
CLASSES = ("background", "cell")
SIZE = 32
STEPS = 240
COLOURS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1]]).float()
# Pixels by which annotator n misses the outline of type t, at (n - t) modulo 5; far inside: missed.
MARGINS = (0.0, 2.5, -2.0, -99.0, 3.5)
OWNED = 4.0  # pixels around an object that belong to its expert

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:You have overridden `on_before_batch_transfer` in"),
    pytest.mark.filterwarnings("ignore:One of the clusters is empty:UserWarning"),
    pytest.mark.filterwarnings("ignore:of 2 prototypes an annotator these were pruned"),
]


class Scenes(Dataset):
    """Two objects of different types in each image: red discs, green squares, blue bars, ...

    Each of the five annotators is the one expert for one of the five types, and draws the others
    by ``margins``: too large, too small or not at all. ``rates`` are the shares of the images that
    each labels.
    """

    def __init__(
        self,
        images: int = 32,
        seed: int = 0,
        size: int = SIZE,
        rates: tuple[float, ...] | None = None,
        margins: tuple[float, ...] = MARGINS,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.margins = margins
        self.samples = [self._draw(i, size, generator) for i in range(images)]
        for sample in self.samples:
            if rates is not None:
                absent = torch.rand(5, generator=generator) >= torch.tensor(rates)
                sample["masks"][absent] = 255

    def _draw(self, i: int, size: int, generator: torch.Generator) -> dict:
        image = 0.15 * torch.randn(3, size, size, generator=generator)
        masks = torch.zeros(5, size, size).long()
        reference = torch.zeros(size, size).long()
        expert = torch.full((size, size), 255)
        for side, kind in enumerate(torch.randperm(5, generator=generator)[:2].tolist()):
            distance = _distance(kind, side, size, generator)
            image += COLOURS[kind].view(3, 1, 1) * (distance <= 0)
            for n in range(5):
                masks[n] |= (distance <= self.margins[(n - kind) % 5]).long()
            reference[distance <= 0] = 1
            expert[distance <= OWNED] = kind
        return {
            "image": image,
            "masks": masks,
            "reference": reference,
            "expert": expert,
            "id": f"scene-{i}",
        }

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> dict:
        return self.samples[i]


def _distance(kind: int, side: int, size: int, generator: torch.Generator) -> Tensor:
    """Distance in pixels from the outline of an object in the left or right half of an image."""
    draw = torch.rand(3, generator=generator)
    y, x = 8 + draw[0] * (size - 17), 7 + 2 * draw[1] + side * size / 2
    radius = 4 + draw[2]
    pixel = torch.arange(size).float()
    v, u = (pixel - y).abs().view(-1, 1), (pixel - x).abs().view(1, -1)
    if kind % 2 == 1:
        return torch.maximum(u, v) - radius
    if kind == 2:
        return torch.maximum(u - radius + 1, v - radius - 1)
    return (u.square() + v.square()).sqrt() - radius


def batch_of(images: int, **scenes) -> dict:
    return next(iter(DataLoader(Scenes(images, **scenes), batch_size=images)))


def make_backbone(norm: bool = True) -> nn.Module:
    """Sees 7 pixels far."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=4, dilation=4),
    )


def make_module(**options) -> TAXLightningModule:
    small = {
        "annotators": ANNOTATORS,
        "classes": CLASSES,
        "network": make_backbone(),
        "kernels": 2,
        "reference": "given",
        "who_window": 13,
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    }
    return TAXLightningModule(**small | options)


def make_trainer(**options) -> L.Trainer:
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": STEPS,
        "max_epochs": -1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**quiet | options)


@pytest.fixture(scope="module")
def trained() -> TAXLightningModule:
    torch.manual_seed(0)
    module = make_module()
    make_trainer().fit(module, DataLoader(Scenes(), batch_size=4))
    return module.eval()


class Findings(NamedTuple):
    """What a network says of new scenes."""

    accuracy: float  # share of disputed pixels at which the expert has the largest weight
    belief: float  # mean weight of the expert there
    entropy: float  # of the weights, 1 where all are the same
    likeness: float  # largest Dice of what two annotators would draw


@torch.no_grad()
def look(network: TAXNetwork) -> Findings:
    scenes = batch_of(30, seed=1)
    output = network.eval()(scenes["image"])
    masks, reference, expert = scenes["masks"], scenes["reference"], scenes["expert"]
    present = torch.ones(masks.shape[:2], dtype=torch.bool)
    metric = WhoAccuracy()
    metric.update(who=output.who, masks=masks, present=present, reference=reference, expert=expert)
    accuracy = metric.compute()["who_accuracy_expert"]
    owned = disagreement(masks) & (expert != 255)
    weight = output.who.gather(1, expert.masked_fill(~owned, 0).unsqueeze(1)).squeeze(1)
    drawn = output.annotator_probs.argmax(dim=2).transpose(0, 1).bool()
    return Findings(
        accuracy=float(accuracy),
        belief=float(weight[owned].mean()),
        entropy=float(-(output.who * output.log_who).sum(dim=1).mean() / math.log(5)),
        likeness=max(_dice(*pair) for pair in itertools.combinations(drawn, 2)),
    )


def _dice(one: Tensor, other: Tensor) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()).clamp_min(1))


# ---------------------------------------------------------------------- who


def test_annotators_with_habits_are_told_apart(trained):
    # Beside each bar what seeds 0 to 8 gave, with 1 and 2 threads, with and without oneDNN, and
    # with all and with the plainest instructions of the processor.
    found = look(trained.network)
    assert found.accuracy >= 0.85  # .973 to .992; by chance .2
    assert found.belief >= 0.6  # .919 to .985
    assert found.entropy <= 0.8  # .395 to .522
    assert found.likeness <= 0.75  # .482 to .554


@torch.no_grad()
def make_alike(module: TAXLightningModule) -> TAXLightningModule:
    """Give all annotators the kernels, prototypes and prior of the first."""
    for part in (module.network.bank, module.network.memory):
        for parameter in part.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    return module


def gradients(module: TAXLightningModule, batch: dict) -> dict[str, Tensor]:
    """What a step with all terms would teach each annotator: of rows ``[N, ...]`` by name."""
    found = {}

    class Keep(L.Callback):
        def on_after_backward(self, trainer, module):
            for part in (module.network.bank, module.network.memory):
                found.update({name: p.grad.clone() for name, p in part.named_parameters()})

    torch.manual_seed(0)
    module.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    samples = [{key: value[i] for key, value in batch.items()} for i in range(len(batch["image"]))]
    loader = DataLoader(samples, batch_size=len(samples))
    make_trainer(max_steps=1, callbacks=[Keep()]).fit(module, loader)
    return found


def test_nothing_but_labels_tells_annotators_apart():
    # Where each annotator in turn gives the labels of each, all are taught the same.
    module = make_alike(make_module(schedule=Schedule(enabled=False)))
    batch = batch_of(2)
    turns = [gradients(module, batch | {"masks": batch["masks"].roll(n, 1)}) for n in range(5)]
    for name, once in turns[0].items():
        together = sum(turn[name] for turn in turns)
        size = float(once.abs().max())
        alike = together[:1].expand_as(together)
        torch.testing.assert_close(together, alike, atol=1e-4 * size, rtol=0, msg=name)
        assert (once - once[:1]).abs().max() > 0.05 * size, name  # in one turn they are not


def test_annotators_who_draw_the_same_are_drawn_to_the_same_weight():
    # With equal kernels nothing but the term for who teaches the priors: in proportion to
    # N w_n - 1, so down where the weight is above 1/N, up where it is below, and else not at all.
    module = make_module(kernels=1, schedule=Schedule(enabled=False))
    nn.init.normal_(module.network.memory.prior)
    with torch.no_grad():
        for parameter in module.network.bank.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    batch = batch_of(2)
    batch["masks"] = batch["reference"].unsqueeze(1).expand(-1, 5, -1, -1)
    found = gradients(module, batch)
    output = module.network(batch["image"])
    relevance = module.loss.relevance(output, batch["reference"]).unsqueeze(1)
    weights = (output.who * relevance).sum(dim=(0, 2, 3)) / relevance.sum()
    (prior,) = (value for value in found.values() if value.shape == (5,))
    torch.testing.assert_close(prior, LossWeights().who * (5 * weights - 1), atol=1e-4, rtol=0)
    assert prior.abs().max() > 0.1


@torch.no_grad()
def test_who_moves_with_the_prototypes():
    network = make_network()
    features = torch.randn(2, 6, 9, 8)
    before = network(features)
    order = [1, 2, 0]
    memory = network.memory
    for values in (*memory.parameters(), memory.active):
        values.data = values.data[order]
    after = network(features)
    torch.testing.assert_close(after.who, before.who[:, order])
    torch.testing.assert_close(after.within, before.within[:, order])
    assert torch.equal(
        probs_of(after.log_odds), probs_of(before.log_odds)
    )  # what each would draw stays
    assert (after.probs - before.probs).abs().max() > 0.05


def test_without_an_annotator_the_result_changes_by_what_that_one_decided():
    # p = w_n p_n + (1 - w_n) p_rest, so that without n it changes by w_n (p_n - p_rest).
    module = make_module(
        network=make_network(),
        annotators=ANNOTATORS[:3],
        classes=["background", "cell", "debris", "other"],
    ).eval()
    images = torch.randn(2, 6, 9, 8)
    with torch.no_grad():
        output = module(images)
    for n, name in enumerate(module.annotators):
        rest = module.predict(images, panel=[other for other in module.annotators if other != name])
        weight, own = output.who[:, n].unsqueeze(1), output.annotator_probs[:, n]
        change = output.probs - rest
        torch.testing.assert_close(change, weight * (own - rest), atol=1e-5, rtol=0)
        assert (change.abs() <= weight + 1e-5).all()
        assert change.abs().max() > 0.05


# ---------------------------------------------------------------------- why


@torch.no_grad()
def test_every_active_prototype_is_the_pixel_that_it_names(trained):
    # Not every pixel would do: the bar is far from .427 to .737, measured as above.
    assert check_sources(trained, Scenes()) < 0.95


@torch.no_grad()
def test_a_pixel_that_a_prototype_names_is_labelled_by_its_annotator():
    scenes = Scenes(rates=(0.9, 0.5, 0.2, 0.9, 0.5))
    module = make_module().eval()
    module.project(DataLoader(scenes, batch_size=4))
    check_sources(module, scenes)


def check_sources(module: TAXLightningModule, scenes: Scenes) -> float:
    """Compare prototypes with their pixels; returns the largest mean cosine with an image."""
    samples = {sample["id"]: sample for sample in scenes}
    vectors = module.network.memory.vectors
    elsewhere = []
    for n, row in enumerate(module.network.memory.sources(ANNOTATORS, CLASSES)):
        active = [source for source in row if source.active]
        assert active
        for source in active:
            pixel = source.taken_from
            sample, at = samples[pixel.sample_id], (pixel.y, pixel.x)
            z = module(sample["image"].unsqueeze(0)).embedding[0]
            cosine = F.cosine_similarity(z, vectors[n, source.kernel, :, None, None], dim=0)
            assert cosine[at] >= 0.999
            assert CLASSES[sample["masks"][n][at]] == pixel.label  # no class is called 255
            elsewhere.append(float(cosine.mean()))
    return max(elsewhere)


# ---------------------------------------------------------------------- arithmetic


def make_network(kernel_size: int = 3) -> TAXNetwork:
    """Any weights, on features of six channels, and a prototype that is pruned."""
    network = TAXNetwork(
        3, 4, backbone=nn.Identity(), in_channels=6, kernels=3, kernel_size=kernel_size
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    network.memory.active[0, 1] = False
    return network.eval()


@torch.no_grad()
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_shares_sum_to_one(kernel_size):
    network = make_network(kernel_size)
    output = network(torch.randn(2, 6, 9, 8))
    weights = output.who.unsqueeze(2) * output.within
    for decision in (output.probs.argmax(dim=1), torch.randint(4, (2, 9, 8))):
        shares = output.shares(decision)
        assert shares.shape == (2, 3, 3, 9, 8)
        assert shares.min() >= 0
        ones = torch.ones(2, 9, 8)
        torch.testing.assert_close(shares.sum(dim=(1, 2)), ones, atol=1e-5, rtol=0)
        assert (shares[:, 0, 1] == 0).all()  # of the pruned
        assert (shares - weights).abs().max() > 0.05  # who says something else has no share


@torch.no_grad()
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_the_orders_of_computation_agree(kernel_size):
    network = make_network(kernel_size)
    features = torch.randn(2, 6, 9, 8)
    output = network(features)
    weights = output.who.unsqueeze(2) * output.within
    by_annotator = (output.within.unsqueeze(3) * probs_of(output.log_odds)).sum(dim=2)
    kernels = zip(network.bank.weight.flatten(0, 1), network.bank.bias.flatten(0, 1), strict=True)
    one_after_the_other = sum(
        weight.unsqueeze(1) * F.conv2d(features, *kernel, padding="same").softmax(dim=1)
        for weight, kernel in zip(weights.flatten(1, 2).unbind(1), kernels, strict=True)
    )
    orders = {
        "all kernels at once": (weights.unsqueeze(3) * probs_of(output.log_odds)).sum(dim=(1, 2)),
        "annotators first": (output.who.unsqueeze(2) * by_annotator).sum(dim=1),
        "one kernel after the other": one_after_the_other,
    }
    for order, probs in orders.items():
        torch.testing.assert_close(probs, output.probs, atol=1e-5, rtol=0, msg=order)
