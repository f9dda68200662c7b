"""The panel: an explanation as one picture that a person can read: what, who, why, how disputed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.explanation import Example, Explanation
from tax_lightning.palette import (
    Colour,
    Picture,
    class_palette,
    kernel_shade,
    value_colours,
)
from tax_lightning.tendencies import Groups, figures
from tax_lightning.visualization import drawing
from tax_lightning.visualization.annotations import Argument, CallOut, SourcePatch, find_callouts
from tax_lightning.visualization.gallery import origin
from tax_lightning.visualization.sheet import SMALLEST_TILE, Entry, Sheet, shorten
from tax_lightning.visualization.summary import (
    DECIDES,
    OUTVOTED,
    SHARED,
    Summary,
    cast_of,
    findings,
    per_cent,
    standing,
    tendencies,
    threshold_words,
    trust_words,
)
from tax_lightning.windows import spread

_COLUMNS = 3
_LARGEST_TILE, _CHIP = 512, 14  # pixels
_TAGLINE = (
    "Numbers lead to the cards below: the training pixels that speak for the result and against it"
)
_CARDS_TITLE = "WHY, continued: the spots with numbers"
_WHY = "colour: the annotator whose prototype is the first reason"
_WHY_ALL_ALIKE = "colour: who most surely says the result; all annotators count the same"
_SHADE = "shade: which of their prototypes"
_OUTLINE = (
    "%: of the area of the result. px: how far the outline lies from that of the majority on "
    "average, as drawn and as the model expects, + outside and - inside"
)
_NOBODY = "Nothing is disputed: the model expects all annotators to say the same everywhere."


def render_panel(
    explanation: Explanation,
    image: NDArray[Any],
    masks: NDArray[np.integer] | None = None,
    reference: NDArray[np.integer] | None = None,
    patches: Mapping[Example, SourcePatch] | None = None,
    groups: Groups | None = None,
) -> Picture:
    """Draw the explanation of one image.

    Six tiles: the image, the annotators' contours, the result; who says it (or whom it follows),
    why, and how disputed it is. Then what each annotator would add to the result and leave out, and
    cards with the training pixels for and against at the spots with numbers. Of more than twelve
    annotators, the eleven who are the first reason most often are named.

    Args:
        explanation: the explanation of one image.
        image: ``[H, W]`` or ``[H, W, ch]``, grey, RGB or of more channels, see
            :func:`~tax_lightning.visualization.drawing.as_picture`.
        masks: ``[N, H, W]`` class ids as the annotators drew them, 255 where not labelled; without
            them the contours and maps are those that the model expects of each annotator.
        reference: ``[H, W]`` class ids of the reference, 255 where unknown.
        patches: the surroundings of training pixels; those that are missing are named only.
        groups: groups of annotators, whose mean support is named too.

    Raises:
        ValueError: if there are several images, or the size of an array is not the explanation's.

    Example:
        >>> import torch
        >>> from tax_lightning import TAXLightningModule
        >>> module = TAXLightningModule(["Ana", "Ben"], ["background", "cell"], encoder="resnet18")
        >>> explanation = module.explain(torch.zeros(1, 3, 32, 32), ids=["new"])
        >>> panel = render_panel(explanation, image=np.zeros((32, 32), dtype=np.uint8))
        >>> panel.shape[2], panel.dtype
        (3, dtype('uint8'))
    """
    drawing.check_single(explanation)
    size = tuple(explanation.probs.shape[-2:])
    for name, array, axes in (
        ("image", image[..., 0] if image.ndim == 3 else image, size),
        ("masks", masks, (len(explanation.annotators), *size)),
        ("reference", reference, size),
    ):
        if array is not None and array.shape != axes:
            raise ValueError(
                f"{name} has shape {array.shape}, expected {axes}; give it at the explanation's "
                "size, in that order of axes."
            )
    summary, callouts = Summary.of(explanation, masks, reference), find_callouts(explanation)
    view = View(explanation, image, masks, reference, summary)
    sheet = Sheet(view.scale)
    why = [Entry(_WHY if explanation.trust.kind == "image" else _WHY_ALL_ALIKE), Entry(_SHADE)]
    one = _called(explanation)
    drawn, how, may = f"{one.capitalize()}s", "as each of them drew", ""
    if masks is None:
        drawn, how, may = f"{drawn}, as predicted", "as expected of each", "would "
    tiles = sheet.grid(
        [
            sheet.tile("Image", view.image, [Entry("{1} x {0} pixels".format(*size))]),
            sheet.tile(drawn, view.contours(), [Entry(how)]),
            sheet.tile("Result", view.result(), _class_entries(view)),
            _who_tile(sheet, view),
            sheet.tile("WHY", _numbered_why(sheet, view, callouts), why),
            sheet.tile("DISPUTE", view.dispute_map(), dispute_notes(explanation, summary)),
        ],
        _COLUMNS,
    )
    width = tiles.width
    own = f"EACH {one.upper()}: solid, they {may}add to the result; striped, they {may}leave out"
    hatched = drawing.grey_rgb(np.where(drawing.hatching(_CHIP, 2 * _CHIP, 7), 178.0, 220.0))
    sign = Entry(f"hatched: {threshold_words(explanation.dispute_threshold)}", hatched)
    cards = [_card(sheet, view, callout, patches or {}) for callout in callouts]
    return sheet.framed(
        [
            sheet.heading(explanation.ids[0], _TAGLINE, width),
            *(sheet.text([found.said], width) for found in findings(explanation, summary)),
            tiles,
            sheet.flow([sign], width),
            sheet.flow(annotator_entries(view, explanation.annotators, summary, groups), width),
            sheet.line(own, sheet.title, width),
            _own_maps(sheet, view, tendencies(explanation, masks), width),
            sheet.text([_OUTLINE], width),
            sheet.line(_CARDS_TITLE if cards else _NOBODY, sheet.title, width),
            *([sheet.grid(cards, _COLUMNS)] if cards else []),
            sheet.text([trust_words(explanation.trust)], width),
        ]
    )


# ------------------------------------------------------------------------------------------ tiles


class View:
    """The maps of one image at the size at which they are shown, and the tiles drawn from them."""

    def __init__(
        self,
        explanation: Explanation,
        image: NDArray[Any],
        masks: NDArray[np.integer] | None,
        reference: NDArray[np.integer] | None,
        summary: Summary,
    ) -> None:
        self.explanation, self.summary = explanation, summary
        self.named, colours = cast_of(summary)
        self.colours = np.asarray(colours, dtype=np.uint8)
        source_size = image.shape[:2]
        self.size = height, width = _display_size(*source_size)
        self.zoom = np.divide(self.size, source_size)
        self.scale = max(1.0, width / SMALLEST_TILE)  # of text and lines
        self.line = round(2 * self.scale)
        rows, columns = map(spread, source_size, self.size)
        place = (..., rows[:, None], columns)
        picture = Image.fromarray(drawing.as_picture(image))
        self.image = np.asarray(picture.resize((width, height), Image.Resampling.BOX))
        self.grey = np.asarray(Image.fromarray(self.image).convert("L"), dtype=np.float32)
        self.reference = None if reference is None else reference[place].astype(np.uint8)
        self.shown = explanation.sampled(torch.from_numpy(rows), torch.from_numpy(columns))
        drawn = self.map("annotator_decisions") if masks is None else masks[place]
        self.masks = drawn.astype(np.uint8)
        self.decision = self.map("decision").astype(np.uint8)

    def map(self, name: str) -> NDArray[Any]:
        """A map of the explanation at the size at which it is shown."""
        return drawing.as_array(getattr(self.shown, name)[0])

    def contours(self) -> Picture:
        """Every annotator's contour; where several coincide their colours take turns along it."""
        line, whose = drawing.taking_turns(drawing.contours(self.masks, self.line))
        picture = drawing.grey_rgb(0.5 * self.grey + 70)
        picture[line] = self.colours[whose[line]]
        return picture

    def result(self) -> Picture:
        """The resulting classes over the grey image, the reference as a dashed line."""
        picture = drawing.grey_rgb(self.grey)
        colours = np.asarray(class_palette(len(self.explanation.classes)), dtype=np.uint8)
        inside = self.decision > 0
        picture[inside] = drawing.blend(picture[inside], colours[self.decision[inside]], 0.55)
        outline = drawing.contours(self.decision, self.line)
        picture[outline] = colours[self.decision[outline]]
        if self.reference is not None:
            picture = drawing.dashed(picture, drawing.contours(self.reference, self.line))
        return picture

    def who(self) -> Picture:
        """The leader's colour, fading to the grey image as the others weigh more."""
        picture = drawing.blend(
            drawing.grey_rgb(self.grey),
            self.colours[self.map("leader")],
            self.map("certainty")[..., None],
        )
        return self._with_undisputed(picture)

    def votes_map(self) -> Picture:
        """How many of the annotators say the result: light all, dark half of them or fewer."""
        return self._with_undisputed(value_colours(2 * (1 - self.map("votes") / len(self.masks))))

    def why(self) -> Picture:
        """Shades of an annotator's colour for the prototypes behind the result."""
        shades = [
            [self.shade(n, k) for k in range(self.explanation.kernels)]
            for n in range(len(self.masks))
        ]
        place = self.map("reason"), self.map("reason_kernel")
        return self._with_undisputed(np.asarray(shades, np.uint8)[place])

    def shade(self, annotator: int, kernel: int) -> Colour:
        """The colour of a prototype."""
        r, g, b = self.colours[annotator].tolist()
        return kernel_shade((r, g, b), kernel, self.explanation.kernels)

    def dispute_map(self) -> Picture:
        """The expected share of pairs who differ, dark where it is that of even odds or more."""
        return value_colours(self.map("dispute") / (1 - 1 / len(self.explanation.classes)))

    def own(self, annotator: int) -> tuple[Picture, float, float]:
        """What an annotator would add, solid, and leave out, striped; and both areas as shares."""
        drawn, picture = self.masks[annotator], drawing.grey_rgb(0.5 * self.grey + 100)
        differs = (drawn != self.decision) & (drawn != IGNORE_INDEX)
        more, less = differs & (drawn > 0), differs & (drawn == 0)
        stripes = drawing.hatching(*self.size, round(14 * self.scale), 0.5)
        picture[more | (less & stripes)] = self.colours[annotator]
        picture[drawing.contours(self.decision, 1)] = (255, 255, 255)
        area = int((self.decision > 0).sum())
        added, left_out = (
            part.sum() / area if area else (math.inf if part.any() else 0.0)
            for part in (more, less)
        )
        return picture, added, left_out

    def _with_undisputed(self, picture: Picture) -> Picture:
        """Wash out and hatch the pixels at which annotators are not expected to differ."""
        hatched = drawing.hatching(*self.size, round(7 * self.scale))
        washed = drawing.grey_rgb(np.where(hatched, 178, 0.25 * self.grey + 176))
        undisputed = self.map("undisputed")
        picture[undisputed] = washed[undisputed]
        return picture


