"""TAXLightningModule under a plain Trainer with plain loaders: trains, predicts, explains."""

import re
import warnings
from dataclasses import asdict

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from squares import (
    ANNOTATORS,
    CLASSES,
    QUIET,
    STEPS,
    Recorded,
    Squares,
    fast,
    images,
    make_backbone,
    make_loader,
    make_module,
    make_trainer,
    sources_of,
)
from torch import Tensor
from torch.utils.data import SubsetRandomSampler

from tax_lightning import TAXLightningModule
from tax_lightning.consensus import agreement, majority
from tax_lightning.losses import LossWeights
from tax_lightning.models.network import Encoded, TAXNetwork
from tax_lightning.models.output import EVERYBODY
from tax_lightning.modules.schedule import Schedule

pytestmark = QUIET
OFF = Schedule(enabled=False)


@pytest.fixture(scope="module")
def trained() -> Recorded:
    torch.manual_seed(0)
    module = make_module(optimizer=fast)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="training stopped")  # it runs to its end
        make_trainer().fit(module, make_loader())
    return module


def number_of(sample_id: str) -> int:
    return int(sample_id.removeprefix("square-"))


# ---------------------------------------------------------------------- a whole run


def test_the_loss_falls_and_events_come_when_the_schedule_says(trained):
    assert len(trained.losses) == STEPS
    assert trained.losses[-6:].mean() < 0.5 * trained.losses[:3].mean()
    # Right after the step that reaches 10 %, 60 %, 70 % and all of 40, before it is counted.
    assert trained.events == [(3, "start"), (23, "trial"), (27, "trial"), (39, "final")]
    assert trained.schedule_done == ["start", "trial 1", "trial 2", "final"]
    assert trained.explained


def test_the_loss_is_the_weighted_sum_of_the_terms_that_are_trained(trained):
    segmentation, weights = {"annotator", "fused"}, asdict(LossWeights())
    for step, terms in enumerate(trained.terms):
        ramp = min(max(0.0, ((step + 1) / STEPS - 0.1) / 0.2), 1.0)
        names = segmentation | ({"who", "cluster", "separation"} if ramp > 0 else set())
        assert set(terms) == names | {"loss"}
        factors = {name: 1.0 if name in segmentation else ramp for name in names}
        expected = sum(factors[name] * weights[name] * terms[name] for name in names)
        assert terms["loss"] == pytest.approx(expected, rel=1e-4)


def test_tendencies_are_learnt_and_who_is_right_leads_where_annotators_differ(trained):
    areas = [trained.predict(images(), annotator=name)[:, 1].sum().item() for name in ANNOTATORS]
    assert areas[1] > areas[0] > areas[2]
    explanation = trained.explain(images())
    weights = explanation.who.transpose(0, 1)[:, ~explanation.undisputed].mean(dim=1)
    assert weights[0] > weights[1:].max() + 0.1


# ---------------------------------------------------------------------- explain and predict


@torch.no_grad()
def test_explanation_of_images(trained):
    explanation = trained.explain(images(2), ids=["one", "two"])
    assert explanation.ids == ("one", "two")
    assert explanation.annotators == ANNOTATORS
    assert explanation.classes == CLASSES
    assert explanation.probs.shape == (2, 2, 32, 32)
    assert explanation.annotator_probs.shape == (2, 3, 2, 32, 32)
    assert explanation.who.shape == (2, 3, 32, 32)
    assert explanation.why.dtype == torch.int64
    assert not explanation.who.requires_grad
    torch.testing.assert_close(explanation.who.sum(dim=1), torch.ones(2, 32, 32))
    shares = trained.network.eval()(images(2)).shares(explanation.decision)
    assert torch.equal(explanation.why_share, shares.amax(dim=2))
    picked = shares.gather(2, explanation.why.unsqueeze(2)).squeeze(2)
    assert torch.equal(explanation.why_share, picked)
    assert explanation.why_share.sum(dim=1).max() <= 1 + 1e-5
    assert [len(row) for row in explanation.sources] == [2, 2, 2]
    assert trained.explain(images(2)).ids == ("image 0", "image 1")
    assert explanation.undisputed.any()
    assert not explanation.undisputed.all()
    said = explanation.annotator_probs.argmax(dim=2)
    alike = (said == said[:, :1]).all(dim=1)
    assert (explanation.decision[alike] == said[:, 0][alike]).all()
    assert explanation.trust.kind == trained.network.trust.kind


