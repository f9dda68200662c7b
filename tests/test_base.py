"""What all models of several annotators share: metrics by name, optimizers, hooks, names."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from squares import ANNOTATORS, QUIET, Squares, images, make_loader, make_module, make_trainer

from tax_lightning.baselines import MultiHead
from tax_lightning.models.output import ModelOutput
from tax_lightning.models.samples import coherent_samples
from tax_lightning.modules.base import metric_inputs
from tax_lightning.modules.schedule import Schedule

pytestmark = QUIET


class Known(Squares):
    """With reference and expert: Dr. C is the expert near squares, and often alone right there."""

    def __getitem__(self, i: int) -> dict:
        sample = super().__getitem__(i)
        expert = torch.where(sample["masks"][1] == 1, 2, 255)
        return sample | {"expert": expert, "reference": sample["masks"][2]}


def test_metrics_are_logged_by_name():
    module = make_module(reference="given")
    (validated,) = make_trainer().validate(module, make_loader(Known()), verbose=False)
    (tested,) = make_trainer().test(module, make_loader(Known()), verbose=False)
    of_each = (
        "dice",
        "relative_area_predicted",
        "relative_area_true",
    )
    expected = {f"{kind}/{name}" for kind in of_each for name in ANNOTATORS} | {
        *("dice/mean", "prototypes_in_use", "prototypes_idle", "ged2", "loss"),
        *("relative_area_error", "relative_area_spearman"),
        *(f"fused_{kind}/{name}" for kind in ("dice", "iou") for name in ("cell", "mean")),
        *("who_accuracy_d1", "who_chance_d1", "who_ece_d1", "who_agreement_lift"),
        *("who_accuracy_expert", "who_ceiling_expert", "who_chance_expert", "who_ece_expert"),
        *("majority_overrules_expert", "who_entropy_disputed", "who_entropy_unanimous"),
    }
    assert set(validated) == {f"val/{key}" for key in expected}
    of_sets = {
        *("dice_soft/cell", "dice_soft/mean", "dice_match"),
        *("dice_max/predictions", "dice_max/annotators", "dice_max/mean"),
        *("ece_reference", "ece_annotators", "samples/ged2", "samples/dice_match"),
        *("dispute_auroc", "dispute_auroc_entropy", "dispute_ece"),
        *("dispute_predicted", "dispute_real"),
        *("hatched_though_disputed", "open_though_unanimous"),
        *("votes_error", "votes_error_constant"),
        *("dissent_predicted", "dissent_real", "dissent_ece"),
        *("dissent_brier", "dissent_brier_constant", "dissent_brier_table"),
        *("within_auc", "within_auc_constant", "within_auc_table", "within_auc_exchanged"),
        *(f"{kind}/{name}" for kind in ("votes", "weight") for name in ANNOTATORS),
    }
    assert set(tested) == {f"test/{key}" for key in expected | of_sets}
    assert module.monitor in validated
    for key, value in validated.items():
        assert value == pytest.approx(tested[key.replace("val/", "test/")])


def test_metrics_without_a_case_are_not_logged_and_each_validation_starts_anew():
    module, trainer = make_module(), make_trainer()
    loader = make_loader(Squares(absent={i: [2] for i in range(12)}))
    (found,) = trainer.validate(module, loader, verbose=False)
    assert not any("expert" in key for key in found)
    assert "val/dice/Ana" in found
    assert "val/dice/Dr. C" not in found
    assert all(value == value for value in found.values())
    assert trainer.validate(module, make_loader(), verbose=False) != [found]
    assert trainer.validate(module, loader, verbose=False) == [found]


def test_metric_inputs_by_hand():
    own = torch.tensor([[0.75, 0.25], [0.375, 0.625]]).log().view(1, 2, 2, 1, 1)
    output = ModelOutput.weighing_all_alike(own)
    batch = {"masks": torch.ones(1, 2, 1, 1).long(), "present": torch.ones(1, 2).bool()}
    found = metric_inputs(batch, output, None)
    assert found.pop("reason") is None  # a model without prototypes
    assert found.pop("masks") is batch["masks"]
    assert found.pop("present") is batch["present"]
    assert {key: value.flatten().tolist() for key, value in found.items()} == {
        **{"prediction": [0], "probs": pytest.approx([0.5625, 0.4375])},
        "annotator_prediction": [0, 1],
        "annotator_probs": pytest.approx([0.75, 0.25, 0.375, 0.625]),
        **{"reference": [255], "who": pytest.approx([0.5, 0.5]), "expert": [255]},
    }
    given = torch.zeros(1, 1, 1).long()
    found = metric_inputs(batch | {"expert": given + 1}, output, given)
    assert found["reference"] is given
    assert found["expert"].tolist() == [[[1]]]


def exponential(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)


def plateau(optimizer):
    options = {"factor": 0.1, "patience": 0, "threshold": 10, "threshold_mode": "abs"}
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", **options)


# Three epochs: the first step of a plateau only sets its mark.
@pytest.mark.parametrize(("scheduler", "rate"), [(exponential, 5e-4), (plateau, 5e-3)])
def test_optimizer_and_scheduler_of_ones_own(scheduler, rate):
    made = []

    def sgd(parameters):
        made.append(torch.optim.SGD(parameters, lr=0.5, momentum=0.9))
        return made[0]

    trainer = make_trainer(max_epochs=3)
    trainer.fit(make_module(optimizer=sgd, lr_scheduler=scheduler), make_loader(), make_loader())
    assert trainer.optimizers == made
    assert made[0].param_groups[0]["lr"] == pytest.approx(rate)


def test_the_default_optimizer_has_every_parameter():
    module = make_module()
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["lr"] == 1e-3
    found = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert found == {id(p) for p in module.parameters()}


def small_encoder(**options):
    backbone = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
    return make_module(network=None, encoder="resnet18", backbone_options=backbone, **options)


def test_an_encoder_with_a_lower_rate_has_groups_of_its_own():
    module = small_encoder(encoder_rate=0.1, optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    rest, slow = module.configure_optimizers().param_groups
    assert (rest["lr"], slow["lr"]) == (0.5, pytest.approx(0.05))
    encoder = {id(p) for p in module.network.backbone.encoder.parameters() if p.requires_grad}
    assert {id(p) for p in slow["params"]} == encoder
    assert {id(p) for p in rest["params"]} == {id(p) for p in module.parameters()} - encoder
    assert len(small_encoder().configure_optimizers().param_groups) == 1


def test_a_slow_encoder_is_held_still_for_the_first_tenth_of_the_run():
    moved, before = [], []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            weights = (module.network.backbone.encoder.conv1.weight, module.network.bank.weight)
            now = [weight.detach().clone() for weight in weights]
            moved.append([not torch.equal(*pair) for pair in zip(before, now, strict=True)])
            before[:] = now

        def on_train_start(self, trainer, module):
            network = module.network
            before[:] = [network.backbone.encoder.conv1.weight.clone(), network.bank.weight.clone()]

    module = small_encoder(encoder_rate=0.5, schedule=Schedule(enabled=False))
    trainer = make_trainer(max_steps=20, max_epochs=-1, callbacks=[Watch()])
    trainer.fit(module, make_loader(Squares(4)))
    assert moved == [[False, True]] + [[True, True]] * 19


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5])
def test_an_encoder_rate_is_a_share(rate):
    with pytest.raises(ValueError, match=rf"^encoder_rate={rate}: expected a share .* \(0, 1\]"):
        make_module(encoder_rate=rate)


class HookedData(L.LightningDataModule):
    """A data module with a hook of its own, which Lightning calls instead of the module's."""

    staple = 0

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch

    def use_staple(self):
        self.staple += 1

    def train_dataloader(self):
        return make_loader(Known())

    val_dataloader = test_dataloader = train_dataloader


