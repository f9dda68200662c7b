"""Commands that are killed at many places, run again, and compared with commands that were not.

    python -m experiments.reliability.kills FOLDER --kills 60

Every command runs in a process of its own. The first kills are aimed: at a file that was written
but has not got its name yet, or at a training step. The others come at a random time. Then the
command is run again, for a training with ``--resume``. All files must be whole, none may be left
over, and all must be those of the command that was not killed: weights, figures, masks and
pictures to the last bit. The table ``kills.csv`` beside this file has a row for each kind of kill.
"""

import argparse
import csv
import fnmatch
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tax_lightning import files
from tax_lightning.__main__ import main as tax
from tax_lightning.modules.tax import TAXLightningModule
from tax_lightning.simulation import SyntheticDataModule

REPO = Path(__file__).parents[2]
FIT = [
    *(f"--config={REPO / name}" for name in ("experiments/quickstart.yaml", "tests/tiny.yaml")),
    *("--trainer.logger=false", "--trainer.max_epochs=3", "--data.init_args.train_samples=12"),
    *("--explanations.samples=1", "--explanations.every_n_epochs=2"),
]
STEPS, NINE, TERM = 9, signal.SIGKILL, signal.SIGTERM
Kill = Callable[[], None]


def at_step(number: int, kind: int = NINE) -> Kill:
    """A signal within training step ``number``, from 1."""

    def arm() -> None:
        left, step = [number], TAXLightningModule.training_step

        def training_step(module: Any, batch: Any, batch_idx: int) -> Any:  # noqa: ANN401
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), kind)
            return step(module, batch, batch_idx)

        TAXLightningModule.training_step = training_step

    return arm


def at_file(pattern: str, number: int = 1, kind: int = NINE) -> Kill:
    """A signal after a file was written, before it gets its name."""

    def arm() -> None:
        left, replace = [number], os.replace

        def killed(source: str, target: str) -> None:
            left[0] -= fnmatch.fnmatch(str(target), pattern)
            if left[0] == 0:
                os.kill(os.getpid(), kind)
            replace(source, target)

        files.os.replace = killed

    return arm


def at_time(seconds: float) -> Kill:
    """A signal after so many seconds."""

    def wait() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), NINE)

    return lambda: threading.Thread(target=wait, daemon=True).start()


AIMED: list[tuple[str, str, Kill]] = [
    ("fit", "last.ckpt", at_file("*last.ckpt", 2)),
    ("fit", "best.ckpt", at_file("*best.ckpt")),
    ("fit", "picture", at_file("*.png", 2)),
    ("fit", "page", at_file("*report.html")),
    ("fit", "metrics.json", at_file("*metrics.json")),
    ("fit", "SIGTERM in a step", at_step(5, TERM)),
    ("fit", "SIGTERM in an epoch's last step", at_step(6, TERM)),
    ("fit", "SIGTERM in the last step", at_step(STEPS, TERM)),
    ("import", "mask", at_file("*masks*", 4)),
    ("import", "table", at_file("*samples.csv")),
    ("predict", "mask", at_file("*.png", 3)),
    ("predict", "maps", at_file("*.npz", 2)),
    ("predict", "manifest", at_file("*manifest.json")),
    ("explain", "page", at_file("*index.html")),
    ("explain", "maps", at_file("*.npz")),
]


def command(name: str, to: Path, base: Path) -> list[str]:
    """The arguments of a command that writes to a folder."""
    if name == "fit":
        return ["fit", *FIT, f"--output={to}"]
    if name == "import":
        return ["import", "arrays", str(base / "arrays"), str(to)]
    given = [f"--ckpt_path={base / 'fit' / 'checkpoints' / 'best.ckpt'}", f"--output={to}"]
    return [name, *(FIT if name == "predict" else FIT[:2]), *given]