@pytest.mark.parametrize("training", [True, False])
def test_a_module_returns_to_the_mode_it_was_in(training):
    module = make_module()
    module.train(training)
    statistics = module.network.backbone[1].running_mean.clone()
    module.explain(torch.randn(2, 3, 8, 8))
    module.predict(torch.randn(2, 3, 8, 8))
    assert all(part.training is training for part in module.network.modules())
    assert torch.equal(module.network.backbone[1].running_mean, statistics)


@torch.no_grad()
def test_predictions_of_one_of_some_and_of_all(trained):
    output = trained.network.eval()(images(2))
    result = trained.predict(images(2))
    torch.testing.assert_close(result, output.probs)
    torch.testing.assert_close(trained.predict(images(2), panel=ANNOTATORS), result)
    torch.testing.assert_close(trained.predict(images(2), panel=["Dr. C", "Ana", "Ben"]), result)
    for n, name in enumerate(ANNOTATORS):
        alone = trained.predict(images(2), annotator=name)
        torch.testing.assert_close(alone, output.annotator_probs[:, n])
        torch.testing.assert_close(trained.predict(images(2), panel=[name]), alone)
    two = output.who[:, [0, 2]]
    expected = (two.unsqueeze(2) * output.annotator_probs[:, [0, 2]]).sum(dim=1)
    expected /= two.sum(dim=1, keepdim=True)
    panel = trained.predict(images(2), panel=["Ana", "Dr. C"])
    torch.testing.assert_close(panel, expected)
    assert not torch.allclose(panel, result, atol=1e-3)
    twice = trained.predict(images(2), panel=["Ana", "Ana", "Dr. C"])
    assert torch.equal(twice, panel)  # a name given twice counts once


def test_the_trainer_predicts_images_without_labels(trained):
    unlabelled = [{"image": image, "id": f"new {i}"} for i, image in enumerate(images())]
    explanations = make_trainer().predict(trained, make_loader(unlabelled))
    assert [len(explanation) for explanation in explanations] == [4, 4, 4]
    assert explanations[2].ids == ("new 8", "new 9", "new 10", "new 11")
    torch.testing.assert_close(explanations[0].probs, trained.predict(images(4)))


def test_what_is_said_by_bands_is_what_is_said_at_once(monkeypatch):
    module, seen, bands = make_module(), torch.randn(2, 3, 13, 8), []

    def said() -> list[Tensor]:
        explanation = module.explain(seen)
        names = ("probs", "annotator_probs", "who", "why_share", "why", "why_own", "dispute")
        predicted = module.predict(seen), module.predict(seen, panel=["Ben", "Dr. C"])
        return [*predicted, *(getattr(explanation, name) for name in names)]

    def counted(encoded: Encoded, panel):
        bands.append(encoded.features.shape[-2])
        return decode(encoded, panel)

    whole, decode = said(), module.network.decode
    monkeypatch.setattr(module.network, "decode", counted)
    # Three annotators, two kernels and two classes: five rows of two images hold 960 values. Seven
    # rows of a panel of two hold 896.
    monkeypatch.setattr(TAXNetwork.bands, "__defaults__", (EVERYBODY, 1000))
    torch.testing.assert_close(said(), whole)
    assert bands == [6, 7, 4] * 2 + [8, 7]  # with one row beyond each edge between two bands


# ---------------------------------------------------------------------- frozen after the projection


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)


def rmsprop(parameters):
    return torch.optim.RMSprop(parameters, lr=1e-3, momentum=0.9)


