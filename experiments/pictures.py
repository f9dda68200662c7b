"""The pictures of the README and the docs, from a run of the quick start.

    tax fit --config experiments/quickstart.yaml
    python experiments/pictures.py --ckpt_path runs/quickstart/.../best.ckpt

Writes `quickstart.png`, the panel of a validation image, and `gallery.png`, the prototypes of the
annotator who decides most, into the folder `docs`. Everything in them is made up by the data module
of the quick start; pictures of other people's data do not belong there.
"""

from __future__ import annotations

import argparse
import functools
import operator
from pathlib import Path

import lightning as L
import torch
import yaml
from PIL import Image

from tax_lightning import TAXLightningModule
from tax_lightning.callbacks.samples import explained, picture_of
from tax_lightning.data import SyntheticDataModule
from tax_lightning.visualization.annotations import callout_patches
from tax_lightning.visualization.gallery import (
    PrototypeCard,
    read_cards,
    render_gallery,
    with_use,
)
from tax_lightning.visualization.palette import Picture
from tax_lightning.visualization.panel import render_panel
from tax_lightning.visualization.summary import Summary

REPO = Path(__file__).parent.parent
SHOWN = "val-0031"  # the image of the panel
COUNTED = 16  # validation images in which is counted what a prototype decides


class Pictures(L.Callback):
    """Draws during a validation, which brings model and data together."""

    @torch.no_grad()
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the panel and the gallery."""
        data: SyntheticDataModule = trainer.datamodule

        def read(sample_id: str) -> Picture:
            return picture_of(trainer, data.read(sample_id)["image"])

        sample = data.read(SHOWN)
        explanation = explained(trainer, sample["image"], SHOWN)
        panel = render_panel(
            explanation,
            picture_of(trainer, sample["image"]),
            sample["masks"].numpy(),
            sample["reference"].numpy(),
            callout_patches([explanation], read),
        )
        save("quickstart.png", panel)
        names = [f"val-{n:04}" for n in range(COUNTED)]
        counted = [explained(trainer, data.read(name)["image"], name) for name in names]
        summary = functools.reduce(operator.add, map(Summary.of, counted))
        cards = with_use(read_cards(explanation.sources, read), summary)
        save("gallery.png", render_gallery(of_the_busiest(cards)))


def save(name: str, picture: Picture) -> None:
    """Write a picture of the docs."""
    Image.fromarray(picture).save(REPO / "docs" / name, optimize=True)


def of_the_busiest(cards: list[PrototypeCard]) -> list[PrototypeCard]:
    """The cards of the annotator who decides most."""

    def decides(name: str) -> float:
        return sum(card.use or 0 for card in cards if card.source.annotator == name)

    busiest = max((card.source.annotator for card in cards), key=decides)
    return [card for card in cards if card.source.annotator == busiest]


def main() -> None:
    """Read the arguments and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ckpt_path", type=Path, required=True, help="of a run of the quick start")
    path = parser.parse_args().ckpt_path
    quick = yaml.safe_load((REPO / "experiments" / "quickstart.yaml").read_text())
    module = TAXLightningModule.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[Pictures()],
        limit_val_batches=1,
    )
    data = SyntheticDataModule(**quick["data"]["init_args"])
    trainer.validate(module, data, verbose=False)


if __name__ == "__main__":
    main()
