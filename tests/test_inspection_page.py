"""The page of an inspection: one file, and what a browser makes of it."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from tax_lightning.data import MultiAnnotatorDataModule, RawSample
from tax_lightning.inspection import inspect
from tax_lightning.inspection.charts import SIDE, area_strips, outlined
from tax_lightning.simulation import SyntheticDataModule
from tax_lightning.tables import Table

VOID = {"meta", "link", "img", "br"}


class Outline(HTMLParser):
    """The elements of a page, each of which must be closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def of(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """The page of a small synthetic data set, and the text beside it."""
    folder = tmp_path_factory.mktemp("page")
    data = SyntheticDataModule(size=64, train_samples=6, val_samples=2, test_samples=2, missing=0.2)
    text = inspect(data, folder, "cells & <fibres>")
    return folder / "index.html", text


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """The page of forty annotators with long names, who are no persons."""

    class Crowd(MultiAnnotatorDataModule):
        persons = False

        def _source(self, split):
            return Scribbles() if split == "train" else Scribbles(0)

    folder = tmp_path_factory.mktemp("crowd")
    names = [f"an annotator of a rather long name, number {number}" for number in range(40)]
    text = inspect(Crowd(names, ["background", "cell"], channels=1), folder, "x" * 120)
    return folder / "index.html", text


class Scribbles:
    """Three images of one pixel's noise, by forty."""

    def __init__(self, count=3):
        self.ids = [f"an-image-of-a-name-without-any-blank-in-it-{i}" * 2 for i in range(count)]

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        masks = np.zeros((40, 24, 32), np.uint8)
        masks[:, 8:16, 10:20] = 1
        masks[:, 12:14, 12:26] = rng.integers(0, 2, (40, 2, 14))
        image = rng.random((24, 32, 1), np.float32)
        return RawSample(self.ids[index], image, masks, np.ones(40, bool))


def test_the_page_stands_alone(synthetic):
    text = synthetic[0].read_text(encoding="utf-8")
    page = Outline(text)
    assert not page.of("script")
    assert [link["href"] for link in page.of("link")] == ["data:,"]
    assert all(image["src"].startswith("data:image/") for image in page.of("img"))
    assert all(link["href"].startswith("#") for link in page.of("a"))
    assert not re.search(r"https?:|url\(|@import|//[a-z]", re.sub(r"base64,[^\"]*", "", text))


def test_the_page_says_what_is_on_it(synthetic):
    page = Outline(synthetic[0].read_text(encoding="utf-8"))
    assert "cells &amp; &lt;fibres&gt;" in synthetic[0].read_text(encoding="utf-8")
    assert len(page.of("caption")) == len(page.of("table")) == 7
    assert all(image["alt"] for image in page.of("img"))
    assert {cell["scope"] for cell in page.of("th")} == {"row", "col"}
    ids = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    assert {link["href"][1:] for link in page.of("a")} <= ids
    wide = [attrs for attrs in page.of("div") if attrs.get("class") == "wide"]
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in wide)


def test_annotators_and_classes_appear_by_name(synthetic):
    path, text = synthetic
    for name in ("Ana", "Ben", "Chloe", "Dara", "Emil", "background", "cell", "fibre", "debris"):
        assert name in text
        assert name in path.read_text(encoding="utf-8")


def test_matrices_of_many_annotators_stand_on_the_page_only(crowd):
    path, text = crowd
    assert "Dice of each two annotators" not in text
    assert "Dice of each two annotators" in path.read_text(encoding="utf-8")
    assert "These annotators are not persons: figures" in path.read_text(encoding="utf-8")


def test_a_table_as_text():
    table = Table(
        "Sizes", "In pixels.", "who", ("cells", "x"), {"Ann": ("1", "–"), "Bo": ("20", "3")}
    )
    assert str(table) == "Sizes\n  who  cells  x\n  Ann      1  –\n  Bo      20  3"


