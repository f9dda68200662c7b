from tax_lightning.explain.palette import annotator_palette, class_palette, kernel_shade


def test_annotator_colours_are_distinct_stable_and_never_grey():
    colours = annotator_palette(254)
    assert len(set(colours)) == 254
    assert annotator_palette(5) == colours[:5]
    assert all(max(colour) - min(colour) > 40 for colour in colours)


def test_class_colours_are_distinct_and_none_is_an_annotators():
    assert len(set(class_palette(60))) == 60
    assert not set(class_palette(6)) & set(annotator_palette(12))


def test_kernel_shades_are_distinct_and_keep_the_colour_in_the_middle():
    shades = [kernel_shade((0, 114, 178), k, 5) for k in range(5)]
    assert len(set(shades)) == 5
    assert shades[2] == (0, 114, 178)
    assert [sum(shade) for shade in shades] == sorted(sum(shade) for shade in shades)
