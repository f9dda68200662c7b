"""IMA++ (ISIC MultiAnnot++): skin lesions in 14,967 dermoscopic images, outlined by 16 persons.

::

    IMAplusplus_seg_metadata.csv      ISIC_id, seg_filename, annotator, tool, skill_level, ...
    IMAplusplus_img_metadata.csv      isic_id, patient_id, lesion_id, ...   (optional)
    segs/ISIC_0000000_A04_T3_S1_5463934bbae47821f88025ad.png
    images/ISIC_0000000.JPG           from the ISIC archive

The files may lie in any folder below the root; images are found by their ISIC id.

- Persons are ``A00`` to ``A15``; tools ``T1`` (points by hand), ``T2`` (not known) and ``T3``
  (filled by the computer); skills ``S1`` (expert) and ``S2`` (novice). Tool and skill belong to a
  mask, and one person has masks of several: an annotator is a person with a tool and a skill, such
  as ``A04 T3 S1``, and ``annotators.csv`` names the three.
- 56 of these drew an image twice and one three times: the mask that was made last is taken, by the
  time in ``mskObjectID``.
- The 4,788 rows of the consensus masks ``ST`` (STAPLE) and ``MV`` (majority) are of nobody.
- Images of a patient, or where the patient is not known of a lesion, are one group. Of 11,880
  images neither is known: they stand alone.

Source: Abhishek, Kawahara and Hamarneh, "IMA++: ISIC Archive multi-annotator dermoscopic skin
lesion segmentation dataset", arXiv:2512.21472, 2025. Masks and tables:
doi.org/10.5281/zenodo.14201692.
"""

import csv
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from tax_lightning.data.description import Description
from tax_lightning.importers.cases import BACKGROUND, RGB, Case, Found, either
from tax_lightning.importers.layout import by_name, is_image, read_labels
from tax_lightning.importers.reading import reading

_COLUMNS = ("ISIC_id", "seg_filename", "annotator", "tool", "skill_level", "mskObjectID")
_CONSENSUS = ("ST", "MV")
_CLASSES = (BACKGROUND, "lesion")


def find(root: Path, table: str = "IMAplusplus_seg_metadata.csv", by_person: bool = False) -> Found:
    """The images and masks below a folder that a table of IMA++ names.

    Args:
        root: The folder of tables, masks and images.
        table: Name of the table of masks. ``IMAplusplus_multiannotator_subset_seg_metadata.csv``
            has the 2,394 images with several masks.
        by_person: One annotator a person, ``A00`` to ``A15``, whatever the tool and the skill.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder, expected that of IMA++.")
    path = _only(root, table)
    if path is None:
        raise FileNotFoundError(f"{root} has no file {table}, at whatever depth. Download it.")
    rows = list(_rows(path, _COLUMNS))
    drawn = [row for row in rows if row["annotator"] not in _CONSENSUS]
    newest: dict[str, dict[str, dict[str, str]]] = {}
    for row in sorted(drawn, key=lambda row: row["mskObjectID"]):  # it begins with the time
        newest.setdefault(row["ISIC_id"], {})[_annotator(row, by_person)] = row
    files = _files(root)
    groups = _groups(root)
    present = sorted(name for name in newest if name.casefold() in files)
    if not present:
        raise FileNotFoundError(
            f"{root} holds none of the {len(newest)} images of {path.name}, expected files like "
            f"{next(iter(newest), 'ISIC_0000000')}.JPG. Download them from the ISIC archive."
        )
    cases = []
    for name in present:
        masks = {}
        for annotator, row in sorted(newest[name].items()):
            mask = files.get(Path(row["seg_filename"]).stem.casefold())
            if mask is None:
                raise FileNotFoundError(
                    f"{path}: {row['seg_filename']} is nowhere below {root}. Unpack segs.zip there."
                )
            masks[annotator] = partial(read_labels, mask, _CLASSES, either("lesion"))
        cases.append(Case(name, files[name.casefold()], masks, group=groups.get(name, "")))
    taken = sum(map(len, newest.values()))
    left_out = [
        f"{count} {what}"
        for count, what in (
            (len(newest) - len(present), "image(s) whose files are not there."),
            (len(drawn) - taken, "mask(s) by one who drew the image again later."),
            (len(rows) - len(drawn), "consensus mask(s), which are of nobody."),
        )
        if count
    ]
    description = Description(
        "IMA++",
        _CLASSES,
        RGB,
        source="Abhishek, Kawahara and Hamarneh, arXiv:2512.21472; doi.org/10.5281/zenodo.14201692",
        licence="Images: CC-0 and CC-BY-NC, see IMAplusplus_img_metadata.csv; masks: see Zenodo",
    )
    known = {
        _annotator(row, by_person): {
            "person": row["annotator"],
            "tool": row["tool"],
            "skill": row["skill_level"],
        }
        for row in drawn
    }
    return Found(description, cases, {} if by_person else known, left_out)


def _annotator(row: Mapping[str, str], by_person: bool) -> str:
    keys = ("annotator",) if by_person else ("annotator", "tool", "skill_level")
    return " ".join(row[key] for key in keys)


def _only(root: Path, name: str) -> Path | None:
    """The file of this name below the root."""
    return by_name((name, path) for path in sorted(root.rglob(name))).get(name)


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    with (
        reading(path, "a table of IMA++ in UTF-8: download it again"),
        path.open(encoding="utf-8-sig", newline="") as file,
    ):
        reader = csv.DictReader(file)
        if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise ValueError(
                f"{path} has no column {missing[0]!r}, expected {', '.join(columns)}. Download it "
                "again."
            )
        for row in reader:
            if any(row[name] is None for name in columns):
                raise ValueError(f"{path}, line {reader.line_num}, is cut off. Download it again.")
            yield row


def _files(root: Path) -> dict[str, Path]:
    """The image files below the root by name without extension, in small letters."""
    paths = sorted(root.rglob("ISIC_*"))
    return by_name((path.stem.casefold(), path) for path in paths if is_image(path))


def _groups(root: Path) -> dict[str, str]:
    """ISIC id -> patient or lesion, where the table of images is there and knows one."""
    path = _only(root, "IMAplusplus_img_metadata.csv")
    if path is None:
        return {}
    columns = ("isic_id", "patient_id", "lesion_id")
    return {row["isic_id"]: row["patient_id"] or row["lesion_id"] for row in _rows(path, columns)}
