"""The command ``tax import``: from a tool's export or a published data set to the one format."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from tax_lightning.arguments import ShortErrorParser
from tax_lightning.data.layouts import nearest
from tax_lightning.importers.writer import write
from tax_lightning.progress import show_progress

SOURCES = (
    "arrays",
    "bubil",
    "chase",
    "coco",
    "cvat",
    "dicom_seg",
    "drive",
    "gleason",
    "imapp",
    "label_studio",
    "label_studio_png",
    "labelme",
    "lidc",
    "ms_lesion",
    "nifti",
    "npc170",
    "qubiq",
    "qupath",
    "riga",
    "seg_nrrd",
    "stare",
    "supervisely",
)
"""The sources that ``tax import`` knows: names of modules of this folder."""

USAGE = "tax import SOURCE FROM TO [--tile PIXELS] [options of the source]"


def import_data(args: Sequence[str]) -> None:
    """Carry out ``tax import`` with the arguments after it."""
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return
    name = args[0]
    if name not in SOURCES:
        raise ValueError(
            f"SOURCE: {name!r} is unknown.{nearest(name, SOURCES)} Expected one of "
            f"{', '.join(SOURCES)}; `tax import` alone lists what they are."
        )
    module = _module(name)
    parser = ShortErrorParser(
        prog=f"tax import {name}",
        usage=f"tax import {name} FROM TO [--tile PIXELS] [options]",
        description=module.__doc__ or "",
    )
    parser.add_argument("from", type=str, help="Folder or file of the source.")
    parser.add_argument("to", type=str, help="Folder to write; made if it is missing.")
    parser.add_argument(
        "--tile", type=int | None, help="Cut larger images into squares of this side, in pixels."
    )
    options = parser.add_function_arguments(module.find, skip={"root"})
    config = parser.parse_args(list(args[1:]))
    source = Path(config["from"])
    if not source.exists():
        raise FileNotFoundError(f"FROM: {source} does not exist, expected the data of {name}.")
    chosen = {key: config[key] for key in options}
    said = " ".join(f"--{key} {value}" for key, value in chosen.items() if value is not None)
    origin = f"tax import {name} {source.resolve()} {said}".strip()
    try:
        found = module.find(source, **chosen)
        report = write(found, Path(config.to), origin, config.tile, show_progress)
    except OSError as error:
        if error.filename is None:  # of our own checks
            raise
        raise ValueError(
            f"{error.filename}: {error.strerror}. Expected the data of {name}, which can be read, "
            "and a folder that can be written to."
        ) from error
    print(f"{report}\n\ndata  {config.to}")


def _help() -> str:
    """The sources, each with the first line of what its module says of itself."""
    width = max(map(len, SOURCES))
    lines = [
        f"  {name:<{width}}  {(_module(name).__doc__ or '').splitlines()[0]}" for name in SOURCES
    ]
    return "\n".join([f"usage: {USAGE}", "", "sources:", *lines])


def _module(name: str) -> ModuleType:
    return import_module(f"tax_lightning.importers.{name}")
