"""JSON files that name everything a folder of results holds."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L

from tax_lightning.constants import __version__
from tax_lightning.explanation import Explanation
from tax_lightning.visualization.gallery import PrototypeCard
from tax_lightning.visualization.palette import Colour, annotator_palette, class_palette


def write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Write a manifest, which appears whole or not at all.

    Args:
        path: of the file.
        content: what JSON can hold; numbers that it has not become null.

    Raises:
        OSError: if it cannot be written.
    """
    unfinished = path.with_suffix(".json.tmp")
    text = json.dumps(_plain(content), ensure_ascii=False, indent=2)
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def coloured_names(names: Sequence[str], colours: Sequence[Colour]) -> list[dict[str, Any]]:
    """Annotators or classes by position, with the colours that stand for them in pictures."""
    return [
        {"index": index, "name": name, "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
        for index, (name, colour) in enumerate(zip(names, colours, strict=True))
    ]


def run_content(
    trainer: L.Trainer,
    explanations: Sequence[Explanation],
    cards: Sequence[PrototypeCard],
    panels: Sequence[Path],
    gallery: Sequence[Path],
    page: Sequence[Path],
) -> dict[str, Any]:
    """What the manifest says of the end of a training run.

    Args:
        trainer: of the run.
        explanations: of the images shown, one each.
        cards: of the prototypes.
        panels: a file for each image; none where files cannot be written.
        gallery: the files of the prototypes.
        page: the file of the report; none where there is no report.
    """
    annotators = explanations[0].annotators if explanations else ()
    classes = explanations[0].classes if explanations else ()
    return {
        "version": __version__,
        "epochs": trainer.current_epoch,
        "step": trainer.global_step,
        "annotators": coloured_names(annotators, annotator_palette(len(annotators))),
        "classes": coloured_names(classes, class_palette(len(classes))),
        "panels": [
            {"id": explanation.ids[0], "file": path.name}
            for explanation, path in zip(explanations, panels, strict=False)
        ],
        "gallery": [path.name for path in gallery],
        "page": page[0].name if page else None,
        "prototypes": [
            {**asdict(card.source), "use": card.use, "insertion": card.insertion} for card in cards
        ],
    }


def _plain(value: Any) -> Any:  # noqa: ANN401 - anything that JSON can hold
    """The value with null for numbers that JSON has not (a similarity that was never measured)."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
