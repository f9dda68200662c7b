"""What a checkpoint holds, who may load it, and how a run goes on from it."""

import re

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from squares import (
    ANNOTATORS,
    CLASSES,
    QUIET,
    STEPS,
    Recorded,
    fast,
    images,
    make_backbone,
    make_loader,
    make_module,
    make_trainer,
    sources_of,
)
from torch import Tensor

from tax_lightning import AddedAnnotators, TAXLightningModule
from tax_lightning.__main__ import main
from tax_lightning.losses import LossWeights
from tax_lightning.modules.checkpoints import load_model, read_checkpoint
from tax_lightning.modules.schedule import Schedule

pytestmark = QUIET


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run to its end: the module, and a folder with its checkpoints of every fourth step."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    module = make_module(optimizer=fast)
    every = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    trainer = make_trainer(enable_checkpointing=True, callbacks=[every])
    trainer.fit(module, make_loader())
    return module, folder


@pytest.fixture
def trained(run) -> Recorded:
    return run[0]


@pytest.fixture
def checkpoint(run):
    """Path of a checkpoint by its step."""
    return lambda step: str(run[1] / f"step={step}.ckpt")


# ---------------------------------------------------------------------- contents


def test_checkpoints_hold_tensors_and_primitives_only(checkpoint):
    stored = torch.load(checkpoint(STEPS), weights_only=True)
    assert stored["format_version"] == 4
    assert stored["hyper_parameters"] == {
        "annotators_per_step": None,
        **{"annotators": list(ANNOTATORS), "classes": list(CLASSES), "network": "given"},
        **{"architecture": "unet", "encoder": "resnet34", "encoder_weights": None},
        **{"in_channels": 3, "backbone_options": None, "kernels": 2, "kernel_size": 3},
        **{"reference": "majority", "who_window": 5, "segmentation_loss": "ce"},
        "loss_weights": {
            **{"annotator": 1.0, "fused": 1.0, "who": 0.5, "cluster": 0.2, "separation": 1.0}
        },
        "schedule": {
            **{"enabled": True, "start": 0.1, "full": 0.3, "trials": [0.6, 0.7], "final": 1.0}
        },
        **{"explanation_metrics": False, "encoder_rate": None, "types": False, "batch_keys": None},
    }
    assert stored["names"] == {"annotators": ANNOTATORS, "classes": CLASSES}
    assert stored["schedule_done"] == ["start", "trial 1", "trial 2", "final"]
    assert stored["class_path"] == "squares.Recorded"


class Tuned(TAXLightningModule):
    """As a user might write it: further arguments, and Lightning's way to save them all."""

    def __init__(self, *, smoothing: float = 0.1, levels: tuple[int, ...] = (1,), **others) -> None:
        super().__init__(**others)
        self.smoothing, self.levels = smoothing, levels
        self.save_hyperparameters()


@pytest.mark.parametrize(
    ("loss_weights", "schedule"),
    [
        (LossWeights(cluster=0.7), Schedule(trials=(), final=0.5)),
        ({"cluster": 0.7}, {"trials": [], "final": 0.5}),
    ],
    ids=["dataclass", "dict"],
)
@pytest.mark.parametrize(
    ("kind", "further"),
    [(TAXLightningModule, {}), (Tuned, {"smoothing": 0.3, "levels": [2, 4]})],
)
def test_a_module_is_reloaded_from_its_checkpoint_alone(
    kind, further, loss_weights, schedule, tmp_path
):
    small = {"network": None, "encoder": "tu-test_resnet.r160_in1k", "optimizer": fast}
    module = make_module(kind, loss_weights=loss_weights, schedule=schedule, **small, **further)
    path, trainer = str(tmp_path / "module.ckpt"), make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    stored = torch.load(path, weights_only=True)
    assert stored["hyper_parameters"]["network"] is None
    again = kind.load_from_checkpoint(path, weights_only=True)
    assert type(again) is type(load_model(path, "path")) is kind
    assert dict(again.hparams) == stored["hyper_parameters"]
    assert again.annotators == ANNOTATORS
    assert again.loss_weights == {**vars(LossWeights()), "cluster": 0.7}
    assert again.schedule.due(0.5, []) == [("start", "start"), ("final", "final")]
    assert {name: getattr(again, name) for name in further} == further
    assert torch.equal(again.predict(images(1)), module.predict(images(1)))


