"""What goes to the loggers of a run: to each what it can hold, in its own form.

W&B takes pictures, tables, charts and artifacts; TensorBoard takes pictures and groups curves;
other loggers take pictures if they have Lightning's ``log_image``, and are else left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from tax_lightning.callbacks.curves import Curves
from tax_lightning.visualization.gallery import PrototypeCard, render_card
from tax_lightning.visualization.palette import Picture

CARD_COLUMNS = (
    *("card", "annotator", "prototype", "image", "y", "x", "label", "similarity"),
    *("use", "purity", "insertion", "active"),
)


def working(loggers: Sequence[Logger]) -> list[Logger]:
    """The loggers, each made to begin now; one that cannot is replaced, with a warning.

    A tracker may be out of reach, or its folder not writable: that is no reason not to train.

    Args:
        loggers: of a trainer that has not started yet.

    Returns:
        As many loggers; a ``CSVLogger`` in the same folder in place of each that failed.
    """
    return [logger if _begins(logger) else _in_a_file(logger) for logger in loggers]


def _begins(logger: Logger) -> bool:
    try:
        getattr(logger, "experiment", None)
    except Exception as error:  # a tracker may fail in any way
        rank_zero_warn(
            f"{type(logger).__name__} cannot begin: {error!r}. Training goes on, and what it would "
            f"have got is in files in {logger.save_dir}."
        )
        return False
    return True


def _in_a_file(logger: Logger) -> Logger:
    return CSVLogger(logger.save_dir or ".", name=str(logger.name or "metrics"))


def send_picture(
    logger: Logger, key: str, picture: Picture, step: int, file: Path | None = None
) -> None:
    """Hand a picture to a logger, if it is of a kind that takes pictures.

    Args:
        logger: one that has Lightning's ``log_image`` (Weights & Biases), or TensorBoard's.
        key: name of the picture.
        picture: ``[H, W, 3]`` uint8; never rescaled.
        step: the training step that it belongs to.
        file: the same picture as PNG, where there is one; W&B copies it, which saves encoding.
    """
    log_image = getattr(logger, "log_image", None)
    if isinstance(logger, WandbLogger) and file is not None:
        logger.log_image(key=key, images=[str(file)], step=step)
    elif callable(log_image):
        log_image(key=key, images=[picture], step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(key, picture, step, dataformats="HWC")


def send_overlays(
    logger: Logger,
    key: str,
    picture: Picture,
    maps: Mapping[str, tuple[NDArray[np.integer], Mapping[int, str]]],
    step: int,
) -> None:
    """Hand a picture to W&B with maps that can be switched on and off over it.

    Args:
        logger: others are left alone.
        key: name of the picture.
        picture: ``[H, W, 3]`` uint8.
        maps: by name ``[H, W]`` in ``0..255`` and what each value stands for.
        step: the training step that it belongs to.
    """
    if isinstance(logger, WandbLogger):
        masks = {
            name: {"mask_data": values.astype(np.uint8), "class_labels": dict(labels)}
            for name, (values, labels) in maps.items()
        }
        logger.log_image(key=key, images=[picture], step=step, masks=[masks])


def send_cards(logger: Logger, key: str, cards: Sequence[PrototypeCard], step: int) -> None:
    """Hand the prototypes to W&B as a table, a row each, with the card as a picture.

    Args:
        logger: others are left alone.
        key: name of the table.
        cards: of the prototypes.
        step: the training step that they belong to.
    """
    if isinstance(logger, WandbLogger):
        import wandb  # takes a second, which runs with other loggers need not wait for

        rows = [[wandb.Image(render_card(card)), *_facts(card)] for card in cards]
        logger.log_table(key=key, columns=list(CARD_COLUMNS), data=rows, step=step)


def send_curves(logger: Logger, curves: Curves, step: int) -> None:
    """Show each metric's curves of all annotators in one chart, beside those that are logged alone.

    Args:
        logger: W&B gets charts under ``curves/``; TensorBoard groups what it has already, under
            "custom scalars"; others are left alone.
        curves: of the run so far.
        step: the training step.
    """
    if isinstance(logger, WandbLogger):
        import wandb

        charts: dict[str, Any] = {
            f"curves/{metric}": wandb.plot.line_series(
                xs=[[epoch for epoch, _ in line] for line in lines.values()],
                ys=[[value for _, value in line] for line in lines.values()],
                keys=list(lines),
                title=f"{metric} by annotator",
                xname="epoch",
            )
            for metric, lines in curves.by_metric.items()
        }
        logger.log_metrics(charts, step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_custom_scalars(curves.layout())


def send_files(logger: Logger, name: str, files: Sequence[Path], step: int) -> None:
    """Hand files to W&B as one artifact of the type "explanation".

    Args:
        logger: others are left alone.
        name: of the artifact; the run's id is added.
        files: each goes by its own name.
        step: the training step that they belong to.
    """
    if isinstance(logger, WandbLogger):
        import wandb

        run = logger.experiment
        artifact = wandb.Artifact(f"{name}-{run.id}", type="explanation", metadata={"step": step})
        for file in files:
            artifact.add_file(str(file), name=file.name)
        run.log_artifact(artifact)


def _facts(card: PrototypeCard) -> list[Any]:
    """The values of a card in the order of the table, less the picture."""
    source = card.source
    return [
        *(source.annotator, source.kernel, source.sample_id, source.y, source.x, source.label),
        *(source.similarity, card.use, source.purity, card.insertion, source.active),
    ]
