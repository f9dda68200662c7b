"""Augmentation: named sets of transforms, what transforms may not do, and one draw for all planes.

The sets, by strength:

- ``none``: nothing
- ``light``: horizontal and vertical flips
- ``medical``: the eight symmetries of the square, small affine and elastic deformations,
  brightness, contrast and gamma, now and then slight blur or noise

All of them take uint8 and float32 images of any number of channels. What ``medical`` draws from
beyond the border is the picture's mirror image, with the labels it has there, so that no label is
lost and no black corner tells what was done.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import cv2

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network when imported

import albumentations as A

Transform: TypeAlias = A.BasicTransform | A.BaseCompose
Preset: TypeAlias = Literal["none", "light", "medical"]

_OWN_WORK = ("Normalize", "ToTensorV2", "ToTensor3D")  # what the dataset does itself
_MIRROR = cv2.BORDER_REFLECT_101


def training_transforms(choice: Preset | Sequence[Transform] | None) -> list[Transform]:
    """The transforms that a name stands for, or those given.

    Args:
        choice: ``"none"``, ``"light"``, ``"medical"``, or the transforms. None: ``"light"``.

    Raises:
        ValueError: If there is no such name.

    Example:
        >>> [type(transform).__name__ for transform in training_transforms("light")]
        ['HorizontalFlip', 'VerticalFlip']
    """
    if choice == "none":
        return []
    if choice is None or choice == "light":
        return [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]
    if choice == "medical":
        return _medical()
    if isinstance(choice, str):
        raise ValueError(
            f"train_transforms={choice!r}: expected none, light, medical, or a list of "
            "albumentations transforms."
        )
    return list(choice)


def _medical() -> list[Transform]:
    """Deformations of a few pixels or degrees, and the differences between two devices."""
    return [
        A.D4(p=1.0),
        A.Affine(scale=(0.9, 1.1), rotate=(-15, 15), border_mode=_MIRROR, p=0.5),
        # Moves pixels by 2 on average (0.16 alpha / sigma), alike within about sigma. Gaussian
        # noise would be divided by its maximum, and so move pixels less in larger pictures.
        A.ElasticTransform(
            alpha=120, sigma=10, noise_distribution="uniform", border_mode=_MIRROR, p=0.25
        ),
        A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.2, p=0.5),
        A.RandomGamma(gamma_limit=(75, 135), p=0.3),
        A.OneOf(
            [A.GaussianBlur(sigma_limit=(0.3, 1.0), p=1), A.GaussNoise((0.01, 0.04), p=1)], p=0.2
        ),
    ]


def check_transforms(transforms: Iterable[Transform]) -> None:
    """Refuse transforms that do what the dataset does itself, at any depth.

    Args:
        transforms: Transforms, and compositions of them.

    Raises:
        ValueError: If one normalises or makes tensors.
    """
    for transform in transforms:
        if isinstance(transform, A.BaseCompose):
            check_transforms(transform.transforms)
        elif (name := type(transform).__name__) in _OWN_WORK:
            raise ValueError(
                f"The transform {name} is not allowed: images are normalised with mean and std and "
                f"made tensors after the transforms. Remove {name}, and set mean and std instead."
            )


def compose(transforms: Iterable[Transform], planes: Mapping[str, str]) -> A.Compose:
    """Transforms as one, whose draw holds for an image and all its label planes.

    Args:
        transforms: What to apply, in this order.
        planes: Name -> ``"mask"`` or ``"masks"``, for label planes beside these two. Labels are
            never interpolated, whatever a transform says.

    Example:
        >>> import numpy as np
        >>> turn = compose([A.Transpose(p=1)], {"reference": "mask"})
        >>> labels = np.array([[0, 1, 2]], np.uint8)
        >>> turn(image=labels, reference=labels)["reference"].tolist()
        [[0], [1], [2]]
    """
    return A.Compose(
        list(transforms), additional_targets=dict(planes), mask_interpolation=cv2.INTER_NEAREST
    )
