"""Who is trained, validated and tested on: whole groups drawn into splits or folds."""

from collections.abc import Mapping

import numpy as np

SPLITS = ("train", "val", "test")


def split_groups(
    sizes: Mapping[str, int], val_fraction: float, test_fraction: float, seed: int
) -> dict[str, str]:
    """Assign whole groups to splits so that the splits' sizes come close to the fractions.

    Large groups are placed first, equal ones in random order, each into the split that lacks most
    of its share (as the Webster method hands out seats). The last groups go to splits that would
    stay empty otherwise.

    Args:
        sizes: Group name -> number of samples in it.
        val_fraction: Share of the samples for validation, in [0, 1).
        test_fraction: Share of the samples for testing, in [0, 1).
        seed: Seed of the draw.

    Returns:
        Group name -> ``"train"``, ``"val"`` or ``"test"``.

    Raises:
        ValueError: If the fractions leave nothing for training, or a split gets no group.

    Example:
        >>> splits = split_groups({f"patient{i}": 2 for i in range(10)}, 0.2, 0.1, seed=1)
        >>> sorted(splits.values())
        ['test', 'train', 'train', 'train', 'train', 'train', 'train', 'train', 'val', 'val']
    """
    shares = {"train": 1 - val_fraction - test_fraction, "val": val_fraction, "test": test_fraction}
    if min(val_fraction, test_fraction) < 0 or shares["train"] <= 0:
        raise ValueError(
            f"val_fraction={val_fraction} and test_fraction={test_fraction}: expected numbers from "
            "0 up whose sum is below 1, so that something is left for training."
        )
    shares = {split: share for split, share in shares.items() if share > 0}
    if len(sizes) < len(shares):
        empty = list(shares)[len(sizes)]
        raise ValueError(
            f"Split {empty!r} got no samples: {len(sizes)} group(s) cannot fill the splits "
            f"{', '.join(shares)}. Add images, use smaller groups, or set {empty}_fraction to 0."
        )
    return _hand_out(sizes, shares, seed)


def fold_groups(sizes: Mapping[str, int], folds: int, seed: int) -> dict[str, int]:
    """Assign whole groups to folds of about equal size.

    Args:
        sizes: Group name -> number of samples in it.
        folds: Number of folds, at least 2.
        seed: Seed of the draw.

    Returns:
        Group name -> number of its fold, from 0.

    Raises:
        ValueError: If there are fewer than two folds, or fewer groups than folds.

    Example:
        >>> sorted(fold_groups({"a": 3, "b": 1, "c": 2}, folds=2, seed=0).items())
        [('a', 0), ('b', 1), ('c', 1)]
    """
    if folds < 2:
        raise ValueError(f"folds={folds}: expected at least 2, or null for a single split.")
    if len(sizes) < folds:
        raise ValueError(
            f"folds={folds}: expected at most one for each of the {len(sizes)} group(s) of images."
        )
    handed = _hand_out(sizes, {str(fold): 1 / folds for fold in range(folds)}, seed)
    return {name: int(fold) for name, fold in handed.items()}


def _hand_out(sizes: Mapping[str, int], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Group name -> split or fold, by their shares."""
    names = np.array(sorted(sizes), dtype=object)
    drawn = np.random.default_rng(seed).permutation(names).tolist()
    filled = dict.fromkeys(shares, 0)
    assigned: dict[str, str] = {}
    for place, name in enumerate(sorted(drawn, key=lambda name: -sizes[name])):
        empty = [split for split in shares if not filled[split]]
        candidates = empty if len(empty) == len(sizes) - place else list(shares)
        quotients = {
            split: (filled[split] + sizes[name] / 2) / shares[split] for split in candidates
        }
        split = min(quotients, key=quotients.__getitem__)
        filled[split] += sizes[name]
        assigned[name] = split
    return assigned
