"""What the method claims, each claim beside a case in which it must not hold.

The scenes are small, but the models are trained: five annotators, each of whom is the one expert
for one of five types of object, while the others draw that type too large, too small or not at all.
"""

import copy
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import binary_auroc

from tax_lightning.metrics import WhoAccuracy, disagreement
from tax_lightning.models.mixture import mix
from tax_lightning.models.network import Seen, TAXNetwork
from tax_lightning.modules.tax import TAXLightningModule

ANNOTATORS = ("Ana", "Ben", "Cleo", "Dan", "Eve")
CLASSES = ("background", "cell")
SIZE = 32
STEPS = 240  # until who leads also where two trainings are compared
COLOURS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1]]).float()
# Pixels by which annotator n misses the outline of type t, at (n - t) modulo 5; far inside: missed.
MARGINS = (0.0, 2.5, -2.0, -99.0, 3.5)
SPECIALISTS = (0.0, -99.0, -99.0, -99.0, -99.0)  # draw the type that they know, and no other
OWNED = 4.0  # pixels around an object that belong to its expert

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:You have overridden `on_before_batch_transfer` in"),
    pytest.mark.filterwarnings("ignore:One of the clusters is empty:UserWarning"),
    pytest.mark.filterwarnings("ignore:of 2 prototypes an annotator these are pruned"),
]


class Scenes(Dataset):
    """Two objects of different types in each image: red discs, green squares, blue bars, ...

    With ``same`` all annotators draw what the first does; ``shuffled`` gives the masks of an image
    to the annotators in an order drawn anew each time; ``rates`` are the shares of the images that
    each labels, at least one of them each image; ``without`` leaves one of them out altogether.
    """

    def __init__(
        self,
        images: int = 32,
        seed: int = 0,
        size: int = SIZE,
        same: bool = False,
        shuffled: bool = False,
        rates: tuple[float, ...] | None = None,
        margins: tuple[float, ...] = MARGINS,
        without: int | None = None,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.shuffled = shuffled
        self.margins = margins
        self.samples = [self._draw(i, size, generator) for i in range(images)]
        for sample in self.samples:
            if same:
                sample["masks"] = sample["masks"][:1].repeat(5, 1, 1)
            if rates is not None:
                present = torch.rand(5, generator=generator) < torch.tensor(rates)
                present[torch.randint(5, (1,), generator=generator)] |= ~present.any()
                sample["masks"][~present] = 255
            if without is not None:
                sample["masks"] = sample["masks"][torch.arange(5) != without]
                del sample["expert"]  # whose numbers would be others

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
        sample = dict(self.samples[i])
        if self.shuffled:
            sample["masks"] = sample["masks"][torch.randperm(5)]
        return sample


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
        "kernels": 2,
        "embedding_channels": 8,
        "reference": "given",
        "who_window": 13,
        "who_sharpness": 20.0,
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    }
    if "network" not in options:
        small["network"] = make_backbone()
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


def train(reference: str = "given", steps: int = STEPS, **scenes) -> TAXLightningModule:
    torch.manual_seed(0)
    names = [name for n, name in enumerate(ANNOTATORS) if n != scenes.get("without")]
    module = make_module(reference=reference, annotators=names)
    make_trainer(max_steps=steps).fit(module, DataLoader(Scenes(**scenes), batch_size=4))
    return module.eval()


@pytest.fixture(scope="module")
def trained() -> TAXLightningModule:
    """Trained with all labels of all annotators."""
    return train()


@pytest.fixture(
    scope="module", params=[(0.5,) * 5, (0.9, 0.5, 0.2, 0.9, 0.5)], ids=["half", "some"]
)
def partly(request) -> TAXLightningModule:
    """Trained with some of the labels."""
    return train(rates=request.param)


class Findings(NamedTuple):
    """What a network says of new scenes."""

    accuracy: float  # share of disputed pixels at which the expert leads
    belief: float  # mean weight of the expert there
    shares: Tensor  # mean weight of each annotator where annotators disagree
    means: Tensor  # mean weight of each annotator everywhere
    entropy: float  # of the weights, 1 where all are the same
    likeness: list[float]  # Dice of what each pair of annotators would draw


