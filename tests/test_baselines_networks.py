"""Consensus, a network each, a head each, and a gate between the heads."""

import pytest
import torch
from baseline_scenes import loader, make, make_trainer, scenes, stacked, trained
from torch.nn import functional as F

from tax_lightning.baselines import (
    Consensus,
    GatedMultiHead,
    MultiHead,
    RandomRater,
    Separate,
    SoftVote,
)
from tax_lightning.consensus import majority
from tax_lightning.modules.base import ModelOutput


def test_the_consensus_learns_the_majority_and_says_the_same_for_all():
    module, images = trained(Consensus), stacked("image")
    result, reference = module.predict(images), majority(stacked("masks"), 3)
    assert torch.equal(reference, stacked("masks")[:, 0])  # Ana lies between the others
    assert (result.argmax(dim=1) == reference).float().mean() > 0.98
    for chosen in ({"annotator": "Ben"}, {"panel": ["Ana", "Dr. C"]}):
        torch.testing.assert_close(module.predict(images, **chosen), result)


def test_the_consensus_learns_the_reference_given_and_nothing_else():
    probs = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])
    output = ModelOutput(probs.T.log()[None, :, None], torch.empty(0), torch.empty(0))
    reference = torch.tensor([[[0, 1, 255]]])
    (loss,) = make(Consensus, reference="given").common_terms({}, output, reference).values()
    # The first pixel gives 1/2 to its class, the second 3/4; the third has no reference.
    assert float(loss) == pytest.approx(-torch.tensor([1 / 2, 3 / 4]).log().mean().item())


@pytest.mark.parametrize("kind", [SoftVote, RandomRater])
def test_votes_are_learnt_as_shares(kind):
    module = trained(kind, 60, reference="none")
    votes = F.one_hot(stacked("masks"), 3).float().mean(dim=1).movedim(-1, 1)
    probs = module.predict(stacked("image"))
    divided = votes.amax(1) < 1
    gap = (probs - votes).abs().mean(1)[divided].mean()
    assert gap < 0.15
    result = stacked("masks")[:, 0]  # to say what most say would be worse
    assert gap < (F.one_hot(result, 3).movedim(-1, 1) - votes).abs().mean(1)[divided].mean() / 1.5


def test_a_random_rater_is_one_of_those_who_labelled_the_image():
    module = make(RandomRater)
    absent = {0: [0, 1], 1: [0, 1, 2], 2: [2], 3: []}
    batch = module._completed(next(iter(loader(scenes(4, absent=absent)))))
    asked = []
    module.loss.between = lambda log_probs, labels: asked.append(labels) or log_probs.sum()
    for _ in range(30):
        module.terms(batch)
    drawn = torch.stack(asked)[:, :, 0]  # [30, 4, H, W]
    masks = batch["masks"]
    chosen = (drawn.unsqueeze(2) == masks).flatten(3).all(3)  # [30, 4, N]
    assert chosen[:, 0].any(0).tolist() == [False, False, True]
    assert (drawn[:, 1] == 255).all()
    assert chosen[:, 2].any(0).tolist() == [True, True, False]
    assert chosen[:, 3].any(0).all()


def test_networks_are_copies_that_learn_from_their_own_annotator_alone():
    module = make(Separate)
    assert len({parameter.data_ptr() for parameter in module.parameters()}) == 3 * 10
    batch = module._completed(next(iter(loader(scenes(4, absent={i: [1] for i in range(4)})))))
    sum(module.terms(batch).values()).backward()
    gradients = [[p.grad.abs().sum() for p in network.parameters()] for network in module.networks]
    # Ben has labelled nothing: a gradient of zeros, not none.
    assert [bool(sum(sizes) > 0) for sizes in gradients] == [True, False, True]


@pytest.mark.parametrize("size", [1, 3])
@torch.no_grad()
def test_heads_are_separate_convolutions(size):
    module, images = make(MultiHead, kernel_size=size).eval(), stacked("image")[:2]
    features = module.network.features(images)
    assert module.heads.weight.shape == (3, 1, 3, 12, size, size)
    heads = zip(module.heads.weight, module.heads.bias, strict=True)
    logits = [F.conv2d(features, weight[0], bias[0], padding="same") for weight, bias in heads]
    expected = torch.stack(logits, dim=1).softmax(dim=2)
    torch.testing.assert_close(module(images).log_annotator_probs.exp(), expected)


@pytest.fixture
def referred() -> list[dict]:
    """Scenes whose reference is what Dr. C draws."""
    expert = torch.full((24, 24), 2)
    return [sample | {"reference": sample["masks"][2], "expert": expert} for sample in scenes()]


def measured(module, samples) -> dict[str, float]:
    return make_trainer().test(module, loader(samples), verbose=False)[0]


def test_the_gate_learns_who_is_right(referred):
    options = {"reference": "given", "explanation_metrics": True}
    module = trained(GatedMultiHead, 60, referred, **options)
    found = measured(module, referred)
    assert found["test/who_accuracy_expert"] > 0.9
    assert found["test/who_accuracy_expert"] > found["test/who_accuracy_expert_exchanged"]
    assert found["test/fused_dice/mean"] > 0.9
    assert found["test/trust_log_score"] < found["test/trust_log_score_uniform"]
    assert not any(key.startswith(("test/why", "test/integrity")) for key in found)
    assert measured(module, referred) == pytest.approx(found)


def test_without_the_switch_only_the_who_of_a_validation_is_measured(referred):
    found = " ".join(measured(make(GatedMultiHead, reference="given"), referred))
    assert "test/who_accuracy_d1" in found
    assert "who_accuracy_d1_exchanged" not in found
    assert "trust" not in found
