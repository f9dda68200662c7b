"""The Lightning module under a plain Trainer with plain loaders."""

import re
import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler

from tax_lightning.consensus import agreement, majority
from tax_lightning.losses import LossWeights
from tax_lightning.models.mixture import mix
from tax_lightning.models.network import Seen, TAXNetwork
from tax_lightning.modules.schedule import Schedule
from tax_lightning.modules.tax import TAXLightningModule

ANNOTATORS = ("Ana", "Ben", "Dr. C")
CLASSES = ("background", "cell")
STEPS = 40
PER_EPOCH = 3

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`ModelCheckpoint.*` is not empty"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:You have overridden `on_before_batch_transfer` in"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
    pytest.mark.filterwarnings("ignore:One of the clusters is empty:UserWarning"),
    pytest.mark.filterwarnings("ignore:of . prototypes? an annotator these are pruned:UserWarning"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training"),
]


class Squares(Dataset):
    """Bright squares that Ana draws as they are, Ben too large and Dr. C too small."""

    def __init__(self, images: int = 12, absent: dict[int, list[int]] | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.absent = absent or {}
        self.images, self.masks = [], []
        for _ in range(images):
            y, x = torch.randint(4, 18, (2,), generator=generator).tolist()
            masks = torch.zeros(3, 32, 32).long()
            for n, margin in enumerate((0, 3, -2)):
                masks[n, y - margin : y + 10 + margin, x - margin : x + 10 + margin] = 1
            noise = 0.1 * torch.randn(3, 32, 32, generator=generator)
            self.images.append(masks[0] + noise)
            self.masks.append(masks)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict:
        masks = self.masks[i].clone()
        masks[self.absent.get(i, [])] = 255
        return {"image": self.images[i], "masks": masks, "id": f"square-{i}"}


def make_loader(dataset: Dataset | None = None, **options) -> DataLoader:
    return DataLoader(dataset or Squares(), **{"batch_size": 4} | options)


def make_backbone() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
    )


def fast(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2)


