"""Exports that were damaged at random, each imported: refused in one message, or read right.

    python -m experiments.reliability.foreign_files --cases 10000 --seed 0 --source coco cvat

For every source of ``tax import`` a small valid export is made as the tests do, and one or two of
its files are changed: bytes, keys and values of JSON, XML and CSV, whole files. Then it is
imported in a worker process with bounded memory and time. Two ends are right: ``tax`` refuses it
with one message, or the data set that it wrote opens and every image of it can be read. In either
case nothing may be written beside it, and no file of the export may change. The table
``foreign_files.csv`` beside this file has a row for each source.
"""

import argparse
import contextlib
import csv
import gzip
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[2]
sys.path.insert(0, str(REPO / "tests"))

from foreign_exports import EXPORTS  # noqa: E402 - the makers stand among the tests

from tax_lightning.__main__ import main as tax  # noqa: E402
from tax_lightning.data import FolderDataModule  # noqa: E402

SECONDS, MOST = 10, 1 << 30
"""The longest import, and the most memory in bytes that it may take beyond that of the worker."""
LONGEST = 2000  # characters of a message
ENDS = ("refused", "imported", "other exception", "hung or died")
ODD: tuple[Any, ...] = (
    *(None, True, "", [], {}, 0, -1, 0.5, float("nan"), float("inf"), 1e308, 10**30, 2**31, 10**6),
    *("../../x", "/tmp/x", "..", ".", "a/b", "C:\\x", "<b onload=x>", "=1+1", "a\nb", "a\0b"),
    *("x" * 300, "\ud800", "CON", " ", "é" * 130, [[[]]], [0] * 50, {"a": {"b": [None]}}),
)
Random = random.Random


class Hang(BaseException):
    """An import that takes too long; no ``except Exception`` holds it."""


# What is changed


