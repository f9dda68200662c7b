"""Every term of the objective by hand or by brute force."""

import itertools
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tax_lightning import losses
from tax_lightning.losses import LossWeights, TAXLoss, balanced_assignment
from tax_lightning.models.network import Encoded, TAXNetwork
from tax_lightning.models.output import TAXOutput
from tax_lightning.models.prototypes import PrototypeMemory
from tax_lightning.models.trust import Trust

LN2 = math.log(2)


def output_of(evidence: Tensor, logits: Tensor, embedding: Tensor | None = None) -> TAXOutput:
    """What a network says with evidence ``[B, N, K, H, W]`` and logits ``[B, N, K, C, H, W]``."""
    if embedding is None:
        embedding = torch.ones(len(evidence), 2, *evidence.shape[-2:])
    parts = SimpleNamespace(
        bank=SimpleNamespace(log_odds=lambda *_: logits[:, :, :, 1:] - logits[:, :, :, :1]),
        memory=lambda *_: evidence,
        trust=Trust(evidence.shape[1]),
    )
    parts.gate = partial(TAXNetwork.gate, parts)
    return TAXNetwork.decode(parts, Encoded(embedding, F.normalize(embedding, dim=1)))


def row_output(who: list[float], second_class: list[list[float]]) -> TAXOutput:
    """One image of one line, one kernel an annotator: ``who`` [N] and p_n(1) [N][W] as given."""
    second = torch.tensor(second_class)[None, :, None, None, None]  # [1, N, 1, 1, 1, W]
    logits = torch.cat([1 - second, second], dim=3).log()
    evidence = torch.tensor(who).log().view(1, -1, 1, 1, 1)
    return output_of(evidence.expand(*second.shape[:3], *second.shape[4:]), logits)


def rows(*lines):
    """One line of pixels an annotator ``[1, N, 1, W]``."""
    return torch.tensor(lines)[None, :, None]


def random_case(batch=2, annotators=3, kernels=2, classes=3, size=6):
    """Leaves with gradients, their output, a memory, and labels of everybody."""
    evidence = torch.randn(batch, annotators, kernels, size, size, requires_grad=True)
    logits = torch.randn(batch, annotators, kernels, classes, size, size, requires_grad=True)
    embedding = F.normalize(torch.randn(batch, 4, size, size), dim=1).requires_grad_()
    memory = PrototypeMemory(annotators, kernels, 4, classes)
    masks = torch.randint(0, classes, (batch, annotators, size, size))
    reference = torch.randint(0, classes, (batch, size, size))
    leaves = {"evidence": evidence, "logits": logits, "embedding": embedding}
    leaves |= {"vectors": memory.vectors}
    return leaves, output_of(evidence, logits, embedding), memory, masks, reference


def make_loss(annotators=3, window=3, sharpness=1.0, **options):
    """In random labels hardly anyone agrees: mild enough that no term is 0."""
    loss = TAXLoss(annotators, window=window, **options)
    loss.sharpness = sharpness
    return loss


def all_terms(loss, output, memory, masks, present, reference):
    terms = loss.segmentation_terms(output, masks, reference)
    return terms | loss.explanation_terms(output, memory, masks, present, reference)


EVERYONE = torch.ones(1, 2, dtype=torch.bool)


# ---------------------------------------------------------------------- segmentation


def test_annotator_cross_entropy_averages_all_pixels_of_an_annotator_then_annotators():
    first = row_output([0.5, 0.5], [[0.5, 0.25, 0.9], [0.125, 0.9, 0.9]])
    second = row_output([0.5, 0.5], [[0.0625, 0.9, 0.9], [0.9, 0.9, 0.9]])
    output = TAXOutput(*(torch.cat(pair) for pair in zip(first, second, strict=True)))
    masks = torch.cat([rows((1, 1, 255), (1, 255, 255)), rows((1, 255, 255), (255, 255, 255))])
    term = TAXLoss(2).segmentation_terms(output, masks, masks[:, 0])["annotator"]
    # Ana: (ln 2 + ln 4 + ln 16) / 3 over both images; Ben: ln 8, though a single pixel.
    assert term.item() == pytest.approx((7 / 3 * LN2 + 3 * LN2) / 2)


