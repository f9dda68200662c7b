"""Configurations with one mistake each, and what `tax fit` says to them.

    python -m experiments.reliability.configurations --cases 300 --seed 0

Every shipped configuration is made small, so that a training is one step on made-up images. Then
one thing in it is changed: a key is dropped, misspelt or moved, a value gets another type or is out
of its range, a class is misspelt. Each case runs in a process of its own, forked after the imports.

A case is clear if it is refused with exit code 1 or 2 by a message without a traceback, of at most
ten lines of at most 300 characters, that names the key and, where that was changed, the value. It
is also clear if it runs to its end and the change is harmless. That is so where a dropped key has a
default, and where the new value is one that the option is documented to take: see `takes`. Whatever
else runs was accepted wrongly. The table ``configurations.csv`` beside this file has a row for each
kind of mistake.
"""

import argparse
import copy
import csv
import multiprocessing
import os
import random
import re
import resource
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import wandb
import yaml
from PIL import Image

from tax_lightning.__main__ import main as tax
from tax_lightning.cli import TAXCLI  # noqa: F401 - imported once, before processes are forked
from tax_lightning.modules import calibration

REPO = Path(__file__).parents[2]
CONFIGS = sorted(
    path
    for path in (REPO / "experiments").rglob("*.yaml")
    if path.stem != "sweep"  # W&B's own
)
OVERLAYS = {"ddp", "debug"}  # of the quick start
ENDS_SOON = ("--trainer.max_steps=2", "--trainer.limit_val_batches=1")
SMALL = {
    **dict.fromkeys(("height", "width", "max_size", "min_height", "min_width", "size"), 64),
    **{"train_samples": 4, "val_samples": 2, "test_samples": 2, "batch_size": 2, "devices": 1},
    **{
        "num_workers": 0,
        "encoder_depth": 3,
        "decoder_channels": [8, 8, 8],
        "samples": 1,
        "check_val_every_n_epoch": 1,
    },
    **{"encoder": "tu-test_resnet.r160_in1k", "min_area": 12, "max_area": 40, "source": "Ana"},
}
OTHER_TYPES: dict[str, Any] = {
    **{"a text": "many", "a number": 7.5, "null": None},
    **{"a list": [3], "a dictionary": {"a": 1}, "true": True},
}
OUT_OF_RANGE: dict[str, Any] = {
    **{"negative": -3, "zero": 0, "huge": 10**9, "not a number": float("nan")}
}
KINDS = (
    *("key dropped", "key misspelt", "key moved", "class misspelt"),
    *(f"value becomes {name}" for name in OTHER_TYPES),
    *(f"number {name}" for name in OUT_OF_RANGE),
)
LINES, WIDTH, SECONDS, MEMORY = 10, 300, 60, 8 * 2**30

# Keys that take such a value, by the documentation of their class.
RANGES = ("brightness_limit", "contrast_limit", "rotate", "scale")  # of albumentations: any numbers
HARMLESS = {
    "value becomes a text": ("name", "project"),
    "value becomes null": (
        *("backbone_options", "channels", "check_val_every_n_epoch", "classes", "deterministic"),
        *("enable_model_summary", "enable_progress_bar", "eval_transforms", "log_every_n_steps"),
        *("logger", "lr_scheduler", "mask_values", "max_epochs", "name", "optimizer"),
        *("rule", "seed_everything", "train_transforms"),
    ),
    "value becomes true": ("fast_dev_run", "logger", "seed_everything"),
    "number negative": ("dx", "dy", *RANGES),
    "number zero": (
        *("dx", "dy", "eta_min", "fast_dev_run", "log_every_n_steps", "lr", "max_epochs"),
        *("min_area", "num_workers", "p", "pixels", "seed_everything", "test_fraction"),
        *("weight_decay", *RANGES),
    ),
    "number huge": (
        *("T_max", "batch_size", "check_val_every_n_epoch", "dx", "dy", "every_n_epochs"),
        *("log_every_n_steps", "max_area", "max_epochs", "min_area", "samples", "seed_everything"),
        *RANGES,
    ),
}

Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class Case:
    """A mistake: the settings with it, where it is, and what is wrong there."""

    kind: str
    file: str
    path: Path_
    wrong: Any
    settings: dict[str, Any]

    @property
    def key(self) -> str:
        """The last name in the path."""
        return str(next(part for part in reversed(self.path) if not isinstance(part, int)))

    def __str__(self) -> str:
        return f"{self.kind:26s} {self.file} {'.'.join(map(str, self.path))} -> {self.wrong!r}"