class Recorded(TAXLightningModule):
    """Notes the events of the schedule and, of each step, the losses and the images."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.events: list[tuple[int, str]] = []
        self.losses: list[float] = []
        self.totals: list[float] = []
        self.images: list[list[str]] = []

    def _carry_out(self, kind) -> None:
        self.events.append((self.trainer.global_step, kind))
        super()._carry_out(kind)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        logged = self.trainer.logged_metrics
        self.totals.append(float(loss.detach()))
        self.losses.append(float(logged["train/loss_annotator"] + logged["train/loss_fused"]))
        self.images.append(list(batch["id"]))
        return loss


def make_module(cls: type = Recorded, **options) -> Recorded:
    small = {"kernels": 2, "embedding_channels": 8, "who_window": 5, "who_sharpness": 10.0}
    small |= {"annotators": ANNOTATORS, "classes": CLASSES}
    if "network" not in options:
        small["network"] = make_backbone()
    return cls(**small | options)


def make_trainer(**options) -> L.Trainer:
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    if "max_steps" not in options and "max_epochs" not in options:
        quiet |= {"max_steps": STEPS, "max_epochs": -1}
    return L.Trainer(**quiet | options)


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


@pytest.fixture(scope="module")
def trained(run) -> Recorded:
    return run[0]


@pytest.fixture
def checkpoint(run):
    """Path of a checkpoint by its step."""
    return lambda step: run[1] / f"step={step}.ckpt"


def sources_of(module: TAXLightningModule):
    rows = module.network.memory.sources(module.annotators, module.classes)
    return [source for row in rows for source in row]


def number_of(source) -> int:
    return int(source.sample_id.removeprefix("square-"))


@torch.no_grad()
def similarity_to_source(module: TAXLightningModule, source) -> float:
    """Cosine of a prototype and its source pixel, encoded anew."""
    image = Squares()[number_of(source)]["image"][None]
    z = module.eval()(image).embedding[0, :, source.y, source.x]
    prototype = module.network.memory.vectors[ANNOTATORS.index(source.annotator), source.kernel]
    return F.cosine_similarity(z, prototype, dim=0).item()


# ---------------------------------------------------------------------- a whole run


def test_the_loss_falls(trained):
    losses = torch.tensor(trained.losses)
    assert len(losses) == STEPS
    assert losses[-6:].mean() < 0.5 * losses[:3].mean()


def test_events_come_when_the_schedule_says(trained):
    # At the first step that reaches 10 %, 60 %, 70 % and 90 % of 40.
    assert [kind for _, kind in trained.events] == ["start", "trial", "trial", "final"]
    for (step, _), planned in zip(trained.events, (4, 24, 28, 36), strict=True):
        assert planned - 1 <= step <= planned
    assert trained.schedule_done == ["start", "trial 1", "trial 2", "final"]


def test_every_living_prototype_is_a_training_pixel(trained):
    dataset = Squares()
    memory = trained.network.memory
    assert memory.projected
    assert trained.explained
    active = [source for source in sources_of(trained) if source.active]
    assert {source.annotator for source in active} == set(ANNOTATORS)
    for source in active:
        assert similarity_to_source(trained, source) >= 0.999
        i, n = number_of(source), ANNOTATORS.index(source.annotator)
        label = dataset[i]["masks"][n, source.y, source.x]
        assert source.label == CLASSES[label]
    places = [(source.sample_id, source.y, source.x) for source in active]
    assert len(set(places)) == len(places)


def test_nearest_exist_and_are_of_other_images(trained):
    for source in sources_of(trained):
        names = [runner[0] for runner in source.nearest]
        assert source.sample_id not in names
        assert len(set(names)) == len(names)
        assert set(names) <= {f"square-{i}" for i in range(12)}
        similarities = [runner[3] for runner in source.nearest]
        assert similarities == sorted(similarities, reverse=True)


def test_the_annotators_tendencies_are_learnt(trained):
    images = torch.stack(Squares().images)
    areas = [trained.predict(images, annotator=name)[:, 1].sum().item() for name in ANNOTATORS]
    assert areas[1] > areas[0] > areas[2]


def test_the_one_who_is_right_leads_where_annotators_differ(trained):
    explanation = trained.explain(torch.stack(Squares().images))
    weights = explanation.who.transpose(0, 1)[:, ~explanation.unanimous].mean(dim=1)
    assert weights[0] > weights[1:].max() + 0.1


def test_annotators_who_do_the_same_weigh_the_same():
    class Same(Squares):
        def __getitem__(self, i):
            sample = super().__getitem__(i)
            return sample | {"masks": sample["masks"][:1].repeat(3, 1, 1)}

    module = make_module(optimizer=fast)
    make_trainer(max_steps=100, max_epochs=-1).fit(module, make_loader(Same()))
    explanation = module.explain(torch.stack(Squares().images))
    assert explanation.entropy.mean() >= 0.95
    assert (explanation.who.mean(dim=(0, 2, 3)) - 1 / 3).abs().max() <= 0.1


def test_training_terms_are_logged_as_they_come_in():
    class Listening(Recorded):
        def log_dict(self, dictionary, *args, **kwargs):
            heard.append(set(dictionary))
            super().log_dict(dictionary, *args, **kwargs)

    heard: list[set[str]] = []
    trainer = make_trainer(max_steps=10, max_epochs=-1)
    trainer.fit(make_module(Listening), make_loader())
    first = {"train/loss_annotator", "train/loss_fused"}
    terms = ("who", "balance", "cluster", "pull", "spread")
    assert heard[0] == first
    assert heard[5] == first | {f"train/loss_{name}" for name in terms}
    assert heard[9] == first  # frozen, the prototypes learn nothing
    assert "train/loss" in trainer.logged_metrics


# ---------------------------------------------------------------------- explain and predict


def test_explanation_of_images(trained):
    images = torch.stack(Squares().images[:2])
    explanation = trained.explain(images, ids=["one", "two"])
    assert explanation.ids == ("one", "two")
    assert explanation.annotators == ANNOTATORS
    assert explanation.classes == CLASSES
    assert explanation.probs.shape == (2, 2, 32, 32)
    assert explanation.annotator_probs.shape == (2, 3, 2, 32, 32)
    assert explanation.who.shape == (2, 3, 32, 32)
    assert explanation.why.dtype == torch.int64
    assert not explanation.who.requires_grad
    torch.testing.assert_close(explanation.who.sum(dim=1), torch.ones(2, 32, 32))
    with torch.no_grad():
        output = trained.network.eval()(images)
    shares = trained.network.shares(output, explanation.decision)
    assert torch.equal(explanation.why_share, shares.amax(dim=2))
    picked = shares.gather(2, explanation.why.unsqueeze(2)).squeeze(2)
    assert torch.equal(explanation.why_share, picked)
    assert explanation.why_share.sum(dim=1).max() <= 1 + 1e-5
    assert [len(row) for row in explanation.sources] == [2, 2, 2]
    assert trained.explain(images).ids == ("image 0", "image 1")


def test_unanimous_is_where_all_annotators_would_say_the_same(trained):
    explanation = trained.explain(torch.stack(Squares().images))
    said = explanation.annotator_probs.argmax(dim=2)
    expected = (said[:, 0] == said[:, 1]) & (said[:, 1] == said[:, 2])
    assert torch.equal(explanation.unanimous, expected)
    assert expected.any()
    assert not expected.all()
    assert (explanation.decision[expected] == said[:, 0][expected]).all()


@pytest.mark.parametrize("training", [True, False])
def test_a_module_returns_to_the_mode_it_was_in(training):
    module = make_module()
    module.train(training)
    statistics = module.network.backbone[1].running_mean.clone()
    module.explain(torch.randn(2, 3, 8, 8))
    module.predict(torch.randn(2, 3, 8, 8))
    assert all(part.training is training for part in module.network.modules())
    assert torch.equal(module.network.backbone[1].running_mean, statistics)


def test_predictions_of_one_of_some_and_of_all(trained):
    images = torch.stack(Squares().images[:2])
    with torch.no_grad():
        output = trained.network.eval()(images)
    result = trained.predict(images)
    torch.testing.assert_close(result, output.probs)
    torch.testing.assert_close(trained.predict(images, panel=ANNOTATORS), result)
    torch.testing.assert_close(trained.predict(images, panel=["Dr. C", "Ana", "Ben"]), result)
    for n, name in enumerate(ANNOTATORS):
        alone = trained.predict(images, annotator=name)
        torch.testing.assert_close(alone, output.annotator_probs[:, n])
        torch.testing.assert_close(trained.predict(images, panel=[name]), alone)
    two = output.who[:, [0, 2]]
    expected = (two.unsqueeze(2) * output.annotator_probs[:, [0, 2]]).sum(dim=1)
    expected /= two.sum(dim=1, keepdim=True)
    torch.testing.assert_close(trained.predict(images, panel=["Ana", "Dr. C"]), expected)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"annotator": "Bob"}, r"annotator 'Bob' is unknown: expected one of \('Ana', 'Ben', "),
        ({"panel": ["Ana", "Bob"]}, "annotator 'Bob' is unknown"),
        ({"annotator": "Ana", "panel": ["Ana"]}, r"predict: give annotator=\.\.\. or panel=\["),
        ({"panel": []}, r"predict: panel=\[\] names nobody, expected some of \('Ana', 'Ben', "),
    ],
)
def test_predictions_of_nobody(trained, chosen, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        trained.predict(torch.randn(1, 3, 8, 8), **chosen)


def test_the_trainer_predicts_images_without_labels(trained):
    images = [{"image": image, "id": f"new {i}"} for i, image in enumerate(Squares().images)]
    explanations = make_trainer().predict(trained, make_loader(images))
    assert [len(explanation) for explanation in explanations] == [4, 4, 4]
    assert explanations[2].ids == ("new 8", "new 9", "new 10", "new 11")
    torch.testing.assert_close(
        explanations[0].probs, trained.predict(torch.stack(Squares().images[:4]))
    )


# ---------------------------------------------------------------------- metrics


class Owned(Squares):
    """With reference and expert: Dr. C is the expert near squares, and often alone right there."""

    def __getitem__(self, i: int) -> dict:
        sample = super().__getitem__(i)
        expert = torch.where(sample["masks"][1] == 1, 2, 255)
        return sample | {"expert": expert, "reference": sample["masks"][2]}


def expected_keys(split: str) -> set[str]:
    per_annotator = (
        "dice",
        "prototype_pruned",
        "prototype_usage",
        "relative_area_predicted",
        "relative_area_true",
    )
    keys = {f"{kind}/{name}" for kind in per_annotator for name in ANNOTATORS}
    keys |= {"dice/mean", "prototype_pruned/mean", "prototype_usage/mean", "ged2", "loss"}
    keys |= {"relative_area_error", "relative_area_spearman"}
    keys |= {f"fused_{kind}/{name}" for kind in ("dice", "iou") for name in ("cell", "mean")}
    keys |= {"who_accuracy_d1", "who_chance_d1", "who_ece_d1", "who_agreement_lift"}
    keys |= {"who_accuracy_expert", "who_ceiling_expert", "who_chance_expert", "who_ece_expert"}
    keys |= {"majority_overrules_expert", "who_entropy_disputed", "who_entropy_unanimous"}
    return {f"{split}/{key}" for key in keys}


def test_metrics_are_logged_by_name(trained):
    module = make_module(reference="given")
    module.load_state_dict(trained.state_dict())
    (validated,) = make_trainer().validate(module, make_loader(Owned()), verbose=False)
    (tested,) = make_trainer().test(module, make_loader(Owned()), verbose=False)
    assert set(validated) == expected_keys("val")
    of_sets = {
        *("dice_soft/cell", "dice_soft/mean", "dice_match"),
        *("dice_max/predictions", "dice_max/annotators", "dice_max/mean"),
        *("ece_reference", "ece_annotators"),
    }
    assert set(tested) == expected_keys("test") | {f"test/{key}" for key in of_sets}
    assert module.monitor in validated
    for key, value in validated.items():
        assert value == pytest.approx(tested[key.replace("val/", "test/")])


def test_metrics_without_a_case_are_not_logged(trained):
    dataset = Squares(absent={i: [2] for i in range(12)})
    (found,) = make_trainer().validate(trained, make_loader(dataset), verbose=False)
    assert not any("expert" in key for key in found)
    assert "val/dice/Ana" in found
    assert "val/dice/Dr. C" not in found
    assert all(value == value for value in found.values())


def test_a_validation_does_not_remember_the_one_before(trained):
    trainer = make_trainer()
    results = [trainer.validate(trained, make_loader(), verbose=False)[0] for _ in range(2)]
    assert results[0] == results[1]
    assert results[0]["val/fused_dice/mean"] > 0.8


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


def test_a_given_reference_must_be_there():
    module = make_module(reference="given")
    message = "^reference='given': the batch has no key 'reference'. Supply reference labels"
    with pytest.raises(ValueError, match=message):
        make_trainer(max_steps=1, max_epochs=-1).fit(module, make_loader())


# ---------------------------------------------------------------------- optimizers


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1),
        lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=0.1, patience=0, threshold=10, threshold_mode="abs"
        ),
    ],
)
def test_optimizer_and_scheduler_of_ones_own(scheduler):
    made = []

    def sgd(parameters):
        made.append(torch.optim.SGD(parameters, lr=0.5, momentum=0.9))
        return made[0]

    module = make_module(optimizer=sgd, lr_scheduler=scheduler)
    trainer = make_trainer(max_epochs=3)
    trainer.fit(module, make_loader(), make_loader())
    assert trainer.optimizers == made
    # Three epochs: the first step of a plateau only sets its mark.
    assert made[0].param_groups[0]["lr"] in (pytest.approx(5e-4), pytest.approx(5e-3))


def test_the_default_optimizer_has_every_parameter():
    module = make_module()
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["lr"] == 1e-3
    found = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert found == {id(p) for p in module.parameters()}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)


@pytest.mark.parametrize(
    ("make_optimizer", "options"),
    [
        (sgd, {}),
        (adamw, {}),
        (lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3, momentum=0.9), {}),
        (sgd, {"gradient_clip_val": 0.1}),
        (sgd, {"accumulate_grad_batches": 2}),
        (adamw, {"precision": "bf16-mixed"}),
    ],
    ids=["sgd", "adamw", "rmsprop", "clipped", "accumulated", "bf16"],
)
def test_after_the_final_projection_only_kernels_change(make_optimizer, options):
    def state_of(module):
        state = module.network.state_dict()
        return {name: value.clone() for name, value in state.items() if isinstance(value, Tensor)}

    class Keep(L.Callback):
        before = None

        def on_train_batch_end(self, trainer, module, *_):
            if module.network.frozen and self.before is None:
                self.before = state_of(module)
                self.step = trainer.global_step

    keep = Keep()
    schedule = Schedule(start=0.1, full=0.2, trials=(), final=0.5)
    module = make_module(optimizer=make_optimizer, schedule=schedule)
    trainer = make_trainer(max_steps=12, max_epochs=-1, callbacks=[keep], **options)
    trainer.fit(module, make_loader(), make_loader())
    assert keep.step <= 8
    assert trainer.global_step == 12
    after = state_of(module)
    changed = {
        name
        for name, value in keep.before.items()
        if not torch.equal(value.nan_to_num(9), after[name].nan_to_num(9))
    }
    assert changed == {"bank.weights.0", "bank.biases.0"}


@pytest.mark.parametrize("frozen", [False, True])
def test_every_parameter_takes_part_in_every_step(frozen):
    # DistributedDataParallel stops at a parameter without a gradient.
    class Watch(L.Callback):
        def on_after_backward(self, trainer, module):
            assert module.network.frozen is frozen
            trained = [item for item in module.named_parameters() if item[1].requires_grad]
            self.left_out = [name for name, value in trained if value.grad is None]

    watch = Watch()
    schedule = Schedule(start=0, full=0, trials=(), final=0) if frozen else Schedule(enabled=False)
    module = make_module(
        network=None,
        encoder="resnet18",
        backbone_options={"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
        schedule=schedule,
    )
    trainer = make_trainer(max_steps=1, max_epochs=-1, callbacks=[watch])
    trainer.fit(module, make_loader(Squares(4, absent={i: [1] for i in range(4)})))
    assert watch.left_out == []


# ---------------------------------------------------------------------- schedule


def test_a_run_that_stops_early_projects_and_says_so():
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step >= 10

    module = make_module()
    trainer = make_trainer(callbacks=[Stop()])
    with pytest.warns(UserWarning, match="^training stopped .* before the final projection at 90%"):
        trainer.fit(module, make_loader())
    assert trainer.global_step == 10
    assert module.explained
    assert all(source.projected for source in sources_of(module) if source.active)
    assert module.schedule_done[-1] == "final"


def test_a_run_to_its_end_does_not_warn():
    module = make_module()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="training stopped")
        make_trainer(max_epochs=2).fit(module, make_loader())
    assert [kind for _, kind in module.events] == ["start", "trial", "trial", "final"]


def test_a_schedule_that_is_off_trains_all_terms_and_never_projects():
    module = make_module(schedule=Schedule(enabled=False))
    trainer = make_trainer(max_epochs=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="training stopped")
        trainer.fit(module, make_loader())
    assert module.events == []
    assert not module.network.memory.projected
    assert not module.network.frozen
    assert "train/loss_pull" in trainer.logged_metrics
    assert module.losses[-1] < module.losses[0]


def test_prototypes_can_be_projected_without_a_trainer():
    module = make_module(schedule=Schedule(enabled=False))
    statistics = module.network.backbone[1].running_mean.clone()
    module.project(make_loader())
    assert module.network.memory.projected
    assert torch.equal(module.network.backbone[1].running_mean, statistics)
    active = [source for source in sources_of(module) if source.active]
    assert active
    assert all(similarity_to_source(module, source) >= 0.999 for source in active)


def test_a_final_projection_by_hand_freezes_what_it_rests_on():
    module = make_module(schedule=Schedule(enabled=False))
    module.project(make_loader())
    weight = module.network.backbone[0].weight.detach().clone()
    make_trainer(max_epochs=1).fit(module, make_loader())
    assert torch.equal(module.network.backbone[0].weight, weight)


def test_sources_lie_where_their_annotator_agrees_with_the_reference():
    module = make_module(schedule=Schedule(enabled=False))
    module.project(make_loader())
    masks = torch.stack(Squares().masks)
    agree = agreement(masks, majority(masks, len(CLASSES)), window=5, sharpness=10.0)
    assert (agree < 0.5).float().mean() > 0.05  # there are pixels to avoid
    for source in sources_of(module):
        n = ANNOTATORS.index(source.annotator)
        own = (source.sample_id, source.y, source.x)
        for name, y, x in (own, *(runner[:3] for runner in source.nearest)):
            if name:
                assert agree[int(name.removeprefix("square-")), n, y, x] >= 0.5


def test_the_schedule_needs_an_end():
    trainer = make_trainer(max_epochs=-1)
    message = r"^trainer\.max_epochs=-1: the schedule needs to know where the run ends"
    with pytest.raises(ValueError, match=message):
        trainer.fit(make_module(), make_loader())


def test_without_a_schedule_no_end_is_needed():
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = True

    module = make_module(schedule=Schedule(enabled=False))
    make_trainer(max_epochs=-1, callbacks=[Stop()]).fit(module, make_loader())
    assert len(module.losses) == 1


def test_a_run_in_true_bfloat16():
    module = make_module()
    make_trainer(max_epochs=2, precision="bf16-true").fit(module, make_loader())
    assert module.explained


def test_sources_come_from_the_data_modules_images_without_augmentation():
    class Data(L.LightningDataModule):
        def train_dataloader(self):
            samples = [Squares()[i] | {"id": "augmented"} for i in range(12)]
            return make_loader(samples)

        def projection_dataloader(self):
            return make_loader(Squares(), batch_size=5)

    module = make_module()
    make_trainer(max_epochs=2).fit(module, datamodule=Data())
    names = {source.sample_id for source in sources_of(module) if source.projected}
    assert names
    assert names <= {f"square-{i}" for i in range(12)}


def test_looking_for_sources_does_not_disturb_the_epoch():
    module = make_module()
    loader = make_loader(num_workers=1, persistent_workers=True)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(module, loader)
    assert trainer.global_step == 2 * PER_EPOCH
    for epoch in (module.images[:PER_EPOCH], module.images[PER_EPOCH:]):
        seen = [name for batch in epoch for name in batch]
        assert sorted(seen) == sorted(f"square-{i}" for i in range(12))


def test_sources_are_images_that_the_loader_shows():
    # Of one data set, a sampler takes the images to train with and leaves those to validate with.
    sampler = SubsetRandomSampler(range(4, 12))
    module = make_module()
    make_trainer(max_epochs=3).fit(module, make_loader(sampler=sampler))
    names = {source.sample_id for source in sources_of(module) if source.projected}
    names |= {runner[0] for source in sources_of(module) for runner in source.nearest}
    assert names
    assert names <= {f"square-{i}" for i in range(4, 12)}


def test_a_second_run_starts_anew_also_with_dead_prototypes(trained):
    module = make_module()
    module.load_state_dict(trained.state_dict())
    module.schedule_done = list(trained.schedule_done)
    module.network.memory.active[0, 1] = False
    make_trainer(max_epochs=3).fit(module, make_loader())
    assert [kind for _, kind in module.events] == ["start", "trial", "trial", "final"]
    assert torch.tensor(module.totals).isfinite().all()
    assert all(parameter.isfinite().all() for parameter in module.parameters())


# ---------------------------------------------------------------------- absent annotators


def test_annotators_may_be_missing_from_images_and_batches():
    # Dr. C labelled one image of twelve, one image has no labels at all, one batch neither Ben.
    absent = {i: [2] for i in range(11)} | {3: [0, 1, 2]} | {i: [1, 2] for i in range(4, 8)}
    module = make_module()
    make_trainer().fit(module, make_loader(Squares(absent=absent)))
    assert torch.tensor(module.totals).isfinite().all()
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert torch.tensor(module.losses[-3:]).mean() < torch.tensor(module.losses[:3]).mean()
    rates = module.loss.label_rate
    assert rates.tolist() == pytest.approx([11 / 12, 7 / 12, 1 / 12], abs=0.03)
    sources = sources_of(module)
    assert {s.sample_id for s in sources if s.annotator == "Dr. C" and s.projected} == {"square-11"}
    assert "square-3" not in {s.sample_id for s in sources}


def test_a_batch_that_nobody_labelled_does_no_harm():
    module = make_module(schedule=Schedule(enabled=False))
    dataset = Squares(absent={i: [0, 1, 2] for i in range(4)})
    make_trainer(max_epochs=1).fit(module, make_loader(dataset))
    assert torch.tensor(module.totals).isfinite().all()
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_an_annotator_without_any_label_is_no_obstacle():
    module = make_module()
    dataset = Squares(absent={i: [1] for i in range(12)})
    make_trainer(max_epochs=4).fit(module, make_loader(dataset))
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert not any(s.projected for s in sources_of(module) if s.annotator == "Ben")
    assert module.network.memory.active[1].sum() == 1  # someone has to answer for Ben
    assert module.predict(torch.randn(1, 3, 32, 32), annotator="Ben").isfinite().all()


# ---------------------------------------------------------------------- checkpoints


def is_primitive(value) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_primitive(item) for key, item in value.items())
    if isinstance(value, list):
        return all(is_primitive(item) for item in value)
    return value is None or type(value) in (str, int, float, bool)


def test_checkpoints_hold_tensors_and_primitives_only(checkpoint):
    stored = torch.load(checkpoint(36), weights_only=True)
    hparams = stored["hyper_parameters"]
    assert is_primitive(hparams)
    assert hparams["annotators"] == list(ANNOTATORS)
    assert hparams["network"] == "given"
    assert hparams["schedule"]["trials"] == [0.6, 0.7]
    assert hparams["loss_weights"]["balance"] == 0.1
    assert stored["schedule_done"] == ["start", "trial 1", "trial 2", "final"]
    assert stored["class_path"].endswith("Recorded")


def test_a_module_is_reloaded_from_its_checkpoint_alone(tmp_path):
    module = TAXLightningModule(
        annotators=["Ana", "Ben"],
        classes=CLASSES,
        encoder="tu-test_resnet.r160_in1k",
        kernels=2,
        loss_weights=LossWeights(pull=0.7),
        schedule=Schedule(trials=(), final=0.5),
    )
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    again = TAXLightningModule.load_from_checkpoint(tmp_path / "module.ckpt", weights_only=True)
    assert again.annotators == ("Ana", "Ben")
    assert again.loss_weights["pull"] == 0.7
    assert again.schedule == module.schedule or list(again.schedule.trials) == []
    assert again.schedule.final == 0.5
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(again.predict(images), module.predict(images))


def test_a_network_of_ones_own_must_be_given_again(trained, checkpoint):
    message = "^this checkpoint was trained with a network of your own.*give it again"
    with pytest.raises(ValueError, match=message):
        Recorded.load_from_checkpoint(checkpoint(STEPS))
    again = Recorded.load_from_checkpoint(checkpoint(STEPS), network=make_backbone())
    images = torch.stack(Squares().images[:2])
    explanation, expected = again.explain(images), trained.explain(images)
    for name in ("probs", "who", "why", "why_share"):
        assert torch.equal(getattr(explanation, name), getattr(expected, name)), name
    assert repr(explanation.sources) == repr(expected.sources)


def resume(path, **options) -> Recorded:
    module = make_module(optimizer=fast, **options)
    make_trainer().fit(module, make_loader(), ckpt_path=path)
    return module


def test_a_run_resumes_before_the_final_projection(checkpoint, trained):
    module = resume(checkpoint(20))
    assert [kind for _, kind in module.events] == ["trial", "trial", "final"]
    assert module.events == trained.events[1:]
    assert len(module.losses) == STEPS - 20
    assert module.network.frozen
    assert module.explained
    torch.testing.assert_close(module.loss.label_rate, trained.loss.label_rate)
    assert module.loss.images_seen == trained.loss.images_seen


def test_a_run_resumes_after_the_final_projection(checkpoint, trained):
    module = resume(checkpoint(36))
    assert module.events == []
    assert module.network.frozen
    assert repr(sources_of(module)) == repr(sources_of(trained))
    # Nothing is random now: the end is the same to the last bit.
    state, expected = module.network.state_dict(), trained.network.state_dict()
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert torch.equal(value.nan_to_num(9), state[name].nan_to_num(9)), name


def test_the_same_module_goes_back_to_an_earlier_checkpoint(checkpoint):
    module = make_module()
    make_trainer().fit(module, make_loader())
    assert module.network.frozen
    weights = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            weights.append(module.network.backbone[0].weight.detach().clone())

    module.events.clear()
    trainer = make_trainer(callbacks=[Watch()])
    trainer.fit(module, make_loader(), ckpt_path=checkpoint(4))
    assert [kind for _, kind in module.events] == ["trial", "trial", "final"]
    assert not torch.equal(weights[0], weights[10])


OTHERS = pytest.mark.parametrize(
    ("names", "kind"),
    [
        ({"annotators": ["Ana", "Ben", "Cleo"]}, "annotators"),
        ({"annotators": ["Ben", "Ana", "Dr. C"]}, "annotators"),
        ({"classes": ["background", "nucleus"]}, "classes"),
    ],
)
REFUSAL = r"^checkpoint: its {} are \('.*were asked for\. Use the data that it was trained"


@OTHERS
def test_a_run_of_others_is_not_resumed(checkpoint, names, kind):
    with pytest.raises(ValueError, match=REFUSAL.format(kind)):
        resume(checkpoint(4), **names)


@OTHERS
def test_a_checkpoint_of_others_is_refused(checkpoint, names, kind):
    with pytest.raises(ValueError, match=REFUSAL.format(kind)):
        Recorded.load_from_checkpoint(checkpoint(4), network=make_backbone(), **names)


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"annotators": []}, r"annotators=\[\]: expected a list of at least 1 different names\."),
        ({"annotators": "Ana"}, "annotators='Ana': expected a list of at least 1 different names"),
        ({"annotators": ["Ana", "Ana"]}, r"annotators=\['Ana', 'Ana'\]: expected a list of"),
        ({"classes": ["cell"]}, r"classes=\['cell'\]: .* Name the background first, then at least"),
        ({"reference": "x"}, "reference='x': expected one of given, majority, staple, none"),
        ({"reference": "none"}, "reference='none', who_target='window': without a reference"),
        ({"bank": "x"}, "bank='x': expected one of private, shared"),
        ({"mixing": "x"}, "mixing='x': expected one of prob, logit"),
        ({"prototype_update": "x"}, "prototype_update='x': expected one of gradient, ema"),
        ({"who_target": "you"}, "who_target='you': expected one of window, agree, expert, none"),
        ({"who_window": 4}, "who_window=4: expected an odd number of pixels"),
        ({"segmentation_loss": "x"}, "segmentation_loss='x': expected one of ce, dice"),
        ({"temperature": 0}, "temperature=0: expected a number greater than 0"),
        ({"kernels": 0}, "kernels=0: expected at least 1"),
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


class HookedData(L.LightningDataModule):
    """A data module with a hook of its own, which Lightning calls instead of the module's."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch

    def train_dataloader(self):
        return make_loader()

    val_dataloader = test_dataloader = train_dataloader