@torch.no_grad()
def look(network: TAXNetwork, images: int = 30) -> Findings:
    scenes = next(iter(DataLoader(Scenes(images, seed=1), batch_size=images)))
    output = network.eval()(scenes["image"])
    masks, reference, expert = scenes["masks"], scenes["reference"], scenes["expert"]
    present = torch.ones(masks.shape[:2], dtype=torch.bool)
    metric, labels = WhoAccuracy(), {"masks": masks, "present": present, "reference": reference}
    metric.update(who=output.who, expert=expert, **labels)
    accuracy = metric.compute()["who_accuracy_expert"]
    disputed = disagreement(masks, present)
    owned = disputed & (expert != 255)
    expert = output.who.gather(1, expert.masked_fill(~owned, 0).unsqueeze(1)).squeeze(1)
    drawn = output.annotator_probs.argmax(dim=2).transpose(0, 1).bool()
    return Findings(
        accuracy=float(accuracy),
        belief=float(expert[owned].mean()),
        shares=output.who.transpose(0, 1)[:, disputed].mean(dim=1),
        means=output.who.mean(dim=(0, 2, 3)),
        entropy=float(-(output.who * output.log_who).sum(dim=1).mean() / math.log(5)),
        likeness=[_dice(*pair) for pair in itertools.combinations(drawn, 2)],
    )


def _dice(one: Tensor, other: Tensor) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()).clamp_min(1))


# ---------------------------------------------------------------------- who


def test_annotators_with_habits_are_told_apart(trained):
    found = look(trained.network)
    assert found.accuracy >= 0.85
    assert found.belief >= 0.6
    assert found.entropy <= 0.8
    assert max(found.likeness) <= 0.75


def test_annotators_who_draw_the_same_weigh_the_same():
    # The reference is their majority, so that each of them is right: one as much as the other.
    found = look(train(reference="majority", steps=100, same=True).network)
    assert found.entropy >= 0.95
    assert (found.means - 1 / 5).abs().max() <= 0.05


def test_annotators_whose_names_are_drawn_at_random_are_alike():
    found = look(train(shuffled=True).network)
    assert min(found.likeness) >= 0.85
    assert abs(found.belief - 1 / 5) <= 0.05
    assert abs(found.accuracy - 1 / 5) <= 0.15


def test_who_rests_on_whose_the_prototypes_are(trained):
    assert look(trained.network, images=10).accuracy >= 0.85
    moves = [order for order in itertools.permutations(range(5)) if _is_derangement(order)]
    assert len(moves) == 44
    accuracies = []
    for order in moves:
        network = copy.deepcopy(trained.network)
        memory = network.memory
        memory.prototypes[0].data = memory.prototypes[0].data[list(order)]
        memory.active.copy_(memory.active[list(order)])
        accuracies.append(look(network, images=10).accuracy)
    assert sum(accuracies) / len(accuracies) <= 1 / 5


def _is_derangement(order: tuple[int, ...]) -> bool:
    return all(place != moved for place, moved in enumerate(order))


def test_missing_labels_do_not_change_who_leads(trained, partly):
    whole, part = look(trained.network), look(partly.network)
    assert part.accuracy >= whole.accuracy - 0.05


def test_missing_labels_do_not_change_how_often_each_decides(trained, partly):
    whole, part = look(trained.network), look(partly.network)
    assert (part.shares - whole.shares).abs().max() <= 0.06


def test_missing_labels_do_not_change_how_certain_who_is(trained, partly):
    whole, part = look(trained.network), look(partly.network)
    assert abs(part.belief - whole.belief) <= 0.15


@pytest.fixture(scope="module")
def specialists():
    return train(margins=SPECIALISTS)


@pytest.mark.parametrize("left_out", [1, 2, 3])
@torch.no_grad()
def test_without_an_annotator_the_result_changes_where_that_one_decided(specialists, left_out):
    scenes = next(iter(DataLoader(Scenes(30, seed=1, margins=SPECIALISTS), batch_size=30)))
    with torch.enable_grad():
        rest = train(margins=SPECIALISTS, without=left_out)
    said = specialists(scenes["image"])
    changed = said.probs.argmax(1) != rest(scenes["image"]).probs.argmax(1)
    disputed = disagreement(scenes["masks"], torch.ones(30, 5, dtype=torch.bool))
    scores = [float(binary_auroc(w[disputed], changed[disputed].int())) for w in said.who.unbind(1)]
    assert scores.pop(left_out) >= 0.8
    assert max(scores) <= 0.7


# ---------------------------------------------------------------------- why


@torch.no_grad()
def test_every_living_prototype_is_the_pixel_that_it_names(trained):
    check_sources(trained, Scenes())