def made_up(folder: Path) -> Path:
    """Eight images of cells by Ana and Ben; 0 and 255 in their masks."""
    rng = np.random.default_rng(0)
    for i in range(8):
        mask = np.zeros((64, 64), np.uint8)
        mask[8:20, 4 + i : 18 + i] = 255
        image = (rng.integers(0, 80, (64, 64, 3)) + mask[..., None] // 2).astype(np.uint8)
        planes = {"images": image, "masks/Ana": mask, "masks/Ben": np.roll(mask, 2, axis=0)}
        for place, plane in planes.items():
            (folder / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(plane).save(folder / place / f"cell {i}.png")
    return folder


def imported(folder: Path) -> Path:
    """The same as `tax import` writes it, so that classes need not be named."""
    made_up(folder)
    for path in folder.glob("masks/*/*.png"):
        Image.fromarray(np.asarray(Image.open(path)) // 255).save(path)
    description = {"format": 1, "name": "cells", "classes": ["background", "cell"], "ignore": 255}
    description |= {"channels": ["red", "green", "blue"]}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(description))
    return folder


def made_small(settings: Any, root: dict[bool, str], base: str) -> Any:  # noqa: ANN401
    """The settings for made-up data: the same keys, smaller numbers."""
    if isinstance(settings, list):
        return [made_small(part, root, base) for part in settings]
    if not isinstance(settings, dict):
        return settings
    small = {key: made_small(value, root, base) for key, value in settings.items()}
    small |= {key: copy.copy(SMALL[key]) for key in small.keys() & SMALL.keys()}
    if "decoder_channels" in small and "encoder_depth" not in small:
        small["decoder_channels"] += [8, 8]
    if "root" in small:
        small["root"] = root["mask_values" in small]
    if small.get("encoder_weights"):
        small["encoder_weights"] = None
    if "base" in small:
        small["base"] = base
    return small


def places(settings: Any, path: Path_ = ()) -> Iterator[Path_]:  # noqa: ANN401
    """The path of every value."""
    parts = settings.items() if isinstance(settings, dict) else enumerate(settings)
    for key, value in parts:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def at(settings: Any, path: Path_) -> Any:  # noqa: ANN401
    """The value at a path."""
    for part in path:
        settings = settings[part]
    return settings


def misspelt(name: str, rng: random.Random) -> str:
    """Two neighbouring letters in the last part change places, or one is left out."""
    first, dot, last = name.rpartition(".")
    while True:
        i = rng.randrange(len(last) - 1)
        other = rng.choice(
            [last[:i] + last[i + 1] + last[i] + last[i + 2 :], last[:i] + last[i + 1 :]]
        )
        if other not in (last, ""):
            return first + dot + other


def mistake(kind: str, file: str, settings: dict[str, Any], rng: random.Random) -> Case | None:
    """One mistake of a kind in these settings; None where there is no place for it."""
    new = copy.deepcopy(settings)
    every = list(places(settings))
    named = [path for path in every if isinstance(path[-1], str)]
    if kind == "key dropped":
        *parent, key = rng.choice(named)
        del at(new, tuple(parent))[key]
        return Case(kind, file, (*parent, key), None, new)
    if kind == "key misspelt":
        *parent, key = rng.choice([path for path in named if len(str(path[-1])) > 2])
        section, other = at(new, tuple(parent)), misspelt(str(key), rng)
        section[other] = section.pop(key)
        return Case(kind, file, (*parent, other), None, new)
    if kind == "class misspelt":
        paths = [path for path in named if path[-1] == "class_path"]
        if not paths:
            return None
        path = rng.choice(paths)
        wrong = at(new, path[:-1])["class_path"] = misspelt(at(new, path), rng)
        return Case(kind, file, path, wrong, new)
    if kind == "key moved":
        sections = [(), *(path for path in every if isinstance(at(settings, path), dict))]
        *parent, key = rng.choice(named)
        path = (*parent, key)
        to = rng.choice([s for s in sections if s != tuple(parent) and s[: len(path)] != path])
        value = at(new, tuple(parent)).pop(key)
        if key in at(new, to):
            return None
        at(new, to)[key] = value
        return Case(kind, file, (*to, key), None, new)
    if kind.startswith("value becomes "):
        wrong = OTHER_TYPES[kind.removeprefix("value becomes ")]
        path = rng.choice([p for p in every if type(at(settings, p)) is not type(wrong)])
    else:
        wrong = OUT_OF_RANGE[kind.removeprefix("number ")]
        numbers = [
            p for p in every if type(at(settings, p)) in (int, float) and at(settings, p) != wrong
        ]
        if not numbers:
            return None
        path = rng.choice(numbers)
    at(new, path[:-1])[path[-1]] = copy.copy(wrong)
    return Case(kind, file, path, wrong, new)


def run(files: Sequence[str], folder: Path) -> tuple[int | None, str, float]:
    """Exit code (None: it took too long), what was said, and seconds of the processor."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    process = multiprocessing.get_context("fork").Process(target=_run, args=(files, folder))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return None, (folder / "stderr").read_text()[-2000:], float(SECONDS)
    said = (folder / "said").read_text() if (folder / "said").is_file() else ""
    seconds = float((folder / "seconds").read_text()) if (folder / "seconds").is_file() else 0.0
    return process.exitcode, said or (folder / "stderr").read_text(), seconds


def _run(files: Sequence[str], folder: Path) -> None:
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
    arguments = ["fit", *(f"--config={file}" for file in files), *ENDS_SOON]
    sys.argv[1:] = arguments
    code: Any = 0
    start = time.process_time()
    try:
        tax(arguments)
    except SystemExit as stop:
        code = stop.code or 0
        if isinstance(code, str):
            Path("said").write_text(code)
            code = 1
    except BaseException:
        Path("said").write_text(traceback.format_exc())
        code = 99
    Path("seconds").write_text(str(time.process_time() - start))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_named(value: Any, text: str) -> bool:  # noqa: ANN401
    """Whether a value stands in a message."""
    forms = {str(value), repr(value), yaml.safe_dump(value, default_flow_style=True).split("\n")[0]}
    if isinstance(value, float | int):
        forms |= {f"{value:g}", str(float(value))}
    return any(re.search(rf"(?<!\w){re.escape(form)}(?!\w)", text) for form in forms)


def parts_of(value: Any) -> list[Any]:  # noqa: ANN401
    """A value, and what is in it: any of these may be what a message is about."""
    return [value, *(value if isinstance(value, list | dict) else ())]


def fault(case: Case, code: int | None, said: str) -> str:
    """What is wrong with the answer to a mistake; nothing where it is clear."""
    if code == 0:
        return "" if takes(case) else "accepted"
    if code not in (1, 2):
        return "too long" if code is None else "traceback" if code == 99 else f"exit code {code}"
    lines = said.strip().splitlines()
    if "Traceback" in said:
        return "traceback"
    if len(lines) > LINES or max(map(len, lines), default=0) > WIDTH:
        return f"{len(lines)} lines, {max(map(len, lines), default=0)} characters"
    if not re.search(rf"(?<![A-Za-z]){re.escape(case.key)}(?![A-Za-z])", said):
        return "key not named"
    changed = case.kind.startswith(("value", "number", "class")) and case.wrong is not None
    if changed and not any(is_named(part, said) for part in parts_of(case.wrong)):
        return "value not named"
    return ""


def takes(case: Case) -> bool:
    """Whether what was changed is harmless: a default, or a value that the option takes."""
    return case.kind == "key dropped" or case.key in HARMLESS.get(case.kind, ())


def main() -> None:
    """Make the mistakes, run them, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="Numbers of the cases to run.")
    parser.add_argument("--log", type=Path, help="File that gets every message.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"WANDB_SILENT": "true", "HF_HUB_OFFLINE": "1"}
    rng, start = random.Random(options.seed), wandb.init
    with (
        tempfile.TemporaryDirectory() as temporary,
        patch.multiple(calibration, FIT_STEPS=1, FIT_PIXELS=256, MOST_PIXELS=1024),
        patch.object(wandb, "init", lambda **given: start(**{**given, "mode": "disabled"})),
    ):
        folder = Path(temporary)
        root = {True: str(made_up(folder / "cells")), False: str(imported(folder / "imported"))}
        base = folder / "base" / "checkpoints" / "last.ckpt"
        shipped = {}
        for path in CONFIGS:
            name = path.relative_to(REPO / "experiments").as_posix()
            shipped[name] = made_small(yaml.safe_load(path.read_text()), root, str(base))
        for name, settings in shipped.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(yaml.safe_dump(settings))
        first = copy.deepcopy(shipped["quickstart.yaml"])
        first["data"]["init_args"]["annotators"] = ["Ana", "Ben"]
        first["trainer"] |= {"default_root_dir": str(folder / "base"), "logger": False}
        (folder / "first.yaml").write_text(yaml.safe_dump(first))
        code, said, seconds = run([str(folder / "first.yaml")], folder / "run")
        assert code == 0, said
        print("base", seconds, flush=True)
        rows: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        to_message = []
        log = (options.log or Path(os.devnull)).open("w")
        number = 0
        while number < options.cases:
            kind, name = KINDS[number % len(KINDS)], rng.choice(list(shipped))
            case = mistake(kind, name, shipped[name], rng)
            if case is None:
                continue
            number += 1
            if options.only is not None and number - 1 not in options.only:
                continue
            mutated = folder / "mutated.yaml"
            mutated.write_text(yaml.safe_dump(case.settings, sort_keys=False))
            files = [str(folder / "quickstart.yaml")] * (Path(name).stem in OVERLAYS)
            code, said, seconds = run([*files, str(mutated)], folder / "run")
            wrong = fault(case, code, said)
            rows[kind].update({"cases": 1, "ran": int(code == 0 and not wrong)})
            rows[kind].update(
                {"refused": int(code != 0 and not wrong), "unclear": int(bool(wrong))}
            )
            if code != 0:
                to_message.append(seconds)
            print(
                f"{number - 1:4d} {code} {seconds:5.1f} {case} {'*** ' + wrong if wrong else ''}",
                flush=True,
            )
            print(
                f"=== {number - 1} {code} {seconds:.1f} {case} [{wrong}]\n{said[-4000:]}",
                file=log,
                flush=True,
            )
    print(f"median of the seconds to a message: {statistics.median(to_message or [0]):.2f}")
    with Path(__file__).with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["mistake", "cases", "refused clearly", "ran, harmless", "unclear"])
        for kind, row in rows.items():
            writer.writerow([kind, *(row[key] for key in ("cases", "refused", "ran", "unclear"))])


if __name__ == "__main__":
    main()
