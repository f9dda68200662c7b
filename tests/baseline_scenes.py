"""Small scenes, networks and trainers for the tests of the baselines."""

from collections.abc import Mapping, Sequence

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader

from tax_lightning.baselines import Baseline

ANNOTATORS = ("Ana", "Ben", "Dr. C")
CLASSES = ("background", "cell", "debris")
MARGINS = (0, 3, -2)


def scenes(images: int = 8, absent: Mapping[int, Sequence[int]] | None = None) -> list[dict]:
    """Bright squares of two classes, drawn as they are by Ana, too large by Ben, too small by C."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for i in range(images):
        y, x = torch.randint(4, 11, (2,), generator=generator).tolist()
        kind = 1 + i % 2
        masks = torch.zeros(3, 24, 24).long()
        for n, margin in enumerate(MARGINS):
            masks[n, y - margin : y + 9 + margin, x - margin : x + 9 + margin] = kind
        image = 0.1 * torch.randn(3, 24, 24, generator=generator)
        image[kind - 1] += (masks[0] > 0) * 2
        masks[list((absent or {}).get(i, []))] = 255
        samples.append({"image": image, "masks": masks, "id": f"square-{i}"})
    return samples


def loader(samples: Sequence[dict] | None = None) -> DataLoader:
    return DataLoader(samples or scenes(), batch_size=4)


def images() -> torch.Tensor:
    return torch.stack([sample["image"] for sample in scenes()])


def make_backbone(norm: bool = True) -> nn.Module:
    layers: list[nn.Module] = []
    for channels in (3, 12):
        layers += [nn.Conv2d(channels, 12, 5, padding=2), *[nn.BatchNorm2d(12)] * norm, nn.ReLU()]
    return nn.Sequential(*layers)


def fast(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2)


def make(kind: type[Baseline], **options) -> Baseline:
    arguments = {"network": make_backbone(), "optimizer": fast} | options
    return kind(ANNOTATORS, CLASSES, **arguments)


def make_trainer(**options) -> L.Trainer:
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return L.Trainer(**quiet | options)