@pytest.mark.parametrize(
    ("make_optimizer", "options"),
    [
        *((sgd, {}), (adamw, {}), (rmsprop, {})),
        *((sgd, {"gradient_clip_val": 0.1}), (sgd, {"accumulate_grad_batches": 2})),
        *((adamw, {"precision": f"bf16-{kind}"}) for kind in ("mixed", "true")),
    ],
)
def test_after_the_final_projection_only_kernels_change(make_optimizer, options):
    schedule = Schedule(start=0.1, full=0.2, trials=(), final=0.5)
    module = make_module(optimizer=make_optimizer, schedule=schedule)
    trainer = make_trainer(max_steps=12, max_epochs=-1, **options)
    trainer.fit(module, make_loader(), make_loader())
    assert module.events[-1] == (5, "final")
    assert trainer.global_step == 12
    assert module.explained
    after = module.network.state_dict()
    changed = {
        name
        for name, value in module.state_when_projected.items()
        if isinstance(value, Tensor)
        and not torch.equal(value.nan_to_num(9), after[name].nan_to_num(9))
    }
    assert changed == {"bank.weight", "bank.bias"}


@pytest.mark.parametrize("frozen", [False, True])
def test_every_parameter_takes_part_in_every_step(frozen):
    # DistributedDataParallel stops at a parameter without a gradient.
    class Watch(L.Callback):
        def on_after_backward(self, trainer, module):
            assert module.network.frozen is frozen
            trained = [item for item in module.named_parameters() if item[1].requires_grad]
            self.left_out = [name for name, value in trained if value.grad is None]

    watch = Watch()
    schedule = Schedule(start=0, full=0, trials=(), final=0) if frozen else OFF
    backbone_options = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
    module = make_module(
        network=None, encoder="resnet18", backbone_options=backbone_options, schedule=schedule
    )
    trainer = make_trainer(max_steps=2, max_epochs=-1, callbacks=[watch])
    trainer.fit(module, make_loader(Squares(4, absent={i: [1] for i in range(4)})))
    assert watch.left_out == []


# ---------------------------------------------------------------------- schedule


def stop_after(steps: int) -> L.Callback:
    def stop(trainer, *_):
        trainer.should_stop = trainer.global_step >= steps

    return LambdaCallback(on_train_batch_end=stop)


def test_a_run_that_stops_early_projects_and_says_so():
    module = make_module()
    trainer = make_trainer(callbacks=[stop_after(10)])
    with pytest.warns(
        UserWarning, match="^training stopped .* before the final projection at 100%"
    ):
        trainer.fit(module, make_loader())
    assert trainer.global_step == 10
    assert module.explained
    assert all(source.projected for source in sources_of(module) if source.active)
    assert module.schedule_done[-1] == "final"


def test_a_schedule_that_is_off_trains_all_terms_and_never_projects():
    module, trainer = make_module(schedule=OFF), make_trainer(max_epochs=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="training stopped")
        trainer.fit(module, make_loader())
    assert module.events == []
    assert not module.network.memory.projected
    assert not module.network.frozen
    assert all("cluster" in terms for terms in module.terms)
    assert module.losses[-1] < module.losses[0]
    # All are logged by name, as they come in.
    last = module.terms[-1]
    logged = {"train/loss": last.pop("loss")} | {f"train/loss_{key}": last[key] for key in last}
    assert {key: value.item() for key, value in trainer.logged_metrics.items()} == logged


def test_a_projection_by_hand_needs_no_trainer_and_freezes_what_it_rests_on():
    module = make_module(schedule=OFF)
    statistics = module.network.backbone[1].running_mean.clone()
    module.project(make_loader())
    assert module.network.memory.projected
    assert torch.equal(module.network.backbone[1].running_mean, statistics)
    active = [source for source in sources_of(module) if source.active]
    assert active
    for source in active:
        pixel = source.taken_from
        image = images()[number_of(pixel.sample_id)][None]
        z = module.network.eval().encode(image).embedding[0, :, pixel.y, pixel.x]
        prototype = module.network.memory.vectors[ANNOTATORS.index(source.annotator), source.kernel]
        assert torch.cosine_similarity(z, prototype, dim=0) >= 0.999
    # They lie where their annotator agrees with the reference around.
    masks = torch.stack(Squares().masks)
    agree = agreement(masks, majority(masks, len(CLASSES)), window=5)
    assert (agree < 0.5).float().mean() > 0.05  # there are pixels to avoid
    for source in sources_of(module):
        n, pixel = ANNOTATORS.index(source.annotator), source.taken_from
        assert not pixel or agree[number_of(pixel.sample_id), n, pixel.y, pixel.x] >= 0.5
        for example in source.examples:  # they have the label that they are shown with
            label = masks[number_of(example.sample_id), n, example.y, example.x]
            assert CLASSES[label] == example.label
    weight = module.network.backbone[0].weight.detach().clone()
    make_trainer(max_epochs=1).fit(module, make_loader())
    assert torch.equal(module.network.backbone[0].weight, weight)
    assert repr([s for s in sources_of(module) if s.active]) == repr(active)


