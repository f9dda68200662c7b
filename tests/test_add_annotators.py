"""Annotators who are added to a trained model."""

import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from short_last_fit import SHORT_LAST_FIT
from squares import QUIET, Squares, images, make_backbone, make_loader, make_module, make_trainer
from torch import Tensor

from tax_lightning import AddedAnnotators, TAXLightningModule
from tax_lightning.__main__ import main
from tax_lightning.modules import calibration
from tax_lightning.modules.schedule import Schedule

REPO = Path(__file__).parent.parent
CLASSES = ("background", "square")
PER_ANNOTATOR = {"bank.weight", "bank.bias", "memory.vectors", "memory.prior"}

pytestmark = QUIET


def decaying(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)


def train(module, margins: tuple[int, ...], steps: int, callbacks=(), count: int = 4):
    trainer = make_trainer(
        max_steps=steps,
        max_epochs=-1,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
    )
    trainer.fit(module, make_loader(Squares(count, margins=margins)))
    return trainer


def add(path: Path, **options) -> AddedAnnotators:
    torch.manual_seed(1)
    arguments = {"annotators": ["Zoe"], "classes": CLASSES, "network": make_backbone()}
    return AddedAnnotators(str(path), optimizer=decaying, **arguments | options)


@pytest.fixture(scope="module", autouse=True)
def _whole_last_fit():
    """As in use: Zoe has few images and learns late."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "FIT_STEPS", 300)
        patch.setattr(calibration, "FIT_PIXELS", 4096)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> tuple[TAXLightningModule, Path]:
    """A model of Ana and Ben, who draws too large, and its checkpoint."""
    torch.manual_seed(0)
    names = {"annotators": ["Ana", "Ben"], "classes": CLASSES}
    module = make_module(TAXLightningModule, optimizer=decaying, **names)
    path = tmp_path_factory.mktemp("base") / "base.ckpt"
    trainer = train(module, (0, 2), 80, count=8)
    module.network.trust.scale.fill_(1.5)  # as of a calibration
    trainer.save_checkpoint(path)
    return module, path


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """The same with Zoe, who draws too small, learnt from four images in 120 epochs."""
    folder = tmp_path_factory.mktemp("added")
    module = add(base[1])
    every = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=30, save_top_k=-1)
    train(module, (-2,), 120, [every]).save_checkpoint(folder / "more.ckpt")
    return module, folder


def assert_same(before: Tensor, after: Tensor) -> None:
    """Equal probabilities; with more kernels a convolution may add up in another order (1e-6)."""
    torch.testing.assert_close(before, after, atol=1e-5, rtol=0)


def area(module: TAXLightningModule, name: str) -> float:
    return (module.predict(images(8), annotator=name).argmax(dim=1) == 1).float().mean().item()


@pytest.mark.parametrize("name", ["step=30", "step=60", "step=90", "step=120", "more"])
def test_what_the_others_would_draw_stays_also_while_zoe_is_learnt(base, run, name):
    module = TAXLightningModule.load_from_checkpoint(
        run[1] / f"{name}.ckpt", network=make_backbone(), weights_only=True
    )
    for person in ("Ana", "Ben"):
        before, after = (m.predict(images(8), annotator=person) for m in (base[0], module))
        assert_same(before, after)
    assert_same(module.predict(images(8), panel=["Ana", "Ben"]), base[0].predict(images(8)))
    assert module.explained is (name in ("step=120", "more"))
    before = base[0].network.state_dict()
    for key, mine in module.network.state_dict().items():
        if isinstance(mine, Tensor) and key != "memory.projected":
            same = mine if mine.ndim == 0 else mine[: len(before[key])]
            assert torch.equal(same.nan_to_num(9), before[key].nan_to_num(9)), key
            if key in PER_ANNOTATOR:
                assert len(mine) == 3


def test_sources_of_the_others_stay(base, run):
    before, after = (module.explain(images(1)).sources for module in (base[0], run[0]))
    assert after[:2] == before
    assert any(source.active for source in after[2])
    assert all(source.projected for source in after[2] if source.active)


def test_the_new_annotators_tendency_is_learnt(run):
    assert area(run[0], "Zoe") < 0.8 * area(run[0], "Ana")
    assert area(run[0], "Zoe") == pytest.approx(6 * 6 / 32**2, rel=0.5)


def test_the_checkpoint_is_that_of_a_plain_module(run):
    module, folder = run
    stored = torch.load(folder / "more.ckpt", weights_only=True)
    assert "base" not in stored["hyper_parameters"]
    assert stored["class_path"] == "tax_lightning.modules.tax.TAXLightningModule"
    again = TAXLightningModule.load_from_checkpoint(
        folder / "more.ckpt", network=make_backbone(), weights_only=True
    )
    assert type(again) is TAXLightningModule
    assert again.annotators == ("Ana", "Ben", "Zoe")
    assert again.explained
    assert torch.equal(again.predict(images(8)), module.predict(images(8)))


def test_labels_of_those_known_are_used_where_the_data_have_them(base):
    module = add(base[1], annotators=["Ana", "Ben", "Zoe"])
    module.network.memory.prior.data[2], module.network.bank.bias.data[2, :, 1] = 50.0, 50.0
    batch = next(iter(make_loader(Squares(margins=(0, 2, -2)))))
    batch["masks"][0, 0] = 255
    ready = module.on_before_batch_transfer(batch, 0)
    output = module(ready["image"])
    masks, present, reference = module._targets(ready, output)
    assert present.all()
    assert torch.equal(masks[1:], ready["masks"][1:])
    own = output.annotator_probs.argmax(dim=2)
    assert torch.equal(masks[0, 0], own[0, 0])
    known = output.who[:, :2, None] * output.annotator_probs[:, :2]
    assert torch.equal(reference, known.sum(dim=1).argmax(dim=1))
    assert (output.probs.argmax(dim=1) != reference).any()  # had Zoe a say in it


def test_data_without_the_reference_that_the_base_was_given(tmp_path):
    class Known(Squares):
        def __getitem__(self, i: int) -> dict:
            sample = super().__getitem__(i)
            return sample | {"reference": sample["masks"][0]}

    names = {"annotators": ["Ana", "Ben"], "classes": CLASSES}
    module = make_module(TAXLightningModule, reference="given", **names)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, make_loader(Known(4, margins=(0, 2))))
    trainer.save_checkpoint(tmp_path / "base.ckpt")
    module = add(tmp_path / "base.ckpt", explanation_metrics=True)
    trainer = train(module, (-2,), 10)
    assert module.explained
    (found,) = trainer.test(module, make_loader(Squares(4, margins=(-2,))), verbose=False)
    assert "test/dice/Zoe" in found
    assert not any(name.startswith("test/trust") for name in found)  # nobody is known to be right


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"annotators": ["Ben"]}, r"it knows all of \['Ben'\] already"),
        ({"classes": ["background", "disc"]}, r"its classes are \['background', 'square'\]"),
        ({"in_channels": 1}, "its images have 3 channels, but the data have 1"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(options, message, base):
    with pytest.raises(ValueError, match=f"^base={re.escape(str(base[1]))}: {message}"):
        add(base[1], **options)


def test_the_new_annotator_is_not_favoured_for_coming_late(base):
    assert base[0].loss.images_seen > 0
    module = add(base[1])
    train(module, (-2,), 10)
    assert module.loss.label_rate.tolist() == [1.0, 1.0, 1.0]


def test_without_a_schedule_the_new_prototypes_are_learnt(base):
    module = add(base[1], schedule=Schedule(enabled=False))
    before = module.network.memory.vectors.detach().clone()
    train(module, (-2,), 10)
    same = (module.network.memory.vectors == before).flatten(1)
    assert same.all(dim=1).tolist() == [True, True, False]
    assert module.network.frozen


def test_experts_are_placed_among_all_annotators(base):
    module = add(base[1], annotators=["Zoe", "Ana"])
    batch = next(iter(make_loader(Squares(margins=(-2, 0)))))
    batch["expert"] = torch.tensor([0, 1, 255])[torch.arange(32) % 3].expand(4, 32, 32)
    ready = module.on_before_batch_transfer(batch, 0)
    expected = torch.tensor([2, 0, 255])[torch.arange(32) % 3].expand(4, 32, 32)
    assert torch.equal(ready["expert"], expected)


@torch.no_grad()
def test_also_in_bands_the_others_stay(base, run):
    encoded = base[0].network.eval().encode(images(4)[..., :31])
    before, after = (
        torch.cat([band.log_annotator_probs[:, :2] for band in bands], dim=3)
        for bands in (m.network.eval().bands(encoded, most_values=2000) for m in (base[0], run[0]))
    )
    assert before.shape[3] == 32
    assert_same(before.exp(), after.exp())


def test_through_the_command_line(tmp_path, capsys, monkeypatch):
    for name, value in SHORT_LAST_FIT.items():
        monkeypatch.setattr(calibration, name, value)
    tiny = ["--config", str(REPO / "tests" / "tiny.yaml"), "--trainer.logger=false"]
    quickstart = str(REPO / "experiments" / "quickstart.yaml")
    known = "--data.init_args.annotators=[Ana, Ben, Chloe, Dara]"
    main(["fit", "--config", quickstart, *tiny, known, f"--trainer.default_root_dir={tmp_path}/a"])
    base = capsys.readouterr().out.split("checkpoint  ")[1].split("\n")[0]
    small = ["size=64", "train_samples=8", "val_samples=4", "test_samples=2"]
    more = ["fit", "--config", str(REPO / "experiments" / "add_annotator.yaml")]
    more += [f"--data.init_args.{size}" for size in small]
    more += ["--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}/b"]
    more += ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"]
    main([*more, f"--model.init_args.base={base}"])
    said = capsys.readouterr().out
    assert re.search(r"^dice +Emil", said, re.MULTILINE)
    checkpoint = said.split("checkpoint  ")[1].split("\n")[0]
    main(["test", "--config", quickstart, *tiny, "--ckpt_path", checkpoint])
    assert "test/dice/Emil" in capsys.readouterr().out
