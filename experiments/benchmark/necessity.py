r"""What necessity comes to where the expert leads, and where somebody else does.

    python experiments/benchmark/necessity.py --config experiments/benchmark/synthetic.yaml
    python experiments/benchmark/necessity.py --config experiments/benchmark/simulated.yaml \
        --data.init_args.data.init_args.root=DIR

No model takes part. Each annotator is taken to draw what they labelled on the test images, and one
of them to lead wherever somebody is the expert, with all others alike: the expert, or the one named
after the expert, who knows no better than anyone. Elsewhere all weigh the same. Data whose experts
are known only: synthetic scenes and simulated annotators.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.nn import functional as F

# Python looks for imports beside a script only; what the studies share is one folder up.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from resumable import make_parser

import tax_lightning.cli  # noqa: F401 - the parser knows classes by short names once imported
from tax_lightning.batch import Batch
from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data import MultiAnnotatorDataModule
from tax_lightning.metrics import Removal

SURE = 0.94  # probability of what an annotator labelled; the rest is for the other classes
LEADS = 0.9  # weight of the one who leads


def log_drawn(masks: Tensor, classes: int) -> Tensor:
    """Log of what each annotator would draw ``[B, N, C, H, W]``: what they labelled, or nothing."""
    known = masks != IGNORE_INDEX
    labels = F.one_hot(masks.masked_fill(~known, 0), classes).movedim(-1, 2).float()
    probs = labels * SURE + (1 - labels) * (1 - SURE) / (classes - 1)
    return torch.where(known.unsqueeze(2), probs, 1 / classes).log()


def log_who(leader: Tensor, annotators: int) -> Tensor:
    """Log of weights ``[B, N, H, W]`` with which ``leader`` ``[B, H, W]`` leads, 255 for nobody."""
    nobody = leader == IGNORE_INDEX
    leads = F.one_hot(leader.masked_fill(nobody, 0), annotators).movedim(-1, 1).float()
    weights = leads * LEADS + (1 - leads) * (1 - LEADS) / (annotators - 1)
    return torch.where(nobody.unsqueeze(1), 1 / annotators, weights).log()


def necessity(batches: Iterable[Batch], annotators: int, classes: int, ahead: int) -> float:
    """Necessity where the one ``ahead`` places after the expert leads."""
    removal = Removal(annotators)
    for batch in batches:
        masks, expert = batch["masks"].long(), batch["expert"].long()
        leader = torch.where(expert == IGNORE_INDEX, expert, (expert + ahead) % annotators)
        removal.update(
            log_who=log_who(leader, annotators),
            log_annotator_probs=log_drawn(masks, classes),
            masks=masks,
            present=batch["present"],
        )
    return float(removal.compute()["who_necessity"])


def data_of(config: Path, options: Sequence[str]) -> MultiAnnotatorDataModule:
    """The data of a configuration of ``tax fit``, ready to be tested on."""
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(MultiAnnotatorDataModule, "data", required=True)
    only_data = {"data": yaml.safe_load(config.read_text())["data"]}
    chosen = parser.parse_args([f"--config={yaml.safe_dump(only_data)}", *options])
    data: MultiAnnotatorDataModule = parser.instantiate(chosen).data
    data.setup("test")
    return data


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both.

    Args:
        arguments: Of the command line; ``None`` takes those of the process.
    """
    parser = make_parser(__doc__)
    parser.add_argument(
        "--config", type=Path, required=True, help="file of which the data are taken"
    )
    options, of_data = parser.parse_known_args(arguments)
    data = data_of(options.config, of_data)
    count = len(data.annotators), len(data.classes)
    for name, ahead in (("the expert", 0), ("somebody else", 1)):
        print(f"{name} leads: {necessity(data.test_dataloader(), *count, ahead):.3f}")


if __name__ == "__main__":
    main()