def test_a_data_module_may_have_a_hook_of_its_own():
    module = make_module()
    trainer = make_trainer(max_steps=4)
    trainer.fit(module, datamodule=HookedData())
    (values,) = trainer.test(module, datamodule=HookedData(), verbose=False)
    assert values["test/dice/mean"] >= 0


def test_dead_prototypes_are_reported(monkeypatch):
    monkeypatch.setattr(
        "tax_lightning.models.prototypes.LEAST_SIMILARITY", 1.1
    )  # none is so similar
    module = make_module(schedule=Schedule(enabled=False))
    with pytest.warns(
        UserWarning, match=r"of 2 prototypes .* pruned, .*: 1 of Ana, 1 of Ben, 1 of"
    ):
        module.project(make_loader())


# ---------------------------------------------------------------------- references

SHORT = Schedule(start=0.1, full=0.2, trials=(), final=0.8)
NOBODY = "ignore:who_target='none':UserWarning"


def train(module: Recorded, epochs: int = 3, dataset: Dataset | None = None) -> L.Trainer:
    """Train for a few steps, with validation at the end of each epoch."""
    trainer = make_trainer(max_epochs=epochs)
    trainer.fit(module, make_loader(dataset), make_loader(dataset))
    assert torch.tensor(module.totals).isfinite().all()
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    return trainer


