"""What the docs tell to type: Python runs as it stands, commands and YAML pass the real parsers."""

import itertools
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from squares import make_trainer

from tax_lightning import SyntheticDataModule, TAXLightningModule, cli
from tax_lightning.__main__ import main
from tax_lightning.arguments import ShortErrorParser

REPO = Path(__file__).parent.parent
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```(?:{code-cell} )?(\w+)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
PLAIN = re.compile(r"(?:(?<=\n\n)|(?<=^))((?: {4}.*\n|\n(?= {4}))+)")
CODE = re.compile(r"`([^`]+)`", flags=re.DOTALL)
# What stands for something of the reader's.
MEANT = {
    "SOURCE": "coco",
    "FILE": "mine.yaml",
    "CKPT": "best.ckpt",
    "[--tile 1024]": "--tile 1024",
}
SHORTER = {"n_trials=20": "n_trials=1", "max_epochs=5": "max_epochs=1", "range(16)": "range(4)"}
SAID = {  # what Python prints
    "README.md 0": "PrototypeSource(annotator='Ana'",
    "lightning.md 0": "torch.Size([1, 64, 64])",
    "lightning.md 1": "torch.Size([1, 2, 64, 64])",
    "lightning.md 2": "torch.Size([4, 2, 64, 64])",
}


def fenced(*languages):
    """The blocks in these languages, by page and number."""
    for page in PAGES:
        found = [text for kind, text in FENCED.findall(page.read_text()) if kind in languages]
        yield from ((f"{page.name} {i}", block) for i, block in enumerate(found))


TEXTS = [FENCED.sub("", page.read_text()) for page in PAGES]
INDENTED = [block for text in TEXTS for block in PLAIN.findall(text)]
# What needs a model as ONNX runs in test_export.
PYTHON = {name: block for name, block in fenced("python") if "import onnxruntime" not in block}
SHELL = "\n".join([*dict(fenced("sh", "ipython3")).values(), *INDENTED])
YAML = [*dict(fenced("yaml")).values(), *(x for x in INDENTED if re.match(" +[a-z_]+:\n", x))]


def commands():
    """Everything that begins with tax, in blocks and in running text, once."""
    lines = re.sub(r"\\\n *", "", SHELL).replace("&&", "\n").splitlines()
    quoted = [" ".join(code.split()) for text in TEXTS for code in CODE.findall(text)]
    # A flag alone is one of fit's, which has those of all other commands of the trainer too.
    quoted = [re.sub(r"^(?=--\w+[.=][\w.]*[= ])", "tax fit ", code) for code in quoted]
    found = (re.match(r" *%?tax +([a-z]+ .*)", line) for line in [*lines, *quoted])
    return sorted({re.split(" {5,}", match[1])[0].strip() for match in found if match})


class Parsed(BaseException):
    """The parser has taken the arguments."""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the docs name as the reader's own."""
    mine = (REPO / "experiments" / "bubil_mini.yaml").read_text()
    for name in ("mine.yaml", "cells.yaml"):
        (tmp_path / name).write_text(mine)
    (tmp_path / "experiments").symlink_to(REPO / "experiments")
    monkeypatch.chdir(tmp_path)
    return tmp_path


_set_up, _kept = cli.TAXCLI.setup_parser, {}


def _set_up_once(self, *args):
    """Build the parser of all subcommands once for all tests: that takes a second."""
    if not _kept:
        _set_up(self, *args)
        _kept.update({name: vars(self)[name] for name in ("parser", "_subcommand_parsers")})
    vars(self).update(_kept)


@pytest.fixture
def parsed(place, monkeypatch):
    """Whether the command's own parser takes these arguments."""
    depth, parse = itertools.count(), ShortErrorParser.parse_args
    model = {"hyper_parameters": {}, "class_path": "tax_lightning.TAXLightningModule"}
    monkeypatch.setattr(cli.TAXCLI, "setup_parser", _set_up_once)
    monkeypatch.setattr(cli, "checkpoint_in", lambda path, *_: path)
    monkeypatch.setattr(cli, "read_checkpoint", lambda *_: model)

    def parse_and_stop(*args, **options):
        outermost = next(depth) == 0
        settings = parse(*args, **options)
        if outermost:
            raise Parsed
        return settings

    def check(arguments):
        nonlocal depth
        depth = itertools.count()
        try:
            main(arguments)
        except Parsed:
            pass
        except SystemExit as stopped:  # of --help
            if stopped.code:
                raise

    monkeypatch.setattr(ShortErrorParser, "parse_args", parse_and_stop)
    return check


@pytest.mark.parametrize("command", commands())
def test_a_command_is_taken(command, parsed):
    for word, meant in MEANT.items():
        command = command.replace(word, meant)
    command = command.replace("...", "from to" if command.startswith("import") else "")
    kind, *arguments = shlex.split(command)
    if kind not in ("explain", "export", "import", "optimize") and "--config" not in arguments:
        arguments = ["--config", "mine.yaml", *arguments]
    if kind in ("test", "predict") and "--ckpt_path" not in arguments:
        arguments += ["--ckpt_path", "best.ckpt"]
    parsed([kind, *arguments])


@pytest.mark.parametrize("block", YAML)
def test_a_configuration_is_taken(block, parsed, place):
    settings, base = yaml.safe_load(block), "mine.yaml"
    if not settings.keys() & {"data", "model", "trainer"}:  # part of what simulated.yaml says
        settings, base = {"data": {"init_args": settings}}, "experiments/simulated.yaml"
    (place / "block.yaml").write_text(yaml.safe_dump(settings))
    parsed(["fit", "--config", base, "--config", "block.yaml"])


def test_the_sweep_gives_options_that_are_taken(parsed):
    sweep = yaml.safe_load((REPO / "experiments" / "sweep.yaml").read_text())
    values = {
        name: of.get("values", [of.get("min")])[0] for name, of in sweep["parameters"].items()
    }
    assert sweep["metric"] == {"name": TAXLightningModule.monitor, "goal": "maximize"}
    program, *arguments, last = sweep["command"]
    assert (sweep["program"], program, last) == ("tax", "${program}", "${args}")
    parsed([*arguments, *(f"--{name}={value}" for name, value in values.items())])


def test_a_misspelt_option_is_found(parsed, capsys):
    for wrong in (
        "fit --config mine.yaml --trainer.maxepochs=3",
        "import coco from to --tiles 8",
        "inspect --config mine.yaml --outputs x",
        "fit --config mine.yaml --model=MultiHeads",
    ):
        with pytest.raises(SystemExit):
            parsed(shlex.split(wrong))


def _quick_start():
    """The quick start made tiny, in one file."""
    settings = yaml.safe_load((REPO / "tests" / "tiny.yaml").read_text())
    settings["trainer"]["logger"] = False
    settings["data"]["class_path"] = "SyntheticDataModule"
    settings["model"]["class_path"] = "TAXLightningModule"
    settings["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.AdamW"}
    return settings


def given(page):
    """What a page takes for granted: names, and a checkpoint in this folder."""
    data = SyntheticDataModule(64, train_samples=4, val_samples=1, test_samples=1, batch_size=2)
    small = {"encoder_depth": 3, "decoder_channels": [8, 8, 8]}
    if page == "sweeps.md":
        Path("mine.yaml").write_text(yaml.safe_dump(_quick_start()))
        return {}
    if page in ("explain.md", "runs.md"):
        names = {"annotators": data.annotators, "classes": data.classes}
        network = {"encoder": "tu-test_resnet.r160_in1k", "backbone_options": small}
        module, trainer = TAXLightningModule(**names, **network), make_trainer(max_epochs=1)
        trainer.fit(module, data)
        trainer.save_checkpoint("best.ckpt")
        return {"module": module, "data": data}
    maps, probs = torch.zeros(1, 2, 8, 8, dtype=torch.long), torch.full((1, 2, 2, 8, 8), 0.5)
    return {
        "annotators": ["Ana", "Ben"],
        "classes": ["background", "cell"],
        "prediction": maps[:, 0],
        "probs": probs[:, 0],
        "annotator_prediction": maps,
        "annotator_probs": probs,
        "masks": maps,
        "present": torch.ones(1, 2, dtype=torch.bool),
        "reference": maps[:, 0],
    }


@pytest.mark.filterwarnings("ignore")  # of Lightning, on runs as small as these
@pytest.mark.parametrize("name", PYTHON)
def test_python_runs(name, tmp_path, monkeypatch, capsys):
    if "import optuna" in PYTHON[name]:
        pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    assert len(PYTHON[name].splitlines()) <= 25
    block = PYTHON[name]
    for long, short in SHORTER.items():
        block = block.replace(long, short)
    exec(compile(block, name, "exec"), {"__name__": "__main__", **given(name.split()[0])})
    assert SAID.get(name, "") in capsys.readouterr().out


def test_extras_and_files_exist():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    extras = re.findall(r"""(?:tax-lightning|["']\.)\[([\w,]+)\]""", SHELL)
    assert {extra for group in extras for extra in group.split(",")} <= set(
        project["optional-dependencies"]
    )
    named = re.findall(r"(?:tests|experiments|\.ci)/[\w./]+", SHELL)
    assert named
    assert [name for name in named if not (REPO / name).exists()] == []