@torch.no_grad()
def test_with_missing_labels_too_every_living_prototype_is_the_pixel_that_it_names(partly, request):
    rates = request.node.callspec.params["partly"]
    check_sources(partly, Scenes(rates=rates))


def check_sources(module: TAXLightningModule, scenes: Scenes) -> None:
    samples = {sample["id"]: sample for sample in scenes}
    vectors = module.network.memory.vectors
    elsewhere = []
    for n, row in enumerate(module.network.memory.sources(ANNOTATORS, CLASSES)):
        assert any(source.active for source in row)
        for source in row:
            if not source.active:
                continue
            sample, at = samples[source.sample_id], (source.y, source.x)
            z = module(sample["image"].unsqueeze(0)).embedding[0]
            cosine = F.cosine_similarity(z, vectors[n, source.kernel, :, None, None], dim=0)
            assert cosine[at] >= 0.999
            assert CLASSES[sample["masks"][n][at]] == source.label  # also: n labelled the image
            elsewhere.append(cosine.mean())
    assert max(elsewhere) < 0.95  # not every pixel would do


# ---------------------------------------------------------------------- arithmetic


def make_network(kernel_size: int = 3, **options) -> TAXNetwork:
    """On features of six channels, with priors, and a prototype that is pruned."""
    network = TAXNetwork(
        3,
        4,
        backbone=nn.Identity(),
        in_channels=6,
        kernels=3,
        kernel_size=kernel_size,
        embedding_channels=5,
        **options,
    )
    nn.init.normal_(network.memory.priors[0], std=0.1)
    nn.init.normal_(network.bank.biases[0])
    network.memory.active[0, 1] = False
    return network.eval()


every_kind = pytest.mark.parametrize(
    ("mixing", "bank", "kernel_size"),
    list(itertools.product(["prob", "logit"], ["private", "shared"], [1, 3])),
)


@torch.no_grad()
@every_kind
def test_shares_sum_to_one(mixing, bank, kernel_size):
    network = make_network(kernel_size, mixing=mixing, bank=bank)
    output = network(3 * torch.randn(2, 6, 9, 8))
    for decision in (output.probs.argmax(dim=1), torch.randint(4, (2, 9, 8))):
        shares = network.shares(output, decision)
        assert shares.shape == (2, 3, 3, 9, 8)
        assert shares.min() >= 0
        ones = torch.ones(2, 9, 8)
        torch.testing.assert_close(shares.sum(dim=(1, 2)), ones, atol=1e-5, rtol=0)
        assert (shares[:, 0, 1] == 0).all()  # of the pruned
        weights = output.who.unsqueeze(2) * output.within
        same = torch.allclose(shares, weights, atol=1e-5)
        assert same == (mixing == "logit")


@torch.no_grad()
@every_kind
def test_the_orders_of_computation_agree(mixing, bank, kernel_size):
    network = make_network(kernel_size, mixing=mixing, bank=bank)
    features = 3 * torch.randn(2, 6, 9, 8)
    output = network(features)
    log_weights = (output.log_who.unsqueeze(2) + output.log_within).flatten(1, 2)
    of_all = mix(log_weights, output.log_kernel_probs.flatten(1, 2), mixing).exp()
    evidence = network.memory(F.normalize(network.projection(features), dim=1))
    weights = evidence.flatten(1, 2).softmax(dim=1)
    orders = {
        "all kernels at once": of_all,
        "annotators first": mix(output.log_who, output.log_annotator_probs, mixing).exp(),
        "one kernel after the other": one_after_the_other(network, features, weights, mixing),
    }
    if mixing == "logit":
        orders["kernels mixed, then applied"] = mixed_first(network, features, weights)
    else:
        by_annotator = (output.within.unsqueeze(3) * output.kernel_probs).sum(dim=2)
        orders["sums"] = (output.who.unsqueeze(2) * by_annotator).sum(dim=1)
    for order, probs in orders.items():
        torch.testing.assert_close(probs, output.probs, atol=1e-5, rtol=0, msg=order)
    other = mix(output.log_who, output.log_annotator_probs, {"prob": "logit"}.get(mixing, "prob"))
    assert (other.exp() - output.probs).abs().max() > 1e-3