def test_staple_is_a_reference_to_train_for_and_to_measure_against(trained):
    pytest.importorskip("SimpleITK")
    module = make_module(reference="staple", optimizer=fast, schedule=SHORT)
    batch = {"masks": torch.stack(Squares().masks[:2])}
    found = module.reference_labels(batch, None)
    assert torch.equal(found, batch["masks"][:, 0])  # Ana lies between the other two
    trainer = train(module)
    assert module.losses[-1] < module.losses[0]
    assert module.explained
    assert "val/fused_dice/cell" in trainer.logged_metrics
    module.load_state_dict(trained.state_dict())
    (result,) = make_trainer().validate(module, make_loader(), verbose=False)
    assert result["val/fused_dice/cell"] > 0.8


@pytest.mark.filterwarnings(NOBODY)
def test_without_a_reference_the_result_lies_between_the_annotators():
    module = make_module(reference="none", who_target="none", optimizer=fast, schedule=SHORT)
    assert module.reference_labels({"masks": torch.stack(Squares().masks)}, None) is None
    absent = {i: [2] for i in range(0, 12, 2)} | {3: [0, 1, 2]}
    trainer = train(module, epochs=8, dataset=Squares(absent=absent))
    assert module.losses[-1] < module.losses[0]
    assert module.explained
    # Nothing is measured against a reference that there is not; annotators are, against themselves.
    measured = {key for key in trainer.logged_metrics if key.startswith("val/")}
    assert not any("fused" in key or "who_" in key for key in measured)
    assert "val/dice/Ana" in measured
    # Sources lie where their annotator labelled: believed, not compared.
    for source in sources_of(module):
        assert not source.projected or ANNOTATORS.index(source.annotator) not in absent.get(
            number_of(source), []
        )
    images = torch.stack(Squares().images)
    area = module.predict(images)[:, 1].sum()
    assert module.predict(images, annotator="Dr. C")[:, 1].sum() < area
    assert area < module.predict(images, annotator="Ben")[:, 1].sum()


