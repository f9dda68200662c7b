"""The page of an inspection: findings, tables and pictures of masks, without any script."""

from collections.abc import Iterable, Sequence
from html import escape

from tax_lightning.data.samples import RawSample
from tax_lightning.findings import Finding
from tax_lightning.inspection.audit import Audit
from tax_lightning.inspection.charts import area_strips, legend, outlined, share_bars
from tax_lightning.inspection.review import Item
from tax_lightning.palette import annotator_palette
from tax_lightning.tables import Table
from tax_lightning.visualization import page as base
from tax_lightning.visualization.drawing import data_uri

_STYLE = """
.finding { border: 1px solid var(--line); border-left: .35rem solid var(--link);
  border-radius: .25rem; padding: .6rem .9rem; margin-top: .75rem; }
.finding.warning { border-left-color: var(--warning); max-width: none; }
.finding p, .finding h3 { margin: .25rem 0 0; font-size: 1rem; }
.severity { font-size: .8rem; font-weight: 600; text-transform: uppercase; letter-spacing: .04em;
  color: var(--link); }
.warning .severity { color: var(--warning); }
table.heat { min-width: min(100%, 24rem); }
.heat td { text-align: center; padding: .3rem .5rem; border: 1px solid var(--paper);
  background: color-mix(in srgb, var(--heat) calc(var(--shade, 0) * 60%), var(--soft)); }
.heat td.none { background: none; color: var(--faint); }
.heat thead th:not(:first-child) { white-space: nowrap; writing-mode: vertical-rl;
  transform: rotate(180deg); text-align: left; vertical-align: bottom;
  padding: .5rem .3rem; font-weight: 500; }
.strips { display: grid; grid-template-columns: max-content minmax(5rem, 1fr) max-content;
  gap: .2rem .75rem; align-items: center; margin: .5rem 0 1rem; max-width: 42rem; }
.strips .name { max-width: min(16rem, 40vw); overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.one { position: absolute; left: 50%; top: 0; bottom: 0; width: 1px; background: var(--faint); }
.dot { position: absolute; top: .15rem; width: .7rem; height: .7rem; margin-left: -.35rem;
  border-radius: 50%; box-shadow: 0 0 0 1.5px var(--faint); }
.pictures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); margin-top: 1rem; }
figure img { width: 100%; height: auto; display: block; border-radius: .2rem; }
figcaption { margin-top: .3rem; }
figcaption small { display: block; color: var(--faint); font-size: .875rem; }
"""

_HINT_OF_PERSONS = "These annotators are not persons: figures of a single one mean nothing."


def page(
    title: str,
    audit: Audit,
    found: Sequence[Finding],
    tables: Sequence[Table],
    pictures: Iterable[tuple[Item, RawSample]],
    queue: int = 0,
) -> str:
    """The whole page.

    Args:
        title: Name of the data set.
        audit: The counts.
        found: The findings, in the order in which they are shown.
        tables: The tables.
        pictures: The first items of the review queue, each with its sample.
        queue: Number of its items.

    Returns:
        HTML that refers to nothing outside of itself.

    Example:
        >>> from tax_lightning.simulation import SyntheticDataModule
        >>> from tax_lightning.inspection.audit import audit
        >>> data = SyntheticDataModule(train_samples=2, val_samples=0, test_samples=0)
        >>> page("cells & fibres", audit(data), [], [], [])[:15]
        '<!doctype html>'
    """
    sections = {"Findings": _findings(found)}
    if figures := [_figure(audit, *numbered) for numbered in enumerate(pictures, start=1)]:
        sections["Review queue"] = _pictures(audit, figures, queue)
    for table in tables:
        sections[table.name] = _chart(table, audit) + _table(table)
    return base.page(f"{title}: inspection", _summary(audit), sections, _STYLE)


def _summary(audit: Audit) -> str:
    people = "annotators" if audit.persons else "slots"
    return (
        f"{len(audit.images)} images, {len(audit.annotators)} {people}, classes "
        f"{', '.join(audit.classes)}; {'with' if audit.has_reference else 'no'} reference."
    )


def _findings(found: Sequence[Finding]) -> str:
    if not found:
        return "<p>Nothing to point out.</p>"
    items = "".join(
        f'<article class="finding {finding.severity}">'
        f'<span class="severity">{finding.severity}</span><h3>{escape(finding.title)}</h3>'
        f"<p>{escape(finding.text)}</p></article>"
        for finding in found
    )
    return f'<div class="findings">{items}</div>'


def _chart(table: Table, audit: Audit) -> str:
    """What is seen better than read; its values stand in the table too."""
    by_annotator = table.corner == "annotator" and table.name != "Coverage"
    note = f'<p class="note">{_HINT_OF_PERSONS}</p>' if by_annotator and not audit.persons else ""
    if table.name == "How annotators draw":
        lead = '<p class="note">Relative area; the line is the annotators\' mean, 1.</p>'
        return note + lead + area_strips(audit.annotators, audit.relative_area)
    if table.name == "Class shares":
        shares = dict(zip(audit.classes, audit.class_shares.T, strict=True))
        lead = '<p class="note">Foreground classes as shares of all labelled pixels.</p>'
        return note + lead + share_bars(shares, audit.annotators)
    return note


def _table(table: Table) -> str:
    rows = {
        escape(name): _cells(table, index, cells)
        for index, (name, cells) in enumerate(table.rows.items())
    }
    kind = "" if table.shades is None else "heat"
    return base.table(table.name, (table.corner, *table.columns), rows, table.caption, kind)


def _cells(table: Table, row: int, cells: Sequence[str]) -> str:
    if table.shades is None:
        return "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return "".join(
        f'<td style="--shade:{shade:.2f}">{escape(cell)}</td>'
        if shade == shade  # not NaN
        else f'<td class="none">{escape(cell)}</td>'
        for cell, shade in zip(cells, table.shades[row], strict=True)
    )


def _pictures(audit: Audit, figures: Sequence[str], queue: int) -> str:
    key = legend(audit.annotators, annotator_palette(len(audit.annotators)))
    return (
        f'<p class="note">The first {len(figures)} of {queue} in review.csv, the most urgent '
        "first. The outline in question has a white rim; the rectangle is where to look. Score: "
        "robust standard deviations from what is usual of the annotator, given the other masks.</p>"
        f'{key}<div class="pictures">{"".join(figures)}</div>'
    )


def _figure(audit: Audit, rank: int, shown: tuple[Item, RawSample]) -> str:
    item, sample = shown
    marked = audit.annotators.index(item.annotator) if item.annotator else None
    return (
        f'<figure><img src="{data_uri(outlined(sample, marked, item.box))}" '
        f'alt="Outlines of all annotators on {escape(item.place.id)}">'
        f"<figcaption>{rank}. {escape(item.whose)}<small>{escape(item.reason)}; "
        f"{escape(item.place.split)}; score {item.score:.1f}</small></figcaption></figure>"
    )