def run(arguments: list[str], log: Path, kill: Kill | None = None) -> int:
    """The exit code of ``tax``; minus the number of the signal that killed it."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(arguments, log, kill))
    process.start()
    process.join()
    return process.exitcode or 0


def _run(arguments: list[str], log: Path, kill: Kill | None) -> None:
    with log.open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.argv[1:] = arguments
    if kill is not None:
        kill()
    tax(arguments)


def contents(folder: Path) -> dict[str, Any]:
    """What the files of a folder hold, by name, without paths, commands and times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".ckpt":
            state = torch.load(path, weights_only=True)["state_dict"].items()
            found[name] = {k: digest(v) if torch.is_tensor(v) else repr(v) for k, v in state}
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                found[name] = {
                    key: digest(torch.tensor(arrays[key]))
                    if arrays[key].dtype.kind != "U"
                    else arrays[key].tolist()
                    for key in arrays
                }
        elif path.suffix == ".json":
            known = json.loads(path.read_text("utf-8"))
            found[name] = known.get("images", known.get("fit", {}).get("metrics"))
        elif path.is_file() and name not in ("config.yaml", "import.txt"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def digest(values: torch.Tensor) -> str:
    """Of all bits of a tensor."""
    raw = values.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()


def make_arrays(folder: Path) -> None:
    """Six scenes and their masks as arrays, for the import."""
    data = SyntheticDataModule(size=64, train_samples=6, val_samples=1, test_samples=1)
    for number, scene in enumerate(data._samples_of("train")[i] for i in range(6)):
        planes = {
            "images": scene.image,
            **{f"masks/{n}": scene.masks[i] for i, n in enumerate(data.annotators)},
        }
        for place, plane in planes.items():
            (folder / place).mkdir(parents=True, exist_ok=True)
            np.save(folder / place / f"scene {number}.npy", plane)


def main() -> None:
    """Kill, run again, compare, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="Where to; made anew.")
    parser.add_argument("--kills", type=int, default=60)
    options = parser.parse_args()
    base = options.folder.resolve()
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    torch.set_num_threads(1)
    os.environ.pop("PL_GLOBAL_SEED", None)
    make_arrays(base / "arrays")
    log, rng, seconds, expected = base / "log.txt", random.Random(0), {}, {}
    for name in ("fit", "import", "predict", "explain"):
        start = time.monotonic()
        assert run(command(name, base / name, base), log) == 0, f"{name}: see {log}"
        seconds[name], expected[name] = time.monotonic() - start, contents(base / name)
    kills = AIMED[: options.kills]
    while len(kills) < options.kills:
        name = rng.choice(["fit", "fit", "fit", "import", "predict", "explain"])
        if name == "fit" and rng.random() < 0.5:
            kills.append(
                (name, "a random step", at_step(rng.randint(1, STEPS), rng.choice([NINE, TERM])))
            )
        else:
            kills.append((name, "a random time", at_time(rng.random() * seconds[name])))
    rows: dict[tuple[str, str], Counter[str]] = {}
    for number, (name, aim, kill) in enumerate(kills):
        to = base / f"{number}-{name}"
        arguments = command(name, to, base)
        ended = run(arguments, log, kill)
        again = {
            "fit": ["--resume=last"],
            "predict": ["--predictions.overwrite=true"],
            "explain": ["--overwrite=true"],
        }
        done = ended == 0 or run([*arguments, *again.get(name, [])], log) == 0
        found = contents(to) if done else {}
        row = rows.setdefault((name, aim), Counter())
        row.update(
            kills=1, killed=int(ended != 0), completed=int(done), equal=int(found == expected[name])
        )
        print(number, name, aim, ended, done, found == expected[name], flush=True)
        if found != expected[name]:
            print(
                [
                    key
                    for key in found.keys() | expected[name].keys()
                    if found.get(key) != expected[name].get(key)
                ]
            )
        else:
            shutil.rmtree(to)
    with Path(__file__).with_name("kills.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["command", "killed at", "kills", "ended by it", "completed afterwards", "equal"]
        )
        for (name, aim), row in rows.items():
            writer.writerow(
                [name, aim, *(row[key] for key in ("kills", "killed", "completed", "equal"))]
            )


if __name__ == "__main__":
    main()
