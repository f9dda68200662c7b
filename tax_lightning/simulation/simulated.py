"""Simulated annotators around real masks: who deviates where, and why, is then known exactly.

The masks of one annotator of any data set are taken for the truth. Annotators of known habits draw
what those masks show, each in their own way, as they do in the scenes of
`tax_lightning.simulation.synthetic`.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.datamodule import MultiAnnotatorDataModule
from tax_lightning.data.dataset import Source
from tax_lightning.data.pixels import Pictures
from tax_lightning.data.samples import RawSample, SampleTable
from tax_lightning.data.table import TableDataModule
from tax_lightning.refusals import check_number
from tax_lightning.simulation.annotators import (
    Habit,
    SimulatedAnnotator,
    annotate,
    draw_presence,
    expert_map,
    find_objects,
    rule_names,
)
from tax_lightning.simulation.rules import (
    ByteArray,
    Miss,
    OverSegment,
    PermuteClasses,
    UnderSegment,
)

Preset = Literal["good", "over", "under", "wrong", "blank"]

REFERENCE = "reference"
"""The source that is no annotator: the reference segmentation of the data."""

PRESETS: Mapping[Preset, SimulatedAnnotator] = {
    "good": SimulatedAnnotator("good"),
    "over": SimulatedAnnotator("over", (Habit(OverSegment(1, "square")),)),
    "under": SimulatedAnnotator("under", (Habit(UnderSegment(1, "square")),)),
    "wrong": SimulatedAnnotator("wrong", (Habit(PermuteClasses()),)),
    "blank": SimulatedAnnotator("blank", (Habit(Miss()),)),
}
"""The annotators that are customary in studies of noisy segmentation labels, by name.

