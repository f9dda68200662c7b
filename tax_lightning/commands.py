"""The commands that train and test nothing: ``tax inspect``, ``tax explain``, ``tax optimize``."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from tax_lightning.data import MultiAnnotatorDataModule, write_shards
from tax_lightning.data.images import ExplainedImages, images_for
from tax_lightning.inspection import inspect
from tax_lightning.modules.checkpoints import checkpoint_in, load_model
from tax_lightning.progress import show_progress
from tax_lightning.short_errors import ShortErrorParser
from tax_lightning.usage import COMMANDS
from tax_lightning.visualization.report import write_report


def inspect_data(args: Sequence[str]) -> None:
    """Carry out ``tax inspect`` with the arguments after it.

    Only the part ``data`` of ``--config`` files is read, so that those of ``tax fit`` serve.
    """
    parser = ShortErrorParser(
        prog="tax inspect",
        usage="tax inspect --config FILE ... [--data.init_args.NAME=VALUE ...] [--output DIR]",
        description=COMMANDS["inspect"],
    )
    parser.add_argument("--config", action="config", help="As for `tax fit`; only data is read.")
    parser.add_argument("--output", type=str | None, help="Folder of the page (runs/inspect/NAME).")
    parser.add_argument("--threads", type=int | None, help="Images looked at at the same time.")
    parser.add_argument("--ckpt_path", type=str | None, help="Model that has a say in the queue.")
    parser.add_argument("--device", type=str | None, help="cpu, cuda, ...; None: as there is.")
    parser.add_subclass_arguments(MultiAnnotatorDataModule, "data", required=True)
    arguments, files = _only_data(args)
    config = parser.parse_args(arguments)
    data = parser.instantiate(config).data
    model = None
    if config.ckpt_path is not None:
        model = load_model(config.ckpt_path, "--ckpt_path").to(_device(config.device))
    name = files[-1].stem if files else type(data).__name__
    folder = Path(config.output or Path("runs", "inspect", name))
    print(inspect(data, folder, name, show_progress, config.threads, model))
    print(f"\nqueue {folder / 'review.csv'}\npage  {folder / 'index.html'}")


def explain_images(args: Sequence[str]) -> None:
    """Carry out ``tax explain`` with the arguments after it; the images need no masks."""
    parser = ShortErrorParser(
        prog="tax explain",
        usage="tax explain --ckpt_path FILE --images PATH ... [--config FILE ...] [--output DIR]",
        description=COMMANDS["explain"],
    )
    parser.add_argument("--ckpt_path", type=str, required=True, help="Checkpoint of `tax fit`.")
    parser.add_argument(
        "--images",
        type=str,
        nargs="+",
        help="Images, and folders of images. None: those that `tax predict` takes by --config.",
    )
    parser.add_argument("--config", action="config", help="As for `tax fit`; only data is read.")
    parser.add_argument("--output", type=str, default="runs/explain", help="Folder of the report.")
    parser.add_argument("--title", type=str | None, help="Heading of the page.")
    parser.add_argument("--max_side", type=int, default=1024, help="Pixels of an image as shown.")
    parser.add_argument("--overwrite", type=bool, default=False, help="Replace an older report.")
    parser.add_argument("--device", type=str | None, help="cpu, cuda, ...; None: as there is.")
    parser.add_subclass_arguments(MultiAnnotatorDataModule, "data", required=False)
    arguments, _ = _only_data(args)
    config = parser.parse_args(arguments)
    data = parser.instantiate(config).data
    model = load_model(config.ckpt_path, "--ckpt_path").eval()
    prepared = images_for(model, config.images, data)
    page = write_report(
        ExplainedImages(
            model.to(_device(config.device)),
            prepared.images,
            prepared.to_picture,
            show_progress,
            () if data is None else data.annotators,
        ),
        config.output,
        read=prepared.read,
        source=Path(checkpoint_in(config.ckpt_path)).name,
        notes=prepared.notes,
        max_side=config.max_side,
        overwrite=config.overwrite,
        groups=data.groups if data is not None else None,
        **({} if config.title is None else {"title": config.title}),
    )
    for note in json.loads(page.with_name("report.json").read_text("utf-8"))["notes"]:
        print(f"note  {note}", file=sys.stderr)
    print(f"page  {page}")


def optimize_data(args: Sequence[str]) -> None:
    """Carry out ``tax optimize`` with the arguments after it."""
    parser = ShortErrorParser(
        prog="tax optimize",
        usage="tax optimize FROM TO [--data.init_args.NAME=VALUE ...]",
        description=COMMANDS["optimize"],
    )
    parser.add_argument("from", type=str, help="Data in the one format, or a --config of tax fit.")
    parser.add_argument("to", type=str, help="Folder or address to write, such as s3://bucket/x.")
    parser.add_argument("--config", action="config", help="As for `tax fit`; only data is read.")
    parser.add_subclass_arguments(MultiAnnotatorDataModule, "data", required=True)
    given = list(args)
    if args and not args[0].startswith("-"):
        source = Path(args[0])
        if source.is_dir():
            given[1:1] = ["--data=FolderDataModule", f"--data.root={source}"]
        elif source.is_file():
            given[1:1] = [f"--config={source}"]
        else:
            raise FileNotFoundError(
                f"FROM: {source} does not exist, expected a folder of data in the one format, or "
                "the configuration of a data module (YAML)."
            )
    arguments, _ = _only_data(given)
    config = parser.parse_args(arguments)
    data = parser.instantiate(config).data
    print(f"{write_shards(data, config.to, show_progress)}\n\nshards  {config.to}")


def _device(name: str | None) -> torch.device:
    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"--device {name}: {error}. Expected cpu, cuda or the like.") from error


def _only_data(args: Sequence[str]) -> tuple[list[str], list[Path]]:
    """The arguments with the ``data`` parts in place of configuration files, and those files."""
    paths, others = values_of("--config", args)
    files = [Path(path) for path in paths]
    return [*(f"--config={yaml.safe_dump(_data_part(file))}" for file in files), *others], files


def values_of(option: str, args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The values of an option in their order, and the other arguments."""
    parser = argparse.ArgumentParser("tax", add_help=False, allow_abbrev=False)
    parser.add_argument(option, action="append", default=[], dest="values")
    known, others = parser.parse_known_args(args)
    return known.values, others


def _data_part(path: Path) -> dict[str, Any]:
    """What a configuration file says about the data."""
    if not path.is_file():
        raise FileNotFoundError(f"--config {path} is no file, expected a YAML file.")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} cannot be read as YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"--config {path} holds {settings!r}, expected a section `data`.")
    return {key: settings[key] for key in settings if key == "data"}
