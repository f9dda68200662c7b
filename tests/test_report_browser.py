"""The report in a browser: what a person points at, switches and presses, against the numbers."""

import base64
import json
import math

import browser as web
import numpy as np
import pytest
from made_up import MadeUpImages, MadeUpModel, grey_picture

from tax_lightning.data.images import ExplainedImages
from tax_lightning.visualization.palette import (
    annotator_palette,
    class_palette,
    kernel_shade,
    value_colours,
)
from tax_lightning.visualization.report import write_report

PEOPLE = ("Ana", "Ben <b>", "Çelik", "Dan")
CLASSES = ("background", "cell", "fibre")
ODD = "Bär <b>\"1\" & '2'</script>"
TRAINING = np.tile(np.arange(120, dtype=np.uint8)[:, None, None], (1, 130, 3))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser for all tests of this file."""
    if web.programs() is None:
        pytest.skip("needs Chromium and chromedriver, which are not installed")
    with web.started(tmp_path_factory.mktemp("profile")) as started:
        started.size(1280, 900)
        yield started


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a report on three images of different sizes."""
    folder = tmp_path_factory.mktemp("report")
    images = MadeUpImages({ODD: (40, 56), "tall": (64, 24), "large": (200, 300)})
    explained = ExplainedImages(MadeUpModel(PEOPLE, CLASSES), images, grey_picture)
    write_report(explained, folder, read=lambda name: TRAINING, max_side=100)
    return folder


@pytest.fixture
def page(browser, written):
    """The page, just opened."""
    open_page(browser, written / "index.html")
    return browser


def open_page(browser, path, anchor=""):
    browser.open(path, anchor)
    wait_for(browser, "document.getElementById('spot').childElementCount")


def wait_for(browser, condition):
    """Until an expression holds."""
    browser.run(
        f"return new Promise((done) => {{ const look = () => {condition} ? done(true) : "
        "setTimeout(look, 20); look(); })"
    )


def choose(browser, number):
    browser.run(f"location.hash = 'picture={number}'")
    wait_for(browser, f"document.getElementById('image').value === '{number}'")