The truth itself, one 3 x 3 dilation, one 3 x 3 erosion, all classes confused (which takes two
besides the background), an empty mask. They follow Zhang et al., "Disentangling Human Error from
Ground Truth in Segmentation of Medical Images" (NeurIPS 2020), whose thinner and thicker digits
come from Castro et al., "Morpho-MNIST" (JMLR 2019). Unlike there, what is added to an object stops
half way to the next one.
"""


@dataclass(frozen=True)
class BetaAvailability:
    """Diligence that differs from annotator to annotator: the share of images each one labels.

    Args:
        a: First parameter of the Beta distribution that the shares are drawn from, above 0.
        b: Second parameter. The mean share is ``a / (a + b)``.

    Raises:
        ValueError: If a parameter is not above 0.
    """

    a: float = 1.0
    b: float = 3.0

    def __post_init__(self) -> None:
        if min(self.a, self.b) <= 0:
            raise ValueError(
                f"availability: a={self.a} and b={self.b}, expected numbers above 0, e.g. 1 and 3."
            )


class SimulatedLabels:
    """Samples of another source, with simulated annotators in the place of the real ones.

    What is drawn on an image depends on the seed and the image's id alone.

    Args:
        source: The samples.
        truth: Place of the annotator whose masks are taken for the truth; None: the reference.
        classes: Names of the classes; the index is the class id.
        panel: The simulated annotators, whose habits name classes by id.
        missing: Probability of each of them not to label an image.
        expert_band: Width in pixels of the surroundings that belong to an object's expert.
        seed: Seed of the rules that draw by chance, and of who labels what.
    """

    def __init__(
        self,
        source: Source,
        truth: int | None,
        classes: Sequence[str],
        panel: Sequence[SimulatedAnnotator],
        missing: Sequence[float],
        expert_band: float,
        seed: int,
    ) -> None:
        self.source = source
        self.truth = truth
        self.classes = classes
        self.panel = panel
        self.missing = np.array(missing)
        self.expert_band = expert_band
        self.seed = seed

    @property
    def ids(self) -> Sequence[str]:
        """Those of the samples."""
        return self.source.ids

    def __getitem__(self, index: int) -> RawSample:
        """The sample as the simulated annotators label it; nobody does where no truth is known."""
        raw = self.source[index]
        truth = self._truth_of(raw)
        rng = np.random.default_rng((self.seed, zlib.crc32(raw.id.encode())))
        hands, absences = rng.spawn(2)
        objects = find_objects(truth, self.classes, raw.image)
        masks, deviation = annotate(objects, self.panel, truth.shape, hands)
        expert = expert_map(objects, self.panel, truth.shape, self.expert_band)
        present = draw_presence(self.missing, absences)
        unknown = truth == IGNORE_INDEX
        present &= not unknown.all()
        masks[:, unknown] = masks[~present] = IGNORE_INDEX
        deviation[:, unknown] = deviation[~present] = 0  # no rule acted where nothing was drawn
        expert[unknown] = IGNORE_INDEX
        return replace(
            raw, masks=masks, present=present, reference=truth, expert=expert, deviation=deviation
        )

    def _truth_of(self, raw: RawSample) -> ByteArray:
        """The mask that is taken for the truth."""
        if self.truth is not None:
            mask: ByteArray = raw.masks[self.truth]
            return mask
        if raw.reference is None:
            raise ValueError(
                f"source='{REFERENCE}', but {raw.id!r} has no reference. Set source to the name of "
                "the annotator whose masks are to be taken for the truth."
            )
        return raw.reference


class SimulatedAnnotatorsDataModule(MultiAnnotatorDataModule):
    """Any data set, labelled by simulated annotators whose every deviation has a cause.

    Images, classes and splits are those of the data set. One of its annotators, or its reference,
    is taken for the truth, whose connected parts are the objects; an object's kind is the name of
    its class. Batches hold that truth as ``reference``, and ``expert`` and ``deviation`` as
    `tax_lightning.simulation.synthetic` defines them, so that who maps can be scored against the
    truth. `rules` names the deviation ids. What the truth leaves open (255) is open for everybody.
    Of a data set in patches, an object is what a patch shows of it.

    The same seed gives the same bytes, in any order and in any number of processes.

    Args:
        data: The data module of the data set. Its loading options do not count.
        annotators: The simulated annotators, or names of `PRESETS`: ``good``, ``over``, ``under``,
            ``wrong``, ``blank``.
        source: Name of the annotator of ``data`` whose masks are taken for the truth, or
            ``"reference"``. Images without that mask are left out.
        availability: Share of the images that an annotator labels, in [0, 1]: one for all, one for
            each by name, or drawn from a Beta distribution. At least one annotator labels each.
        expert_band: Width in pixels of the surroundings that belong to an object's expert.
        seed: Seed of rules that draw by chance, and of who labels what.
        kwargs: The loading options of `MultiAnnotatorDataModule`, from ``batch_size`` on.

    Raises:
        ValueError: If an argument is out of its range, or names what ``data`` does not have.

    Example:
        >>> from tax_lightning.simulation.synthetic import SyntheticDataModule
        >>> scenes = SyntheticDataModule(size=64, train_samples=4)
        >>> tight = SimulatedAnnotator("tight", (Habit(UnderSegment(2)),))
        >>> data = SimulatedAnnotatorsDataModule(scenes, ["good", tight], batch_size=2)
        >>> data.annotators, data.rules
        (('good', 'tight'), ('agrees', 'under-segments by 2 px'))
        >>> next(iter(data.train_dataloader()))["deviation"].shape
        torch.Size([2, 2, 64, 64])
    """

    def __init__(
        self,
        data: MultiAnnotatorDataModule,
        annotators: Sequence[SimulatedAnnotator | Preset],
        source: str = REFERENCE,
        availability: float | BetaAvailability | dict[str, float] = 1.0,
        expert_band: float = 5.0,
        seed: int = 0,
        **kwargs: Any,  # noqa: ANN401 - the parent class types them
    ) -> None:
        panel = [_annotator(given) for given in annotators]
        super().__init__(
            annotators=[annotator.name for annotator in panel],
            classes=data.classes,
            channels=data.channels,
            **kwargs,
        )
        check_number("seed", seed, 0)
        check_number("expert_band", expert_band, 0)
        _check_source(source, data)
        self.data = data
        self.data.predict_split = self.predict_split
        self.panel = tuple(
            annotator.resolved(data.classes, data.classes[1:]) for annotator in panel
        )
        self.source = source
        self.availability = _availability(availability, self.annotators, seed)
        self.expert_band = expert_band
        self.seed = seed

    @property
    def rules(self) -> tuple[str, ...]:
        """Names of the deviation ids: ``"agrees"``, then the annotators' rules."""
        return rule_names(self.panel)

    @property
    def pictures(self) -> Pictures:
        """How the files of the data set become pixels."""
        return self.data.pictures

    def prepare_data(self) -> None:
        """Let the data set prepare itself."""
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """Prepare the samples of a stage, and let the data set check its own.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.

        Raises:
            ValueError: If the stage has no samples, or the data set finds a fault.
        """
        super().setup(stage)
        self.data.trainer = self.trainer
        self.data.setup(stage)

    def _source(self, split: str) -> SimulatedLabels:
        return self._labelled(_with_truth(self.data._source(split), split, self.source))

    def _predict_source(self) -> Source:
        return self._elsewhere or super()._predict_source()

    def _all_sources(self) -> Iterator[Source]:
        yield from super()._all_sources()
        if self._elsewhere is not None:
            yield self._elsewhere

    @cached_property
    def _elsewhere(self) -> SimulatedLabels | None:
        """Images to predict on that are in no split."""
        source = self.data._predict_source()
        if source is self.data._samples_of(self.data.predict_split):
            return None
        return self._labelled(source)

    def _labelled(self, source: Source) -> SimulatedLabels:
        names = self.data.annotators
        return SimulatedLabels(
            source,
            names.index(self.source) if self.source in names else None,
            self.classes,
            self.panel,
            [1 - self.availability[name] for name in self.annotators],
            self.expert_band,
            self.seed,
        )