@pytest.mark.parametrize(("reference", "staple"), [("majority", 0), ("staple", 2)])
def test_a_data_module_has_hooks_of_its_own_and_estimates_staple_before_a_run(reference, staple):
    module, data = make_module(reference=reference), HookedData()
    make_trainer(max_epochs=1).fit(module, datamodule=data)
    (values,) = make_trainer().test(module, datamodule=data, verbose=False)
    assert values["test/dice/mean"] >= 0
    assert "test/fused_dice/cell" in values
    assert data.staple == staple  # once for training and once for testing


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"annotator": "Bob"}, r"annotator 'Bob' is unknown: expected one of \('Ana', 'Ben', "),
        ({"panel": ["Ana", "Bob"]}, "annotator 'Bob' is unknown"),
        ({"annotator": "Ana", "panel": ["Ana"]}, r"predict: give annotator=\.\.\. or panel=\["),
        ({"panel": []}, r"predict: panel=\[\] names nobody, expected some of \('Ana', 'Ben', "),
    ],
)
def test_predictions_of_nobody(chosen, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make_module().predict(images(1), **chosen)


@torch.no_grad()
def test_samples_of_all_of_one_and_of_a_panel():
    module, seen = make_module().eval(), images(2)
    own = coherent_samples(module(seen).log_annotator_probs, 5)  # [B, N, S, H, W]
    drawn = module.predict(seen, samples=5)
    assert torch.equal(drawn, own.flatten(1, 2))
    assert drawn.shape == (2, 3 * 5, 32, 32)
    assert torch.equal(module.predict(seen, annotator="Ben", samples=5), own[:, 1])
    panel = module.predict(seen, panel=["Dr. C", "Ana"], samples=5)
    assert torch.equal(panel, torch.cat([own[:, 2], own[:, 0]], dim=1))


def test_without_a_reference_another_metric_selects_the_checkpoint():
    assert make_module().monitor == "val/fused_dice/mean"
    assert make_module(reference="none").monitor == "val/dice/mean"


def test_whether_annotators_are_persons_is_taken_from_the_data_and_kept():
    names = ["Ana", "Ben"], ["background", "cell"]
    module, again = MultiHead(*names), MultiHead(*names)
    assert module.persons
    data = SimpleNamespace(persons=False)
    module._trainer = SimpleNamespace(datamodule=data, strategy=None)
    module.setup("fit")
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    again.on_load_checkpoint(checkpoint)
    assert not again.persons
