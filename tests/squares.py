"""Bright squares that three annotators draw differently, and a tiny model that learns them."""

import copy

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tax_lightning import TAXLightningModule

ANNOTATORS = ("Ana", "Ben", "Dr. C")
CLASSES = ("background", "cell")
STEPS = 40
QUIET = pytest.mark.filterwarnings("ignore::UserWarning")


class Squares(Dataset):
    """Bright squares that Ana draws as they are, Ben too large and Dr. C too small."""

    def __init__(
        self,
        images: int = 12,
        absent: dict[int, list[int]] | None = None,
        margins: tuple[int, ...] = (0, 3, -2),
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images, self.masks = [], []
        for i in range(images):
            y, x = torch.randint(4, 18, (2,), generator=generator).tolist()
            masks = torch.zeros(len(margins), 32, 32).long()
            for n, margin in enumerate(margins):
                masks[n, y - margin : y + 10 + margin, x - margin : x + 10 + margin] = 1
            masks[(absent or {}).get(i, [])] = 255
            image = 0.1 * torch.randn(3, 32, 32, generator=generator)
            image[:, y : y + 10, x : x + 10] += 1
            self.images.append(image)
            self.masks.append(masks)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict:
        return {"image": self.images[i], "masks": self.masks[i].clone(), "id": f"square-{i}"}


def images(count: int = 12) -> torch.Tensor:
    return torch.stack(Squares().images[:count])


def make_loader(dataset: Dataset | list | None = None, **options) -> DataLoader:
    return DataLoader(dataset or Squares(), **{"batch_size": 4} | options)


def make_backbone() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
    )


def fast(parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


class Recorded(TAXLightningModule):
    """Notes the events of the schedule and, of each step, the losses and the images."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.events: list[tuple[int, str]] = []
        self.terms: list[dict[str, float]] = []
        self.images: list[list[str]] = []

    def _carry_out(self, kind) -> None:
        self.events.append((self.trainer.global_step, kind))
        super()._carry_out(kind)
        if kind == "final":
            self.state_when_projected = copy.deepcopy(self.network.state_dict())

    def _log_loss(self, loss, terms, images) -> None:
        super()._log_loss(loss, terms, images)
        self.terms.append({"loss": loss.item()} | {key: terms[key].item() for key in terms})

    def training_step(self, batch, batch_idx):
        self.images.append(list(batch["id"]))
        return super().training_step(batch, batch_idx)

    @property
    def kinds(self) -> list[str]:
        return [kind for _, kind in self.events]

    @property
    def losses(self) -> torch.Tensor:
        """Of the segmentations, at each step."""
        return torch.tensor([terms["annotator"] + terms["fused"] for terms in self.terms])

    @property
    def finite(self) -> bool:
        values = [torch.tensor([terms["loss"] for terms in self.terms]), *self.parameters()]
        return all(bool(value.isfinite().all()) for value in values)


def make_module(cls: type = Recorded, **options) -> Recorded:
    small = {"kernels": 2, "who_window": 5, "annotators": ANNOTATORS, "classes": CLASSES}
    if "network" not in options:
        small["network"] = make_backbone()
    return cls(**small | options)


def make_trainer(**options) -> L.Trainer:
    quiet = {"accelerator": "cpu", "logger": False, "log_every_n_steps": 1}
    quiet |= {f"enable_{part}": False for part in ("progress_bar", "model_summary")}
    quiet["enable_checkpointing"] = False
    if "max_epochs" not in options:
        quiet |= {"max_steps": STEPS, "max_epochs": -1}
    return L.Trainer(**quiet | options)


def sources_of(module: TAXLightningModule) -> list:
    rows = module.network.memory.sources(module.annotators, module.classes)
    return [source for row in rows for source in row]
