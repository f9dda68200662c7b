"""``tax compare``: train and test several models on equal terms, and write tables."""

import contextlib
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tax_lightning.arguments import ShortErrorParser, split_off
from tax_lightning.comparison.dots import Panel, Row, draw
from tax_lightning.comparison.models import PARTS, Model, model_of
from tax_lightning.comparison.report import write_tables
from tax_lightning.comparison.results import Results, Selection
from tax_lightning.comparison.runs import Run, carry_out
from tax_lightning.figures import DISAGREEMENT, SEGMENTATION
from tax_lightning.files import write_png, write_text
from tax_lightning.usage import COMMANDS

MODELS = ["TAX", "MultiHead", "Consensus"]
FIGURE = "comparison.png"
DRAWN = ("dice/mean", "fused_dice/mean", "ged2", "samples/ged2")


def compare_models(args: Sequence[str]) -> None:
    """Carry out ``tax compare`` with the arguments after it.

    Raises:
        ValueError: If an argument or the configuration of a model is wrong; before anything runs.
        SystemExit: With 1 where runs failed, with 130 after an interruption.
    """
    passed_on, own = split_off([f"--{part}" for part in PARTS], args)
    options = _parser().parse_args(own)
    settings = [*(f"--config={file}" for file in options.config), *passed_on]
    models = [model_of(text) for text in options.models or MODELS]
    _refuse_doubles(models)
    if options.jobs < 1 or (options.folds is not None and options.folds < 2):
        raise ValueError(
            f"--jobs {options.jobs}, --folds {options.folds}: expected at least one job, and two "
            "folds or more."
        )
    name = Path(options.config[0]).stem
    folder = Path(options.output or Path("runs", "compare", name))
    folder.mkdir(parents=True, exist_ok=True)
    results = Results(folder)
    wholes = {model: resolved(model, settings) for model in models}
    files = {model: keep(model, whole, folder) for model, whole in wholes.items()}
    plain = resolved(model_of(models[0].class_path), settings)
    reference = plain["model"]["init_args"].get("reference", "majority")
    runs = [  # all models with one seed first, so that there is something to look at early
        Run(model, seed, fold, files[model], split_options(whole, options.folds, fold), reference)
        for seed in options.seeds
        for model, whole in wholes.items()
        for fold in (range(options.folds) if options.folds else [None])
    ]
    status = carry_out(folder, results, runs, options.jobs)
    names = [model.name for model in models if any(model.name == key[0] for key in results.keys)]
    found = results.of(names, options.seeds)
    if found.rows:
        table, *others = write_tables(folder, found, names, options.seeds)
        figure = draw_figure(folder / FIGURE, found, names)
        print(table.read_text("utf-8"))
        print("written", *(table, *others, figure), sep="\n  ")
    if status:
        sys.exit(status)