def test_the_schedule_needs_an_end():
    message = r"^trainer\.max_epochs=-1: the schedule needs to know where the run ends"
    with pytest.raises(ValueError, match=message):
        make_trainer(max_epochs=-1).fit(make_module(), make_loader())
    module = make_module(schedule=OFF)
    make_trainer(max_epochs=-1, callbacks=[stop_after(1)]).fit(module, make_loader())
    assert len(module.losses) == 1


class Augmented(L.LightningDataModule):
    def train_dataloader(self):
        return make_loader([sample | {"id": "augmented"} for sample in Squares()])

    def projection_dataloader(self):
        return make_loader(batch_size=5)


@pytest.mark.parametrize(
    ("data", "first"),
    [
        (lambda: {"datamodule": Augmented()}, 0),
        # Of one data set, a sampler trains with some images and leaves those to validate with.
        (lambda: {"train_dataloaders": make_loader(sampler=SubsetRandomSampler(range(4, 12)))}, 4),
    ],
    ids=["without augmentation", "those of the sampler"],
)
def test_sources_are_training_images(data, first):
    module = make_module()
    make_trainer(max_epochs=3).fit(module, **data())
    sources = sources_of(module)
    names = {source.taken_from.sample_id for source in sources if source.projected}
    names |= {example.sample_id for source in sources for example in source.examples}
    assert names
    assert names <= {f"square-{i}" for i in range(first, 12)}


def test_looking_for_sources_does_not_disturb_the_epoch():
    module = make_module()
    trainer = make_trainer(max_epochs=2)
    trainer.fit(module, make_loader(num_workers=1, persistent_workers=True))
    assert trainer.global_step == 6
    for epoch in (module.images[:3], module.images[3:]):
        seen = [name for batch in epoch for name in batch]
        assert sorted(seen) == sorted(f"square-{i}" for i in range(12))


def test_a_second_run_starts_anew(trained):
    class Look(L.Callback):
        seen = None

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            memory, found = module.network.memory, module.loss.images_seen.item()
            state = memory.active.all().item(), memory.pixel_ids[0][0], found
            network = module.network
            calibrated = network.trust.scale.item(), network.dispute_threshold.item()
            self.seen = self.seen or (*state, *calibrated)

    module = make_module()
    module.load_state_dict(trained.state_dict())
    module.schedule_done = list(trained.schedule_done)
    module.network.memory.active[0, 1] = False
    module.network.trust.scale.fill_(2.0)
    module.network.dispute_threshold.fill_(0.4)
    look = Look()
    make_trainer(max_epochs=3, callbacks=[look]).fit(module, make_loader())
    assert look.seen == (True, [], 0, 1.0, pytest.approx(0.1))
    assert module.kinds == ["start", "trial", "trial", "final"]
    assert module.finite


# ---------------------------------------------------------------------- absent annotators


def test_annotators_may_be_missing_from_images_and_batches():
    # One batch nobody labelled, in one Ana is alone, and of one image there are Dr. C's labels.
    absent = {i: [0, 1, 2] if i < 4 else [1, 2] if i < 8 else [2] for i in range(11)}
    module = make_module()
    make_trainer(max_steps=42, max_epochs=-1).fit(module, make_loader(Squares(absent=absent)))
    assert module.finite
    assert module.losses[1:3].mean() > module.losses[-2:].mean()
    assert module.loss.label_rate.tolist() == pytest.approx([8 / 12, 4 / 12, 1 / 12], abs=0.03)
    sources = sources_of(module)
    taken = [(s.annotator, s.taken_from.sample_id) for s in sources if s.projected]
    assert {name for annotator, name in taken if annotator == "Dr. C"} == {"square-11"}
    assert not {name for _, name in taken} & {f"square-{i}" for i in range(4)}