@pytest.mark.filterwarnings(NOBODY)
def test_without_a_reference_a_test_of_the_explanation_measures_what_it_can():
    module = make_module(reference="none", who_target="none", explanation_metrics=True)
    (found,) = make_trainer().test(module, make_loader(Squares(4)), verbose=False)
    expected = {"test/who_necessity", "test/why_deletion_area", "test/stability_top_kernel"}
    assert expected <= set(found)
    assert not any(key.startswith(("test/purity", "test/who_accuracy")) for key in found)
    assert all(value == value for value in found.values())


# ---------------------------------------------------------------------- prototypes that follow


@pytest.mark.parametrize("bank", ["private", "shared"])
def test_prototypes_may_follow_their_pixels_instead_of_a_gradient(bank, tmp_path):
    module = make_module(prototype_update="ema", bank=bank, schedule=Schedule(enabled=False))
    memory = module.network.memory
    assert not any(part.requires_grad for part in memory.prototypes)
    before = memory.vectors.clone()
    trainer = train(module)
    assert (memory.vectors - before).abs().amax(dim=2).min() > 1e-3  # every one of them
    torch.testing.assert_close(memory.vectors.norm(dim=2), torch.ones(memory.active.shape))
    assert not any(part.requires_grad or part.grad is not None for part in memory.prototypes)
    (optimizer,) = trainer.optimizers
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not given & {id(part) for part in memory.prototypes}
    trainer.save_checkpoint(tmp_path / "ema.ckpt")
    again = Recorded.load_from_checkpoint(tmp_path / "ema.ckpt", network=make_backbone())
    assert again.prototype_update == "ema"
    assert torch.equal(again.network.memory.vectors, memory.vectors)
    assert not any(part.requires_grad for part in again.network.memory.prototypes)
    images = torch.stack(Squares().images[:2])
    assert torch.equal(again.predict(images), module.predict(images))


