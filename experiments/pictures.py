"""The pictures of the README and the docs, from a run of the quick start.

    tax fit --config experiments/quickstart.yaml
    python experiments/pictures.py --ckpt_path runs/quickstart/.../best.ckpt

Writes `quickstart.png`, the panel of a validation image, and `gallery.png`, the prototypes of the
annotator who decides most, into the folder `docs`. Everything in them is made up by the data module
of the quick start; pictures of other people's data do not belong there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning as L
import torch
import yaml
from PIL import Image

from tax_lightning import TAXLightningModule
from tax_lightning.callbacks.prototype_cards import callout_patches, prototype_cards
from tax_lightning.callbacks.samples import explained, picture_of
from tax_lightning.data import SyntheticDataModule
from tax_lightning.visualization.gallery import PrototypeCard, render_gallery
from tax_lightning.visualization.palette import Picture
from tax_lightning.visualization.panels import render_panel

REPOSITORY = Path(__file__).parent.parent
COUNTED = 16  # validation images in which is counted what a prototype decides


class Pictures(L.Callback):
    """Draws during a validation, which brings model and data together."""

    def __init__(self, sample_id: str, folder: Path) -> None:
        self.sample_id = sample_id
        self.folder = folder

    @torch.no_grad()
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the panel and the gallery."""
        data: SyntheticDataModule = trainer.datamodule
        sample = data.read(self.sample_id)
        explanation = explained(trainer, sample["image"], self.sample_id)
        panel = render_panel(
            explanation,
            picture_of(trainer, sample["image"]),
            sample["masks"].numpy(),
            sample["reference"].numpy(),
            callout_patches(trainer, [explanation]),
        )
        self._save("quickstart.png", panel)
        ids = [f"val-{number:04}" for number in range(COUNTED)]
        images = [data.read(sample_id)["image"] for sample_id in ids]
        explanations = [
            explained(trainer, image, sample_id)
            for image, sample_id in zip(images, ids, strict=True)
        ]
        cards = prototype_cards(trainer, explanations, images)
        self._save("gallery.png", render_gallery(_of_the_busiest(cards)))

    def _save(self, name: str, picture: Picture) -> None:
        path = self.folder / name
        Image.fromarray(picture).save(path, optimize=True)
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


def _of_the_busiest(cards: list[PrototypeCard]) -> list[PrototypeCard]:
    """The cards of the annotator who decides most."""

    def decides(name: str) -> float:
        return sum(card.use or 0 for card in cards if card.source.annotator == name)

    busiest = max((card.source.annotator for card in cards), key=decides)
    return [card for card in cards if card.source.annotator == busiest]


def main() -> None:
    """Read the arguments and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ckpt_path", type=Path, required=True, help="of a run of the quick start")
    parser.add_argument("--image", default="val-0031", help="whose panel to show")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs", help="the folder")
    options = parser.parse_args()
    quick = yaml.safe_load((REPOSITORY / "experiments" / "quickstart.yaml").read_text())
    module = TAXLightningModule.load_from_checkpoint(
        options.ckpt_path, map_location="cpu", weights_only=True
    )
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[Pictures(options.image, options.output)],
        limit_val_batches=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = SyntheticDataModule(**quick["data"]["init_args"])
    trainer.validate(module, data, verbose=False)


if __name__ == "__main__":
    main()