def test_a_step_teaches_the_annotators_drawn_and_of_those_at_hand_alone():
    drawn = set()

    class Watch(L.Callback):
        def on_after_backward(self, trainer, module):
            bank, memory = module.network.bank, module.network.memory
            taught = bank.weight.grad.flatten(1).any(dim=1).tolist()
            assert memory.prior.grad[[not t for t in taught]].eq(0).all()
            drawn.add(tuple(taught))

    module = make_module(annotators_per_step=1)
    data = Squares(absent={i: [1] for i in range(12)})
    make_trainer(max_steps=12, max_epochs=-1, callbacks=[Watch()]).fit(module, make_loader(data))
    assert drawn == {(True, False, False), (False, False, True)}  # Ben has no labels


def test_steps_of_as_many_annotators_as_there_are_are_those_of_all():
    weights = []
    for number in (None, 3):
        torch.manual_seed(0)
        module = make_module(annotators_per_step=number)
        make_trainer(max_steps=6, max_epochs=-1).fit(module, make_loader())
        weights.append(module.network.bank.weight)
    torch.testing.assert_close(*weights)


# ---------------------------------------------------------------------- references


def test_masks_of_0_and_255_are_said_to_teach_nothing():
    class Grey(Squares):
        def __getitem__(self, i):
            sample = super().__getitem__(i)
            return sample | {"masks": torch.where(sample["masks"] > 0, 255, 0)}

    with pytest.warns(UserWarning, match=r"No mask of this epoch holds .* \(masks > 0\)\.long\(\)"):
        make_trainer(max_epochs=1).fit(make_module(), make_loader(Grey(4)))


def test_the_reference_can_be_given_with_the_data(trained):
    class Inverted(Squares):
        def __getitem__(self, i):
            sample = super().__getitem__(i)
            return sample | {"reference": 1 - sample["masks"][0]}

    module = make_module(reference="given")
    module.load_state_dict(trained.state_dict())
    (found,) = make_trainer().validate(module, make_loader(Inverted()), verbose=False)
    assert found["val/fused_dice/cell"] < 0.2
    assert found["val/dice/Ana"] > 0.8
    message = "^reference='given': the batch has no key 'reference'. Supply reference labels"
    with pytest.raises(ValueError, match=message):
        make_trainer(max_epochs=1).fit(module, make_loader())


def test_without_a_reference_the_result_lies_between_the_annotators():
    module = make_module(reference="none", optimizer=fast)
    assert module.reference_labels({"masks": torch.stack(Squares().masks)}, None) is None
    absent = {i: [2] for i in range(0, 12, 2)} | {3: [0, 1, 2]}
    loader = make_loader(Squares(absent=absent))
    trainer = make_trainer(max_epochs=8)
    trainer.fit(module, loader, loader)
    assert module.finite
    assert {name for terms in module.terms for name in terms} == {
        *("loss", "annotator", "fused", "cluster", "separation")
    }
    assert module.losses[-1] < module.losses[0]
    assert module.explained
    assert module.network.trust.kind == "uniform"  # nobody is known to be right
    # Nothing is measured against a reference that there is not; annotators are, against themselves.
    measured = {key for key in trainer.logged_metrics if key.startswith("val/")}
    against = ("fused", "who_accuracy", "who_chance", "who_ece", "lift", "expert")
    assert not any(word in key for key in measured for word in against), measured
    assert "val/dice/Ana" in measured
    # Sources lie where their annotator labelled: believed, not compared.
    for source in sources_of(module):
        n = ANNOTATORS.index(source.annotator)
        assert not source.projected or n not in absent.get(
            number_of(source.taken_from.sample_id), []
        )
    area = module.predict(images())[:, 1].sum()
    assert module.predict(images(), annotator="Dr. C")[:, 1].sum() < area
    assert area < module.predict(images(), annotator="Ben")[:, 1].sum()


