"""The report as one HTML file that needs nothing else: no script, no request, light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from string import Template

import numpy as np
import numpy.typing as npt

from tax_lightning.data.samples import RawSample
from tax_lightning.inspection.audit import Audit, Outlier
from tax_lightning.inspection.charts import (
    area_strips,
    data_uri,
    legend,
    outlined,
    share_bars,
)
from tax_lightning.inspection.findings import Finding
from tax_lightning.inspection.tables import Table
from tax_lightning.visualization.palette import annotator_palette

_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>$title: inspection</title>
<style>$style</style>
</head>
<body>
<a class="skip" href="#main">To the findings</a>
<header>
<h1>$title</h1>
<p>$summary</p>
<nav aria-label="Sections"><ul>$contents</ul></nav>
</header>
<main id="main">
$sections
</main>
</body>
</html>
""")

_STYLE = """
:root { --paper: #fff; --ink: #1c1c1c; --faint: #5c5c5c; --line: #d9d9d9; --soft: #f4f4f2;
  --heat: #3b82c4; --warning: #b3261e; --hint: #2a6a9e; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181b; --ink: #ececec; --faint: #a8adb3; --line: #3a3f45; --soft: #202429;
    --heat: #3d8fd6; --warning: #ff8a80; --hint: #8cc4f2; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 0; }
a { color: var(--hint); }
:focus-visible { outline: 3px solid var(--hint); outline-offset: 2px; }
.skip { position: absolute; left: -999rem; }
.skip:focus { left: 1rem; background: var(--paper); padding: .5rem; }
nav ul, .legend { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap;
  gap: .25rem 1rem; }
.findings { display: grid; gap: .75rem; }
.finding { border: 1px solid var(--line); border-left: .35rem solid var(--hint);
  border-radius: .25rem; padding: .6rem .9rem; }
.finding.warning { border-left-color: var(--warning); }
.finding p { margin: .25rem 0 0; }
.severity { font-size: .8rem; font-weight: 600; text-transform: uppercase; letter-spacing: .04em;
  color: var(--hint); }
.warning .severity { color: var(--warning); }
.note { color: var(--faint); max-width: 70ch; margin: .25rem 0 .75rem; }
.wide { overflow-x: auto; max-width: 100%; /* a shadow at the right end says: there is more */
  background: linear-gradient(to left, var(--paper) 40%, transparent) right / 2rem 100% no-repeat
  local, linear-gradient(to left, var(--line), transparent) right / 1rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  min-width: min(100%, 42rem); }
table.heat { min-width: min(100%, 24rem); }
caption { text-align: left; color: var(--faint); padding-bottom: .5rem; position: sticky; left: 0;
  max-width: min(70ch, calc(100vw - 4.5rem)); } /* 100vw counts the scroll bar in */
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; overflow-wrap: normal; }
thead th { vertical-align: bottom; font-weight: 600; white-space: normal; line-height: 1.25; }
@media (max-width: 40rem) { th, td { padding: .3rem .4rem; } }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper);
  z-index: 1; }
tbody th { font-weight: 500; }
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
.track { position: relative; height: 1rem; background: var(--soft); border-radius: .2rem;
  display: flex; overflow: hidden; }
.one { position: absolute; left: 50%; top: 0; bottom: 0; width: 1px; background: var(--faint); }
.dot { position: absolute; top: .15rem; width: .7rem; height: .7rem; margin-left: -.35rem;
  border-radius: 50%; box-shadow: 0 0 0 1.5px var(--faint); }
.bar { height: 100%; }
.value { font-variant-numeric: tabular-nums; text-align: right; }
.swatch { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem;
  border: 1px solid var(--faint); vertical-align: -.05rem; }
.pictures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); margin-top: 1rem; }
figure { margin: 0; }
figure img { width: 100%; height: auto; display: block; border-radius: .2rem; }
figcaption { margin-top: .3rem; }
figcaption small { display: block; color: var(--faint); font-size: .875rem; }
@media print { .wide { overflow: visible; } body { max-width: none; } }
"""

