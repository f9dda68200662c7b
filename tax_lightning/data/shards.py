"""Samples in the shards of LitData: packed and written once, then read in any order.

A folder, or an address in an object store, holds a data set of LitData for each split, and last of
all one with a single item that describes them. Without it the rest is not read: writing was
interrupted. An image is stored as its pixels, a plane of labels in as many bits a pixel as its
labels need: unpacking takes less time than any decompression.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from tax_lightning.constants import IGNORE_INDEX
from tax_lightning.data.datamodule import MultiAnnotatorDataModule
from tax_lightning.data.metadata import Metadata
from tax_lightning.data.samples import RawSample
from tax_lightning.data.splits import SPLITS
from tax_lightning.data.table import TableDataModule
from tax_lightning.extras import needed

FORMAT = 1
_ABOUT = "about"  # beside the splits
_INDEX = "index.json"
_SHARDS = 8  # of a split at least, so that small ones are shuffled and shared out well too
_SHARD_BYTES = 2**24  # of one at most, about
_PLANES = ("masks", "reference", "expert", "deviation")
_WITH_IGNORE = 16  # added to the number of bits

Item = dict[str, Any]
"""A sample as LitData writes and reads it."""


@dataclass(frozen=True)
class Contents:
    """What shards hold.

    Args:
        annotators: Names of the annotators.
        classes: Names of the classes.
        channels: Number of image channels.
        intensity_range: Values of an image file that meant black and white; None: by its kind.
        persons: Whether an annotator is the same person throughout.
        metadata: What is known of the annotators.
        ids: Split -> names of its samples, in order.
        sample_groups: Name of a sample -> its patient, slide or scan, where it has one.
    """

    annotators: tuple[str, ...]
    classes: tuple[str, ...]
    channels: int
    intensity_range: tuple[float, float] | None
    persons: bool
    metadata: Metadata
    ids: Mapping[str, tuple[str, ...]]
    sample_groups: Mapping[str, str]

    @classmethod
    def read(cls, root: str, cache_dir: str | None = None) -> Contents:
        """What the shards at a place say of themselves.

        Args:
            root: Folder or address.
            cache_dir: Where copies of remote shards are kept; None: LitData's own place.

        Raises:
            FileNotFoundError: If there are no shards, or the writing of them was interrupted.
            ValueError: If they are of another format.
        """
        needed("litdata")
        try:
            text = stream(root, _ABOUT, cache_dir)[0]["about"]
        except Exception as error:  # each kind of store has its own for what is missing
            raise FileNotFoundError(
                f"root: {root} holds no finished shards ({error}). Expected what `tax optimize` "
                "writes: run it again if it was interrupted, or correct the address."
            ) from error
        found = json.loads(text)
        if (form := found.pop("format")) != FORMAT:
            raise ValueError(
                f"root: the shards in {root} have the format {form}, expected {FORMAT}. Write them "
                "anew with `tax optimize`."
            )
        found |= {key: tuple(found[key]) for key in ("annotators", "classes")}
        limits = found["intensity_range"]
        found["intensity_range"] = None if limits is None else (limits[0], limits[1])
        found["ids"] = {split: tuple(names) for split, names in found["ids"].items()}
        return cls(**found)


class Shards:
    """The samples of a split in shards, a `Source`.

    Args:
        root: Folder or address.
        split: Name of the split.
        ids: Names of its samples.
        cache_dir: Where copies of remote shards are kept; None: LitData's own place.
    """

    def __init__(
        self, root: str, split: str, ids: Sequence[str], cache_dir: str | None = None
    ) -> None:
        self._ids = tuple(ids)
        self._stream: Any = stream(root, split, cache_dir) if ids else None

    @property
    def ids(self) -> Sequence[str]:
        """Names of the samples, in order."""
        return self._ids

    def __getitem__(self, index: int | Item) -> RawSample:
        """The sample at this place; or the one that LitData has just read, in its own order."""
        return _unpacked_sample(index if isinstance(index, dict) else self._item(index))

    def _item(self, index: int) -> Item:
        if self._stream.cache is None:
            # Once asked for a slice, LitData keeps the shards of a store that it reads from. Else
            # it would fetch single items, and the same ones each epoch.
            self._stream[:0]
        item: Item = self._stream[index]
        return item


def stream(root: str, name: str, cache_dir: str | None, **options: Any) -> Any:  # noqa: ANN401
    """A data set of LitData below a folder or address."""
    # Large items are read one by one; and all of a shard are shuffled, not blocks of them.
    return needed("litdata").StreamingDataset(
        f"{root.rstrip('/')}/{name}",
        cache_dir=cache_dir,
        batch_decode=0,
        item_shuffle_window=0,
        **options,
    )


def write_shards(
    data: MultiAnnotatorDataModule,
    to: str | Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Write all samples of a data module as shards, in its splits and patches.

    Nothing is at the place until all is written: shards are made in a folder beside it. Into an
    object store each is moved as soon as it is full, so that no disk need hold all of them; what
    says that they are complete comes last.

    Args:
        data: Where the samples come from.
        to: Folder, or address in an object store such as ``s3://bucket/name``. Keys and endpoint
            are those of the environment, as for all of AWS's tools.
        progress: Called with the number of samples written, and of all.

    Returns:
        A report of what was written.

    Raises:
        ValueError: If there is something at this place already.
        ModuleNotFoundError: If LitData is not installed.

    Example:
        >>> from tax_lightning.simulation import SyntheticDataModule
        >>> few = dict(size=64, train_samples=2, val_samples=1, test_samples=1)
        >>> with TemporaryDirectory() as folder:
        ...     report = write_shards(SyntheticDataModule(**few), Path(folder, "shards"))
        ...     places = sorted(path.name for path in Path(folder, "shards").iterdir())
        >>> places
        ['about', 'test', 'train', 'val']
        >>> report.splitlines()[0]
        'train  2 samples in 2 shards, 0.1 MB'
    """
    place = str(to).rstrip("/")
    store = _Store(place) if "://" in place else None
    if store.holds_shards() if store else Path(place).exists():
        raise ValueError(f"TO: {place} is there already. Name another place, or remove it.")
    sources = {split: data._samples_of(split) for split in SPLITS}
    total = sum(len(source.ids) for source in sources.values())
    beside = None if store else Path(place).absolute().parent
    if beside is not None:
        beside.mkdir(parents=True, exist_ok=True)
    lines, done = [], 0
    order = {split: _order(split, len(source.ids)) for split, source in sources.items()}
    with TemporaryDirectory(prefix="shards-", dir=beside) as temporary:
        folder = Path(temporary, "shards")
        for split, source in sources.items():
            writer = _Writer(folder / split, len(source.ids), store)
            for index in order[split]:
                writer.add(_packed_sample(source[index]))
                done += 1
                progress(done, total)
            lines.append(f"{split:<6} {writer.finished()}")
        writer = _Writer(folder / _ABOUT, 1, store)
        ids = {split: tuple(sources[split].ids[i] for i in order[split]) for split in SPLITS}
        contents = _contents(data, ids)
        writer.add({"about": json.dumps({"format": FORMAT, **asdict(contents)})})
        writer.finished()
        if store is None:
            folder.rename(place)
    people = ", ".join(contents.annotators)
    return "\n".join([*lines, f"annotators  {people}", f"classes  {', '.join(contents.classes)}"])