def test_a_network_of_ones_own_must_be_given_again(trained, checkpoint):
    message = "^this checkpoint was trained with a network of your own.*give it again"
    with pytest.raises(ValueError, match=message):
        Recorded.load_from_checkpoint(checkpoint(STEPS))
    again = Recorded.load_from_checkpoint(checkpoint(STEPS), network=make_backbone())
    explanation, expected = again.explain(images(2)), trained.explain(images(2))
    for name in ("probs", "who", "why", "why_share"):
        assert torch.equal(getattr(explanation, name), getattr(expected, name)), name
    assert repr(explanation.sources) == repr(expected.sources)


# ---------------------------------------------------------------------- resuming


def resume(path, **options) -> Recorded:
    module = make_module(optimizer=fast, **options)
    make_trainer().fit(module, make_loader(), ckpt_path=path)
    return module


def test_a_run_resumes_before_the_final_projection(checkpoint, trained):
    module = resume(checkpoint(20))
    assert module.kinds == ["trial", "trial", "final"]
    assert module.events == trained.events[1:]
    assert len(module.losses) == STEPS - 20
    assert module.network.frozen
    assert module.explained
    torch.testing.assert_close(module.loss.label_rate, trained.loss.label_rate)
    assert module.loss.images_seen == trained.loss.images_seen


def test_a_run_resumes_after_the_final_projection(tmp_path):
    early = {"schedule": Schedule(trials=(), final=0.5), "optimizer": fast}
    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    trained = make_module(**early)
    make_trainer(enable_checkpointing=True, callbacks=[every]).fit(trained, make_loader())
    module = resume(str(tmp_path / "step=36.ckpt"), schedule=early["schedule"])
    assert module.events == []
    assert module.network.frozen
    assert repr(sources_of(module)) == repr(sources_of(trained))
    # Nothing is random now: the end is the same to the last bit.
    state, expected = module.network.state_dict(), trained.network.state_dict()
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert torch.equal(value.nan_to_num(9), state[name].nan_to_num(9)), name


def test_the_same_module_goes_back_to_an_earlier_checkpoint(checkpoint):
    weights = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            weights.append(module.network.backbone[0].weight.detach().clone())

    module = make_module()
    make_trainer().fit(module, make_loader())
    assert module.network.frozen
    module.events.clear()
    make_trainer(callbacks=[Watch()]).fit(module, make_loader(), ckpt_path=checkpoint(4))
    assert module.kinds == ["trial", "trial", "final"]
    assert not torch.equal(weights[0], weights[10])


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ({"annotators": ["Ana", "Ben", "Cleo"]}, "annotators"),
        ({"annotators": ["Ben", "Ana", "Dr. C"]}, "annotators"),
        ({"classes": ["background", "nucleus"]}, "classes"),
    ],
)
def test_a_checkpoint_of_others_is_refused(checkpoint, names, kind):
    message = rf"^checkpoint: its {kind} are \('.*were asked for\. Use the data that it was trained"
    with pytest.raises(ValueError, match=message):
        resume(checkpoint(4), **names)
    with pytest.raises(ValueError, match=message):
        Recorded.load_from_checkpoint(checkpoint(4), network=make_backbone(), **names)


# ---------------------------------------------------------------------- of version 0.1, or of none


