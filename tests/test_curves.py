import re

import torch

from tax_lightning.callbacks.curves import Curves

ANNOTATORS = ("Ana", "Person (2)", "x/y")


def test_curves_are_of_annotators_only_and_keep_their_order():
    curves = Curves()
    metrics = {"val/dice/Ana": torch.tensor(0.25), "val/dice/x/y": 0.5, "val/dice/mean": 0.4}
    metrics |= {"val/ged2": 0.1, "train/loss": 3.0, "val/fused_iou/cell": 0.3, "dice/Ana": 9.0}
    curves.add(0, metrics, ANNOTATORS)
    curves.add(2, {"val/dice/Ana": 0.75, "val/iou/Person (2)": 0.5}, ANNOTATORS)
    assert curves.by_metric == {
        "dice": {"Ana": [(0, 0.25), (2, 0.75)], "x/y": [(0, 0.5)]},
        "iou": {"Person (2)": [(2, 0.5)]},
    }


def test_an_epoch_that_is_measured_again_replaces_what_was_known():
    curves = Curves()
    for value in (0.25, 0.5):
        curves.add(3, {"val/dice/Ana": value}, ANNOTATORS)
    assert curves.by_metric == {"dice": {"Ana": [(3, 0.5)]}}


def test_the_layout_matches_the_keys_and_no_others():
    curves = Curves()
    curves.add(0, {"val/dice/Ana": 0.5, "val/dice/Person (2)": 0.5}, ANNOTATORS)
    (pattern, second) = curves.layout()["by annotator"]["dice"][1]
    assert re.match(pattern, "val/dice/Ana")
    assert re.match(second, "val/dice/Person (2)")
    assert not re.match(pattern, "val/dice/Anabel")
    assert not re.match(pattern, "test/val/dice/Ana")


def test_the_file_reads_back(tmp_path):
    curves = Curves()
    curves.add(0, {"val/dice/Ana": 0.5, "val/iou/x/y": 0.1}, ANNOTATORS)
    curves.write(tmp_path / "curves.csv")
    assert (tmp_path / "curves.csv").read_text().splitlines() == [
        "metric,annotator,epoch,value",
        "dice,Ana,0,0.5",
        "iou,x/y,0,0.1",
    ]
