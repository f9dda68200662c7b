"""Consensus, a network each, a head each, and a gate between the heads."""

import pytest
import torch
from baseline_scenes import ANNOTATORS, images, loader, make, make_trainer, scenes
from torch.nn import functional as F

from tax_lightning.baselines import Consensus, GatedMultiHead, MultiHead, Separate
from tax_lightning.consensus import majority
from tax_lightning.losses import TAXLoss
from tax_lightning.modules.base import ModelOutput

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:You have overridden `on_before_batch_transfer` in"),
]


def masks_of(samples: list[dict]) -> torch.Tensor:
    return torch.stack([sample["masks"] for sample in samples])


def logs(*rows: tuple[float, ...]) -> torch.Tensor:
    """Logarithms ``[1, N, C, 1, 1]`` of probabilities, a row an annotator."""
    return torch.tensor(rows).log()[None, :, :, None, None]


def test_equal_weights_by_hand():
    said = ModelOutput.weighing_all_alike(logs((0.5, 0.5), (0.9, 0.1), (0.1, 0.9)))
    torch.testing.assert_close(said.log_probs.exp().flatten(), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(said.log_who.exp().flatten(), torch.full((3,), 1 / 3))
    assert said.log_sample_probs is said.log_annotator_probs


# ---------------------------------------------------------------------- consensus


def test_the_consensus_learns_the_majority_and_says_the_same_for_all():
    module = make(Consensus)
    make_trainer(max_epochs=40).fit(module, loader())
    drawn = module.predict(images()).argmax(dim=1)
    reference = majority(masks_of(scenes()), 3)
    assert torch.equal(reference, masks_of(scenes())[:, 0])  # Ana lies between the others
    assert (drawn == reference).float().mean() > 0.98
    for chosen in ({"annotator": "Ben"}, {"panel": ["Ana", "Dr. C"]}):
        torch.testing.assert_close(module.predict(images(), **chosen), module.predict(images()))


def test_the_consensus_learns_the_reference_given_and_nothing_else():
    module = make(Consensus, reference="given")
    probs = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])
    output = ModelOutput.weighing_all_alike(logs((1.0, 0.0)), probs.T.log()[None, :, None])
    reference = torch.tensor([[[0, 1, 255]]])
    (loss,) = module.segmentation_terms({}, output, reference).values()
    # The first pixel gives 1/2 to its class, the second 3/4; the third has no reference.
    assert float(loss) == pytest.approx(-torch.tensor([1 / 2, 3 / 4]).log().mean().item())


# ---------------------------------------------------------------------- a network each


def test_networks_learn_from_their_own_annotator_alone():
    module = make(Separate)
    batch = module._completed(next(iter(loader(scenes(4, absent={i: [1] for i in range(4)})))))
    sum(module.terms(batch).values()).backward()
    sizes = [
        sum(float(p.grad.abs().sum()) for p in network.parameters()) for network in module.networks
    ]
    assert sizes[0] > 0
    assert sizes[1] == 0  # Ben has labelled nothing: a gradient of zeros, not none
    assert sizes[2] > 0
    own = module.loss.between(
        module(batch["image"]).log_annotator_probs[:, :1], batch["masks"][:, :1]
    )
    module.zero_grad()
    own.backward()
    assert all(p.grad is None or not p.grad.any() for p in module.networks[2].parameters())


def test_a_network_of_ones_own_is_copied_for_each():
    module = make(Separate)
    pointers = {parameter.data_ptr() for parameter in module.parameters()}
    assert len(pointers) == len(list(module.parameters())) == 3 * 10
    assert module.networks[0] is not module.networks[1]


# ---------------------------------------------------------------------- a head each


@pytest.mark.parametrize("size", [1, 3])
@torch.no_grad()
def test_heads_are_separate_convolutions(size):
    module = make(MultiHead, kernel_size=size).eval()
    seen = images()[:2]
    features = module.network.features(seen)
    assert module.heads.weight.shape == (3, 1, 3, 12, size, size)
    expected = torch.stack(
        [
            F.conv2d(features, weight[0], bias[0], padding="same").softmax(dim=1)
            for weight, bias in zip(module.heads.weight, module.heads.bias, strict=True)
        ],
        dim=1,
    )
    torch.testing.assert_close(module(seen).log_annotator_probs.exp(), expected)
    torch.testing.assert_close(module.predict(seen), expected.mean(dim=1))


def test_heads_learn_how_each_draws():
    module = make(MultiHead)
    make_trainer(max_epochs=40).fit(module, loader())
    areas = [module.predict(images(), annotator=name)[:, 1:].sum() for name in ANNOTATORS]
    assert areas[1] > 1.5 * areas[0] > 2 * areas[2]


# ---------------------------------------------------------------------- the gate


@torch.no_grad()
def test_the_gate_sums_to_1_and_mixes_the_heads():
    module = make(GatedMultiHead).eval()
    seen = images()[:2]
    output = module(seen)
    weights = module.gate(module.network.features(seen)).softmax(dim=1)
    assert weights.shape == (2, 3, 24, 24)
    torch.testing.assert_close(output.log_who.exp(), weights)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, 24, 24))
    expected = (weights.unsqueeze(2) * output.log_annotator_probs.exp()).sum(dim=1)
    torch.testing.assert_close(output.log_probs.exp(), expected)
    assert module.monitor == "val/fused_dice/mean"


def test_its_objective_is_the_segmentation_of_tax():
    module = make(GatedMultiHead, segmentation_loss="ce+dice")
    masks = masks_of(scenes(2))
    reference = masks[:, 2]
    output = module(images()[:2])
    found = module.segmentation_terms({"masks": masks}, output, reference)
    expected = TAXLoss(3, "ce+dice", "none").segmentation_terms(output, masks, reference)
    assert set(found) == {"annotator", "fused"}
    for name, term in expected.items():
        assert torch.equal(found[name], term)


def referred() -> list[dict]:
    """Scenes whose reference is what Dr. C draws."""
    expert = torch.full((24, 24), 2)
    return [sample | {"reference": sample["masks"][2], "expert": expert} for sample in scenes()]


def test_the_gate_learns_who_is_right():
    samples = referred()
    module = make(GatedMultiHead, reference="given", explanation_metrics=True)
    make_trainer(max_epochs=60).fit(module, loader(samples))
    (found,) = make_trainer().test(module, loader(samples), verbose=False)
    assert found["test/who_accuracy_expert"] > 0.9
    assert found["test/who_accuracy_expert"] > found["test/who_accuracy_expert_shuffled"]
    assert found["test/who_necessity"] > found["test/who_necessity_shuffled"]
    assert found["test/fused_dice/mean"] > 0.9
    assert 0 < found["test/purity/class"] <= 1
    assert "test/purity_shuffled/class" in found
    assert not any(key.startswith(("test/why", "test/integrity")) for key in found)
    (again,) = make_trainer().test(module, loader(samples), verbose=False)
    assert again == pytest.approx(found)


def test_without_the_switch_only_the_who_of_a_validation_is_measured():
    module = make(GatedMultiHead, reference="given")
    (found,) = make_trainer().test(module, loader(referred()), verbose=False)
    assert "test/who_accuracy_d1" in found
    assert not any("necessity" in key or "purity" in key for key in found)


def test_without_an_expert_or_a_reference_the_rest_of_who_is_measured():
    module = make(GatedMultiHead, reference="none", explanation_metrics=True)
    (found,) = make_trainer().test(module, loader(), verbose=False)
    assert "test/who_necessity" in found
    assert not any("accuracy" in key or "purity" in key for key in found)