def test_the_fused_term_teaches_a_kernel_only_what_its_annotator_said():
    """Of three pixels Ana says y* at the first only, Ben at the second, and at the third nobody."""
    log_who = torch.full((1, 2, 1, 3), 0.5).log().requires_grad_()
    log_own = torch.full((1, 2, 2, 1, 3), 0.5).log().requires_grad_()
    output = TAXOutput(log_own, log_who, *(torch.zeros(1),) * 3)
    masks, reference = rows((1, 0, 255), (0, 1, 0)), torch.ones(1, 1, 3).long()
    term = TAXLoss(2).segmentation_terms(output, masks, reference)["fused"]
    assert term.item() == pytest.approx(LN2)  # as without the distinction
    term.backward()
    taught = log_own.grad[0].abs().sum(dim=1)[:, 0] > 0
    assert taught.tolist() == [[True, False, False], [False, True, False]]


def test_the_fused_term_teaches_who_everywhere():
    log_who = torch.full((1, 2, 1, 3), 0.5).log().requires_grad_()
    log_own = torch.tensor([0.25, 0.75]).log().view(1, 1, 2, 1, 1).repeat(1, 2, 1, 1, 3)
    log_own[:, 1] = log_own[:, 1].flip(1)
    output = TAXOutput(log_own, log_who, *(torch.zeros(1),) * 3)
    masks, reference = rows((1, 1, 255), (0, 1, 255)), torch.ones(1, 1, 3).long()
    TAXLoss(2).segmentation_terms(output, masks, reference)["fused"].backward()
    # Of -log(w_1 p_1 + w_2 p_2), by log w_n: -w_n p_n / p, here 3/4 and 1/4, over three pixels.
    expected = -torch.tensor([0.75, 0.25]).view(1, 2, 1, 1).expand(1, 2, 1, 3) / 3
    assert torch.allclose(log_who.grad, expected)


