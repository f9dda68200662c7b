import torch
from made_up import make_explanation, quarters

from tax_lightning.explain.legend import legend_entries
from tax_lightning.explain.palette import annotator_palette


def test_legend_names_every_annotator_with_colour_and_part():
    leader, undecided = quarters()
    title, *entries = legend_entries(make_explanation(leader, undecided=undecided))
    assert "share of the decided pixels" in title.text
    assert [entry.text for entry in entries] == ["Ana 33%", "Ben 33%", "Cleo 33%"]
    assert [tuple(entry.chip[0, 0]) for entry in entries] == list(annotator_palette(3))


def test_legend_of_forty_long_names_stays_distinct():
    names = [f"radiologist-with-a-very-long-name-{i:02d}" for i in range(40)]
    explanation = make_explanation(torch.zeros(1, 4, 4).long(), annotators=names)
    texts = [entry.text for entry in legend_entries(explanation)[1:]]
    assert len(set(texts)) == 40
    assert all("…" in text and len(text) < 30 for text in texts)
