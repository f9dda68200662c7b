"""Synthetic scenes with known truth: which annotator is right where, and why the others differ.

A scene shows a few objects of five types under a microscope that never was. Every type has one
expert among the five simulated annotators, who draws it faithfully, while each of the others has a
habit for it. "Who" then has a true answer at every pixel round an object. Of two panels the one of
`HABITS` draws much alike, as people do; among `SPECIALISTS` nobody but the expert is ever right.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.datamodule import MultiAnnotatorDataModule
from tax_lightning.data.samples import RawSample
from tax_lightning.data.splits import SPLITS
from tax_lightning.refusals import check_number
from tax_lightning.simulation.annotators import (
    Habit,
    SimulatedAnnotator,
    When,
    annotate,
    draw_presence,
    draw_reference,
    expert_map,
    rule_names,
)
from tax_lightning.simulation.rules import (
    ConvexHull,
    Fracture,
    Miss,
    OverSegment,
    Polygon,
    Rule,
    Shift,
    SwapClass,
    UnderSegment,
)
from tax_lightning.simulation.scenes import CLASSES, TYPES, ObjectType, draw_scene

OWNER_BAND = 5.0
"""Width in pixels of the surroundings that belong to an object's expert."""


def _habit(kind: str, rule: Rule, max_area: float = np.inf, max_contrast: float = np.inf) -> Habit:
    """A habit for one type of object, or for its small or faint ones only."""
    return Habit(rule, When((kind,), max_area=max_area, max_contrast=max_contrast))


HABITS = (
    SimulatedAnnotator(
        "Ana",  # expert for round cells
        (
            _habit("spotted cell", UnderSegment(2)),
            _habit("fibre", OverSegment(2)),
            _habit("crystal", Polygon(4)),
            _habit("clump", Miss(), max_contrast=0.26),
            _habit("clump", ConvexHull()),
        ),
    ),
    SimulatedAnnotator(
        "Ben",  # expert for spotted cells
        (
            _habit("round cell", OverSegment(3)),
            _habit("fibre", Fracture(dropped=25, every=75)),
            _habit("crystal", SwapClass(CLASSES.index("cell"), "cell"), max_area=280),
            _habit("crystal", Polygon(5)),
            _habit("clump", Miss(), max_contrast=0.26),
            _habit("clump", ConvexHull()),
        ),
    ),
    SimulatedAnnotator(
        "Chloe",  # expert for fibres
        (
            _habit("round cell", Polygon(5)),
            _habit("spotted cell", SwapClass(CLASSES.index("debris"), "debris"), max_area=300),
            _habit("spotted cell", UnderSegment(2)),
            _habit("crystal", UnderSegment(2)),
            _habit("clump", ConvexHull()),
        ),
    ),
    SimulatedAnnotator(
        "Dara",  # expert for crystals
        (
            _habit("round cell", OverSegment(2)),
            _habit("spotted cell", OverSegment(2)),
            _habit("fibre", Miss(), max_contrast=0.23),
            _habit("fibre", OverSegment(2)),
            _habit("clump", Miss(), max_contrast=0.26),
            _habit("clump", OverSegment(2)),
        ),
    ),
    SimulatedAnnotator(
        "Emil",  # expert for clumps
        (
            _habit("round cell", Miss(), max_area=230),
            _habit("round cell", UnderSegment(2)),
            _habit("spotted cell", Shift(-3, 2)),
            _habit("fibre", OverSegment(2)),
            _habit("crystal", OverSegment(2)),
        ),
    ),
)
"""Five annotators; each is the expert for one type of object and has a habit for all others."""

_MISTAKEN_FOR = {"cell": "debris", "fibre": "cell", "debris": "fibre"}


def _ignorance(of: ObjectType, how: int) -> Habit:
    """What two of four people do with what they do not know; the other two take it for another."""
    mistaken = _MISTAKEN_FOR[of.class_name]
    rule = Miss() if how % 2 else SwapClass(CLASSES.index(mistaken), mistaken)
    return _habit(of.name, rule)


SPECIALISTS = tuple(
    SimulatedAnnotator(
        expert.name,
        tuple(
            _ignorance(kind, how=(place - number) % len(TYPES))
            for place, kind in enumerate(TYPES)
            if place != number
        ),
    )
    for number, expert in enumerate(HABITS)
)
"""Five annotators; each knows one type of object, and overlooks or misnames all others."""

PANELS = {"habits": HABITS, "specialists": SPECIALISTS}


_MOST_PIXELS, _MOST_SAMPLES = 2**14, 10**6  # a side, and scenes of a split: far beyond any memory