def test_prototypes_that_follow_come_nearer_to_the_pixels():
    def nearest(module: Recorded) -> float:
        with torch.no_grad():
            embedding = module.network.eval()(torch.stack(Squares().images)).embedding
        return module.network.memory.similarity(embedding).amax(dim=(0, 3, 4)).mean().item()

    frozen = LossWeights(annotator=0, fused=0, who=0, balance=0, cluster=0, pull=0, spread=0)
    module = make_module(
        prototype_update="ema",
        loss_weights=frozen,
        schedule=Schedule(enabled=False),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
    )
    before = nearest(module)
    train(module, epochs=20)
    assert nearest(module) > before + 0.05


def test_prototypes_that_follow_are_started_projected_and_then_held():
    module = make_module(prototype_update="ema", optimizer=fast, schedule=SHORT)
    make_trainer(max_epochs=6).fit(module, make_loader())
    assert [kind for _, kind in module.events] == ["start", "final"]
    active = [source for source in sources_of(module) if source.active]
    assert active
    # Had they gone on after the final projection, they would no longer be where their pixels are.
    assert all(similarity_to_source(module, source) >= 0.999 for source in active)


# ---------------------------------------------------------------------- banks and mixing

KINDS = pytest.mark.parametrize(
    "kinds",
    [
        {"bank": "shared"},
        {"mixing": "logit"},
        {"bank": "shared", "mixing": "logit"},
    ],
    ids=lambda kinds: "-".join(kinds.values()),
)
FIELDS = ("probs", "annotator_probs", "who", "why", "why_share", "unanimous")