def test_dice_by_hand():
    output = row_output([1.0], [[0.8, 0.6, 0.4, 0.9]])
    labels = rows((1, 1, 0, 255))
    term = TAXLoss(1, segmentation="dice").segmentation_terms(output, labels, labels[:, 0])
    background = 2 * 0.6 / (0.2 + 0.4 + 0.6 + 1)
    cell = 2 * (0.8 + 0.6) / (0.8 + 0.6 + 0.4 + 2)
    expected = 1 - (background + cell) / 2
    assert term["annotator"].item() == pytest.approx(expected, rel=1e-5)
    assert term["fused"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("segmentation", ["ce", "dice", "ce+dice"])
def test_an_absent_annotator_has_no_say_in_the_segmentation_of_others(segmentation):
    leaves, output, _, masks, reference = random_case()
    masks[:, 1] = 255
    loss = TAXLoss(3, segmentation=segmentation)
    term = loss.segmentation_terms(output, masks, reference)["annotator"]
    others = output_of(leaves["evidence"][:, [0, 2]], leaves["logits"][:, [0, 2]])
    alone = loss.segmentation_terms(others, masks[:, [0, 2]], reference)["annotator"]
    torch.testing.assert_close(term, alone)
    term.backward()
    assert (leaves["logits"].grad[:, 1] == 0).all()
    assert (leaves["logits"].grad[:, [0, 2]] != 0).any()


@pytest.mark.parametrize("logit", [4.0, 15.0, 100.0])
def test_a_pixel_that_is_certainly_wrong_is_still_learnt_from(logit):
    logits = torch.tensor([logit, -logit]).view(1, 1, 1, 2, 1, 1).requires_grad_()
    output = output_of(torch.zeros(1, 1, 1, 1, 1), logits)
    masks = torch.ones(1, 1, 1, 1).long()
    terms = TAXLoss(1).segmentation_terms(output, masks, masks[:, 0])
    for name, term in terms.items():
        (gradient,) = torch.autograd.grad(term, logits, retain_graph=True)
        assert gradient.flatten().tolist() == pytest.approx([1, -1], abs=1e-3), name


# ---------------------------------------------------------------------- who


def test_who_by_hand():
    # Ben would deviate at the third pixel only, so with single pixels as windows only this one
    # counts in full; the others count .05 each. Of three images before Ben labelled one.
    output = row_output([0.25, 0.75], [[0.9] * 4, [0.9, 0.9, 0.1, 0.9]])
    masks, reference = rows((1, 1, 1, 1), (1, 1, 0, 1)), torch.tensor([[[1, 1, 1, 255]]])
    loss = make_loss(2, window=1, sharpness=LN2)  # Ben's agreement there is 1/2
    loss.observe(torch.tensor([3.0, 1.0]), torch.tensor(3.0))
    assert loss.label_rate.tolist() == [1, 1 / 2]
    ana, ben = -math.log(0.25), -2 * math.log(0.75)
    memory, alone = PrototypeMemory(2, 1, 2, 2), masks.clone()
    alone[:, 1] = 255
    for given, expected in (
        (masks, (2 * 0.05 * (ana + ben) + 1.0 * (ana + ben / 2)) / 1.1),
        (alone, ana),  # the network's own guess of Ben still says where it matters
    ):
        present = (given != 255).flatten(2).any(dim=2)
        terms = loss.explanation_terms(output, memory, given, present, reference)
        assert terms["who"].item() == pytest.approx(expected, rel=1e-5)


def expected_who_minimiser(loss, masks, reference, rate):
    """Weights that minimise the who term on average over who happens to be present.

    The network knows the annotators: it predicts of each what they do draw where they are present.
    """
    annotators = masks.shape[1]
    memory = PrototypeMemory(annotators, 1, 2, 2)
    loss.observe(rate * 1e6, torch.tensor(1e6))
    scores = torch.zeros(1, annotators, *masks.shape[2:], requires_grad=True)
    logits = F.one_hot(masks, 2).permute(0, 1, 4, 2, 3).unsqueeze(2).float()
    optimizer = torch.optim.LBFGS([scores], max_iter=200, line_search_fn="strong_wolfe")
    patterns = []
    for pattern in itertools.product([True, False], repeat=annotators):
        present = torch.tensor(pattern)
        chance = torch.where(present, rate, 1 - rate).prod().item()
        if chance > 0:
            seen = masks.masked_fill(~present.view(1, -1, 1, 1), 255)
            patterns.append((chance, present.unsqueeze(0), seen))

    def closure():
        optimizer.zero_grad()
        output = output_of(scores.unsqueeze(2), logits)
        total = sum(
            chance * loss.explanation_terms(output, memory, seen, present, reference)["who"]
            for chance, present, seen in patterns
        )
        total.backward()
        return total

    optimizer.step(closure)
    return scores.detach().softmax(dim=1)


@pytest.mark.parametrize("rates", [(0.5, 0.5, 0.5), (0.9, 0.5, 0.2)])
def test_who_is_unbiased_by_missing_labels(rates):
    # The window covers the image, so that every present annotator's mistakes are seen everywhere.
    reference = torch.zeros(1, 4, 4).long()
    masks = torch.zeros(1, 3, 4, 4).long()
    masks[0, 0, 0, :1] = masks[0, 1, 1, :2] = masks[0, 2, 2, :4] = 1
    settings = {"window": 7, "sharpness": 8.0}
    agree = torch.exp(-8.0 * torch.tensor([1, 2, 4]) / 16)
    expected = (agree / agree.sum()).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    full = expected_who_minimiser(make_loss(**settings), masks, reference, torch.ones(3))
    partial = expected_who_minimiser(make_loss(**settings), masks, reference, torch.tensor(rates))
    torch.testing.assert_close(full, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(partial, expected, atol=1e-3, rtol=0)


def test_who_is_unbiased_where_those_who_deviate_are_missing():
    # Where Ana is absent nobody is seen to deviate, and the pixel's weight must not tell.
    reference = torch.zeros(1, 6, 6).long()
    masks = torch.zeros(1, 3, 6, 6).long()
    masks[0, 0, 2, 2] = 1
    settings = {"window": 3, "sharpness": 8.0}
    rates = torch.tensor([0.5, 0.5, 0.5])
    full = expected_who_minimiser(make_loss(**settings), masks, reference, torch.ones(3))
    partial = expected_who_minimiser(make_loss(**settings), masks, reference, rates)
    torch.testing.assert_close(partial, full, atol=0.02, rtol=0)


# ---------------------------------------------------------------------- kernels and prototypes


def prototype_case(*directions: tuple[float, float]) -> PrototypeMemory:
    """One annotator with these prototypes."""
    memory = PrototypeMemory(1, len(directions), 2, 2)
    with torch.no_grad():
        memory.vectors.copy_(torch.tensor(directions)[None])
    return memory


def terms_of(memory: PrototypeMemory, pixels: list[tuple[float, float]]) -> dict[str, Tensor]:
    """Terms of one image of one line whose only annotator is right everywhere."""
    embedding = torch.tensor(pixels).T[None, :, None]
    masks = torch.ones(1, 1, 1, len(pixels)).long()
    evidence = memory(embedding)
    output = output_of(evidence, torch.zeros(*evidence.shape[:3], 2, 1, len(pixels)), embedding)
    present = torch.ones(1, 1, dtype=torch.bool)
    return TAXLoss(1).explanation_terms(output, memory, masks, present, masks[:, 0])


def cross_entropy(memory: PrototypeMemory, pixels: list[tuple[float, float]]) -> float:
    """Mean of -sum q log g: q is the balanced assignment, g the softmax of cosine / 0.1."""
    cosine = memory.similarity(torch.tensor(pixels).T[None, :, None])[:, :, :, 0]
    usable = cosine.masked_fill(~memory.active[:, :, None], -torch.inf)
    plan = balanced_assignment(usable, torch.ones(1, 1, len(pixels)))
    log_within = (usable / 0.1).log_softmax(dim=2).masked_fill(~memory.active[:, :, None], 0)
    return -(plan * log_within).sum(dim=2).mean().item()


def test_cluster_by_hand():
    memory = prototype_case((1.0, 0.0), (0.0, 1.0))
    pixels = [(0.8, 0.6), (0.6, 0.8)]  # one each, cosine .8; g is the sigmoid of (.8 - .6) / .1
    sure, share = 1 / (1 + math.exp(-4)), 1 / (1 + math.exp(-2))  # q has half the temperature
    apart = -(sure * math.log(share) + (1 - sure) * math.log(1 - share))
    assert cross_entropy(memory, pixels) == pytest.approx(apart, rel=1e-4)
    expected = 0.2**2 + apart / 2
    assert terms_of(memory, pixels)["cluster"].item() == pytest.approx(expected, rel=1e-4)


def test_the_cluster_term_assigns_evenly():
    # Both pixels are nearest to the first prototype; the second takes the one that is nearer to it.
    memory, pixels = prototype_case((1.0, 0.0), (0.0, 1.0)), [(1.0, 0.0), (0.8, 0.6)]
    expected = (0 + 0.4**2) / 2 + cross_entropy(memory, pixels) / 2
    assert terms_of(memory, pixels)["cluster"].item() == pytest.approx(expected, rel=1e-4)


def test_pruned_prototypes_are_assigned_no_pixel():
    memory, pixels = prototype_case((1.0, 0.0), (0.0, 1.0)), [(0.8, 0.6), (0.6, 0.8)]
    memory.active[0, 1] = False
    terms = terms_of(memory, pixels)
    assert cross_entropy(memory, pixels) == 0  # g is 1 for the only one left
    assert terms["cluster"].item() == pytest.approx((0.2**2 + 0.4**2) / 2, rel=1e-5)
    terms["cluster"].backward()
    assert (memory.vectors.grad[0, 1] == 0).all()


def test_prototypes_learn_only_where_their_annotator_is_right():
    _, output, memory, masks, _ = random_case(classes=2)
    reference = torch.zeros_like(masks[:, 0])
    masks[:, 0], masks[:, 1:] = 1, 0  # Ana is wrong everywhere
    present = torch.ones(2, 3, dtype=torch.bool)
    terms = TAXLoss(3, window=3).explanation_terms(output, memory, masks, present, reference)
    terms["cluster"].backward()
    assert memory.vectors.grad[0].abs().max() < 1e-12
    assert memory.vectors.grad[1:].abs().max() > 1e-4


def test_prototypes_learn_more_where_fewer_annotators_are_right(monkeypatch):
    _, output, memory, masks, _ = random_case(classes=2)
    masks[:], reference = 1, torch.ones_like(masks[:, 0])
    masks[1, 1:] = 0  # in the second image Ana alone is right
    seen = []
    monkeypatch.setattr(
        losses, "balanced_assignment", lambda usable, weight, **_: seen.append(weight) or usable
    )
    loss = TAXLoss(3, window=3)
    loss.explanation_terms(output, memory, masks, torch.ones(2, 3).bool(), reference)
    weight = loss.relevance(output, reference)
    counts = seen[0].sort(dim=2).values  # the pixels come in any order
    torch.testing.assert_close(counts[0, 0], weight[0].flatten().sort().values / 3)
    torch.testing.assert_close(counts[1, 0], weight[1].flatten().sort().values)
    assert (seen[0][1, 1:] < 1e-9).all()


@pytest.mark.parametrize(
    ("directions", "expected"),
    [
        ([(1.0, 0.0), (0.8, 0.6)], 0.3**2),
        ([(1.0, 0.0), (0.0, 1.0)], 0),
        ([(1.0, 0.0), (-1.0, 0.0)], 0),
        ([(2.0, 0.0), (5.0, 0.0)], 0.5**2),  # length is no matter
        ([(1.0, 0.0), (0.8, 0.6), (-1.0, 0.0)], 0.3**2 / 3),  # one pair of three
        ([(1.0, 0.0)], 0),
    ],
)
def test_separation_by_hand(directions, expected):
    terms = terms_of(prototype_case(*directions), [(1.0, 0.0)])
    assert terms["separation"].item() == pytest.approx(expected, abs=1e-6)
    assert terms["separation"].requires_grad


# ---------------------------------------------------------------------- balanced assignment


def test_balanced_assignment_shares_pixels_out_evenly():
    cosine = torch.rand(2, 3, 4, 50) * 2 - 1
    cosine[:, :, 0] += 0.5  # left alone, the first prototype would take nearly all
    weight = torch.rand(2, 3, 50)
    plan = balanced_assignment(cosine, weight, iterations=200)
    torch.testing.assert_close(plan.sum(dim=2), torch.ones(2, 3, 50))
    mass = (plan * weight.unsqueeze(2)).sum(dim=(0, 3))
    expected = weight.sum(dim=(0, 2))[:, None].expand(3, 4) / 4
    torch.testing.assert_close(mass, expected, rtol=1e-3, atol=1e-3)


def test_pixels_without_weight_do_not_count():
    cosine = torch.rand(1, 1, 3, 20)
    weight = torch.ones(1, 1, 20)
    weight[..., 10:] = 0
    plan = balanced_assignment(cosine, weight)
    alone = balanced_assignment(cosine[..., :10], weight[..., :10])
    torch.testing.assert_close(plan[..., :10], alone)
    assert plan.isfinite().all()
    assert balanced_assignment(cosine, weight * 0).isfinite().all()


# ---------------------------------------------------------------------- without a reference


def test_without_a_reference_the_result_is_trained_for_the_labels_of_all():
    output = row_output([0.75, 0.25], [[0.5, 0.5, 0.5], [0.1, 0.9, 0.3]])
    masks = rows((1, 1, 255), (0, 255, 255))
    terms = TAXLoss(2).segmentation_terms(output, masks, None)
    # p(1) is .75 * .5 + .25 * p_2(1): .4, .6 and .45. Pixels first, then annotators.
    ana, ben = -(math.log(0.4) + math.log(0.6)) / 2, -math.log(0.6)
    assert terms["fused"].item() == pytest.approx((ana + ben) / 2, rel=1e-5)
    # Each annotator's own term needs no reference.
    with_reference = TAXLoss(2).segmentation_terms(output, masks, masks[:, 0])
    assert terms["annotator"].item() == with_reference["annotator"].item()


def test_without_a_reference_annotators_agree_where_they_labelled_and_who_has_no_term():
    leaves, output, memory, masks, _ = random_case()
    masks[0, 1], masks[1, 2, 0] = 255, 255
    present = (masks != 255).flatten(2).any(dim=2)
    loss = make_loss()
    assert torch.equal(loss.agreement(masks, None), (masks != 255).float())
    assert torch.equal(loss.relevance(output, None), torch.ones(2, 6, 6))
    terms = all_terms(loss, output, memory, masks, present, None)
    assert terms.keys() == set(TERMS) - {"who"}
    assert all(term.isfinite() for term in terms.values())
    assert_gradients_are_finite(leaves, torch.stack(list(terms.values())).sum())


# ---------------------------------------------------------------------- hard cases

TERMS = ("annotator", "fused", "who", "cluster", "separation")


def assert_gradients_are_finite(leaves, term):
    gradients = torch.autograd.grad(term, list(leaves.values()), None, True, allow_unused=True)
    for name, gradient in zip(leaves, gradients, strict=True):
        assert gradient is None or gradient.isfinite().all(), name


@pytest.mark.parametrize("segmentation", ["ce", "dice", "ce+dice"])
@pytest.mark.parametrize("name", TERMS)
def test_a_batch_that_nobody_labelled_costs_nothing(name, segmentation):
    leaves, output, memory, masks, reference = random_case()
    loss = make_loss(segmentation=segmentation)
    present = torch.zeros(2, 3, dtype=torch.bool)
    masks, reference = torch.full_like(masks, 255), torch.full_like(reference, 255)
    terms = all_terms(loss, output, memory, masks, present, reference)
    assert terms.keys() == set(TERMS)
    if name != "separation":  # a matter of the prototypes alone
        assert terms[name].item() == 0
    assert terms[name].requires_grad
    assert_gradients_are_finite(leaves, terms[name])


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_extreme_certainty_gives_no_nan(name, scale):
    leaves, _, memory, masks, reference = random_case()
    output = output_of(leaves["evidence"] * scale, leaves["logits"] * scale, leaves["embedding"])
    present = torch.ones(2, 3, dtype=torch.bool)
    term = all_terms(make_loss(), output, memory, masks, present, reference)[name]
    assert term.isfinite()
    assert_gradients_are_finite(leaves, term)


@pytest.mark.parametrize("name", TERMS)
def test_low_precision_around_the_terms_does_not_change_them(name):
    _, output, memory, masks, reference = random_case()
    present = torch.ones(2, 3, dtype=torch.bool)
    exact = all_terms(make_loss(), output, memory, masks, present, reference)[name]
    with torch.autocast("cpu", torch.bfloat16):
        term = all_terms(make_loss(), output, memory, masks, present, reference)[name]
    torch.testing.assert_close(term, exact, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------- settings


def test_weights_must_not_be_negative():
    with pytest.raises(ValueError, match=r"^loss_weights\.cluster=-0\.1: expected 0 or more\.$"):
        LossWeights(cluster=-0.1)
    assert LossWeights(cluster=0.0).cluster == 0


def test_in_evaluation_processes_do_not_wait_for_each_other():
    loss = make_loss()

    def meet(local):
        raise AssertionError("a collective")

    loss.total = meet
    _, output, memory, masks, reference = random_case()
    present = torch.ones(2, 3, dtype=torch.bool)
    terms = all_terms(loss.eval(), output, memory, masks, present, reference)
    assert all(term.isfinite() for term in terms.values())
    with pytest.raises(AssertionError, match="a collective"):
        all_terms(loss.train(), output, memory, masks, present, reference)
