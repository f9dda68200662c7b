"""The command line: fit, validate, test and predict, by YAML files and flags."""

import copy
import os
import shlex
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.core import LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

# The parser knows a class by its short name once its module is imported.
import tax_lightning.baselines
import tax_lightning.data.folder
import tax_lightning.data.streaming
import tax_lightning.modules.add_annotators
import tax_lightning.simulation  # noqa: F401
from tax_lightning.arguments import ShortErrorParser, unknown_name, values_of
from tax_lightning.callbacks import (
    ExplainedCheckpoint,
    ExplanationLogger,
    ImageScores,
    Interruption,
    PredictionWriter,
)
from tax_lightning.callbacks.checkpoint import is_dry_run
from tax_lightning.callbacks.loggers import LoggedConfig, working
from tax_lightning.configuration import first_fault, read_file, together, with_flags
from tax_lightning.data import MultiAnnotatorDataModule
from tax_lightning.figures import short_table
from tax_lightning.files import check_writable
from tax_lightning.modules.checkpoints import (
    checkpoint_in,
    given_network,
    read_checkpoint,
    trusted_class,
)
from tax_lightning.modules.tax import TAXLightningModule
from tax_lightning.refusals import add_instantiator, first_refusal, refusing
from tax_lightning.run_folders import in_job, last_run, mark_latest, place_files
from tax_lightning.run_record import note_metrics
from tax_lightning.tables import metric_table

# Given once, by the data; the model takes them over.
LINKED = {"annotators": "annotators", "classes": "classes", "channels": "in_channels"}

# What a configuration may hold: values and classes by name, and arguments of classes.
TYPES: dict[str, Any] = {
    "seed_everything": bool | int,
    "output": str | None,
    "resume": str | None,
    "model": LightningModule | None,  # of a checkpoint, where it is not said
    "data": MultiAnnotatorDataModule,
}
MINUS_ONE = ("devices", "max_epochs", "max_steps", "num_sanity_val_steps")  # stands for all
MOST_DEVICES = 64  # of one machine; each takes a process
ARGUMENTS: dict[str, type] = {
    "trainer": Trainer,
    "checkpoint": ExplainedCheckpoint,
    "explanations": ExplanationLogger,
    "predictions": PredictionWriter,
}

# Warnings about Lightning's own code, which a user cannot act on.
NOISE = (
    "You have overridden `on_before_batch_transfer` in `LightningModule`",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "The '.*_dataloader' does not have many workers",
    "Your `IterableDataset` has `__len__` defined",  # LitData gives each worker its own part
    r"Checkpoint directory .* exists and is not empty",  # refused by us, but for runs that go on
    r"(?s).*Dump of a value that does not round-trip",
)


class TAXParser(ShortErrorParser, LightningArgumentParser):
    """Lightning's parser with short errors."""