def test_without_a_reference_a_test_of_the_explanation_measures_what_it_can():
    module = make_module(reference="none", explanation_metrics=True)
    (found,) = make_trainer().test(module, make_loader(Squares(4)), verbose=False)
    assert {"test/who_entropy_disputed", "test/within_auc", "test/dispute_auroc"} <= set(found)
    assert not any(key.startswith(("test/trust", "test/who_accuracy")) for key in found)
    assert all(value == value for value in found.values())


@pytest.mark.parametrize("options", [{"reference": "none"}, {"loss_weights": {"who": 0.0}}])
def test_that_who_is_not_trained_is_said(options):
    message = r"^who is not trained \(reference='none', or loss_weights.who=0\)"
    with pytest.warns(UserWarning, match=message):
        make_module(**options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=message)
        make_module()


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"annotators": []},
            r"annotators=\[\]: expected a list of at least 1 different",
        ),
        ({"annotators": "Ana"}, "annotators='Ana': expected a list of at least 1 different names"),
        ({"annotators": ["Ana", "Ana"]}, r"annotators=\['Ana', 'Ana'\]: expected a list of"),
        ({"classes": ["cell"]}, r"classes=\['cell'\]: .* Name the background first, then at least"),
        ({"reference": "x"}, "reference='x': expected one of given, majority, staple, none"),
        ({"who_window": 4}, "who_window=4: expected an odd number of pixels"),
        ({"segmentation_loss": "x"}, "segmentation_loss='x': expected one of ce, dice"),
        ({"kernels": 0}, "kernels=0: expected at least 1"),
        ({"annotators_per_step": 0}, "annotators_per_step=0: expected 1 or more"),
        ({"annotators_per_step": 2, "types": True}, "annotators_per_step=2: .* in place of types"),
        ({"loss_weights": {"pull": 0.2}}, "LossWeights: 'pull' is unknown, .*: Train again with"),
        ({"schedule": {"begin": 0.2}}, "Schedule: 'begin' is unknown, expected some of enabled, "),
    ],
)
def test_errors_name_the_argument(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make_module(**options)


def test_a_network_for_others_is_refused():
    network = TAXNetwork(2, 2, backbone=make_backbone(), kernels=2)
    message = re.escape(
        "network: built for 2 annotators and 2 classes, but 3 annotators ('Ana', 'Ben', 'Dr. C') "
        "and 2 classes ('background', 'cell') are named."
    )
    with pytest.raises(ValueError, match=f"^{message}"):
        make_module(network=network)
    fitting = TAXNetwork(3, 2, backbone=make_backbone(), kernels=5)
    assert make_module(network=fitting).network is fitting


def test_pruned_prototypes_are_reported(monkeypatch):
    monkeypatch.setattr("tax_lightning.models.prototypes.LEAST_SIMILARITY", 1.1)  # none is so near
    module = make_module(schedule=OFF)
    message = r"of 2 prototypes .* pruned, .*: 1 of Ana, 1 of Ben, 1 of"
    with pytest.warns(UserWarning, match=message):
        module.project(make_loader())


def test_reasons_of_weights_before_the_final_projection_come_with_a_warning():
    module = make_module().eval()
    with pytest.warns(UserWarning, match="no prototype is a training pixel yet"):
        module.explain(torch.rand(1, 3, 32, 32))
    module.network.memory.projected = torch.tensor(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.explain(torch.rand(1, 3, 32, 32))


def test_numbers_in_place_of_names_make_names_up_and_say_so(caplog):
    with caplog.at_level("INFO"):
        module = TAXLightningModule(3, 2, network=make_backbone())
    assert module.annotators == ("annotator 1", "annotator 2", "annotator 3")
    assert module.classes == ("background", "class 1")
    assert "annotators=3: they are called annotator 1, annotator 2, annotator 3." in caplog.text
    assert module.hparams["classes"] == ["background", "class 1"]
    with pytest.raises(ValueError, match=r"classes=\['background'\]: expected .* at least 2"):
        TAXLightningModule(3, 1)


def test_what_cannot_be_exported_says_what_can():
    module = make_module()
    for export in (module.to_onnx, module.to_torchscript):
        with pytest.raises(NotImplementedError, match="tax export CHECKPOINT"):
            export("model", torch.rand(1, 3, 32, 32))