def _annotator(given: SimulatedAnnotator | Preset) -> SimulatedAnnotator:
    """The annotator, or the one of that name."""
    if isinstance(given, SimulatedAnnotator):
        return given
    if given not in PRESETS:
        raise ValueError(
            f"annotators: {given!r} is no preset. Expected one of {', '.join(PRESETS)}, or a "
            "SimulatedAnnotator."
        )
    return PRESETS[given]


def _check_source(source: str, data: MultiAnnotatorDataModule) -> None:
    """A truth that the data have, as far as names can tell."""
    known = [*data.annotators, REFERENCE]
    if source not in known:
        raise ValueError(
            f"source={source!r} is no annotator of the data. Expected one of {', '.join(known)}."
        )
    without = isinstance(data, TableDataModule) and not data.table.with_reference
    if source not in data.annotators and without:
        raise ValueError(
            f"source='{REFERENCE}', but the data have no reference. Set source to the annotator "
            f"whose masks are to be taken for the truth: one of {', '.join(data.annotators)}."
        )


def _availability(
    given: float | BetaAvailability | Mapping[str, float], names: Sequence[str], seed: int
) -> dict[str, float]:
    """Annotator -> share of the images that they label."""
    if isinstance(given, BetaAvailability):
        return {name: _diligence(name, given, seed) for name in names}
    shares = dict(given) if isinstance(given, Mapping) else dict.fromkeys(names, given)
    if set(shares) != set(names):
        raise ValueError(
            f"availability names {', '.join(shares)}; expected each of the annotators "
            f"{', '.join(names)}."
        )
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(
                f"availability={share} of {name}: expected a share of the images from 0 to 1."
            )
    return shares


def _diligence(name: str, how: BetaAvailability, seed: int) -> float:
    """The share that one annotator labels, whoever the others are."""
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    return float(rng.beta(how.a, how.b))


def _with_truth(source: Source, split: str, name: str) -> Source:
    """Without the images whose truth is missing, as far as a table of files tells."""
    return _labelled_by(source, split, name) if isinstance(source, SampleTable) else source


def _labelled_by(table: SampleTable, split: str, name: str) -> SampleTable:
    """The samples that the annotator labelled, or that have a reference."""
    kept = tuple(
        sample
        for sample in table.samples
        if (name in sample.masks if name in table.annotators else sample.reference is not None)
    )
    if missing := len(table) - len(kept):
        rank_zero_warn(
            f"{missing} of the {len(table)} images of the split {split!r} are left out: they have "
            f"no mask of the source {name!r}."
        )
    return replace(table, samples=kept)
