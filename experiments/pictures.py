"""The pictures of the README and the docs, from a run of the quick start.

    tax fit --config experiments/quickstart.yaml
    python experiments/pictures.py --ckpt_path runs/quickstart/.../best.ckpt

Writes `quickstart.png`, the panel of a validation image, and `gallery.png`, the prototypes of the
annotator whose prototypes are used most, into the folder `docs`. Everything in them is made up by
the data module of the quick start; pictures of other people's data do not belong there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import yaml
from PIL import Image

from tax_lightning import TAXLightningModule
from tax_lightning.batch import unpacked
from tax_lightning.palette import Picture
from tax_lightning.simulation import SyntheticDataModule
from tax_lightning.visualization.gallery import (
    PrototypeCard,
    read_cards,
    render_gallery,
    with_use,
)
from tax_lightning.visualization.panel import render_panel
from tax_lightning.visualization.summary import Summary

REPO = Path(__file__).parent.parent
SHOWN = "val-0031"  # the image of the panel
COUNTED = 16  # validation images in which is counted how often a prototype is used


@torch.no_grad()
def draw(module: TAXLightningModule, data: SyntheticDataModule, folder: Path) -> None:
    """Draw the panel and the gallery into a folder."""
    names = [SHOWN, *(f"val-{n:04}" for n in range(COUNTED))]
    samples = {name: unpacked(data.read(name)) for name in names}
    explanations = {
        name: module.explain(sample["image"][None], [name]) for name, sample in samples.items()
    }
    shown, sample = explanations.pop(SHOWN), samples[SHOWN]
    cards = read_cards(shown.sources, lambda name: data.to_picture(data.read(name)["image"]))
    labels = sample["masks"].numpy(), sample["reference"].numpy()
    panel = render_panel(shown, data.to_picture(sample["image"]), *labels, cards[0].patches)
    save(folder / "quickstart.png", panel)
    first, *others = map(Summary.of, explanations.values())
    gallery = render_gallery(of_the_busiest(with_use(cards, sum(others, first))))
    save(folder / "gallery.png", gallery)


def save(path: Path, picture: Picture) -> None:
    """Write a picture in few bytes."""
    Image.fromarray(picture).save(path, optimize=True)


def of_the_busiest(cards: list[PrototypeCard]) -> list[PrototypeCard]:
    """The cards of the annotator whose prototypes are the first reason most often."""

    def use(name: str) -> float:
        return sum(card.use or 0 for card in cards if card.source.annotator == name)

    busiest = max((card.source.annotator for card in cards), key=use)
    return [card for card in cards if card.source.annotator == busiest]


def main() -> None:
    """Read the arguments and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ckpt_path", type=Path, required=True, help="of a run of the quick start")
    path = parser.parse_args().ckpt_path
    quick = yaml.safe_load((REPO / "experiments" / "quickstart.yaml").read_text())
    module = TAXLightningModule.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    data = SyntheticDataModule(**quick["data"]["init_args"])
    data.setup("fit")
    draw(module.eval(), data, REPO / "docs")


if __name__ == "__main__":
    main()