class TAXCLI(LightningCLI):
    """LightningCLI in which every number is given once, and the user's settings win.

    - Annotators, classes and channels come from the data; the model is built for them.
    - The hyper-parameters in a checkpoint fill in what the user did not set; ``--config`` files and
      flags override them.
    - :class:`~tax_lightning.callbacks.ExplainedCheckpoint` (``--checkpoint.*``),
      :class:`~tax_lightning.callbacks.ExplanationLogger` (``--explanations.*``) and
      :class:`~tax_lightning.callbacks.PredictionWriter` (``--predictions.*``) are always there.
    """

    @classmethod
    def run(cls, args: Sequence[str]) -> "TAXCLI":
        """Parse the arguments and carry out the subcommand."""
        for message in NOISE:
            warnings.filterwarnings("ignore", message)
        return cls(
            LightningModule,
            MultiAnnotatorDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=0,
            save_config_callback=LoggedConfig,
            save_config_kwargs={"save_to_log_dir": False},  # the callback writes it itself
            parser_class=TAXParser,
            parser_kwargs={
                "prog": "tax",
                "description": "Train, test and explain models of several annotators.",
                # In place of hundreds of lines above every message.
                **{name: {"usage": f"tax {name} --config FILE ..."} for name in cls.subcommands()},
            },
            args=list(args),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our callbacks, and the links from the data to the model."""
        parser.add_argument(
            "--output",
            type=str | None,
            help="Folder of all files of a run (fit), or of the predictions (predict).",
        )
        parser.add_argument(
            "--resume",
            type=str | None,
            help="Run that fit goes on with: its folder, or last; a new run where there is none.",
        )
        add_instantiator(parser)
        for name in ("checkpoint", "explanations", "predictions"):
            parser.add_lightning_class_args(ARGUMENTS[name], name)
        parser.set_defaults(
            {
                "checkpoint.monitor": TAXLightningModule.monitor,
                "checkpoint.mode": TAXLightningModule.mode,
                "checkpoint.filename": "best",
                "checkpoint.save_last": True,
            }
        )
        for source, target in LINKED.items():
            parser.link_arguments(
                f"data.{source}", f"model.init_args.{target}", apply_on="instantiate"
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse with the checkpoint's hyper-parameters as the first of all configuration files."""
        assert isinstance(args, list)  # from `run`
        self.arguments = list(args)
        self._check_files()
        paths, arguments = values_of("--ckpt_path", self.arguments)
        resumed = None
        if not paths:
            self.config = parser.parse_args(arguments)
            resumed = _resumed(self.config)
            paths = [] if resumed is None else [resumed]
        if paths:
            subcommand = next((a for a in arguments if a in self.subcommands()), "")
            name = "last.ckpt" if subcommand == "fit" else "best.ckpt"
            paths[-1] = checkpoint_in(paths[-1], name)
            arguments.append(f"--ckpt_path={paths[-1]}")
        if not paths or paths[-1] in ("best", "last", "hpc", "registry"):
            if paths:
                self.config = parser.parse_args(arguments)
            _refuse_random_weights(self.config)
            _refuse_faults(self.config[self.config.subcommand].as_dict())
            self._placed(arguments)
            _refuse_used(self.config)
            return
        checkpoint = read_checkpoint(paths[-1], "ckpt_path")
        stored = _model_of(checkpoint, f"--ckpt_path={paths[-1]}")
        _refuse_faults({"model": copy.deepcopy(stored)})
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder, "checkpoint.yaml")
            config.write_text(yaml.safe_dump({"model": stored}))
            command = next(i for i, a in enumerate(arguments) if a in self.subcommands())
            arguments[command + 1 : command + 1] = ["--config", str(config)]
            self.config = parser.parse_args(arguments)
        del self.config[self.config.subcommand].config[0]  # the file is gone
        _refuse_faults(self.config[self.config.subcommand].as_dict())
        if self.config.subcommand == "fit":
            _refuse_finished(paths[-1], checkpoint, self.config.fit.trainer, bool(resumed))
        self._placed(list(args))

    def _check_files(self) -> None:
        """Refuse what the configuration files say wrongly, with the key and the value."""
        files, flags = values_of("--config", self.arguments)
        sections: dict[str, Any] = {"model": {}, "data": {}}  # whose class flags may name
        settings = with_flags(together([sections, *map(read_file, map(Path, files))]), flags)
        settings = {k: value for k, value in settings.items() if value or k not in sections}
        command = next((flag for flag in flags if flag in self.subcommands()), "fit")
        known = {action.dest.partition(".")[0] for action in self._parser(command)._actions}
        for key in settings:
            if key not in known:
                raise ValueError(unknown_name(str(key), str(key), known, of=f"tax {command}"))
        stored = any(flag.startswith(("--ckpt_path", "--resume")) for flag in flags)
        if stored and "class_path" not in (settings.get("model") or {}):
            settings.pop("model", None)  # its class is that of the checkpoint
        _refuse_faults(settings)

    def _placed(self, arguments: Sequence[str]) -> None:
        # What is saved names no folder and no run: to run it again is a new run.
        self.asked_for = copy.deepcopy(self.config)
        for name in ("output", "resume"):
            self.asked_for[self.config.subcommand][name] = None
        self.new_folder = place_files(self.config, arguments)
        settings = self.config[self.config.subcommand]
        if self.config.subcommand == "fit":
            for folder in (settings.trainer.default_root_dir, settings.checkpoint.dirpath):
                check_writable(folder, "--output")
        if self.config.subcommand == "predict":
            check_writable(settings.predictions.output_dir, "--output")

    def _parse_ckpt_path(self) -> None:
        """Not Lightning's way, in which the checkpoint beats the user."""

    def instantiate_classes(self) -> None:
        """Make data, model and trainer."""
        with first_refusal():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Any:  # noqa: ANN401 - as the parent
        """The trainer: no checkpoint callback if checkpoints are off, only loggers that work."""
        self.config = self.asked_for
        trainer_config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        keys = self._parser(self.subcommand).callback_keys
        callbacks = [self._get(self.config_init, key) for key in keys]
        if self.subcommand == "test":
            callbacks.append(ImageScores())
        if self.subcommand == "fit":
            callbacks.append(Interruption())
        if trainer_config.get("enable_checkpointing") is False:
            callbacks = [c for c in callbacks if not isinstance(c, ModelCheckpoint)]
        with refusing("trainer", trainer_config):
            trainer = self._instantiate_trainer(trainer_config, callbacks)
        trainer.loggers = working(trainer.loggers)
        return trainer

    def fit(self, **kwargs: Any) -> None:  # noqa: ANN401 - as the parent
        """Train; say how to go on where that is interrupted."""
        with self._to_go_on(), first_refusal():
            self.trainer.fit(**kwargs)

    @contextmanager
    def _to_go_on(self) -> Iterator[None]:
        try:
            yield
        except (SystemExit, KeyboardInterrupt, OSError):
            self._say_how_to_go_on()
            raise

    @rank_zero_only
    def _say_how_to_go_on(self) -> None:
        folder = Path(self.trainer.default_root_dir)
        if not any(folder.rglob("last.ckpt")):
            print("\nNo checkpoint was written yet: start anew.", file=sys.stderr)
            return
        for option in ("--ckpt_path", "--resume", "--output"):
            _, self.arguments = values_of(option, self.arguments)
        command = shlex.join(["tax", *self.arguments, "--resume", str(folder)])
        print(f"\nThe run can go on by\n{command}", file=sys.stderr)

    def predict(self, **kwargs: Any) -> None:  # noqa: ANN401 - as the parent
        """Predict without holding the predictions of all images in memory: the writer has them."""
        self.trainer.predict(**{**kwargs, "return_predictions": False})

    @rank_zero_only
    def before_fit(self) -> None:
        """Let ``latest`` lead to the new folder."""
        folder = self.new_folder
        if folder is None or is_dry_run(self.trainer):
            return
        try:
            mark_latest(folder)
        except OSError as error:
            warnings.warn(f"{folder.with_name('latest')}: {error}.", stacklevel=2)

    @rank_zero_only
    def after_predict(self) -> None:
        """Say where the predictions lie."""
        trainer: Any = self.trainer
        (writer,) = (c for c in trainer.callbacks if isinstance(c, PredictionWriter))
        print(f"\npredictions  {writer.manifest}")

    def after_fit(self) -> None:
        """Measure the checkpoint that was kept; say what came out and where it lies."""
        checkpoint = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        if checkpoint and not Path(checkpoint).is_file():
            warnings.warn(f"{checkpoint}: not there any more; figures as trained.", stacklevel=2)
            checkpoint = ""
        with self._to_go_on():
            if checkpoint:
                self.trainer.validate(
                    self.model, datamodule=self.datamodule, ckpt_path=checkpoint, verbose=False
                )
            _report(self.trainer, checkpoint)
            self._end("fit", checkpoint)

    def after_validate(self) -> None:
        """Keep the figures."""
        self._end("validate", self.trainer.ckpt_path)

    def after_test(self) -> None:
        """Print the figures that come first, below the trainer's table of all; keep all."""
        self._summarise()
        self._end("test", self.trainer.ckpt_path)

    @rank_zero_only
    def _summarise(self) -> None:
        print(f"\n{short_table(self.trainer.callback_metrics)}\n")

    @rank_zero_only
    def _end(self, stage: str, checkpoint: Any) -> None:  # noqa: ANN401 - a path, or nothing
        if checkpoint:
            try:
                noted = note_metrics(checkpoint, stage, self.trainer.callback_metrics)
                print(f"metrics     {noted}")
            except (OSError, ValueError) as error:  # the run itself did not fail
                warnings.warn(f"metrics.json beside {checkpoint}: {error}.", stacklevel=2)
        if note := getattr(self.model, "type_note", ""):
            print(f"\n{note}")