def _order(split: str, count: int) -> list[int]:
    """In which order the samples of a split are written.

    Those of a shard are read one after the other in training too: drawn at random, they are not the
    slices of one patient.
    """
    if split != "train":
        return list(range(count))
    drawn: list[int] = np.random.default_rng(0).permutation(count).tolist()
    return drawn


def _contents(data: MultiAnnotatorDataModule, ids: Mapping[str, tuple[str, ...]]) -> Contents:
    """What the shards of a data module's samples are to say of themselves."""
    samples = data.table.samples if isinstance(data, TableDataModule) else ()
    return Contents(
        annotators=data.annotators,
        classes=data.classes,
        channels=data.channels,
        intensity_range=data.pictures.intensity_range,
        persons=data.persons,
        metadata=data.metadata,
        ids=ids,
        sample_groups={sample.id: sample.group for sample in samples if sample.group},
    )


class _Writer:
    """Writes items as one data set of LitData.

    Its own `optimize` would start processes, and seed random numbers and choose the way to start
    processes for the whole program.
    """

    def __init__(self, folder: Path, count: int, store: _Store | None) -> None:
        self.folder, self.count, self.store = folder, count, store
        self._writer: Any = None
        self._added = self._shards = self._bytes = 0

    def add(self, item: Item) -> None:
        """Write one more."""
        if self._writer is None:
            size = sum(value.nbytes for value in item.values() if hasattr(value, "nbytes"))
            most = max(1, min(-(-self.count // _SHARDS), _SHARD_BYTES // max(1, size)))
            writer = needed("litdata").streaming.writer.BinaryWriter
            self._writer = writer(str(self.folder), chunk_size=most)
        self._full(self._writer.add_item(self._added, item))
        self._added += 1

    def finished(self) -> str:
        """Write what is left, and the index; returns what was written, in words."""
        if self._writer is not None:
            for file in self._writer.done():
                self._full(file)
            self._writer.merge()
            if self.store is not None:
                self.store.put(self.folder / _INDEX)
        return f"{self._added} samples in {self._shards} shards, {self._bytes / 2**20:.1f} MB"

    def _full(self, file: str | None) -> None:
        if file is None:
            return
        path = self.folder / file
        self._shards += 1
        self._bytes += path.stat().st_size
        if self.store is not None:
            self.store.put(path)
            path.unlink()


class _Store:
    """Puts files into an object store."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._provider = needed("litdata").streaming.fs_provider._get_fs_provider(address)

    def holds_shards(self) -> bool:
        """Whether complete shards are there."""
        return bool(self._provider.exists(f"{self.address}/{_ABOUT}/{_INDEX}"))

    def put(self, file: Path) -> None:
        """Copy a file, into a folder of the same name."""
        self._provider.upload_file(str(file), f"{self.address}/{file.parent.name}/{file.name}")


def _packed_sample(raw: RawSample) -> Item:
    planes = {name: getattr(raw, name) for name in _PLANES}
    planes["masks"] = raw.masks[raw.present]  # the others are not labelled anywhere
    return {
        "id": raw.id,
        "facts": json.dumps(dict(raw.facts)),
        "image": raw.image,
        "present": raw.present,
        **{name: _packed(plane) for name, plane in planes.items()},
    }


def _unpacked_sample(item: Item) -> RawSample:
    image, present = item["image"], item["present"]
    size, people = image.shape[:2], len(present)
    own = _unpacked(item["masks"], (int(present.sum()), *size))
    masks = own
    if not present.all():
        masks = np.full((people, *size), IGNORE_INDEX, np.uint8)
        masks[present] = own
    return RawSample(
        id=item["id"],
        image=image,
        masks=masks,
        present=present,
        reference=_unpacked(item["reference"], size),
        facts=json.loads(item["facts"]),
        expert=_unpacked(item["expert"], size),
        deviation=_unpacked(item["deviation"], (people, *size)),
    )


def _packed(labels: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.uint8]:
    """Labels in as few bits as they need, behind a byte that tells how many; 0 for no labels.

    `IGNORE_INDEX`, all of whose bits are set, is then the value with all of the bits set.
    """
    if labels is None:
        return np.zeros(1, np.uint8)
    ignored = labels == IGNORE_INDEX
    with_ignore = bool(ignored.any())
    highest = int(labels.max(where=~ignored, initial=0))
    bits = max(1, (highest + with_ignore).bit_length())
    planes = [np.packbits((labels >> bit) & 1) for bit in range(bits)]
    return np.concatenate([np.full(1, bits + _WITH_IGNORE * with_ignore, np.uint8), *planes])


def _unpacked(packed: npt.NDArray[np.uint8], shape: Sequence[int]) -> Any:  # noqa: ANN401
    """The labels again, None where there were none."""
    with_ignore, bits = divmod(int(packed[0]), _WITH_IGNORE)
    if not bits:
        return None
    planes = np.unpackbits(packed[1:].reshape(bits, -1), axis=1, count=math.prod(shape))
    labels = planes[0]
    for bit in range(1, bits):
        labels |= planes[bit] << bit
    if with_ignore:
        labels[labels == (1 << bits) - 1] = IGNORE_INDEX
    return labels.reshape(shape)
