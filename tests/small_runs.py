"""Runs of a second: a model whose explanations are made by hand, on images of one grey value."""

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from made_up import make_explanation, make_sources
from torch.utils.data import DataLoader, Dataset, IterableDataset

ANNOTATORS = ("Ana", "Ben", "Cleo")
SIDE = 16


class Images(Dataset):
    """Images of one grey value each, named for their split and index, in which a cell grows."""

    def __init__(self, split, count, padded=False):
        self.split, self.count, self.padded = split, count, padded

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(i)
        image = torch.full((1, SIDE, SIDE), i / 10)
        image[0, 0, :2] = torch.tensor([0.0, 1.0])
        masks = torch.zeros(3, SIDE, SIDE, dtype=torch.int64)
        masks[:, 4:12, : i + 1] = 1
        sample = {"image": image, "masks": masks, "id": f"{self.split}-{i}", "reference": masks[0]}
        if self.padded:
            sample["size"] = torch.tensor([SIDE - 4, SIDE - 6])
        return sample


class Stream(IterableDataset):
    """The same images without a length."""

    def __init__(self, images):
        self.images = images

    def __iter__(self):
        return iter([self.images[i] for i in range(len(self.images))])


class Model(L.LightningModule):
    """Learns nothing of use; explains that the leader changes from left to right."""

    explained_from = 0  # epoch

    def __init__(self, source_id="train-1"):
        super().__init__()
        self.annotators, self.classes = ANNOTATORS, ("background", "cell")
        self.layer = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
        self.source_id = source_id
        self.explained_ids, self.modes = [], []
        self.late = False

    @property
    def explained(self):
        return self.late or self.current_epoch >= self.explained_from

    def explain(self, images, ids):
        assert not torch.is_grad_enabled()
        self.explained_ids += ids
        self.modes.append(self.training)
        self.layer(images)
        leader = (torch.arange(SIDE) * 3 // SIDE).expand(len(images), SIDE, SIDE)
        sources = make_sources(ANNOTATORS, self.source_id if self.explained else "")
        return make_explanation(leader, sources=sources, ids=ids, weight=0.8)

    def training_step(self, batch, batch_idx):
        return self.layer(batch["image"]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/dice", 1.0 - 0.1 * self.current_epoch)
        self.log("val/dice/Ana", 0.5 - 0.1 * self.current_epoch)
        self.log("val/dice/mean", 0.0)

    def predict_step(self, batch, batch_idx):
        return self.explain(batch["image"], batch["id"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class LateModel(Model):
    """Is explained only when training is over, after the callbacks' turn."""

    explained_from = 1000

    def on_train_end(self):
        self.late = True


def make_trainer(folder, callbacks, **options):
    defaults = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "limit_train_batches": 2,
    }
    return L.Trainer(callbacks=callbacks, **{**defaults, **options})


def loaders(validation=3, padded=False):
    train = DataLoader(Images("train", 4), batch_size=2, shuffle=True)
    return train, DataLoader(Images("val", validation, padded), batch_size=2)


def fit(folder, *callbacks, model=None, data=None, **options):
    """The trainer after a run."""
    trainer = make_trainer(folder, [*callbacks], **options)
    trainer.fit(model or Model(), *(data or loaders()))
    return trainer