@KINDS
def test_every_kind_trains_projects_explains_and_is_reloaded(kinds, tmp_path):
    module = make_module(optimizer=fast, schedule=SHORT, **kinds)
    trainer = train(module, epochs=6)
    assert module.losses[-1] < module.losses[0]
    assert module.network.memory.projected
    trainer.save_checkpoint(tmp_path / "kind.ckpt")
    again = Recorded.load_from_checkpoint(
        tmp_path / "kind.ckpt", network=make_backbone(), weights_only=True
    )
    assert again.network.mixing == kinds.get("mixing", "prob")
    assert again.network.memory.kind == kinds.get("bank", "private")
    images = torch.stack(Squares().images[:2])
    explanation, expected = again.explain(images), module.explain(images)
    for name in FIELDS:
        assert torch.equal(getattr(explanation, name), getattr(expected, name)), name
    assert repr(explanation.sources) == repr(expected.sources)
    assert [len(row) for row in explanation.sources] == [2, 2, 2]
    torch.testing.assert_close(explanation.who.sum(dim=1), torch.ones(2, 32, 32))
    torch.testing.assert_close(explanation.probs.sum(dim=1), torch.ones(2, 32, 32))
    assert any(source.active and source.projected for source in sources_of(again))


@torch.no_grad()
def test_the_sources_of_shared_prototypes_are_those_pixels():
    module = make_module(bank="shared", optimizer=fast, schedule=SHORT)
    make_trainer(max_epochs=6).fit(module, make_loader())
    rows = module.network.memory.sources(ANNOTATORS, CLASSES)
    assert all(row[k].sample_id == rows[0][k].sample_id for row in rows for k in range(2))
    module.eval()
    for k, source in enumerate(rows[0]):
        assert source.projected
        image = Squares()[number_of(source)]["image"][None]
        z = module(image).embedding[0, :, source.y, source.x]
        prototype = module.network.memory.vectors[0, k]
        assert F.cosine_similarity(z, prototype, dim=0).item() >= 0.999
        assert source.label == ""  # whose it would be is not known


