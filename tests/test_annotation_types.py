"""Types of annotation: which mask of an image belongs to which type, and who then sees that."""

from itertools import permutations

import pytest
import torch
from baseline_scenes import ALL, make, stacked
from hypothesis import given, settings
from hypothesis import strategies as st
from squares import ANNOTATORS, QUIET, Squares, fast, make_loader, make_module, make_trainer

from tax_lightning import TAXLightningModule
from tax_lightning.callbacks.explanation_logger import explained_samples
from tax_lightning.modules.add_annotators import AddedAnnotators
from tax_lightning.modules.annotation_types import TypeNumbers, best_order, in_order, type_words
from tax_lightning.modules.projection import on_device
from tax_lightning.modules.schedule import Schedule

pytestmark = QUIET


class Shuffled(Squares):
    """Masks that are large, as the square, and small, in an order that differs by image."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.masks = [one[torch.randperm(3, generator=generator)] for one in self.masks]


def made_up(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log of probabilities and masks of two images, three types, three classes, some pixels 255."""
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(2, 3, 3, 4, 5, generator=generator).log_softmax(dim=2)
    masks = torch.randint(0, 4, (2, 3, 4, 5), generator=generator)
    return log_probs, masks.where(masks < 3, 255)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(3)))
def test_the_most_probable_of_all_orders_is_found_whatever_the_order_of_the_slots(seed, slots):
    log_probs, masks = made_up(seed)
    order = best_order(masks, log_probs)
    matched = in_order({"masks": masks, "present": torch.ones(2, 3)}, order)["masks"]

    def log_likelihood(image, labels):
        of_labels = log_probs[image].gather(1, labels.clamp(max=2).unsqueeze(1)).squeeze(1)
        return of_labels[labels != 255].sum()

    for image in range(2):
        every = [log_likelihood(image, masks[image, list(p)]) for p in permutations(range(3))]
        assert log_likelihood(image, matched[image]) == pytest.approx(max(every).item(), rel=1e-5)
    exchanged = masks[:, list(slots)]
    again = exchanged.gather(1, best_order(exchanged, log_probs)[..., None, None].expand_as(masks))
    assert torch.equal(again, matched)


def test_an_absent_mask_goes_to_the_type_that_fits_the_others_least():
    cell = torch.tensor([0.9, 0.5, 0.1]).view(1, 3, 1, 1, 1)
    log_probs = torch.cat([1 - cell, cell], dim=2).log()
    masks = torch.tensor([255, 0, 1]).view(1, 3, 1, 1)
    order = best_order(masks, log_probs)
    assert order.tolist() == [[2, 0, 1]]
    batch = {"masks": masks, "present": masks[:, :, 0, 0] != 255, "expert": masks[:, 0]}
    found = in_order(batch, order)
    assert found["present"].tolist() == [[True, False, True]]
    assert "expert" not in found


def test_probabilities_of_zero_are_no_obstacle():
    log_probs = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).log().view(1, 2, 2, 1, 1)
    assert best_order(torch.tensor([0, 1]).view(1, 2, 1, 1), log_probs).tolist() == [[1, 0]]


def test_numbers_of_types_by_hand():
    numbers = TypeNumbers(["a", "b", "c", "d"])
    masks = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [255, 255, 255, 255]])
    none = torch.zeros(3, 4).long()
    masks = torch.stack([masks, torch.cat([none, masks[:1]])]).unsqueeze(2)
    numbers.update(masks=masks, present=(masks != 255).flatten(2).any(2))
    found = {name: value.item() for name, value in numbers.compute().items()}
    assert [found[f"type_area/{name}"] for name in "abc"] == [2.0, 1.0, 0.5]  # most draw 2 pixels
    assert [found[f"type_empty/{name}"] for name in "abcd"] == [0.5, 0.5, 0.5, 0.0]
    assert type_words(numbers.compute(), ["d"]) == [""]  # nothing to compare with


def test_the_kinds_of_drawing_are_recovered_from_shuffled_masks(tmp_path):
    torch.manual_seed(0)
    quick = {"optimizer": fast, "schedule": Schedule(enabled=False)}
    module = make_module(TAXLightningModule, types=True, **quick)
    trainer = make_trainer()
    trainer.fit(module, make_loader(Shuffled()))
    trainer.validate(module, make_loader(Shuffled(1)), verbose=False)
    assert module.annotators == ("type 1", "type 2", "type 3")
    names = ("type 1: large", "type 2: middle", "type 3: tight")
    path = tmp_path / "a.ckpt"
    trainer.save_checkpoint(path)
    loaded = TAXLightningModule.load_from_checkpoint(path, network=module.network.backbone)
    explanation = loaded.explain(torch.stack(Squares().images))
    assert explanation.annotators == names
    assert explanation.sources[0][0].annotator == names[0]
    large, middle, tight = explanation.annotator_decisions.sum((0, 2, 3)) / 12
    assert large > 150 > 120 > middle > 80 > 60 > tight  # drawn were 256, 100 and 36 pixels
    # Pictures, and the passes over images after training, see the masks in the order of types.
    (first, *_), (second, *_) = (
        list(on_device(loaded, make_loader(dataset))) for dataset in (Shuffled(), Shuffled(2))
    )
    assert torch.equal(first[0]["masks"], second[0]["masks"])
    assert not torch.equal(Shuffled().masks[0], Shuffled(2).masks[0])
    (shown,) = explained_samples(trainer, 1)
    assert shown.masks.sum((1, 2)).tolist() == [256, 100, 36]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_no_baseline_depends_on_the_order_of_the_slots(kind):
    torch.manual_seed(0)
    module = make(kind, types=True).eval()
    losses = []
    for slots in ([0, 1, 2], [2, 0, 1]):
        batch = {"image": stacked("image"), "masks": stacked("masks")[:, slots]}
        evaluated = module._evaluated(batch, module.test_metrics)
        losses.append(module._segmentation_loss(*evaluated).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_no_person_is_added_to_types(tmp_path):
    module = make_module(TAXLightningModule, types=True)
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="types of annotation"):
        AddedAnnotators(str(tmp_path / "a.ckpt"), [*ANNOTATORS, "Zoe"], module.classes)