def test_outlines_are_where_the_masks_are():
    masks = np.zeros((2, 400, 400), np.uint8)
    masks[0, 100:140, 100:140] = 1
    masks[1] = 255
    sample = RawSample("a", np.zeros((400, 400, 1), np.uint8), masks, np.array([True, False]))
    picture = outlined(sample, 0)
    assert picture.shape == (SIDE, SIDE, 3)  # cut to the square and a margin round it
    rows, columns = np.nonzero((picture == (0, 114, 178)).all(2))
    margin = 14 * SIDE / 68
    assert abs(rows.min() - margin) < 5
    assert abs(columns.max() - (SIDE - margin)) < 5
    assert (picture == 255).all(2).any()  # the white rim


def test_deep_and_other_than_rgb_images_are_shown():
    image = np.linspace(0, 1, 4 * 6 * 2, dtype=np.float32).reshape(4, 6, 2)
    sample = RawSample("a", image, np.zeros((1, 4, 6), np.uint8), np.array([True]))
    picture = outlined(sample, 0)
    assert picture.shape == (320, 480, 3)
    assert picture[0, 0].tolist() == [0, 0, 0]
    assert (picture[-1, -1] > 240).all()


def test_the_mean_is_in_the_middle_of_a_strip():
    strips = area_strips(["Ann", "Bob", "Cem"], np.array([1.0, 1.2, np.nan]))
    assert "left:50.0%" in strips
    assert "Cem" not in strips


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Opens a page in Chromium without a network; gives the page and what the browser said."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs Chromium, which is not installed")

    def opened(page, *options):
        folder = tmp_path_factory.mktemp("profile")
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--enable-logging=stderr",
            "--hide-scrollbars",  # they take no width on a phone
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder}",
        ]
        done = subprocess.run(
            [program, *flags, *options, page.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout, done.stderr

    return opened


# Measures the page in a frame of a phone's width, which a window cannot always have.
PROBE = """<!doctype html><meta charset="utf-8"><body>
<iframe style="border:0;width:{width}px;height:900px" srcdoc="{page}"></iframe>
<pre id="said"></pre><script>
onload = () => {{
  const frame = document.querySelector("iframe").contentWindow;
  const page = frame.document, root = page.documentElement;
  const loaded = frame.performance.getEntriesByType("resource");
  const named = [...page.querySelectorAll("h1, h2, img, .wide, .strips, figure, p")];
  document.getElementById("said").textContent = JSON.stringify({{
    width: root.clientWidth, needed: root.scrollWidth,
    outside: named.filter((e) => e.getBoundingClientRect().right > root.clientWidth + 1).length,
    broken: [...page.images].filter((image) => !image.naturalWidth).length,
    fetched: loaded.map((entry) => entry.name).filter((name) => !name.startsWith("data:")),
    images: page.images.length, sections: page.querySelectorAll("section").length,
  }});
}};
</script>"""


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("which", ["synthetic", "crowd"])
def test_the_page_fits_a_phone_and_a_desk(browser, request, tmp_path, which, width):
    path, _ = request.getfixturevalue(which)
    probe = tmp_path / "probe.html"
    page = html.escape(path.read_text(encoding="utf-8"))
    probe.write_text(PROBE.format(width=width, page=page), encoding="utf-8")
    dom, said = browser(probe, "--dump-dom", "--window-size=1400,1000")
    measured = json.loads(html.unescape(re.search(r'<pre id="said">(.*?)</pre>', dom, re.S)[1]))
    assert measured["width"] == width
    assert measured["needed"] <= width
    assert measured["outside"] == 0
    assert measured["broken"] == 0
    to_review = which == "synthetic"  # of the crowd no mask stands out, and none is shown
    assert (measured["images"] > 0) == to_review
    assert measured["sections"] == 8 + to_review
    assert measured["fetched"] == []
    assert "CONSOLE" not in said


def test_the_page_loads_without_a_network_and_without_errors(browser, synthetic):
    dom, said = browser(synthetic[0], "--dump-dom", "--window-size=1280,900")
    assert "Findings</h2>" in dom
    assert "CONSOLE" not in said  # where a request would be said to be refused


def test_a_request_would_be_noticed(browser, synthetic, tmp_path):
    text = synthetic[0].read_text(encoding="utf-8")
    spoilt = tmp_path / "spoilt.html"
    spoilt.write_text(
        text.replace('src="data:image/', 'src="http://localhost:9/', 1), encoding="utf-8"
    )
    _, said = browser(spoilt, "--dump-dom")
    assert "CONSOLE" in said