def kernels_of(network: TAXNetwork) -> tuple[Tensor, Tensor]:
    """Weights ``[N * K, C, D, s, s]`` and biases ``[N * K, C]``, also of a shared bank."""
    weight, bias = network.bank.weight, network.bank.bias
    times = 3 // len(weight)
    return weight.repeat(times, 1, 1, 1, 1, 1).flatten(0, 1), bias.repeat(times, 1, 1).flatten(0, 1)


def one_after_the_other(
    network: TAXNetwork, features: Tensor, weights: Tensor, mixing: str
) -> Tensor:
    """A convolution for each kernel, and a sum that grows."""
    total = torch.zeros(2, 4, 9, 8)
    for m, kernel in enumerate(zip(*kernels_of(network), strict=True)):
        said = F.conv2d(features, *kernel, padding="same")
        said = said.softmax(dim=1) if mixing == "prob" else said
        total += weights[:, m].unsqueeze(1) * said
    return total if mixing == "prob" else total.softmax(dim=1)


def mixed_first(network: TAXNetwork, features: Tensor, weights: Tensor) -> Tensor:
    """At each pixel one kernel, mixed from all, is applied once."""
    kernels, biases = kernels_of(network)
    side = kernels.shape[-1]
    seen = F.unfold(features, side, padding=side // 2)  # [B, D * s * s, H * W]
    mixed = torch.einsum("bmp,mce->bcep", weights.flatten(2), kernels.flatten(2))
    bias = torch.einsum("bmp,mc->bcp", weights.flatten(2), biases)
    logits = torch.einsum("bcep,bep->bcp", mixed, seen) + bias
    return logits.softmax(dim=1).view(2, 4, 9, 8)


@torch.no_grad()
@settings(max_examples=40)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 7),
    rows=st.integers(1, 13),
    kernel_size=st.sampled_from([1, 3]),
    mixing=st.sampled_from(["prob", "logit"]),
    bank=st.sampled_from(["private", "shared"]),
)
def test_bands_are_the_whole(height, width, rows, kernel_size, mixing, bank):
    network = make_network(kernel_size, mixing=mixing, bank=bank)
    features = torch.randn(2, 6, height, width)
    seen = Seen(features, network.embed(features))
    whole = network.assign(seen)
    # 3 annotators, 3 kernels and 4 classes at each pixel of 2 images
    bands = list(network.bands(seen, most_values=rows * 2 * width * 3 * 3 * 4))
    assert [len(band.log_who[0, 0]) for band in bands[:-1]] == [rows] * (
        math.ceil(height / rows) - 1
    )
    for name, expected in whole._asdict().items():
        found = torch.cat([getattr(band, name) for band in bands], dim=-2)
        if name.startswith("log"):
            found, expected = found.exp(), expected.exp()
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0, msg=name)


@torch.no_grad()
def test_a_band_that_sees_nothing_beyond_its_edge_is_not_the_whole():
    network = make_network(kernel_size=3)
    features = torch.randn(1, 6, 8, 8)
    seen = Seen(features, network.embed(features))
    upper = network.assign(seen.rows(0, 4))
    whole = network.assign(seen)
    apart = (upper.probs - whole.probs[:, :, :4]).abs().amax(dim=(0, 1, 3))
    assert apart[:3].max() <= 1e-6
    assert apart[3] > 1e-3


# ---------------------------------------------------------------------- processes


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The folder in which ``ddp_equal.py`` left what its runs ended with."""
    folder = tmp_path_factory.mktemp("equal")
    script = Path(__file__).with_name("ddp_equal.py")
    paths = f"{script.parent.parent}{os.pathsep}{script.parent}"
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def state_of(folder: Path, run: str, processes: int = 2) -> dict:
    end = torch.load(folder / f"{run}.pt", weights_only=True)
    assert end["world"] == processes
    return end["state"]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("variant", ["private", "shared"])
def test_two_processes_end_where_one_does(runs, variant, rank):
    one = state_of(runs, f"{variant}-1-0", processes=1)
    two = state_of(runs, f"{variant}-2-{rank}")
    assert one["network.memory.projected"]
    # Sums over images are rounded in another order; in 30 steps that stays below 1e-6.
    ids = "network.memory._extra_state"
    assert two.pop(ids) == one.pop(ids)
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-5, equal_nan=True)


def test_sums_of_each_process_alone_end_elsewhere(runs):
    one = state_of(runs, "private-1-0", processes=1)
    apart = state_of(runs, "private-apart-0")
    for name in ("network.memory.prototypes.0", "network.bank.weights.0"):
        assert (one[name] - apart[name]).abs().max() > 1e-3, name
