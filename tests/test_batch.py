"""What a batch must hold."""

import pytest
import torch

from tax_lightning.batch import by_our_keys, complete_batch

ANNOTATORS = ("Ana", "Ben")
CLASSES = ("background", "cell", "debris")


def make_batch(**changes):
    masks = torch.tensor([0, 1, 2, 255]).repeat(3, 2, 4, 1)
    batch = {"image": torch.randn(3, 1, 4, 4), "masks": masks} | changes
    return {key: value for key, value in batch.items() if value is not None}


def complete(**changes):
    return complete_batch(make_batch(**changes), ANNOTATORS, CLASSES)


def test_a_complete_batch_passes_unchanged():
    masks = torch.zeros(3, 2, 4, 4).long()
    masks[1, 1] = masks[2] = 255
    batch = make_batch(
        masks=masks,
        present=torch.tensor([[True, True], [True, False], [False, False]]),
        reference=torch.full((3, 4, 4), 255),
        id=["a", "b", "c"],
        annotators=["Ana", "Ben"],
        anything="else",
    )
    checked = complete_batch(batch, ANNOTATORS, CLASSES)
    assert checked.keys() == batch.keys()
    assert all(checked[key] is batch[key] for key in batch)


def test_what_is_filled_in_is_not_written_into_the_callers_batch():
    batch = make_batch()
    complete_batch(batch, ANNOTATORS, CLASSES)
    assert batch.keys() == {"image", "masks"}


def test_present_is_who_has_a_labelled_pixel():
    masks = torch.full((3, 2, 4, 4), 255)
    masks[0] = 0  # an empty mask is a label
    masks[1, 1, 2, 3] = 1
    present = complete(masks=masks)["present"]
    assert present.dtype == torch.bool
    assert present.tolist() == [[True, True], [False, True], [False, False]]


def test_images_without_id_are_named_by_their_content():
    images = torch.randn(3, 1, 4, 4)
    names = complete(image=images)["id"]
    assert len(set(names)) == 3
    assert complete(image=images[[2, 0, 1]])["id"] == [names[2], names[0], names[1]]
    masks = make_batch()["masks"][:1]
    assert complete(image=images[1:2].clone(), masks=masks)["id"] == names[1:2]


def test_images_to_predict_need_no_labels():
    checked = complete_batch(
        {"image": torch.zeros(1, 3, 4, 4)}, ANNOTATORS, CLASSES, needs_labels=False
    )
    assert checked.keys() == {"image", "id"}


@pytest.mark.parametrize(
    ("batch", "found"),
    [([torch.zeros(1, 1, 4, 4)], "list"), ({"masks": torch.zeros(1, 2, 4, 4)}, "dict")],
)
def test_no_dictionary_with_images(batch, found):
    with pytest.raises(ValueError, match=f"^batch: found {found}, expected a dictionary with"):
        complete_batch(batch, ANNOTATORS, CLASSES)


def test_other_annotators():
    with pytest.raises(ValueError, match="Name the same annotators in the same order") as error:
        complete(annotators=("Ben", "Ana"))
    assert "('Ben', 'Ana'), but the model's annotators are ('Ana', 'Ben')" in str(error.value)


def test_no_masks():
    message = r"^batch: no key 'masks'; expected int64 class ids \[3, 2, 4, 4\]\.$"
    with pytest.raises(ValueError, match=message):
        complete(masks=None)


@pytest.mark.parametrize(
    ("masks", "found"),
    [
        (torch.zeros(3, 3, 4, 4).long(), r"torch.int64 \[3, 3, 4, 4\]"),
        (torch.zeros(3, 4, 4).long(), r"torch.int64 \[3, 4, 4\]"),
        (torch.zeros(3, 2, 4, 5).long(), r"torch.int64 \[3, 2, 4, 5\]"),
        (torch.zeros(2, 2, 4, 4).long(), r"torch.int64 \[2, 2, 4, 4\]"),
        (torch.zeros(3, 2, 4, 4), r"torch.float32 \[3, 2, 4, 4\]"),
    ],
)
def test_masks_of_another_shape_or_type(masks, found):
    message = rf"^batch\['masks'\] is {found}, expected torch.int64 \[3, 2, 4, 4\]: 2 annotators "
    with pytest.raises(ValueError, match=message + r"\(Ana, Ben\), one class id a pixel"):
        complete(masks=masks)


@pytest.mark.parametrize("key", ["masks", "reference"])
@pytest.mark.parametrize("wrong", [-1, 3, 254, 256])
def test_class_ids_out_of_range(key, wrong):
    labels = {"masks": torch.zeros(3, 2, 4, 4).long(), "reference": torch.zeros(3, 4, 4).long()}
    labels[key][..., 1, 2] = wrong
    message = (
        rf"^batch\['{key}'\] holds the class id {wrong}, expected 0 to 2 "
        r"\(background, cell, debris\) or 255 for not labelled\.$"
    )
    with pytest.raises(ValueError, match=message):
        complete(**labels)


def test_labels_of_an_absent_annotator_are_a_contradiction():
    batch = {
        "image": torch.zeros(1, 3, 4, 4),
        "masks": torch.zeros(1, 2, 4, 4).long(),
        "present": torch.tensor([[True, False]]),
    }
    with pytest.raises(ValueError, match="Set the masks of absent annotators to 255"):
        complete_batch(batch, ["Ana", "Ben"], ["background", "cell"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image", torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "expected normalised floats"),
        ("image", torch.zeros(3, 4, 4), "expected normalised floats"),
        ("reference", torch.zeros(1, 1, 4, 4).long(), r"expected \[1, 4, 4\]"),
    ],
)
def test_images_and_references_of_another_form(key, value, message):
    batch = {"image": torch.zeros(1, 3, 4, 4), "masks": torch.zeros(1, 2, 4, 4).long()}
    with pytest.raises(ValueError, match=message):
        complete_batch(batch | {key: value}, ["Ana", "Ben"], ["background", "cell"])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int16, torch.int32])
def test_masks_of_smaller_numbers_become_int64(dtype):
    masks = torch.tensor([[[[0, 1]]]])
    batch = {"image": torch.zeros(1, 3, 1, 2), "masks": masks.to(dtype)}
    made = complete_batch(batch, ["Ana"], ["background", "cell"])["masks"]
    assert made.dtype == torch.int64
    assert torch.equal(made, masks)


def test_a_list_of_masks_is_refused_with_the_cure():
    batch = {"image": torch.zeros(1, 3, 1, 2), "masks": [torch.zeros(1, 1, 2)]}
    with pytest.raises(ValueError, match=r"is a list, expected a tensor.*Stack the masks"):
        complete_batch(batch, ["Ana"], ["background", "cell"])


def test_a_key_of_theirs_that_is_not_there_is_named():
    with pytest.raises(
        ValueError, match="batch_keys names 'label', but the batch holds image, seg"
    ):
        by_our_keys({"image": 1, "seg": 2}, {"masks": "label"})
    ours = {"image": 1, "masks": 2}
    assert by_our_keys(ours, {"masks": "label"}) == ours  # renamed before
    both = {"image": 1, "masks": 2, "label": 3}
    for order in (both, dict(reversed(both.items()))):  # what is named is meant
        assert by_our_keys(order, {"masks": "label"}) == {"image": 1, "masks": 3}
    assert by_our_keys(5, {"masks": "label"}) == 5  # left for the check that names it