class SyntheticScenes:
    """Labelled scenes of one split, drawn when first asked for and then kept in memory.

    A scene depends on the seed, the split and its number alone, and not on ``missing``, which only
    takes masks away. At 96 x 96 pixels a scene takes about 10 ms and 0.15 MB.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        count: Number of scenes.
        annotators: The simulated annotators.
        size: Height and width in pixels.
        seed: Seed of all scenes.
        missing: Probability that an annotator did not label a scene.
        chosen: Places of the annotators whose masks are given, in this order; None: all.

    Example:
        >>> sample = SyntheticScenes("val", 3, HABITS)[0]
        >>> sample.id, sample.masks.shape
        ('val-0000', (5, 96, 96))
    """

    def __init__(
        self,
        split: str,
        count: int,
        annotators: Sequence[SimulatedAnnotator],
        size: int = 96,
        seed: int = 0,
        missing: float = 0.0,
        chosen: Sequence[int] | None = None,
    ) -> None:
        self.ids = tuple(f"{split}-{number:04d}" for number in range(count))
        self.annotators = annotators
        self.size = size
        self.missing = missing
        self.chosen = list(range(len(annotators)) if chosen is None else chosen)
        self._seed = (seed, SPLITS.index(split))
        self._drawn: dict[int, RawSample] = {}

    def __getitem__(self, index: int) -> RawSample:
        """The scene of this number, with masks, reference, expert and deviation."""
        number = range(len(self.ids))[index]
        if number not in self._drawn:
            self._drawn[number] = self._draw(number)
        return self._drawn[number]

    def _draw(self, number: int) -> RawSample:
        # one stream each: neither annotators nor absences change what the scene shows
        scene, hands, absences = np.random.default_rng((*self._seed, number)).spawn(3)
        image, objects = draw_scene(self.size, scene)
        shape = (self.size, self.size)
        masks, deviation = annotate(objects, self.annotators, shape, hands)
        masks, deviation = masks[self.chosen], deviation[self.chosen]
        expert = expert_map(objects, self.annotators, shape, OWNER_BAND)
        place = np.full(256, IGNORE_INDEX, np.uint8)  # of each expert among those chosen
        place[self.chosen] = np.arange(len(self.chosen))
        present = draw_presence(np.full(len(self.chosen), self.missing), absences)
        masks[~present] = IGNORE_INDEX
        deviation[~present] = 0  # no rule acted where nothing was drawn
        return RawSample(
            id=self.ids[number],
            image=image,
            masks=masks,
            present=present,
            reference=draw_reference(objects, shape),
            expert=place[expert],
            deviation=deviation,
        )


class SyntheticDataModule(MultiAnnotatorDataModule):
    """Synthetic scenes, labelled by five simulated annotators whose every deviation has a cause.

    Batches hold ``reference``, ``expert`` and ``deviation``, so that who maps can be scored against
    the truth. `rules` names the deviation ids.

    Args:
        size: Height and width of a scene in pixels, a multiple of 32 from 64 to 16384. Objects keep
            their size: larger scenes hold more of them.
        train_samples: Number of training scenes.
        val_samples: Number of validation scenes.
        test_samples: Number of test scenes.
        seed: Seed of the scenes; the same seed gives the same bytes.
        missing: Probability in [0, 1] that an annotator did not label a scene. At least one
            annotator labels each.
        annotators: Names of those of the panel who label; ``null`` takes all. The scenes stay the
            same; where the expert is left out, the expert is unknown.
        panel: ``"habits"``: everybody draws most of an object right, and differs by a habit;
            ``"specialists"``: everybody knows one type of object, and overlooks or misnames others;
            or a list of simulated annotators, whose habits may name classes and types of object
            (``When.kinds``).
        kwargs: The loading options of `MultiAnnotatorDataModule`, from ``batch_size`` on.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> data = SyntheticDataModule(train_samples=4, batch_size=2)
        >>> data.annotators, data.classes
        (('Ana', 'Ben', 'Chloe', 'Dara', 'Emil'), ('background', 'cell', 'fibre', 'debris'))
        >>> next(iter(data.train_dataloader()))["expert"].shape
        torch.Size([2, 96, 96])
    """

    def __init__(
        self,
        size: int = 96,
        train_samples: int = 256,
        val_samples: int = 48,
        test_samples: int = 48,
        seed: int = 0,
        missing: float = 0.0,
        annotators: Sequence[str] | None = None,
        panel: Literal["habits", "specialists"] | Sequence[SimulatedAnnotator] = "habits",
        **kwargs: Any,  # noqa: ANN401 - the parent class types them
    ) -> None:
        if isinstance(panel, str) and panel not in PANELS:
            expected = ", ".join(PANELS)
            raise ValueError(f"panel={panel!r}: expected {expected} or a list of annotators.")
        chosen_panel = PANELS[panel] if isinstance(panel, str) else panel
        kinds = [kind.name for kind in TYPES]
        self.panel = tuple(annotator.resolved(CLASSES, kinds) for annotator in chosen_panel)
        names = [annotator.name for annotator in self.panel]
        chosen = names if annotators is None else list(annotators)
        for name in chosen:
            if name not in names:
                raise ValueError(
                    f"annotators: {name!r} is not in the panel. Expected some of "
                    f"{', '.join(names)}."
                )
        super().__init__(
            annotators=chosen,
            classes=CLASSES,
            channels=3,
            **kwargs,
        )
        _check_options(size, seed, missing)
        self.counts = {"train": train_samples, "val": val_samples, "test": test_samples}
        for split, count in self.counts.items():
            check_number(f"{split}_samples", count, 0, _MOST_SAMPLES)
        self.size = size
        self.seed = seed
        self.missing = missing
        self._chosen = [names.index(name) for name in chosen]

    @property
    def rules(self) -> tuple[str, ...]:
        """Names of the deviation ids: ``"agrees"``, then the annotators' rules."""
        return rule_names(self.panel)

    def _source(self, split: str) -> SyntheticScenes:
        return SyntheticScenes(
            split,
            self.counts[split],
            self.panel,
            self.size,
            self.seed,
            self.missing,
            self._chosen,
        )


def _check_options(size: int, seed: int, missing: float) -> None:
    """Every option in its range."""
    if not 64 <= size <= _MOST_PIXELS or size % 32:
        raise ValueError(
            f"size={size}: expected a multiple of 32 from 64 to {_MOST_PIXELS}, which networks can "
            f"halve five times; set size to {min(max(64, round(size / 32) * 32), _MOST_PIXELS)}."
        )
    check_number("seed", seed, 0)
    check_number("missing", missing, 0, 1)
