import itertools

import numpy as np
from skimage.color import deltaE_ciede2000, rgb2lab

from tax_lightning.palette import annotator_palette, class_palette, kernel_shade

# What is seen of linear light without the cones of one kind: Machado, Oliveira and Fernandes, "A
# physiologically-based model for simulation of color vision deficiency", 2009, at full severity.
VISION = {
    "normal": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


def seen(colours, vision):
    """The colours as somebody sees them, in CIELAB."""
    values = np.array(colours) / 255
    light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    light = (light @ np.transpose(VISION[vision])).clip(0, 1)
    values = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return rgb2lab(values)


def test_twelve_annotators_can_be_told_apart_with_any_vision():
    for vision in VISION:
        lab = seen(annotator_palette(12), vision)
        gaps = [deltaE_ciede2000(a, b) for a, b in itertools.combinations(lab, 2)]
        assert min(gaps) > 10


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