def _called(explanation: Explanation) -> str:
    """What one of those is called who are compared."""
    return "type" if explanation.types else "annotator"


def _share(part: float) -> str:
    """A share of the result's area; of a result that is next to nothing a percentage says little.

    Example:
        >>> _share(0.25), _share(37.2), _share(math.inf)
        ('25%', '37 x the result', 'all of it')
    """
    if math.isinf(part):
        return "all of it"
    return f"{part:.0%}" if part < 10 else f"{part:.0f} x the result"


def _display_size(height: int, width: int) -> tuple[int, int]:
    """Enlarged by a whole number to at least 256 pixels, or shrunk to at most 512."""
    longest = max(height, width)
    scale: float = -(-SMALLEST_TILE // longest)
    if longest > _LARGEST_TILE:
        scale = _LARGEST_TILE / longest
    return max(1, round(height * scale)), max(1, round(width * scale))


def _who_tile(sheet: Sheet, view: View) -> Image.Image:
    """Whom the result follows, where that is known from the image; else the expected votes."""
    if view.explanation.trust.kind == "image":
        words = "colour: who weighs most; the paler, the more the others weigh"
        return sheet.tile("WHO weighs most", view.who(), [Entry(words)])
    n = len(view.explanation.annotators)
    notes = [Entry("how many would say the same:")]
    notes += [Entry(f"{n} of {n}"), Entry(f"{n / 2:g} of {n} or fewer", _scale_bar())]
    if view.summary.disputed:
        notes.append(Entry(f"on average {view.summary.votes:.1f} of {n} where not hatched"))
    return sheet.tile("VOTES", view.votes_map(), notes)


def _own_maps(
    sheet: Sheet, view: View, sums: Mapping[str, NDArray[np.float64]], width: int
) -> Image.Image:
    """A small map for each annotator who is named, and where their outlines lie."""
    said = {"masks": "drawn", "model": "expected"}
    outlines = {said[key]: figures(one.sum((1, 2)))["outline"] for key, one in sums.items()}
    columns = min(6, max(4, len(view.named)))
    side = (width - (columns - 1) * sheet.gap) // columns
    tiles = []
    for n in view.named:
        picture, more, less = view.own(n)
        small = Image.fromarray(picture)
        small.thumbnail((side, side), Image.Resampling.BOX)
        words = [f"adds {_share(more)}", f"leaves out {_share(less)}"]
        if (view.masks[n] == IGNORE_INDEX).all():
            words = ["did not label"]
        words += [
            f"{how} {outline[n]:+z.1f} px"
            for how, outline in outlines.items()
            if not np.isnan(outline[n])
        ]
        name = sheet.text([shorten(view.explanation.annotators[n])], side)
        tiles.append(sheet.stacked([name, small, sheet.text(words, side)], gap=2))
    return sheet.grid(tiles, columns)


# ---------------------------------------------------------------------------------------- legends


def annotator_entries(
    view: View, annotators: Sequence[str], summary: Summary, groups: Groups | None = None
) -> list[Entry]:
    """A title, then every annotator who is named, with colour and support, and every group."""
    title = f"{_called(view.explanation).capitalize()}s"
    if summary.disputed:
        title += ", and how probably each would say the result where it is disputed"
    support, entries = summary.shares(summary.support), [Entry(f"{title}:")]
    for n in view.named:
        words = f" {support[n]:.0%}" if summary.disputed else ""
        entries.append(Entry(shorten(annotators[n]) + words, _solid_chip(view.colours[n])))
    others = [n for n in range(len(annotators)) if n not in view.named]
    if others:
        entries.append(Entry(f"{len(others)} others", _solid_chip(view.colours[others[0]])))
    for group, names in (groups or {}).items() if summary.disputed else ():
        mean = np.mean([support[annotators.index(name)] for name in names])
        entries.append(Entry(f"{group}: {mean:.0%}"))
    return entries


def dispute_notes(explanation: Explanation, summary: Summary) -> list[Entry]:
    """The scale of the dispute, and the share of the image that is disputed, as given and real."""
    most = f"{1 - 1 / len(explanation.classes):.0%} or more of pairs differ"
    said = f"disputed, as the model expects: {per_cent(summary.dispute)} of the pixels"
    real = summary.labels.dispute
    in_masks = [] if real is None else [Entry(f"in the masks: {per_cent(real)}")]
    return [Entry("0%"), Entry(most, _scale_bar()), Entry(said), *in_masks]


def _class_entries(view: View) -> list[Entry]:
    """The classes, and the reference's line where there is one."""
    classes = view.explanation.classes
    chips = map(_solid_chip, class_palette(len(classes)))
    entries = [Entry(shorten(name), chip) for name, chip in zip(classes, chips, strict=True)]
    if view.reference is not None:
        ground = drawing.grey_rgb(np.full((_CHIP, 20), 225.0))
        line = np.pad(np.ones((3, 20), dtype=bool), ((6, _CHIP - 9), (0, 0)))
        entries.append(Entry("reference", drawing.dashed(ground, line)))
    return entries


def _scale_bar() -> Picture:
    return value_colours(np.linspace(0, 1, 4 * _CHIP)[None].repeat(_CHIP, axis=0))


def _solid_chip(colour: Colour | NDArray[np.uint8]) -> Picture:
    return np.full((_CHIP, _CHIP, 3), colour, dtype=np.uint8)


# -------------------------------------------------------------------------------------- call-outs


def callout_words(explanation: Explanation, callout: CallOut) -> list[str]:
    """The result at a spot and who says so; where trust follows the image, whether one decides."""
    y, x, n = callout.y, callout.x, len(explanation.annotators)
    votes = f"{callout.reason.label}: {float(explanation.votes[0, y, x]):.1f} of {n} would say so"
    if explanation.trust.kind != "image":
        return [votes]
    leader = int(explanation.leader[0, y, x])
    name, weight = shorten(explanation.annotators[leader]), float(explanation.who[0, leader, y, x])
    stands = {
        DECIDES: f"{name} decides (weight {weight:.0%})",
        OUTVOTED: f"{name} weighs most ({weight:.0%}) but is outvoted",
        SHARED: f"shared: {name} weighs most ({weight:.0%})",
    }
    return [votes, stands[int(standing(explanation)[0, y, x])]]


def argument_words(argument: Argument, patches: Mapping[Example, SourcePatch]) -> list[str]:
    """Whose prototype speaks for a class, and the training pixel that is like the spot."""
    source, example = argument.source, argument.example
    name = shorten(source.annotator)
    words = [f"prototype {source.kernel} of {name}"]
    if example is None:
        none = f"no pixel like it that {name} labelled so"
        return [*words, none if source.projected else "not yet projected"]
    lost = [] if example in patches else ["(image not found)"]
    return [*words, f"like {origin(example)}", *lost]


def _card(
    sheet: Sheet, view: View, callout: CallOut, patches: Mapping[Example, SourcePatch]
) -> Image.Image:
    """A call-out's number and result, and the examples for and against it."""

    def row(argument: Argument, said: str) -> Image.Image:
        patch = patches.get(argument.example) if argument.example else None
        box = sheet.source(
            patch, view.shade(argument.annotator, argument.source.kernel), sheet.patch
        )
        words = [said, *argument_words(argument, patches)]
        text = sheet.text(words, sheet.cell - box.width - sheet.nearby)
        return sheet.grid([box, text], 2, sheet.nearby)

    words = callout_words(view.explanation, callout)
    head = sheet.text(words, sheet.cell, indent=sheet.disc + sheet.frame)
    sheet.number(head, callout.number, sheet.disc / 2, sheet.disc / 2)
    reason, other = callout.reason, callout.against
    reasons = row(reason, f"FOR {reason.label}: {callout.share:.0%} of the decision")
    dissent = sheet.text(["AGAINST: for every annotator this class is the most likely"], sheet.cell)
    if other is not None:
        name = shorten(other.source.annotator)
        dissent = row(other, f"AGAINST: {name} would say {other.label}, as here")
    return sheet.stacked([head, reasons, dissent])


def _numbered_why(sheet: Sheet, view: View, callouts: Sequence[CallOut]) -> Picture:
    """The prototypes behind the result, with the call-outs' numbers on their spots."""
    canvas = Image.fromarray(view.why())
    for callout in callouts:
        y, x = (np.array([callout.y, callout.x]) + 0.5) * view.zoom
        sheet.number(canvas, callout.number, x, y)
    return np.asarray(canvas)