@rank_zero_only
def _report(trainer: Any, checkpoint: str) -> None:  # noqa: ANN401 - a Trainer
    print(f"\nValidation, {'best checkpoint' if checkpoint else 'as trained'}\n")
    print(metric_table(trainer.callback_metrics, prefix="val/"))
    print(f"\ncheckpoint  {checkpoint or 'none'}")
    for callback in trainer.callbacks:
        if isinstance(callback, ExplanationLogger):
            print(f"pictures    {callback.folder or 'none'}")
            for finding in callback.findings:
                if finding.kind != "types":  # said at the end, by name
                    print(finding)
    for logger in trainer.loggers:
        # W&B's logger does not tell its run's folder, but the run itself does.
        folder = getattr(logger.experiment, "dir", None) or logger.log_dir or logger.save_dir
        print(f"run         {type(logger).__name__}: {folder}")


def _refuse_random_weights(config: Namespace) -> None:
    command = config.subcommand  # which applies a model that must have learnt something
    if command in ("validate", "test", "predict") and config[command].ckpt_path is None:
        raise ValueError(
            f"tax {command}: --ckpt_path is missing, so the weights would be random. Give the "
            "checkpoint that tax fit named at its end, or a folder that holds its best.ckpt, as in "
            f"`tax {command} --config mine.yaml --ckpt_path runs/mine/latest`."
        )


