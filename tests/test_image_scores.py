"""Scores of single test images: what they are, and the table that they are written to."""

import csv

import torch

from tax_lightning.callbacks.image_scores import write_scores
from tax_lightning.models.output import ModelOutput
from tax_lightning.modules.base import image_scores


def one_hot(labels):
    """Log probabilities that are all but certain of these labels ``[..., H, W]``."""
    probs = torch.nn.functional.one_hot(torch.tensor(labels), 2).movedim(-1, -3).float()
    return (probs * 0.98 + 0.01).log()


def test_scores_by_hand():
    # Three images of 1 x 4 pixels, two annotators: an object, nothing, and an unknown reference.
    drawn = [[[[1, 1, 0, 0]], [[1, 0, 0, 0]]], [[[0, 0, 0, 0]]] * 2, [[[0, 0, 0, 0]]] * 2]
    result = [[[1, 0, 0, 0]], [[0, 0, 0, 0]], [[1, 0, 0, 0]]]
    uniform = torch.full((3, 2, 1, 4), 0.5).log()
    output = ModelOutput(one_hot(result), uniform, one_hot(drawn), one_hot(drawn))
    masks = torch.tensor([[[[1, 1, 0, 0]], [[0, 0, 0, 0]]], *drawn[1:]])
    batch = {"masks": masks, "present": torch.tensor([[True, True], [True, False], [True, True]])}
    reference = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 0, 0]], [[255, 255, 255, 255]]])
    found = image_scores(output, torch.tensor(drawn), batch, reference, ["Ana", "Ben"])
    expected = {
        "fused_dice": [2 / 3, 1, torch.nan],  # nothing to find and nothing found is right
        "dice/Ana": [1, 1, 1],
        "dice/Ben": [0, torch.nan, 1],  # drew nothing, labelled nothing, agrees
        "dice": [0.5, 1, 1],
    }
    for name, values in expected.items():
        torch.testing.assert_close(found[name], torch.tensor(values).float(), equal_nan=True)
    assert found["ged2"][1:].tolist() == [0, 0]
    assert "dice" not in image_scores(output, torch.tensor(drawn), batch, None, [])


def test_the_table_has_a_row_for_each_image_and_holes_where_there_is_no_case(tmp_path):
    write_scores(tmp_path / "t.csv", {"b": {"dice": torch.nan, "ged2": 0.5}, "a": {"dice": 1.0}})
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"image": "a", "dice": "1", "ged2": ""},
        {"image": "b", "dice": "", "ged2": "0.5"},
    ]
