"""The commands that train and test nothing: inspect, explain, export, optimize.

Their own arguments are read before torch is imported, which takes seconds. So help and errors come
at once.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tax_lightning.arguments import ShortErrorParser, split_off
from tax_lightning.configuration import first_fault, read_file, together, with_flags
from tax_lightning.extras import check_exported
from tax_lightning.progress import show_progress
from tax_lightning.refusals import add_instantiator, first_refusal
from tax_lightning.usage import COMMANDS

_CONFIG_HELP = "As for `tax fit`, of which only data is read; later files win."
_DATA_HELP = "Options --data... are those of `tax fit`; --data.help=CLASS lists them."


def inspect_data(args: Sequence[str]) -> None:
    """Carry out ``tax inspect`` with the arguments after it.

    Only the part ``data`` of ``--config`` files is read, so that those of ``tax fit`` serve.
    """
    parser = ShortErrorParser(
        prog="tax inspect",
        usage="tax inspect --config FILE ... [--data.init_args.NAME=VALUE ...] [--output DIR]",
        description=f"{COMMANDS['inspect']} {_DATA_HELP}",
    )
    parser.add_argument("--config", type=str, action="append", default=[], help=_CONFIG_HELP)
    parser.add_argument("--output", type=str | None, help="Folder of the page (runs/inspect/NAME).")
    parser.add_argument("--threads", type=int | None, help="Images looked at at the same time.")
    parser.add_argument("--ckpt_path", type=str | None, help="Model that has a say in the queue.")
    parser.add_argument("--device", type=str | None, help="cpu, cuda, ...; None: as there is.")
    of_data, own = split_off(["--data"], args)
    config = parser.parse_args(own)
    parts = _data_parts(config.config)

    from tax_lightning.inspection import inspect
    from tax_lightning.modules.checkpoints import load_model

    data = _data_module(parts, of_data, parser.prog, required=True)
    model = None
    if config.ckpt_path is not None:
        model = load_model(config.ckpt_path, "--ckpt_path").to(_device(config.device))
    name = Path(config.config[-1]).stem if config.config else type(data).__name__
    folder = Path(config.output or Path("runs", "inspect", name))
    print(inspect(data, folder, name, show_progress, config.threads, model))
    print(f"\nqueue {folder / 'review.csv'}\npage  {folder / 'index.html'}")


def explain_images(args: Sequence[str]) -> None:
    """Carry out ``tax explain`` with the arguments after it; the images need no masks."""
    parser = ShortErrorParser(
        prog="tax explain",
        usage="tax explain --ckpt_path FILE --images PATH ... [--config FILE ...] [--output DIR]",
        description=f"{COMMANDS['explain']} {_DATA_HELP}",
    )
    parser.add_argument("--ckpt_path", type=str, required=True, help="Checkpoint of `tax fit`.")
    parser.add_argument(
        "--images",
        type=str,
        nargs="+",
        help="Images, and folders of images. None: those that `tax predict` takes by --config.",
    )
    parser.add_argument("--config", type=str, action="append", default=[], help=_CONFIG_HELP)
    parser.add_argument("--output", type=str, default="runs/explain", help="Folder of the report.")
    parser.add_argument("--title", type=str | None, help="Heading of the page.")
    parser.add_argument("--max_side", type=int, default=1024, help="Pixels of an image as shown.")
    parser.add_argument("--tile", type=int | None, help="Side of windows in pixels; None: whole.")
    parser.add_argument("--overwrite", type=bool, default=False, help="Replace an older report.")
    parser.add_argument("--device", type=str | None, help="cpu, cuda, ...; None: as there is.")
    of_data, own = split_off(["--data"], args)
    config = parser.parse_args(own)
    parts = _data_parts(config.config)

    from tax_lightning.data.images import ExplainedImages, images_for
    from tax_lightning.modules.checkpoints import checkpoint_in, load_model
    from tax_lightning.visualization.report import write_report

    data = _data_module(parts, of_data, parser.prog, required=False)
    model = load_model(config.ckpt_path, "--ckpt_path").eval()
    prepared = images_for(model, config.images, data)
    page = write_report(
        ExplainedImages(
            model.to(_device(config.device)),
            prepared.images,
            prepared.to_picture,
            show_progress,
            () if data is None else data.annotators,
            config.tile or getattr(data, "tile", None),
            config.max_side,
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


def export_checkpoint(args: Sequence[str]) -> None:
    """Carry out ``tax export`` with the arguments after it."""
    parser = ShortErrorParser(
        prog="tax export", usage="tax export CHECKPOINT TO", description=COMMANDS["export"]
    )
    parser.add_argument("checkpoint", type=str, help="The .ckpt file, or a folder of one run.")
    parser.add_argument("to", type=str, help="File to write: .onnx (ONNX) or .pt2 (torch.export).")
    config = parser.parse_args(list(args))
    check_exported(Path(config.to))

    from tax_lightning.export import export_model
    from tax_lightning.modules.checkpoints import load_model

    model = load_model(config.checkpoint, "CHECKPOINT")
    difference = export_model(model, config.to)
    print(f"largest difference from PyTorch: {difference:.1e}\n\nexport  {config.to}")


def optimize_data(args: Sequence[str]) -> None:
    """Carry out ``tax optimize`` with the arguments after it."""
    parser = ShortErrorParser(
        prog="tax optimize",
        usage="tax optimize FROM TO [--data.init_args.NAME=VALUE ...]",
        description=f"{COMMANDS['optimize']} {_DATA_HELP}",
    )
    parser.add_argument("from", type=str, help="Data in the one format, or a --config of tax fit.")
    parser.add_argument("to", type=str, help="Folder or address to write, such as s3://bucket/x.")
    of_data, own = split_off(["--data"], args)
    config = parser.parse_args(own)
    source = Path(config["from"])
    if not source.exists():
        raise FileNotFoundError(
            f"FROM: {source} does not exist, expected a folder of data in the one format, or the "
            "configuration of a data module (YAML)."
        )
    folder = ["--data=FolderDataModule", f"--data.root={source}"]
    parts = [] if source.is_dir() else _data_parts([config["from"]])
    of_data = [*folder, *of_data] if source.is_dir() else of_data

    from tax_lightning.data.shards import write_shards

    data = _data_module(parts, of_data, parser.prog, required=True)
    print(f"{write_shards(data, config.to, show_progress)}\n\nshards  {config.to}")


def _device(name: str | None) -> Any:  # noqa: ANN401 - a torch.device
    import torch

    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"--device {name}: {error}. Expected cpu, cuda or the like.") from error


def _data_module(
    parts: Sequence[Mapping[str, Any]], flags: Sequence[str], prog: str, *, required: bool
) -> Any:  # noqa: ANN401
    """The data module of parts of configurations and flags; None without any, if not required."""
    import tax_lightning.data.folder  # known to the parser by short names once imported
    import tax_lightning.data.streaming
    import tax_lightning.simulation  # noqa: F401
    from tax_lightning.data.datamodule import MultiAnnotatorDataModule

    types = {"data": MultiAnnotatorDataModule}
    _refuse_fault(with_flags(together(parts), flags), types)
    parser = ShortErrorParser(prog=prog, usage=f"{prog} --config FILE ...")
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(MultiAnnotatorDataModule, "data", required=required)
    add_instantiator(parser)
    settings = parser.parse_args([*(f"--config={yaml.safe_dump(part)}" for part in parts), *flags])
    if settings.data is not None:
        _refuse_fault(settings.as_dict(), types)
    with first_refusal():
        return parser.instantiate(settings).data


def _refuse_fault(settings: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    if fault := first_fault(settings, types, {}):
        raise ValueError(fault)


def _data_parts(files: Iterable[str]) -> list[dict[str, Any]]:
    """The ``data`` parts of configuration files."""
    every = map(read_file, map(Path, files))
    return [{key: settings[key] for key in settings if key == "data"} for settings in every]
