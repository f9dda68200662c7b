"""One call from a data module to its report: text for the terminal, and a page beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tax_lightning.data.datamodule import MultiAnnotatorDataModule
from tax_lightning.inspection.audit import audit
from tax_lightning.inspection.findings import findings
from tax_lightning.inspection.page import page
from tax_lightning.inspection.tables import tables

_FITS = 12  # annotators whose matrices are still legible in a terminal


def inspect(
    data: MultiAnnotatorDataModule,
    output: str | Path,
    title: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
    threads: int | None = None,
) -> str:
    """Audit a data set and write its page.

    Args:
        data: Any data module.
        output: Folder for the page, ``index.html``; made where it is missing.
        title: Name of the data set. None given: that of the data module's class.
        progress: Called with the number of images looked at, and of all images.
        threads: Images that are looked at at the same time. None: by the processors, at most 4.

    Returns:
        Findings and tables as text. Matrices of many annotators stand on the page only.

    Raises:
        ValueError: If there are no samples, or a file cannot be read; the message names it.

    Example:
        >>> import tempfile
        >>> from tax_lightning.data import SyntheticDataModule
        >>> data = SyntheticDataModule(train_samples=2, val_samples=0, test_samples=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     text = inspect(data, folder)
        ...     Path(folder, "index.html").is_file()
        True
    """
    counted = audit(data, progress, threads)
    found, shown = findings(counted), tables(counted)
    pictures = (  # one at a time is in memory
        (outlier, data._samples_of(outlier.place.split)[outlier.place.number])
        for outlier in counted.outliers
    )
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    html = page(title or type(data).__name__, counted, found, shown, pictures)
    (folder / "index.html").write_text(html, encoding="utf-8")
    blocks = ["\n".join(["Findings", *(f"  {finding}" for finding in found or ("none",))])]
    fits = len(counted.annotators) <= _FITS
    blocks += [str(table) for table in shown if fits or table.shades is None]
    return "\n\n".join(blocks)
