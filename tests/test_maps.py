import numpy as np
import pytest
import torch
from made_up import make_explanation, quarters
from PIL import Image

from tax_lightning.visualization.maps import UNANIMOUS_INDEX, region_around, who_index_map
from tax_lightning.visualization.palette import annotator_palette, indexed_png


def test_who_index_map_reads_back_from_a_file(tmp_path):
    leader, unanimous = quarters()
    indices = who_index_map(make_explanation(leader, unanimous=unanimous))
    expected = leader[0].numpy().copy()
    expected[4:, 4:] = UNANIMOUS_INDEX
    np.testing.assert_array_equal(indices, expected)
    palette = {**dict(enumerate(annotator_palette(3))), UNANIMOUS_INDEX: (200, 200, 200)}
    indexed_png(indices, palette).save(tmp_path / "who.png")
    with Image.open(tmp_path / "who.png") as stored:
        np.testing.assert_array_equal(np.asarray(stored), expected)
        assert stored.convert("RGB").getpixel((7, 0)) == annotator_palette(3)[1]


def test_who_index_map_refuses_more_annotators_than_it_can_name():
    names = [str(n) for n in range(255)]
    explanation = make_explanation(torch.zeros(1, 1, 1).long(), annotators=names)
    with pytest.raises(ValueError, match="255 annotators"):
        who_index_map(explanation)


def test_the_region_of_a_prototype_is_connected_and_holds_the_pixel():
    leader, unanimous = quarters()  # 0 in two quarters that touch at a corner only
    explanation = make_explanation(leader, kernel=1, unanimous=unanimous)
    region = region_around(explanation, 1, 2, 3, annotator=0)
    assert region[:4, :4].all()
    assert region.sum() == 16
    assert region_around(explanation, 1, 6, 6, annotator=0)[4:, 4:].all()  # unanimous, yet there
    assert region_around(explanation, 1, 2, 3).all()  # whoever leads has this kernel
    for kernel, annotator in ((0, 0), (1, 1), (0, None)):
        assert not region_around(explanation, kernel, 2, 3, annotator).any()