def flipped(data: bytes, rng: Random) -> bytes:
    """Some bits are others."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if changed:
            changed[_place(len(changed), rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def replaced(data: bytes, rng: Random) -> bytes:
    """Some bytes are others."""
    place = _place(len(data), rng)
    new = rng.choice((rng.randbytes(4), b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"9999999"))
    return data[:place] + new + data[place + len(new) :]


def inserted(data: bytes, rng: Random) -> bytes:
    """Bytes are added."""
    place = _place(len(data), rng)
    return data[:place] + rng.randbytes(rng.choice((1, 3, 50))) + data[place:]


def deleted(data: bytes, rng: Random) -> bytes:
    """Bytes are missing."""
    place = _place(len(data), rng)
    return data[:place] + data[place + rng.choice((1, 2, 20)) :]


def truncated(data: bytes, rng: Random) -> bytes:
    """The end is missing."""
    return data[: _place(len(data), rng)]


def noise(data: bytes, rng: Random) -> bytes:
    """Nothing is as it was."""
    return rng.randbytes(rng.choice((1, 20, 1000)))


def emptied(data: bytes, rng: Random) -> bytes:
    """Nothing is left."""
    return b""


def inner(data: bytes, rng: Random) -> bytes:
    """What is compressed, changed before its compression."""
    if data[:2] != b"\x1f\x8b":
        return flipped(data, rng)
    return gzip.compress(rng.choice((flipped, replaced, truncated))(gzip.decompress(data), rng), 1)


def _place(size: int, rng: Random) -> int:
    """A place in a file, half of them in its header."""
    return rng.randrange(min(size, rng.choice((size, 400))) or 1) if size else 0


def restructured(data: bytes, rng: Random) -> bytes:
    """JSON of which some keys or values are others, or that is nested deeply."""
    if rng.random() < 0.05:
        depth = rng.choice((50, 500, 100_000))
        return b"[" * depth + b"]" * depth
    document = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        document = _changed(document, rng)
    return json.dumps(document).encode()


def _changed(value: Any, rng: Random) -> Any:  # noqa: ANN401
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        if isinstance(value, int | float) and rng.random() < 0.3:
            return rng.choice((-value, value * 1e6, str(value), [value]))
        return rng.choice(ODD)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, kind = rng.choice(keys), rng.random()
    if kind < 0.1:
        del value[key]
    elif kind < 0.15 and isinstance(value, list):
        value.append(value[key])
    elif kind < 0.15 and isinstance(value, dict):
        value[str(rng.choice(ODD))] = value.pop(key)
    else:
        value[key] = _changed(value[key], rng)
    return value


def marked_up(data: bytes, rng: Random) -> bytes:
    """XML of which a value, a name or an element is another."""
    text, kind = data.decode(), rng.random()
    if kind < 0.1:
        depth = rng.choice((100, 100_000))
        return ("<a>" * depth + "</a>" * depth).encode()
    if kind < 0.2:
        return b'<!DOCTYPE a [<!ENTITY b "c">]>' + data
    pattern = r'(?<==")[^"]*(?=")' if kind < 0.7 else r"<[^>]*>|\b\w+(?==)"
    return _one(pattern, text, rng).encode("utf-8", "surrogatepass")


def tabled(data: bytes, rng: Random) -> bytes:
    """CSV of which one cell is another."""
    return _one(r"[^,\n]*", data.decode(), rng).encode("utf-8", "surrogatepass")


def _one(pattern: str, text: str, rng: Random) -> str:
    matches = list(re.finditer(pattern, text))
    if not matches:  # changed before
        return f"{text}{rng.choice(ODD)}"
    match = rng.choice(matches)
    new = rng.choice((str(rng.choice(ODD)), "", match[0] * 2, match[0] + '"'))
    return text[: match.start()] + new + text[match.end() :]


BYTES = (flipped, replaced, inserted, deleted, truncated, noise, emptied, inner)
BY_SUFFIX: dict[str, Callable[[bytes, Random], bytes]] = {
    ".json": restructured,
    ".geojson": restructured,
    ".xml": marked_up,
    ".csv": tabled,
}


def spoil(folder: Path, rng: Random) -> str:
    """Change one or two files below a folder; returns what was done."""
    done = []
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    texts = [path for path in files if path.suffix in BY_SUFFIX]
    for _ in range(rng.choice((1, 1, 1, 2))):
        path = rng.choice(texts if texts and rng.random() < 0.7 else files)
        if not path.is_file():
            continue
        if rng.random() < 0.12:
            done.append(f"{_exchanged(path, files, folder, rng)} {path.relative_to(folder)}")
            continue
        structural = BY_SUFFIX.get(path.suffix)
        change = structural if structural and rng.random() < 0.75 else rng.choice(BYTES)
        # what was changed before may not be readable any more
        with contextlib.suppress(ValueError, EOFError, RecursionError, zlib.error):
            path.write_bytes(change(path.read_bytes(), rng))
        done.append(f"{change.__name__} {path.relative_to(folder)}")
    return "; ".join(done)


def _exchanged(path: Path, files: list[Path], folder: Path, rng: Random) -> str:
    """A file whose name, place or kind is another."""
    kind = rng.choice(("swapped", "folder", "link", "dangling", "loop", "gone", "named", "up"))
    if kind == "swapped":
        other = rng.choice(files)
        if other.is_file():
            path.write_bytes(other.read_bytes())
        return kind
    if kind == "named":
        # "*" and "?" in a name are no patterns
        start = rng.choice(("=1+1", "<b>", "a\nb", "..x", "\udcff", "[*", "é", "%s{0}"))
        path.rename(path.with_name(start + path.name))
        return kind
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(rng.choice(files))
    elif kind == "dangling":
        path.symlink_to(folder / "nowhere")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "up":
        path.symlink_to(folder.parent)
    return kind


# What becomes of it


def carry_out(source: str, template: Path, seed: str) -> dict[str, str]:
    """One case: how it ended, and what was changed and said."""
    rng = Random(seed)
    with tempfile.TemporaryDirectory(prefix="case") as made:
        folder = Path(made) / "deep" / "er"
        shutil.copytree(template, folder / "in")
        given, options = _arguments(template, folder / "in")
        change = spoil(folder / "in", rng)
        before = _state(Path(made))
        os.chdir(folder)
        end, said = _imported(source, given, options, folder / "out")
        os.chdir(REPO)
        shutil.rmtree(folder / "out", ignore_errors=True)
        after = _state(Path(made))
        if after != before:
            end, said = (
                "other exception",
                f"files changed: {sorted(before.items() ^ after.items())}",
            )
    return {"seed": seed, "end": end, "change": change, "said": said}


def write_template(source: str, folder: Path) -> Path:
    """Write the valid export of a source below a folder, and what is to be imported beside it."""
    template = folder / source.replace(" ", "_")
    template.mkdir()
    start, options = EXPORTS[source](template)
    template.with_suffix(".args").write_text(json.dumps([str(start), *options]))
    end, said = _imported(source, str(start), options, folder / "valid")
    if end != "imported":
        raise RuntimeError(f"{source}: the valid export is {end}: {said}")
    shutil.rmtree(folder / "valid")
    return template


def _arguments(template: Path, folder: Path) -> tuple[str, list[str]]:
    """What is imported, and the options, of an export that was copied to a folder."""
    given = json.loads(template.with_suffix(".args").read_text())
    start, *options = [text.replace(str(template), str(folder)) for text in given]
    return start, options


def _state(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def _imported(source: str, given: str, options: list[str], out: Path) -> tuple[str, str]:
    Path("/proc/self/clear_refs").write_text("5")  # the most memory so far is that of now
    base = _most_memory()
    signal.alarm(SECONDS)
    try:
        screen = io.TextIOWrapper(io.BytesIO(), "utf-8")
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(io.StringIO()):
            tax(["import", source.split()[0], given, str(out), *options])
            _open(out)
    except Hang as error:
        return "hung or died", _where(error)
    except SystemExit as stop:
        said = str(stop.code)
        short = said.startswith("tax: error: ") and len(said) <= LONGEST
        end = "refused" if short and "Traceback" not in said else "other exception"
    except BaseException as error:  # what it is, is the result
        return "other exception", _where(error)
    else:
        end, said = "imported", ""
    finally:
        signal.alarm(0)
    taken = _most_memory() - base
    return (end, said) if taken <= MOST else ("hung or died", f"took {taken} bytes; {said}")


def _open(out: Path) -> None:
    """Open a written data set and read all of it."""
    table = FolderDataModule(out, val_fraction=0.0, test_fraction=0.0).table
    for number in range(len(table)):
        table[number]


def _most_memory() -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def _where(error: BaseException) -> str:
    frames = [
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    return f"{type(error).__name__}: {str(error)[:300]} at {' '.join(frames[-6:])}"


# Workers


def results(source: str, template: Path, seeds: list[str]) -> Iterator[dict[str, str]]:
    """The cases of a source, in one worker at a time; another one follows where it dies."""
    while seeds:
        read, write = os.pipe()
        worker = os.fork()
        if worker == 0:
            os.close(read)
            _work(source, template, seeds, write)
        os.close(write)
        with os.fdopen(read) as lines:
            for line in lines:
                result = json.loads(line)
                seeds = seeds[1:]
                yield result
        _, status = os.waitpid(worker, 0)
        if seeds:
            yield {"seed": seeds[0], "end": "hung or died", "change": "", "said": f"died: {status}"}
            seeds = seeds[1:]


def _hang(number: int, frame: object) -> None:
    raise Hang


def _work(source: str, template: Path, seeds: list[str], write: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MOST * 3 // 2
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # what hangs within a library does not come back to Python: the system ends it
    try:
        for seed in seeds:
            used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
            resource.setrlimit(resource.RLIMIT_CPU, (int(used) + 3 * SECONDS, -1))
            result = carry_out(source, template, seed)
            os.write(write, (json.dumps(result) + "\n").encode())
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def note(row: dict[str, str]) -> None:
    """Write the row of a source into the table, in which those of others stay."""
    path, rows = Path(__file__).with_suffix(".csv"), {}
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            rows = {old["source"]: old for old in csv.DictReader(file)}
    rows[row["source"]] = row
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[source] for source in EXPORTS if source in rows)


def main() -> None:
    """Carry out all cases, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100, help="of each source")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of a single case; no table is written")
    parser.add_argument("--source", nargs="*", default=list(EXPORTS), choices=list(EXPORTS))
    parser.add_argument("--faults", type=Path, help="file for the cases that ended otherwise")
    given = parser.parse_args()
    signal.signal(signal.SIGALRM, _hang)
    with tempfile.TemporaryDirectory(prefix="foreign") as folder:
        for source in given.source:
            template = write_template(source, Path(folder))
            numbers = [given.only] if given.only is not None else range(given.cases)
            seeds = [f"{given.seed}-{source}-{number}" for number in numbers]
            ends: Counter[str] = Counter()
            for result in results(source, template, seeds):
                ends[result["end"]] += 1
                if given.faults and result["end"] in ENDS[2:]:
                    with given.faults.open("a") as faults:
                        faults.write(json.dumps(result) + "\n")
            row = {"source": source, "cases": str(given.cases), **{e: str(ends[e]) for e in ENDS}}
            print(row, flush=True)
            if given.only is None:
                note(row)


if __name__ == "__main__":
    main()
