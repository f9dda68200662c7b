"""All metrics of the explanation together: by hand, in the module's test, and their controls."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from unittest.mock import patch

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from tax_lightning.consensus import disagreement
from tax_lightning.metrics import ExplanationMetrics
from tax_lightning.metrics.explanation import PROBED_IMAGES
from tax_lightning.metrics.who import exchanged
from tax_lightning.models.network import TAXNetwork, TAXOutput
from tax_lightning.modules.tax import TAXLightningModule
from tax_lightning.simulation import SyntheticDataModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You have overridden `on_before_batch_transfer` in"),
    pytest.mark.filterwarnings("ignore:of . prototypes? an annotator these are pruned:UserWarning"),
]

ANNOTATORS = ("Ana", "Ben", "Cleo")
SOURCES = {"integrity_min", "integrity_mean"} | {
    f"insertion_{size}{control}" for size in (16, 32, 64) for control in ("", "_random")
}


def make_network(**options) -> TAXNetwork:
    """A tiny network for three annotators."""
    backbone = nn.Conv2d(3, 4, 3, padding=1)
    settings = {"backbone": backbone, "kernels": 2} | options
    with patch("tax_lightning.models.network.EMBEDDING_CHANNELS", 4):
        return TAXNetwork(len(ANNOTATORS), 2, **settings).eval()


def make_metrics(network: TAXNetwork | None = None) -> ExplanationMetrics:
    return ExplanationMetrics(network or make_network(), ANNOTATORS)


# ---------------------------------------------------------------------- the control


@pytest.mark.parametrize("annotators", [2, 3, 5])
def test_exchanged_says_of_nobody_what_is_true_of_them(annotators):
    images = 11
    who = torch.arange(images * annotators).view(images, annotators, 1, 1).float()
    who = who.expand(-1, -1, 2, 3)
    control = exchanged(who)
    assert control.shape == who.shape
    assert (control != who).all()
    # Of each image the same weights, and of each annotator all of the map.
    torch.testing.assert_close(control.sort(dim=1).values, who)
    steps = {int((control[i, 0, 0, 0] - who[i, 0, 0, 0]) % annotators) for i in range(images)}
    assert steps == set(range(1, annotators))  # every exchange has its turn


# ---------------------------------------------------------------------- values


def perfect_case(images: int = 3) -> dict[str, Tensor | TAXOutput]:
    """At each pixel one annotator is right, draws so, leads with .9, and decides alone.

    The reference is 1 everywhere and the others say 0 with .9; without the leader they win.
    """
    leader = torch.randint(0, 3, (images, 6, 6))
    leads = torch.arange(3).view(1, 3, 1, 1) == leader.unsqueeze(1)
    masks = leads.long()
    who = torch.where(leads, 0.9, 0.05)
    second = torch.where(leads, 0.9, 0.1)
    log_annotator = torch.stack([1 - second, second], dim=2).log()  # [B, N, C, H, W]
    within = torch.tensor([0.75, 0.25]).view(1, 1, 2, 1, 1).expand(images, 3, 2, 6, 6)
    embedding = torch.nn.functional.normalize(torch.randn(images, 4, 6, 6), dim=1)
    output = TAXOutput(
        log_annotator_probs=log_annotator,
        log_who=who.log(),
        within=within,
        log_odds=log_annotator.diff(dim=2).unsqueeze(2).expand(-1, -1, 2, -1, -1, -1),
        embedding=embedding,
    )
    return {
        "images": torch.randn(images, 3, 6, 6),
        "output": output,
        "masks": masks,
        "present": torch.ones(images, 3, dtype=torch.bool),
        "disputed": torch.ones_like(leader, dtype=torch.bool),
        "right": torch.stack([leader < 0, leader >= 0], dim=1),
        "reference": torch.ones_like(leader),
        "expert": leader,
    }


def cut(case: dict, images: slice) -> dict:
    """Some of the images."""
    return {
        name: TAXOutput(*(part[images] for part in value)) if name == "output" else value[images]
        for name, value in case.items()
    }


def values_of(metrics: ExplanationMetrics) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in metrics.compute().items()}


def test_a_perfect_who_by_hand_and_its_control():
    metrics = make_metrics()
    metrics.update(**perfect_case())
    values = values_of(metrics)
    # Named instead is always another, who is wrong and has a share of .05.
    for name, real, control in (
        ("who_accuracy_d1", 1, 0),
        ("who_accuracy_expert", 1, 0),
        ("who_agreement_lift", 1, (0 - 1 / 3) / (1 - 1 / 3)),
        ("who_ece_d1", 0.1, 0.9),
        ("who_ece_expert", 0.1, 0.9),
    ):
        assert values[name] == pytest.approx(real, abs=1e-5), name
        assert values[f"{name}_exchanged"] == pytest.approx(control, abs=1e-5), name
    assert values["who_chance_d1"] == values["who_chance_expert"] == pytest.approx(1 / 3)


def test_an_example_fits_where_it_has_the_class_that_the_reason_is_for():
    network, case = make_network(), perfect_case()
    # The leader's first kernel is the reason; 1 is decided, of which Cleo's has no example.
    network.memory.pixel_label[:, 0, 1] = torch.tensor([1, 1, 0])
    case["disputed"][..., :3] = False
    metrics = make_metrics(network)
    metrics.update(**case)
    expected = (case["expert"][..., 3:] < 2).float().mean()
    assert values_of(metrics)["why_example_fits"] == pytest.approx(expected.item())


def test_batches_add_up_and_a_reset_forgets_them():
    case = perfect_case(6)
    network = make_network()
    at_once, by_parts = make_metrics(network), make_metrics(network)
    at_once.update(**case)
    by_parts.update(**perfect_case(2))
    by_parts.reset()
    assert by_parts.probed == []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
        empty = values_of(by_parts)
    assert all(math.isnan(value) for value in empty.values())
    for images in (slice(0, 1), slice(1, 4), slice(4, 6)):
        by_parts.update(**cut(case, images))
    found, expected = values_of(by_parts), values_of(at_once)
    # All but the controls of who, whose exchange begins anew with every batch.
    for name in expected:
        if not name.endswith("_exchanged"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4, nan_ok=True), name


@torch.no_grad()
def test_a_network_with_a_pruned_prototype():
    network = make_network(kernels=3)
    network.memory.active[0, 1] = False
    nn.init.normal_(network.memory.prior, std=0.1)
    nn.init.normal_(network.bank.weight)
    metrics = make_metrics(network)
    images, masks = torch.randn(2, 3, 8, 8), torch.randint(0, 2, (2, 3, 8, 8))
    labels = {"masks": masks, "present": masks[:, :, 0, 0] >= 0, "reference": masks[:, 0]}
    right = torch.stack([masks[:, 0] == 0, masks[:, 0] == 1], dim=1)
    metrics.update(images, network(images), disagreement(masks), right, **labels)
    values = values_of(metrics)
    assert all(math.isfinite(v) for name, v in values.items() if "expert" not in name), values


def test_the_network_that_is_measured_is_no_part_of_the_metrics():
    metrics = make_metrics()
    assert list(metrics.parameters()) == []
    assert metrics.state_dict() == {}


# ---------------------------------------------------------------------- probes


def projected(network: TAXNetwork) -> dict[str, Tensor]:
    """Training images by name, onto pixels of which the prototypes have been moved."""
    images = {f"train {i}": torch.randn(3, 20, 20) for i in range(6)}
    module = TAXLightningModule(ANNOTATORS, ["background", "cell"], network=network)
    masks = torch.zeros(1, 3, 20, 20).long()
    batches = [
        {"image": image[None], "masks": masks, "id": [name]} for name, image in images.items()
    ]
    module.project(batches)
    return images


@torch.no_grad()
def test_probes_of_a_network_whose_sources_are_true():
    network = make_network()
    images = projected(network)
    metrics = make_metrics(network)
    metrics.probed = list(torch.randn(2, 3, 20, 20))
    sources = network.memory.sources(ANNOTATORS, ["background", "cell"])
    values = metrics.probe(sources, images.__getitem__)
    assert set(values) == SOURCES
    assert values["integrity_min"] == pytest.approx(1, abs=1e-4)
    assert 0 <= values["insertion_16"] <= 1
    assert math.isnan(values["insertion_32"])  # larger than the images
    # With other images behind the names, the sources are not what they are said to be.
    others = {name: torch.randn(3, 20, 20) for name in images}
    assert metrics.probe(sources, others.__getitem__)["integrity_min"] < 0.99


def test_the_first_images_of_the_first_size_are_probed():
    metrics = make_metrics()
    case, other = perfect_case(3), perfect_case(1)
    other["images"] = torch.zeros(1, 3, 5, 7)
    for batch in (case, other, case, case):
        metrics.update(**batch)
    assert len(metrics.probed) == PROBED_IMAGES == 4
    expected = [*case["images"], case["images"][0]]
    assert all(torch.equal(a, b) for a, b in zip(metrics.probed, expected, strict=True))


# ---------------------------------------------------------------------- in a trainer's test


@pytest.fixture(scope="module")
def data() -> SyntheticDataModule:
    size = {"size": 64, "train_samples": 4, "val_samples": 2, "test_samples": 2}
    return SyntheticDataModule(**size, batch_size=2)


def projected_module(data: SyntheticDataModule, explanation_metrics: bool) -> TAXLightningModule:
    """Of the quick start's kind, small, with final prototypes."""
    torch.manual_seed(0)
    module = TAXLightningModule(
        data.annotators,
        data.classes,
        encoder="tu-test_resnet.r160_in1k",
        backbone_options={"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
        kernels=1,
        reference="given",
        explanation_metrics=explanation_metrics,
    )
    module.project(data.projection_dataloader())
    return module


def measured(module: TAXLightningModule, data, **options) -> dict[str, float]:
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar"), False)
    quiet |= {"logger": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", **quiet, **options)
    (values,) = trainer.test(module, data, verbose=False)
    return values


def test_one_switch_measures_who_and_why_and_changes_nothing_else(data):
    module = projected_module(data, explanation_metrics=True)
    whole = measured(module, data)
    assert whole == pytest.approx(measured(module, data))  # nothing of the first is remembered
    assert whole["test/integrity_min"] > 0.999
    assert all(value == value for value in whole.values())
    plain = measured(projected_module(data, explanation_metrics=False), data)
    added = {re.split("[/_]", name)[1] for name in whole.keys() - plain.keys()}
    kinds = {"insertion", "integrity", "outline", "trust", "who", "why"}
    assert added == kinds
    assert plain == pytest.approx({name: whole[name] for name in plain}, rel=1e-5)


def test_the_documentation_names_every_value_and_no_other(data):
    text = Path(__file__).parents[1].joinpath("docs", "metrics.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    listed = {re.sub("/<.*", "", key) for row in rows for key in re.findall("`(.*?)`", row[1])}
    listed |= {re.sub("/<.*", "", key) for row in rows for key in re.findall("`(.*?)`", row[5])}
    printed = set()
    for key in measured(projected_module(data, explanation_metrics=True), data):
        kind, _, name = key.removeprefix("test/").partition("/")
        whole = f"{kind}/{name}"
        printed.add(whole if whole in listed else kind)
    controls = ("_exchanged", "_uniform", "_constant")
    assert {key for key in printed if not key.endswith(controls)} <= listed
    absent = {"who_accuracy_d1", "who_chance_d1", "who_ece_d1"}  # the data have no such pixel
    # An untrained network draws nothing.
    absent |= {f"relative_area_{kind}" for kind in ("predicted", "error", "spearman")}
    absent |= {f"outline_{kind}" for kind in ("predicted", "error", "spearman")}
    absent |= {f"{figure}_error" for figure in ("spread", "area", "missed", "added")}
    assert listed - printed - absent == {"_exchanged", "_uniform", "_constant", "/mean"}


def test_a_test_in_true_bfloat16(data):
    module = projected_module(data, explanation_metrics=True)
    values = measured(module, data, precision="bf16-true")
    assert values["test/integrity_min"] > 0.98
