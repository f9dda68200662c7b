"""One call from a data module to its report: text for the terminal, and a page beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tax_lightning.data.datamodule import MultiAnnotatorDataModule
from tax_lightning.files import write_text
from tax_lightning.inspection.audit import audit
from tax_lightning.inspection.findings import findings
from tax_lightning.inspection.page import page
from tax_lightning.inspection.review import expect, review, write_queue
from tax_lightning.inspection.tables import tables

_LINES, _PICTURES = 10, 12  # of the review queue, in a terminal and on the page
_FITS = 12  # annotators whose matrices are still legible in a terminal


def inspect(
    data: MultiAnnotatorDataModule,
    output: str | Path,
    title: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
    threads: int | None = None,
    model: Any = None,  # noqa: ANN401 - any module that predicts annotators
) -> str:
    """Audit a data set, write its page, and what to look at again.

    Args:
        data: Any data module.
        output: Folder for the page, ``index.html``, and ``review.csv``; made where it is missing.
        title: Name of the data set. None given: that of the data module's class.
        progress: Called with the number of images looked at, and of all images.
        threads: Images that are looked at at the same time. None: by the processors, at most 4.
        model: Model trained on these data, which then has its say in the review queue.

    Returns:
        Findings, the first lines of the review queue and tables as text. Matrices of many
        annotators stand on the page only.

    Raises:
        ValueError: If there are no samples, or a file cannot be read; the message names it.

    Example:
        >>> import tempfile
        >>> from tax_lightning.simulation import SyntheticDataModule
        >>> data = SyntheticDataModule(train_samples=2, val_samples=0, test_samples=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     text = inspect(data, folder)
        ...     Path(folder, "index.html").is_file()
        True
    """
    counted = audit(data, progress, threads)
    expected = None if model is None else expect(model, data, counted, progress)
    found, shown, queue = findings(counted), tables(counted), review(counted, data, expected)
    pictures = (  # one at a time is in memory
        (item, data._samples_of(item.place.split)[item.place.number]) for item in queue[:_PICTURES]
    )
    folder = Path(output)
    html = page(title or type(data).__name__, counted, found, shown, pictures, len(queue))
    write_text(folder / "index.html", html)
    write_queue(queue, folder / "review.csv")
    blocks = ["\n".join(["Findings", *(f"  {finding}" for finding in found or ("none",))])]
    lines = [
        f"  {rank:>2}  {item.score:5.1f}  {item.whose}: {item.reason}"
        for rank, item in enumerate(queue[:_LINES], start=1)
    ]
    blocks += ["\n".join([f"Review queue: {len(queue)} to look at again, by score", *lines])]
    fits = len(counted.annotators) <= _FITS
    blocks += [str(table) for table in shown if fits or table.shades is None]
    return "\n\n".join(blocks)
