"""Small scenes, networks and trainers for the tests of the baselines."""

from collections.abc import Mapping, Sequence

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader

from tax_lightning import baselines
from tax_lightning.baselines import Baseline

ALL = [getattr(baselines, name) for name in baselines.__all__ if name != "Baseline"]
ANNOTATORS = ("Ana", "Ben", "Dr. C")
CLASSES = ("background", "cell", "debris")


def scenes(images: int = 8, absent: Mapping[int, Sequence[int]] | tuple = ()) -> list:
    """Bright squares of two classes, drawn as they are by Ana, too large by Ben, too small by C."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for i in range(images):
        y, x = torch.randint(4, 11, (2,), generator=generator).tolist()
        kind = 1 + i % 2
        masks = torch.zeros(3, 24, 24).long()
        for n, margin in enumerate((0, 3, -2)):
            masks[n, y - margin : y + 9 + margin, x - margin : x + 9 + margin] = kind
        image = 0.1 * torch.randn(3, 24, 24, generator=generator)
        image[kind - 1] += (masks[0] > 0) * 2
        masks[list(dict(absent).get(i, []))] = 255
        samples.append({"image": image, "masks": masks, "id": f"square-{i}"})
    return samples


def loader(samples: Sequence[dict] = ()) -> DataLoader:
    return DataLoader(samples or scenes(), batch_size=4)


def stacked(key: str) -> torch.Tensor:
    return torch.stack([sample[key] for sample in scenes()])


def make_backbone(norm: bool = True) -> nn.Module:
    layers: list[nn.Module] = []
    for channels in (3, 12):
        layers += [nn.Conv2d(channels, 12, 5, padding=2), *[nn.BatchNorm2d(12)] * norm, nn.ReLU()]
    return nn.Sequential(*layers)


def adam(rate: float = 1e-2, **options):
    return lambda parameters: torch.optim.AdamW(parameters, lr=rate, **options)


def make(kind: type[Baseline], **options) -> Baseline:
    return kind(ANNOTATORS, CLASSES, **{"network": make_backbone(), "optimizer": adam()} | options)


def make_trainer(**options) -> L.Trainer:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    quiet = dict.fromkeys(off, False) | {"accelerator": "cpu", "log_every_n_steps": 1}
    return L.Trainer(**quiet | options)


def trained(kind: type[Baseline], epochs: int = 40, samples: list | None = None, **options):
    """A module after training, from random state 0."""
    torch.manual_seed(0)
    module = make(kind, **options)
    make_trainer(max_epochs=epochs).fit(module, loader(samples))
    return module