def _resumed(config: Namespace) -> str | None:
    """The checkpoint that ``--resume`` means; None for a new run."""
    command = config.subcommand
    asked = config[command].resume
    if asked is None:
        return None
    if command != "fit":
        raise ValueError(f"--resume {asked}: tax {command} resumes nothing. Leave it out.")
    folder = last_run(config.fit) if asked == "last" else Path(asked)
    if asked == "last" and not any(folder.rglob("last.ckpt")):
        rank_zero_info(f"--resume last: {folder} holds no last.ckpt, so a new run starts.")
        return None
    return checkpoint_in(str(folder), "last.ckpt", "--resume")


def _refuse_used(config: Namespace) -> None:
    """A new run in the folder of another would hide its own checkpoints behind the other's."""
    command = config.subcommand
    folder = config[command].checkpoint.dirpath
    if command == "fit" and folder and not in_job():
        last = Path(folder, "last.ckpt")
        if last.exists():
            raise FileExistsError(
                f"{last}: a run is in this folder already. Go on with it by --resume "
                f"{last.parent.parent}, or give another --output."
            )


def _refuse_faults(settings: dict[str, Any]) -> None:
    """Refuse the first value that is of another type than its argument, and unknown names."""
    model = settings.get("model")
    given = model.get("init_args") if isinstance(model, dict) else None
    if isinstance(given, dict):
        for name in LINKED.values():
            if given.get(name, 0) is None:  # known when the data are there
                del given[name]
    if fault := first_fault(settings, TYPES, ARGUMENTS):
        raise ValueError(fault)
    seed = settings.get("seed_everything")
    if seed is not None and not 0 <= seed < 2**32:  # in whose place Lightning takes 0
        raise ValueError(f"seed_everything: {seed}, expected 0 to {2**32 - 1}, or false.")
    devices = settings.get("trainer", {}).get("devices")
    most = max(MOST_DEVICES, os.cpu_count() or 1)
    if str(devices).isdigit() and int(devices) > most:  # the parser may leave it a text
        raise ValueError(f"trainer.devices: {devices}, expected at most {most}.")
    for name, value in settings.get("trainer", {}).items():
        if isinstance(value, int | float) and value < (-1 if name in MINUS_ONE else 0):
            least = "-1 (no end, or all), 0" if name in MINUS_ONE else "0"
            raise ValueError(f"trainer.{name}: {value}, expected {least} or more.")


def _refuse_finished(
    path: str, checkpoint: dict[str, Any], trainer: Namespace, resumed: bool
) -> None:
    """A run that goes on needs something left to do; say what it takes over.

    One that is ``resumed`` may have been stopped after its last epoch: figures and pictures are
    left then.
    """
    if "loops" not in checkpoint:
        raise ValueError(
            f"--ckpt_path {path}: holds weights alone, expected the state of a run too. Give the "
            "last.ckpt of that run."
        )
    progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    done, steps = progress["processed"], checkpoint["global_step"]
    for name, count in (("max_epochs", done), ("max_steps", steps)):
        most = trainer[name]
        if most is not None and 0 <= most <= count:
            if resumed:
                rank_zero_info(
                    f"All of trainer.{name}={most} are made; figures and pictures follow."
                )
                return
            raise ValueError(
                f"--ckpt_path {path}: this run is finished, it made {count} of trainer.{name}="
                f"{most}. Raise trainer.{name}, or start a new run without --ckpt_path."
            )
    rank_zero_info(
        f"Going on after {done} epochs and {steps} steps. The state of the optimizer and of the "
        "learning rate's schedule is that of the checkpoint: what the configuration now says of "
        "them has no effect."
    )


def _model_of(checkpoint: dict[str, Any], source: str) -> dict[str, Any]:
    """Class and arguments of the model in a checkpoint, less what the data says."""
    name, hparams = str(checkpoint["class_path"]), dict(checkpoint["hyper_parameters"])
    trusted_class(name, source)
    given_network(hparams.get("network"))
    for part in LINKED.values():
        hparams.pop(part, None)
    return {"class_path": name, "init_args": hparams}
