"""Annotators who are added to a trained model."""

import re
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tax_lightning import AddedAnnotators, TAXLightningModule
from tax_lightning.__main__ import main
from tax_lightning.modules.schedule import Schedule

REPO = Path(__file__).parent.parent
CLASSES = ("background", "square")

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:You have overridden `on_before_batch_transfer` in"),
    pytest.mark.filterwarnings("ignore:One of the clusters is empty:UserWarning"),
]


def make_backbone() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
    )


def squares(margins: list[int], images: int = 8, names: list[str] | None = None) -> DataLoader:
    """Bright squares, drawn with a margin by each annotator."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for i in range(images):
        y, x = torch.randint(6, 16, (2,), generator=generator).tolist()
        masks = torch.zeros(len(margins), 32, 32).long()
        for n, margin in enumerate(margins):
            masks[n, y - margin : y + 10 + margin, x - margin : x + 10 + margin] = 1
        image = 0.1 * torch.randn(3, 32, 32, generator=generator)
        image[:, y : y + 10, x : x + 10] += 1
        samples.append({"image": image, "masks": masks, "id": f"square-{i}"})
    return DataLoader(samples, batch_size=4)


def train(module: L.LightningModule, loader: DataLoader, steps: int) -> L.Trainer:
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    return trainer


def fast(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2)


SMALL = {"kernels": 2, "embedding_channels": 8, "who_window": 5, "who_sharpness": 10.0}


def make_base(folder: Path, **options) -> tuple[TAXLightningModule, Path]:
    torch.manual_seed(0)
    module = TAXLightningModule(
        ["Ana", "Ben"], CLASSES, network=make_backbone(), optimizer=fast, **SMALL | options
    )
    path = folder / "base.ckpt"
    train(module, squares([0, 2]), 80).save_checkpoint(path)
    return module, path


def add(path: Path, **options) -> AddedAnnotators:
    torch.manual_seed(1)
    arguments = {"annotators": ["Zoe"], "classes": CLASSES, "network": make_backbone()}
    return AddedAnnotators(str(path), optimizer=fast, **arguments | options)


KINDS = {
    "private": {},
    "shared": {"bank": "shared"},
    "ema": {"prototype_update": "ema"},
    "logit": {"mixing": "logit"},
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def run(request, tmp_path_factory):
    """A base, and the same with Zoe, who draws too small, learnt from four images."""
    folder = tmp_path_factory.mktemp("addition")
    base, path = make_base(folder, **request.param)
    module = add(path)
    train(module, squares([-2], images=4), 120).save_checkpoint(folder / "more.ckpt")
    return base, module, folder / "more.ckpt"


def images() -> Tensor:
    return next(iter(squares([0])))["image"]


def area(module: TAXLightningModule, name: str) -> float:
    return (module.predict(images(), annotator=name).argmax(dim=1) == 1).float().mean().item()


def test_what_the_others_would_draw_stays_bit_for_bit(run):
    base, module, _ = run
    for name in ("Ana", "Ben"):
        before, after = (m.predict(images(), annotator=name) for m in (base, module))
        assert torch.equal(before, after), name


def test_the_others_together_decide_as_before(run):
    base, module, _ = run
    together = module.predict(images(), panel=["Ana", "Ben"])
    torch.testing.assert_close(together, base.predict(images()), atol=1e-5, rtol=0)


def test_sources_of_the_others_stay(run):
    base, module, _ = run
    before = base.explain(images()).sources
    after = module.explain(images()).sources
    assert after[:2] == before
    if module.hparams["bank"] == "private":
        assert all(source.sample_id for source in after[2] if source.active)


def test_the_new_annotators_tendency_is_learnt(run):
    _, module, _ = run
    if module.hparams["bank"] == "shared":
        pytest.skip("with the types of annotation that the others have, nobody draws smaller")
    assert area(module, "Zoe") < 0.8 * area(module, "Ana")
    assert area(module, "Zoe") == pytest.approx(6 * 6 / 32**2, rel=0.5)


def test_nothing_but_the_last_cohort_has_changed(run):
    base, module, _ = run
    before, after = base.state_dict(), module.state_dict()
    for name, value in before.items():
        if isinstance(value, Tensor) and not name.startswith("loss."):
            mine = after[name]
            same = mine if mine.ndim == 0 else mine[: len(value)]
            assert torch.equal(same.nan_to_num(9), value.nan_to_num(9)), name


def test_the_checkpoint_is_that_of_a_plain_module(run):
    _, module, path = run
    again = TAXLightningModule.load_from_checkpoint(
        path, network=make_backbone(), weights_only=True
    )
    assert again.annotators == ("Ana", "Ben", "Zoe")
    assert type(again) is TAXLightningModule
    for name in again.annotators:
        assert torch.equal(
            again.predict(images(), annotator=name), module.predict(images(), annotator=name)
        )


def test_another_can_be_added_to_the_added(run, tmp_path):
    _, module, path = run
    more = add(path, annotators=["Yan"])
    assert more.annotators == ("Ana", "Ben", "Zoe", "Yan")
    train(more, squares([4], images=4), 10)
    for name in module.annotators:
        assert torch.equal(
            more.predict(images(), annotator=name), module.predict(images(), annotator=name)
        )


def test_labels_of_those_known_are_used_where_the_data_have_them(tmp_path):
    _, path = make_base(tmp_path)
    module = add(path, annotators=["Ana", "Ben", "Zoe"])
    batch = next(iter(squares([0, 2, -2])))
    batch["masks"][0, 0] = 255
    ready = module.on_before_batch_transfer(batch, 0)
    masks, present, _ = module._targets(ready, module(ready["image"]))
    assert present.all()
    assert torch.equal(masks[1:], ready["masks"][1:])
    assert (masks[0, 0] != 255).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"annotators": ["Ben"]}, r"it knows all of \['Ben'\] already"),
        ({"classes": ["background", "disc"]}, r"its classes are \['background', 'square'\]"),
        ({"in_channels": 1}, "its images have 3 channels, but the data have 1"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(options, message, tmp_path):
    _, path = make_base(tmp_path)
    with pytest.raises(ValueError, match=f"^base={re.escape(str(path))}: {message}"):
        add(path, **options)


def test_through_the_command_line(tmp_path, capsys):
    tiny = ["--config", str(REPO / "tests" / "tiny.yaml"), "--trainer.logger=false"]
    quickstart = str(REPO / "experiments" / "quickstart.yaml")
    known = "--data.init_args.annotators=[Ana, Ben, Chloe, Dara]"
    root = f"--trainer.default_root_dir={tmp_path / 'base'}"
    main(["fit", "--config", quickstart, *tiny, known, root])
    base = capsys.readouterr().out.split("checkpoint  ")[1].split("\n")[0]

    config = ["--config", str(REPO / "experiments" / "add_annotator.yaml")]
    small = [
        "--data.init_args.size=64",
        "--data.init_args.train_samples=8",
        "--data.init_args.val_samples=4",
        "--data.init_args.test_samples=2",
        "--trainer.logger=false",
        f"--trainer.default_root_dir={tmp_path / 'more'}",
    ]
    quick = ["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1"]
    main(["fit", *config, *small, *quick, f"--model.init_args.base={base}"])
    said = capsys.readouterr().out
    assert re.search(r"^dice +Emil", said, re.MULTILINE)
    checkpoint = said.split("checkpoint  ")[1].split("\n")[0]
    everyone = "--data.init_args.annotators=null"
    main(["test", "--config", quickstart, *tiny, *small, everyone, "--ckpt_path", checkpoint])
    assert "test/dice/Emil" in capsys.readouterr().out


def test_a_base_that_is_none_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"^base=.*none\.ckpt: there is no such file\. Give"
    ):
        add(tmp_path / "none.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(
        ValueError, match=r"^base=.*other\.ckpt: this is no checkpoint of tax-light"
    ):
        add(tmp_path / "other.ckpt")


def test_the_new_annotator_is_not_favoured_for_coming_late(tmp_path):
    base, path = make_base(tmp_path)
    assert base.loss.images_seen > 0
    module = add(path)
    train(module, squares([-2], images=4), 10)
    assert module.loss.label_rate.tolist() == [1.0, 1.0, 1.0]


def test_without_a_schedule_the_new_prototypes_are_learnt(tmp_path):
    _, path = make_base(tmp_path)
    module = add(path, schedule=Schedule(enabled=False))
    before = module.network.memory.prototypes[1].detach().clone()
    known = module.network.memory.prototypes[0].detach().clone()
    train(module, squares([-2], images=4), 10)
    assert not torch.equal(module.network.memory.prototypes[1], before)
    assert torch.equal(module.network.memory.prototypes[0], known)


def test_owners_are_placed_among_all_annotators(tmp_path):
    _, path = make_base(tmp_path)
    module = add(path, annotators=["Zoe", "Ana"])
    batch = next(iter(squares([-2, 0])))
    batch["expert"] = torch.tensor([0, 1, 255])[torch.arange(32) % 3].expand(4, 32, 32)
    ready = module.on_before_batch_transfer(batch, 0)
    expected = torch.tensor([2, 0, 255])[torch.arange(32) % 3].expand(4, 32, 32)
    assert torch.equal(ready["expert"], expected)


@torch.no_grad()
def test_also_in_bands_the_others_stay_bit_for_bit(run):
    base, module, _ = run
    seen = base.network.eval().see(images()[:, :, :, :31])
    for n in range(2):
        before, after = (
            torch.cat([band.log_annotator_probs[:, n] for band in bands], dim=2)
            for bands in (m.network.eval().bands(seen, 2000) for m in (base, module))
        )
        assert torch.equal(before, after)