def _parser() -> ShortErrorParser:
    parser = ShortErrorParser(
        prog="tax compare",
        usage="tax compare --config FILE ... --models MODEL ... [--seeds N ...] [--folds K]",
        description=f"{COMMANDS['compare']} Options of `tax fit` hold for all, as --KEY=VALUE.",
    )
    parser.add_argument(
        "--config", type=str, nargs="+", required=True, help="As for `tax fit`; later files win."
    )
    parser.add_argument(
        "--models",
        type=str,
        nargs="+",
        help="CLASS or NAME=CLASS, with options after commas, such as "
        f"STAPLE=Consensus,reference=staple. Default: {' '.join(MODELS)}.",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Of training.")
    parser.add_argument(
        "--folds", type=int | None, help="Test each of so many parts of the data in turn."
    )
    parser.add_argument("--jobs", type=int, default=1, help="Runs at a time.")
    parser.add_argument("--output", type=str | None, help="Folder (runs/compare/NAME).")
    return parser


def _refuse_doubles(models: Sequence[Model]) -> None:
    names = [model.name.lower() for model in models]
    if doubles := [model.name for model in models if names.count(model.name.lower()) > 1]:
        raise ValueError(
            f"--models: {doubles[0]!r} is there twice. Give each a name of its own, as in "
            f"small={doubles[0]},..."
        )


def keep(model: Model, whole: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Keep the whole configuration of a model in the folder.

    Returns:
        The files for training, and for testing: that has no model, as its checkpoint has one.

    Raises:
        ValueError: If the runs that are there were made with another configuration.
    """
    fit = folder / "configs" / f"{model.folder}.yaml"
    if fit.is_file() and (before := yaml.safe_load(fit.read_text("utf-8"))) != whole:
        raise ValueError(
            f"{fit}: {first_difference(before, whole)} is not what the runs of {model.name} in "
            f"{folder} were made with. Give another --output, or another name, as in "
            f"new={model.class_path}; or delete that file, and the rows of {model.name} in "
            "results.csv."
        )
    test = fit.with_suffix(".test.yaml")
    parts = {"data", "trainer"}
    for path, content in ((fit, whole), (test, {k: whole[k] for k in whole if k in parts})):
        write_text(path, yaml.safe_dump(content, sort_keys=False))
    return fit, test


def split_options(whole: Mapping[str, Any], folds: int | None, fold: int | None) -> tuple[str, ...]:
    """The options that name a fold; none without folds."""
    if folds is None:
        return ()
    key = folds_key(whole)
    return f"--{key}.folds={folds}", f"--{key}.fold={fold}"


def resolved(model: Model, settings: Sequence[str]) -> dict[str, Any]:
    """The whole configuration of a model, as ``tax fit --print_config`` prints it.

    Raises:
        ValueError: If ``tax fit`` would refuse it.
    """
    from tax_lightning.cli import TAXCLI  # here, as it imports torch, which takes seconds

    flags = [f"--model={model.class_path}", *model.options, "--print_config"]
    printed, said = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
            TAXCLI.run(["fit", *settings, *flags])
    except SystemExit as stop:
        if stop.code:  # what was said begins with the usage of `tax fit`
            error = said.getvalue().rpartition("error: ")[2].strip()
            raise ValueError(f"configuration of {model.name}: {error}") from stop
    whole: dict[str, Any] = yaml.safe_load(printed.getvalue())
    return whole


def folds_key(whole: Mapping[str, Any]) -> str:
    """The key of the arguments of the data module that draws the folds.

    Raises:
        ValueError: If there is none.

    Example:
        >>> folds_key({"data": {"class_path": "A", "init_args": {"folds": None}}})
        'data.init_args'
    """
    key, part = "data", whole["data"]
    while isinstance(part, Mapping) and "init_args" in part:
        key, arguments = f"{key}.init_args", part["init_args"]
        if "folds" in arguments:
            return key
        key, part = f"{key}.data", arguments.get("data")
    raise ValueError(
        f"--folds: {whole['data']['class_path']} has no folds, as it makes up its images or takes "
        "splits as they are. Leave it out, and give several --seeds."
    )


def first_difference(one: Any, other: Any, key: str = "") -> str:  # noqa: ANN401 - parts of YAML
    """The first key at which two configurations differ.

    Example:
        >>> first_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
        'a.c'
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in sorted({*one, *other}):
            if one.get(name) != other.get(name):
                return first_difference(one.get(name), other.get(name), f"{key}.{name}".strip("."))
    return key


def draw_figure(path: Path, found: Selection, names: Sequence[str]) -> Path:
    """Dot plots: a line for each model, a panel for each figure, a ring for each seed or fold."""
    panels = []
    for figure in SEGMENTATION + DISAGREEMENT:
        points = {name: values for name in names if (values := found.values(name, figure.key))}
        if figure.key in DRAWN and points:
            hint = "higher is better" if figure.better > 0 else "lower is better"
            title = figure.title.replace("²", "^2")  # which the built-in font has not
            panels.append(Panel(title, hint, points))
    write_png(path, draw([Row(name, name) for name in names], panels, names[0]))
    return path