def listing(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def arrays_of(folder, number):
    with np.load(folder / listing(folder)["images"][number]["files"]["maps"]) as arrays:
        return dict(arrays)


def spot(browser):
    """What is told of the spot, as data."""
    return browser.run("return {...shown.reading, y: shown.place[0], x: shown.place[1]}")


def point_at(browser, arrays, y, x, press=False):
    """Point at a pixel of the maps."""
    width, height = browser.run(
        "const b = document.getElementById('stage').getBoundingClientRect();"
        "return [b.width, b.height]"
    )
    rows, columns = arrays["result"].shape
    browser.point("#stage", (x + 0.5) * width / columns, (y + 0.5) * height / rows, press)


# ----------------------------------------------------- the same in Python, from the NPZ's arrays


def expected_colours(arrays, layer):
    """The canvas of colours, RGBA ``[h, w, 4]`` as floats."""
    colours = np.array(annotator_palette(len(PEOPLE)))
    leader = arrays["leader"].astype(int)
    kernel = np.take_along_axis(arrays["why"], leader[None], axis=0)[0]
    opaque = np.full((*leader.shape, 1), 255.0)
    if layer == "image":
        return np.zeros((*leader.shape, 4))
    if layer == "result":
        result = arrays["result"].astype(int)
        shown = np.concatenate([np.array(class_palette(3))[result], 0 * opaque + 140], axis=2)
        return np.where(result[..., None] > 0, shown, 0)
    if layer == "who":
        most = np.take_along_axis(arrays["who"], leader[None], axis=0)[0] / 100
        certainty = ((most - 0.25) / 0.75).clip(0)
        return np.concatenate([colours[leader], 255 * certainty[..., None]], axis=2)
    if layer == "why":
        shades = np.array([[kernel_shade(tuple(c), k, 3) for k in range(3)] for c in colours])
        return np.concatenate([shades[leader, kernel], opaque], axis=2)
    return np.concatenate([value_colours(arrays["uncertainty"] / 100), opaque], axis=2)


def canvas(browser, name):
    """The pixels of a canvas, RGBA ``[height, width, 4]``."""
    height, width, pixels = browser.run(
        "const c = document.getElementById(arguments[0]);"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "let text = ''; for (const v of d) text += String.fromCharCode(v);"
        "return [c.height, c.width, btoa(text)]",
        name,
    )
    return np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(height, width, 4)


def assert_same_colours(drawn, expected, tolerance=2.0):
    """Colours as seen: a canvas rounds the colour of what is hardly there."""
    assert np.abs(drawn[..., 3] - expected[..., 3]).max() <= 1
    seen, meant = (
        pixels[..., :3] * (pixels[..., 3:] / 255.0)
        for pixels in (drawn.astype(float), expected.astype(float))
    )
    assert np.abs(seen - meant).max() <= tolerance


# ---------------------------------------------------------------------------------------- tests


def test_hovering_tells_what_the_npz_says(page, written):
    rng = np.random.default_rng(0)
    for number in range(3):
        choose(page, number)
        arrays = arrays_of(written, number)
        height, width = arrays["result"].shape
        for y, x in zip(rng.integers(0, height, 4), rng.integers(0, width, 4), strict=True):
            point_at(page, arrays, y, x)  # nothing was clicked: pointing reads at once
            told = spot(page)
            leader = arrays["leader"][y, x]
            assert (told["y"], told["x"]) == (arrays["rows"][y], arrays["columns"][x])
            assert told["result"] == arrays["result"][y, x]
            assert told["unanimous"] == bool(arrays["unanimous"][y, x])
            assert told["leader"] == leader
            assert told["kernel"] == arrays["why"][leader, y, x]
            assert told["share"] == arrays["leader_share"][y, x] / 100
            voices = {v["annotator"]: (v["weight"], v["says"]) for v in told["voices"]}
            assert told["voices"][0]["annotator"] == leader
            for n in range(len(PEOPLE)):
                said = arrays["annotator_result"][n, y, x]
                assert voices[n] == (arrays["who"][n, y, x] / 100, said)


def test_the_reading_is_in_words_with_its_example(page, written):
    arrays = arrays_of(written, 0)
    decided = np.argwhere(arrays["unanimous"] == 0)
    y, x = decided[len(decided) // 2]
    point_at(page, arrays, y, x, press=True)
    words = page.run("return document.getElementById('spot').innerText")
    leader, label = arrays["leader"][y, x], CLASSES[arrays["result"][y, x]]
    kernel = arrays["why"][leader, y, x]
    weight = arrays["who"][leader, y, x]
    assert f"{PEOPLE[leader]} {largest_say(weight)} The result: {label}." in words
    share = arrays["leader_share"][y, x]
    assert f"prototype {kernel} of {PEOPLE[leader]}, which makes up {share}% of" in words
    shown = page.run("return document.querySelector('#spot .card').alt")
    assert shown.startswith(f"{PEOPLE[leader]}, prototype {kernel}. from train-7 at y ")


def largest_say(weight):
    """In words, as on the page: who has less than half does not decide."""
    if weight >= 50:
        return f"decides, with a weight of {weight}%."
    return f"has the largest say, {weight}%; an even share is 25%."


def test_where_all_agree_nobody_is_said_to_decide(page, written):
    arrays = arrays_of(written, 0)
    y, x = np.argwhere(arrays["unanimous"] == 1)[0]
    point_at(page, arrays, y, x)
    words = page.run("return document.querySelector('#spot .verdict').innerText")
    assert words == f"Nobody in particular: all would say {CLASSES[arrays['result'][y, x]]}."


@pytest.mark.parametrize("layer", ["image", "result", "who", "why", "uncertainty"])
def test_layers_show_what_python_computes(page, written, layer):
    page.click(f"input[value={layer}]")
    page.click("#with-unanimous")
    assert_same_colours(canvas(page, "colours"), expected_colours(arrays_of(written, 0), layer))


def test_unanimous_pixels_are_washed_and_hatched(page, written):
    unanimous = arrays_of(written, 0)["unanimous"] == 1
    washed = canvas(page, "colours")
    assert {tuple(p) for p in washed[unanimous]} == {tuple(washed[unanimous][0])}
    lines = canvas(page, "lines")
    zoom = lines.shape[0] // unanimous.shape[0]
    page.click("#with-result")
    hatched = canvas(page, "lines")[..., 3] > 0
    enlarged = unanimous.repeat(zoom, axis=0).repeat(zoom, axis=1)
    assert hatched[enlarged].mean() > 0.1
    assert not hatched[~enlarged].any()
    page.click("#with-unanimous")
    assert not canvas(page, "lines").any()


def outline(labels, zoom, line):
    """The inner edge of labelled regions on an enlarged map, so many pixels wide."""
    labels = labels.repeat(zoom, axis=0).repeat(zoom, axis=1)
    edge = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        for shift in (-line, line):
            moved = np.roll(labels, shift, axis=axis)
            border = [slice(None)] * 2
            border[axis] = slice(0, shift) if shift > 0 else slice(shift, None)
            moved[tuple(border)] = labels[tuple(border)]  # nothing comes round the border
            edge |= moved != labels
    return edge & (labels > 0)


def test_outlines_are_where_the_annotators_would_draw_and_take_turns(page, written):
    arrays = arrays_of(written, 0)
    page.click("input[value=image]")
    page.click("#with-result")
    assert not canvas(page, "lines").any()
    page.click("#with-outlines")
    drawn = canvas(page, "lines")
    zoom, line = page.run("const {zoom, line} = lineSizes(shown.maps); return [zoom, line]")
    lines = [outline(labels, zoom, line) for labels in arrays["annotator_result"]]
    assert np.array_equal(drawn[..., 3] > 0, np.any(lines, axis=0))
    for own, colour in zip(lines, annotator_palette(4), strict=True):
        shown = (drawn[..., :3] == colour).all(axis=2)
        assert shown.any()
        assert not shown[~own].any()


def test_the_result_is_outlined_in_dashes(page, written):
    arrays = arrays_of(written, 0)
    page.click("input[value=image]")
    drawn = canvas(page, "lines")
    zoom, line = page.run("const {zoom, line} = lineSizes(shown.maps); return [zoom, line]")
    expected = outline(arrays["result"], zoom, math.ceil(2 * line / 3))
    assert np.array_equal(drawn[..., 3] > 0, expected)
    assert {tuple(p[:3]) for p in drawn[expected]} == {(0, 0, 0), (255, 255, 255)}


def test_the_legend_names_who_decides_how_much(page, written):
    arrays = arrays_of(written, 0)
    decided = arrays["unanimous"] == 0
    shares = np.bincount(arrays["leader"][decided], minlength=4) / decided.sum()
    words = page.run("return document.getElementById('legend').innerText")
    for name, share in zip(PEOPLE, shares, strict=True):
        if share > 0.005:
            assert f"{name} {math.floor(100 * share + 0.5)}%" in words
    page.click("input[value=result]")
    words = page.run("return document.getElementById('legend').innerText")
    assert words.split() == [CLASSES[label] for label in np.unique(arrays["result"])]


def test_uncertainty_has_a_scale(page):
    page.click("input[value=uncertainty]")
    words = page.run("return document.getElementById('legend').innerText")
    assert "0 sure" in words
    assert "1 all classes alike" in words
    scale = "return getComputedStyle(document.querySelector('.scale')).backgroundImage"
    assert page.run(scale).startswith("linear-gradient(to right, rgb(247, 246, 240)")


def at(browser):
    return browser.run("return shown.place")


def test_pointing_reads_until_a_click_holds_and_a_click_or_escape_lets_go(page, written):
    for number in (0, 1):  # also after a change of picture
        choose(page, number)
        arrays = arrays_of(written, number)
        for escape in (False, True):
            point_at(page, arrays, 12, 5)
            assert at(page) == [12, 5]
            point_at(page, arrays, 10, 20, press=True)
            point_at(page, arrays, 30, 5)
            assert at(page) == [10, 20]
            page.press("Escape") if escape else point_at(page, arrays, 10, 20, press=True)
            point_at(page, arrays, 31, 5)
            assert at(page) == [31, 5]
        point_at(page, arrays, 10, 20, press=True)  # held when the next picture is chosen


def test_arrow_keys_move_the_spot(page, written):
    arrays = arrays_of(written, 0)
    point_at(page, arrays, 10, 20, press=True)
    page.press("Right", "Down", "Down")
    assert at(page) == [12, 21]
    page.press("Shift+Left", "Up")
    assert at(page) == [11, 11]
    page.press("Shift+Left", "Shift+Left")  # not beyond the edge
    assert at(page)[1] == 0


def test_all_can_be_reached_by_the_keyboard_and_is_seen_to_be(page):
    page.run("document.activeElement.blur(); scrollTo(0, 0)")
    reached, unseen = [], []
    for _ in range(40):
        page.press("Tab")
        name, outlines = page.run(
            "const e = document.activeElement;"
            "const around = [e, e.closest('label')].filter(Boolean);"
            "return [e.id || e.className, around.map((n) => getComputedStyle(n).outlineStyle)]"
        )
        reached.append(name)
        unseen += [name] if set(outlines) == {"none"} else []
        if name == "with-unanimous":
            break
    order = [reached.index(name) for name in ("skip", "image", "stage", "with-result")]
    assert order == sorted(order)
    assert reached[-1] == "with-unanimous"
    assert unseen == []


def test_of_many_annotators_those_with_the_largest_say_are_listed(browser, tmp_path):
    people = [f"Annotator {i}" for i in range(40)]
    model = MadeUpModel(people, ("background", "cell"))
    write_report(ExplainedImages(model, MadeUpImages({"a": (40, 40)}), grey_picture), tmp_path)
    open_page(browser, tmp_path / "index.html")
    others = browser.run("return document.querySelector('#spot .voices').innerText")
    assert "35 others" in others


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_a_desk(browser, written, width, scheme):
    browser.size(width, 844)
    browser.prefers(scheme)
    open_page(browser, written / "index.html")
    needed, outside, paper = browser.run(
        "const root = document.documentElement;"
        "const named = [...document.querySelectorAll('h1, h2, h3, p, img, td, label, button, li')]"
        ".filter((e) => !e.closest('.wide') && e.getClientRects().length);"
        "return [root.scrollWidth, named.filter((e) => e.getBoundingClientRect().right > "
        "root.clientWidth + 1).length, getComputedStyle(document.body).backgroundColor]"
    )
    browser.size(1280, 900)
    browser.prefers("light")
    assert needed <= width
    assert outside == 0
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(22, 24, 27)")


def test_nothing_is_asked_for_and_nothing_is_complained_about(browser, written):
    browser.requests(), browser.console()
    path = written / "index.html"
    open_page(browser, path)
    for number in (1, 2, 0):
        choose(browser, number)
    assert {url for url in browser.requests() if not url.startswith(("data:", "about:"))} == {
        path.as_uri()
    }
    assert browser.console() == []


def test_an_address_leads_to_a_picture(browser, written):
    open_page(browser, written / "index.html", "#picture=2")
    wait_for(browser, "document.getElementById('image').value === '2'")
    browser.run(
        "const e = document.getElementById('image'); e.value = '1';"
        "e.dispatchEvent(new Event('change'))"
    )
    wait_for(browser, "document.getElementById('image').value === '1'")
