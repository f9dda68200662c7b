"""Runs that are interrupted end as if they had not been, to the last bit."""

import signal

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import SIGTERMException
from squares import ANNOTATORS, CLASSES, QUIET, Squares, fast, make_module, make_trainer

from tax_lightning.callbacks import ExplainedCheckpoint, Interruption
from tax_lightning.data import MultiAnnotatorDataModule, RawSample

pytestmark = QUIET


class Drawn:
    """Squares as samples of a data module."""

    def __init__(self, count):
        self.squares, self.ids = Squares(count), tuple(f"square {i}" for i in range(count))

    def __getitem__(self, i):
        image = self.squares.images[i].permute(1, 2, 0).numpy()
        masks = self.squares.masks[i].numpy().astype(np.uint8)
        return RawSample(self.ids[i], np.clip(image, 0, 1), masks, np.ones(3, bool))


class SquaresData(MultiAnnotatorDataModule):
    def _source(self, split):
        return Drawn({"train": 17, "val": 3, "test": 1}[split])


class Told(L.Callback):
    """A signal, or a crash, at the start of a training step."""

    def __init__(self, step, what):
        self.step, self.what, self.steps = step, what, 0

    def on_train_batch_start(self, *_):
        self.steps += 1
        if self.steps == self.step:
            if self.what == "crash":
                raise MemoryError
            signal.raise_signal(self.what)


def plateau(optimizer):
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", patience=0)


OPTIONS = {
    "plain": {},
    "two workers": {"workers": 2},
    "validation within epochs": {"val_check_interval": 0.5},
    "validation every second epoch": {"check_val_every_n_epoch": 2},
    "so many steps": {"max_steps": 14, "max_epochs": -1},
    "gradients of two batches": {"accumulate_grad_batches": 2},
    "early stopping": {"stop": True},
    "schedule by the value": {"scheduler": plateau},
}


def fit(folder, told=None, resume=False, workers=0, stop=False, scheduler=None, **options):
    """A run of four batches an epoch; the trainer after it."""
    L.seed_everything(3, verbose=False)
    callbacks = [
        ExplainedCheckpoint(folder, "best", "val/dice/mean", mode="max", save_last=True),
        Interruption(),
        *([EarlyStopping("val/dice/mean", patience=1, mode="max", min_delta=0.2)] if stop else []),
        *([] if told is None else [Told(*told)]),
    ]
    trainer = make_trainer(
        **{"enable_checkpointing": True, "callbacks": callbacks, "max_epochs": 4, **options}
    )
    module = make_module(optimizer=fast, lr_scheduler=scheduler)
    module.monitor = "val/dice/mean"
    data = SquaresData(ANNOTATORS, CLASSES, batch_size=4, num_workers=workers)
    trainer.fit(module, datamodule=data, ckpt_path=folder / "last.ckpt" if resume else None)
    return trainer


def differences(one, other):
    """Names of what two checkpoints hold that is not the same to the last bit."""
    a, b = (torch.load(path, weights_only=True)["state_dict"] for path in (one, other))

    def same(name):
        if not torch.is_tensor(a[name]):
            return repr(a[name]) == repr(b[name])
        return torch.equal(a[name].nan_to_num(9), b[name].nan_to_num(9))

    assert a.keys() == b.keys()
    return [name for name in a if not same(name)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder and the metrics of a run without interruption, made once for all options."""
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("whole")
            made[name] = folder, fit(folder, **OPTIONS[name]).callback_metrics
        return made[name]

    return of


@pytest.mark.parametrize(
    ("name", "step", "what"),
    [
        *((name, 6, signal.SIGTERM) for name in OPTIONS),
        # the eighth step is the last of an epoch
        *((name, 8, signal.SIGINT) for name in OPTIONS if name != "two workers"),
        *((name, 6, "crash") for name in ("plain", "validation within epochs")),
    ],
)
def test_a_run_goes_on_as_if_nothing_had_been(name, step, what, whole, tmp_path):
    options, (folder, metrics) = OPTIONS[name], whole(name)
    with pytest.raises(MemoryError if what == "crash" else SIGTERMException) as stopped:
        fit(tmp_path, (step, what), **options)
    if what != "crash":
        assert stopped.value.code == 128 + what
    again = fit(tmp_path, resume=True, **options)
    for checkpoint in ("last.ckpt", "best.ckpt"):
        assert differences(folder / checkpoint, tmp_path / checkpoint) == [], checkpoint
    validated = {key: value for key, value in metrics.items() if key.startswith("val/")}
    assert {key: again.callback_metrics[key] for key in validated} == validated
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]