@pytest.fixture
def old(checkpoint, tmp_path) -> str:
    """A checkpoint as tax-lightning 0.1 wrote it."""
    content = torch.load(checkpoint(36), weights_only=True)
    del content["format_version"]
    terms = {"annotator": 1.0, "fused": 1.0, "who": 0.5, "balance": 0.1, "pull": 0.2}
    content["hyper_parameters"] |= {"bank": "shared", "context": True, "loss_weights": terms}
    state = content["state_dict"]
    state["network.memory.prototypes.0"] = state.pop("network.memory.vectors")
    torch.save(content, tmp_path / "old.ckpt")
    return str(tmp_path / "old.ckpt")


def add_to(path):
    return AddedAnnotators(path, ["Zoe"], CLASSES, network=make_backbone())


@pytest.mark.parametrize(
    ("load", "source"),
    [
        (lambda old: resume(old), "checkpoint"),
        (lambda old: make_trainer().validate(make_module(), make_loader(), old), "checkpoint"),
        (lambda old: read_checkpoint(old, "there"), "there={}"),
        (lambda old: load_model(old, "there"), "there={}"),
        (add_to, "base={}"),
        (lambda old: main(["explain", f"--ckpt_path={old}", "--images=."]), "--ckpt_path={}"),
        (lambda old: main(["test", f"--ckpt_path={old}"]), "ckpt_path={}"),
    ],
)
def test_a_checkpoint_of_another_version_is_refused_on_every_way_in(load, source, old):
    with pytest.raises((ValueError, SystemExit)) as refusal:
        load(old)
    assert str(refusal.value).removeprefix("tax: error: ") == (
        f"{source.format(old)}: its format version is None, expected 4. Train again with this "
        "version, or load it with the version of tax-lightning that wrote it (0.1 wrote no format "
        "version)."
    )


@pytest.mark.parametrize("name", ["kernels", "kernel_size"])
def test_a_checkpoint_that_asks_for_more_than_it_has_is_refused_before_it_is_built(
    name, checkpoint, tmp_path, monkeypatch
):
    content = torch.load(checkpoint(36), weights_only=True)
    content["hyper_parameters"][name] = 10**9
    torch.save(content, tmp_path / "big.ckpt")
    monkeypatch.delattr(TAXLightningModule, "__init__")
    for load in (load_model, read_checkpoint):
        with pytest.raises(ValueError, match=rf"asks for {name}=1000000000, but has the weights"):
            load(str(tmp_path / "big.ckpt"), "there")


def test_a_checkpoint_that_names_no_model_is_refused(checkpoint, tmp_path):
    content = torch.load(checkpoint(36), weights_only=True)
    content["class_path"] = "os.system"
    torch.save(content, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match=r"odd\.ckpt: os\.system is no LightningModule"):
        load_model(str(tmp_path / "odd.ckpt"), "there")


def test_loading_it_by_hand_says_what_to_do_too(old):
    content = torch.load(old, weights_only=True)
    for unknown in ("bank, context", "'balance'"):
        with pytest.raises(ValueError, match=rf": {unknown}.* unknown, .*: Train again with"):
            TAXLightningModule.load_from_checkpoint(old, network=make_backbone())
        for name in ("bank", "context"):
            content["hyper_parameters"].pop(name, None)
        torch.save(content, old)
    content["hyper_parameters"]["loss_weights"] = {}
    torch.save(content, old)
    with pytest.raises(ValueError, match=r"^checkpoint: its format version is None"):
        TAXLightningModule.load_from_checkpoint(old, network=make_backbone())


@pytest.mark.parametrize("read", [lambda path: read_checkpoint(path, "there"), add_to])
def test_a_file_that_is_none_is_refused(read, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"=.*none\.ckpt: there is no such file\. Give the"):
        read(str(tmp_path / "none.ckpt"))
    other = str(tmp_path / "other.ckpt")
    torch.save({"state_dict": {}}, other)
    with pytest.raises(ValueError, match=rf"={re.escape(other)}: this is no checkpoint of tax-lig"):
        read(other)
