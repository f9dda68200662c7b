"""Small made-up data sets in the layouts of RIGA, Gleason 2019, STARE, CHASE_DB1 and DRIVE."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from written_files import save

from tax_lightning.__main__ import main

REPO = Path(__file__).parent.parent


def ellipse(shape: tuple[int, int], centre: tuple[float, float], radii: tuple[float, float]):
    """The pixels of an ellipse."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 <= 1


def border(mask: np.ndarray, width: float) -> np.ndarray:
    """A line of this width whose middle is the border of a mask."""
    inside = ndimage.distance_transform_edt(mask) - 0.5
    outside = ndimage.distance_transform_edt(~mask) - 0.5
    return np.where(mask, inside <= width / 2, outside < width / 2)


def photograph(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A reddish picture with a bright disc, dark vessels and some grain."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    glow = 60 * np.exp(
        -((rows - shape[0] / 2) ** 2 + (columns - shape[1] / 2) ** 2) / (shape[0] / 4) ** 2
    )
    vessels = 40 * (np.abs(columns - shape[1] / 2 - 10 * np.sin(rows / 9)) < 2)
    grain = rng.normal(0, 4, (*shape, 1))
    picture = np.array([150, 80, 40]) + (glow - vessels)[..., None] + grain
    return picture.clip(0, 255).astype(np.uint8)


# RIGA


def truth_of(shape: tuple[int, int], rater: int) -> np.ndarray:
    """0 background, 1 disc, 2 cup; every rater sees them a little larger than the one before."""
    height, width = shape
    disc = ellipse(shape, (height / 2, width / 2), (height * (0.28 + rater / 100), height * 0.3))
    cup = ellipse(shape, (height / 2, width / 2 + 3), (height * 0.14, height * 0.12 + rater))
    return disc.astype(np.uint8) + (disc & cup)


def drawn(picture: np.ndarray, truth: np.ndarray, width: float = 3) -> np.ndarray:
    """A copy of a photograph with the outlines of disc and cup on it."""
    copy = picture.copy()
    copy[border(truth > 0, width)] = (30, 60, 220)
    copy[border(truth > 1, width)] = (20, 200, 60)
    return copy


def write_riga_image(
    folder: Path, number: int, suffix: str = ".jpg", shape=(96, 120), prefix: str = "image"
) -> Path:
    """A photograph and the drawings of all raters; returns the photograph's path."""
    options = {"quality": 90} if suffix == ".jpg" else {}
    path = save(folder / f"image{number}prime{suffix}", photograph(shape, number), **options)
    with Image.open(path) as image:
        picture = np.asarray(image)
    for rater in range(1, 7):
        name = f"{prefix if rater == 1 else 'image'}{number}-{rater}{suffix}"
        save(folder / name, drawn(picture, truth_of(shape, rater)), **options)
    return path


def write_riga(root: Path) -> Path:
    """Two images a folder, with all the oddities of the data set."""
    binrushed, magrabia = root / "BinRushed", root / "Magrabia"
    for name in ("BinRushed1-Corrected", "BinRushed2", "BinRushed3", "BinRushed4"):
        write_riga_image(binrushed / name, 1)
        write_riga_image(binrushed / name, 12, ".tif" if name == "BinRushed3" else ".jpg")
    for number in (1, 2):
        write_riga_image(magrabia / "MagrabiaMale", number, ".tif", prefix="Image")
        write_riga_image(magrabia / "MagrabiFemale", number, ".tif")
        write_riga_image(root / "MESSIDOR", number, ".tif")
    write_riga_image(magrabia / "MagrabiFemale", 48, ".tif").unlink()
    return root


# Gleason 2019

GRADES = (0, 1, 3, 4, 5, 6)


def grades(slide: int, core: int, pathologist: int, size: int = 60) -> np.ndarray:
    """Vertical stripes of grey values, shifted by the pathologist."""
    stripes = np.arange(size) // (size // 6)
    values = np.array(GRADES, np.uint8)[(stripes + slide + core + pathologist) % 6]
    return np.tile(values, (size, 1))


def write_gleason(root: Path, slides: int = 4, cores: int = 3, size: int = 60) -> Path:
    """Cores of which each pathologist but the first and third lacks some."""
    for slide in range(1, slides + 1):
        for core in range(1, cores + 1):
            name = f"slide{slide:03}_core{core:03}"
            save(root / "Train_imgs" / f"{name}.jpg", photograph((size, size), 10 * slide + core))
            for number in range(1, 7):
                if number in (1, 3) or (slide + core) % number == 0:
                    file = root / f"Maps{number}_T" / f"{name}_classimg_nonconvex.png"
                    save(file, grades(slide, core, number, size))
    return root


# Vessels


def vessels(number: int, annotator: int, shape=(64, 72)) -> np.ndarray:
    """A vertical bar, by the second annotator two pixels wider; 0 and 255."""
    mask = np.zeros(shape, np.uint8)
    mask[:, 10 + number : 14 + number + 2 * annotator] = 255
    return mask


def write_stare(root: Path, count: int = 8, suffix: str = ".ppm.gz") -> Path:
    for number in range(1, count + 1):
        save(root / "stare-images" / f"im{number:04}{suffix}", photograph((64, 72), number))
        for index, name in enumerate(("ah", "vk")):
            mask = vessels(number, index)[..., None].repeat(3, 2)  # a PPM file has three colours
            save(root / f"labels-{name}" / f"im{number:04}.{name}{suffix}", mask)
    return root


def write_chase(root: Path, children: int = 4) -> Path:
    for number in range(1, children + 1):
        for eye in "LR":
            name = f"Image_{number:02}{eye}"
            save(root / f"{name}.jpg", photograph((64, 72), number))
            for index, by in enumerate(("1stHO", "2ndHO")):
                mask = vessels(number, index) > 0  # 1-bit files
                Image.fromarray(mask).save(root / f"{name}_{by}.png")
    return root


def write_drive(root: Path, count: int = 8) -> Path:
    view = ellipse((64, 72), (32, 36), (31, 35)).astype(np.uint8) * 255
    for number in range(1, count + 1):
        for part, shown, annotators in (("test", number, 2), ("training", number + 20, 1)):
            folder, name = root / part, f"{shown:02}"
            save(folder / "images" / f"{name}_{part}.tif", photograph((64, 72), shown))
            save(folder / "mask" / f"{name}_{part}_mask.gif", view)
            for index in range(annotators):
                column = ("1st_manual", "2nd_manual")[index]
                file = folder / column / f"{name}_manual{index + 1}.gif"
                save(file, vessels(number, index))
    return root


# The command line


def fit(name: str, root: Path, tmp_path: Path, *more: str) -> None:
    """One step of the configuration that is shipped, with small batches of small pictures."""
    main(
        [
            "fit",
            *("--config", str(REPO / "experiments" / f"{name}.yaml")),
            *("--config", str(REPO / "tests" / "quick.yaml")),
            f"--data.init_args.root={root}",
            f"--trainer.default_root_dir={tmp_path / 'run'}",
            "--trainer.logger=false",
            "--trainer.fast_dev_run=true",
            *more,
        ]
    )