_HINT_OF_PERSONS = "These annotators are not persons: figures of a single one mean nothing."


def page(
    title: str,
    audit: Audit,
    found: Sequence[Finding],
    tables: Sequence[Table],
    pictures: Iterable[tuple[Outlier, RawSample]],
) -> str:
    """The whole page.

    Args:
        title: Name of the data set.
        audit: The counts.
        found: The findings, in the order in which they are shown.
        tables: The tables.
        pictures: The masks to show, each with its sample.

    Returns:
        HTML that refers to nothing outside of itself.

    Example:
        >>> from tax_lightning.data import SyntheticDataModule
        >>> from tax_lightning.inspection.audit import audit
        >>> data = SyntheticDataModule(train_samples=2, val_samples=0, test_samples=0)
        >>> page("cells & fibres", audit(data), [], [], [])[:15]
        '<!doctype html>'
    """
    sections = {"Findings": _findings(found)}
    for table in tables:
        sections[table.name] = _chart(table, audit) + _table(table)
    if figures := "".join(_figure(audit, outlier, sample) for outlier, sample in pictures):
        sections["Masks that disagree most with all others"] = _pictures(audit, figures)
    contents = "".join(
        f'<li><a href="#{_anchor(name)}">{escape(name)}</a></li>' for name in sections
    )
    body = "\n".join(
        f'<section aria-labelledby="{_anchor(name)}"><h2 id="{_anchor(name)}">{escape(name)}</h2>'
        f"{content}</section>"
        for name, content in sections.items()
    )
    return _PAGE.substitute(
        title=escape(title),
        style=_STYLE,
        summary=escape(_summary(audit)),
        contents=contents,
        sections=body,
    )


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
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{_cells(table, index, cells)}</tr>'
        for index, (name, cells) in enumerate(table.rows.items())
    )
    kind = "" if table.shades is None else ' class="heat"'
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(table.name)}, table">'
        f"<table{kind}><caption>{escape(table.caption)}</caption>"
        f'<thead><tr><th scope="col">{escape(table.corner)}</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cells(table: Table, row: int, cells: Sequence[str]) -> str:
    if table.shades is None:
        return "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return "".join(
        f'<td style="--shade:{shade:.2f}">{escape(cell)}</td>'
        if shade == shade  # not NaN
        else f'<td class="none">{escape(cell)}</td>'
        for cell, shade in zip(cells, table.shades[row], strict=True)
    )


def _pictures(audit: Audit, figures: str) -> str:
    key = legend(audit.annotators, annotator_palette(len(audit.annotators)))
    return (
        '<p class="note">At most one mask an image, the lowest mean Dice with the others first. '
        "Its outline has a white rim; a mask without foreground has none.</p>"
        f'{key}<div class="pictures">{figures}</div>'
    )


def _figure(audit: Audit, outlier: Outlier, sample: RawSample) -> str:
    marked = audit.annotators.index(outlier.annotator)
    among = outlier.among_others
    others = "" if among != among else f"; theirs with each other {among:.2f}"  # NaN: one other
    words = f"{outlier.annotator} on {outlier.place.id}"
    called = _called(audit.classes, sample, marked) if len(audit.classes) > 2 else ""
    return (
        f'<figure><img src="{data_uri(outlined(sample, marked))}" '
        f'alt="Outlines of all annotators on {escape(outlier.place.id)}">'
        f"<figcaption>{escape(words)}<small>{escape(outlier.place.split)}; mean Dice with the "
        f"others {outlier.dice:.2f}{others}{escape(called)}</small></figcaption></figure>"
    )


def _called(classes: Sequence[str], sample: RawSample, marked: int) -> str:
    """Which classes the annotator saw and which the others did: outlines do not show them."""
    masks = np.where(sample.present[:, None, None], sample.masks, 0)

    def names(ids: npt.NDArray[np.uint8]) -> str:
        return ", ".join(classes[i] for i in np.unique(ids) if 0 < i < len(classes)) or "nothing"

    return f"; drawn as {names(masks[marked])}, by others as {names(np.delete(masks, marked, 0))}"


def _anchor(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())