@KINDS
def test_a_panel_of_every_kind_is_an_explicit_mix_with_renormalised_weights(kinds):
    module = make_module(**kinds)
    for part in (*module.network.memory.priors, *module.network.bank.weights):
        nn.init.normal_(part)
    images = torch.randn(2, 3, 9, 8)
    with torch.no_grad():
        output = module.network.eval()(images)
    who, said = output.who[:, [0, 2]], output.log_annotator_probs[:, [0, 2]]
    weights = (who / who.sum(dim=1, keepdim=True)).unsqueeze(2)
    if module.network.mixing == "prob":
        expected = (weights * said.exp()).sum(dim=1)
    else:
        expected = (weights * said).sum(dim=1).softmax(dim=1)
    panel = module.predict(images, panel=["Ana", "Dr. C"])
    torch.testing.assert_close(panel, expected)
    torch.testing.assert_close(
        panel, mix(weights.squeeze(2).log(), said, module.network.mixing).exp()
    )
    assert not torch.allclose(panel, output.probs, atol=1e-3)
    torch.testing.assert_close(module.predict(images, panel=ANNOTATORS), output.probs)
    torch.testing.assert_close(module.predict(images), output.probs)
    for n, name in enumerate(ANNOTATORS):
        torch.testing.assert_close(
            module.predict(images, annotator=name), output.annotator_probs[:, n]
        )


@pytest.mark.parametrize("kinds", [{}, {"bank": "shared", "mixing": "logit"}], ids=str)
def test_what_is_said_by_bands_is_what_is_said_at_once(kinds, monkeypatch):
    module = make_module(**kinds)
    images = torch.randn(2, 3, 13, 8)
    panel = ["Ben", "Dr. C"]
    whole = module.explain(images)
    predicted = module.predict(images), module.predict(images, panel=panel)
    bands: list[int] = []
    assign = module.network.assign

    def counted(seen: Seen):
        bands.append(seen.features.shape[-2])
        return assign(seen)

    monkeypatch.setattr(module.network, "assign", counted)
    # Three annotators, two kernels and two classes: five rows of two images hold 960 values.
    monkeypatch.setattr(TAXNetwork.bands, "__defaults__", (1000,))
    banded = module.explain(images)
    assert bands == [6, 7, 4]  # with one row beyond each edge between two bands
    for name in ("probs", "annotator_probs", "who", "why_share"):
        torch.testing.assert_close(getattr(banded, name), getattr(whole, name), msg=name)
    for name in ("why", "unanimous"):
        assert torch.equal(getattr(banded, name), getattr(whole, name)), name
    torch.testing.assert_close(module.predict(images), predicted[0])
    torch.testing.assert_close(module.predict(images, panel=panel), predicted[1])
    assert bands == [6, 7, 4] * 3


def test_a_name_given_twice_counts_once(trained):
    images = torch.stack(Squares().images[:2])
    twice = trained.predict(images, panel=["Ana", "Ana", "Ben"])
    assert torch.equal(twice, trained.predict(images, panel=["Ana", "Ben"]))


def test_a_second_run_forgets_the_sources_and_counts_of_the_first():
    module = make_module()
    make_trainer(max_steps=8).fit(module, make_loader())
    module.network.memory.active[0, 0] = False
    seen = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            memory, images = module.network.memory, module.loss.images_seen.item()
            seen.append((memory.active.all().item(), memory.source_ids[0][0], images))

    make_trainer(max_steps=1, callbacks=[Look()]).fit(module, make_loader())
    assert seen[0] == (True, [], 0)
