"""The report in a browser: what a person points at, switches and presses, against the numbers."""

import base64
import json
import math

import browser as web
import numpy as np
import pytest
from made_up import MadeUpImages, MadeUpModel, grey_picture

from tax_lightning.data.images import ExplainedImages
from tax_lightning.explanation import TrustBasis
from tax_lightning.palette import (
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


@pytest.fixture(scope="module", params=["image", "constant"])
def written(request, tmp_path_factory):
    """The folder of a report on three images of different sizes; trust has one of two forms."""
    folder = tmp_path_factory.mktemp(request.param)
    images = MadeUpImages({ODD: (40, 56), "tall": (64, 24), "large": (200, 300)})
    model = MadeUpModel(PEOPLE, CLASSES, trust=TrustBasis(request.param, "given", (0.3, 0.2, 0.2)))
    items = ExplainedImages(model, images, grey_picture)
    if request.param == "constant":
        items = [(*pair, circles(*pair[1].shape[:2])) for pair in items]
    write_report(items, folder, read=lambda name: TRAINING, max_side=100)
    return folder


def circles(height, width):
    """Masks [N, H, W] of circles in corners; the last annotator did not label."""
    rows, columns = np.indices((height, width))
    corners = ((0, 0), (0, width), (height, 0))
    masks = [(rows - y) ** 2 + (columns - x) ** 2 < (height / 3) ** 2 for y, x in corners]
    return np.stack([*masks, np.full((height, width), 255)]).astype(np.int64)


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


def own_shares(arrays):
    """Shares ``[N, C, h, w]`` of what each annotator would say."""
    foreground = arrays["annotator_foreground"].astype(np.int64)
    background = (100 - foreground.sum(axis=1, keepdims=True)).clip(0)
    return np.concatenate([background, foreground], axis=1)


def drawn_by(arrays, annotator):
    """Class ids ``[h, w]`` as drawn, where masks are at hand, else as expected."""
    if "masks" in arrays:
        return np.where(arrays["masks"][annotator] == 255, 0, arrays["masks"][annotator])
    return own_shares(arrays)[annotator].argmax(axis=0)


def expected_colours(arrays, layer):
    """The canvas of colours, RGBA ``[h, w, 4]`` as floats."""
    colours = np.array(annotator_palette(len(PEOPLE)))
    opaque = np.full((*arrays["result"].shape, 1), 255.0)
    if layer == "image":
        return np.zeros((*opaque.shape[:2], 4))
    if layer == "result":
        result = arrays["result"].astype(int)
        shown = np.concatenate([np.array(class_palette(3))[result], 0 * opaque + 140], axis=2)
        return np.where(result[..., None] > 0, shown, 0)
    if layer == "trust":
        leader = arrays["leader"].astype(int)
        most = np.take_along_axis(arrays["who"], leader[None], axis=0)[0] / 100
        certainty = ((most - 1 / 4) / (3 / 4)).clip(0)
        return np.concatenate([colours[leader], 255 * certainty[..., None]], axis=2)
    if layer == "why":
        shades = np.array([[kernel_shade(tuple(c), k, 3) for k in range(3)] for c in colours])
        return np.concatenate([shades[arrays["reason"], arrays["reason_kernel"]], opaque], axis=2)
    values = arrays[layer] / 100
    if layer == "votes":
        values = 2 * (1 - values)
    if layer == "dispute":
        values = values / (2 / 3)  # even odds of three classes
    return np.concatenate([value_colours(values.clip(0, 1)), opaque], axis=2)


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


def test_pointing_tells_what_the_npz_says(page, written):
    rng = np.random.default_rng(0)
    for number in range(3):
        choose(page, number)
        arrays = arrays_of(written, number)
        height, width = arrays["result"].shape
        for y, x in zip(rng.integers(0, height, 4), rng.integers(0, width, 4), strict=True):
            point_at(page, arrays, y, x)  # nothing was clicked: pointing reads at once
            told, result = spot(page), arrays["result"][y, x]
            assert (told["y"], told["x"]) == (arrays["rows"][y], arrays["columns"][x])
            assert told["result"] == result
            assert told["undisputed"] == bool(arrays["undisputed"][y, x])
            assert told["votes"] == pytest.approx(arrays["votes"][y, x] / 25)
            reason = {"annotator": arrays["reason"][y, x], "kernel": arrays["reason_kernel"][y, x]}
            assert told["reason"].items() >= reason.items()
            assert told["reason"]["share"] == pytest.approx(arrays["reason_share"][y, x] / 100)
            shares = own_shares(arrays)[:, :, y, x]
            said, n = shares.argmax(axis=1), arrays["dissenter"][y, x]
            against = {"annotator": n, "kernel": arrays["dissent_kernel"][y, x], "label": said[n]}
            assert told["against"] == (None if said[n] == result else against)
            for voices, chosen in (("agreeing", said == result), ("dissenting", said != result)):
                found = {v["annotator"]: (v["label"], 100 * v["share"]) for v in told[voices]}
                assert set(found) == set(np.flatnonzero(chosen))
                order = [v["share"] for v in told[voices]]
                assert order == sorted(order, reverse=True)
                for m, (label, share) in found.items():
                    assert (label, share) == (said[m], pytest.approx(shares[m].max()))
            if "who" in arrays:
                leader = arrays["leader"][y, x]
                weight = arrays["who"][leader, y, x] / 100
                stands = ("shared", "decides", "outvoted")[arrays["standing"][y, x]]
                assert told["trust"] == {
                    "leader": leader,
                    "weight": pytest.approx(weight),
                    "standing": stands,
                }
            else:
                assert told.get("trust") is None


def words_at(browser, arrays, where):
    """The text at the first pixel of a map of truth values."""
    y, x = np.argwhere(where)[0]
    point_at(browser, arrays, y, x)
    return y, x, browser.run("return document.getElementById('spot').innerText")


def test_the_reading_is_in_words_with_examples_for_and_against(page, written):
    arrays = arrays_of(written, 0)
    said = own_shares(arrays).argmax(axis=1)
    dissent = np.take_along_axis(said, arrays["dissenter"][None].astype(int), axis=0)[0]
    cell_or_not = (arrays["result"] < 2) & (dissent < 2) & (dissent != arrays["result"])
    y, x, words = words_at(page, arrays, cell_or_not & (arrays["undisputed"] == 0))
    label, other = CLASSES[arrays["result"][y, x]], CLASSES[dissent[y, x]]
    ben = PEOPLE[arrays["dissenter"][y, x]]
    assert f"{label}: {arrays['votes'][y, x] / 25:.1f} of 4 would say so." in words
    assert f"Against: {ben} would say {other}, as here." in words
    origins = {"background": "b, row 1", "cell": "train-7, row "}
    assert f"For {label}: prototype {arrays['reason_kernel'][y, x]} of" in words
    assert f"like training image {origins[label]}" in words
    assert f"like training image {origins[other]}" in words
    assert f"which {ben} labelled {other}" in words
    assert page.run("return [...document.querySelectorAll('#spot .crop')].length") == 2
    *_, words = words_at(page, arrays, dissent == arrays["result"])
    assert "Against: for every annotator this class is the most likely." in words
    *_, words = words_at(page, arrays, arrays["undisputed"] == 1)
    assert "Not disputed: fewer than 1 pair of annotators in 10 is expected to differ." in words
    *_, words = words_at(page, arrays, arrays["result"] == 2)
    assert "there is no pixel like it that" in words  # no prototype has an example of a fibre


def test_decides_is_said_only_where_it_is_so(page, written):
    words = page.run(
        "return ['decides', 'outvoted', 'shared'].map((standing) =>"
        "trustOf({leader: 0, weight: 0.6, standing}).textContent)"
    )
    assert words == [
        "Ana decides, with a weight of 60%.",
        "Ana weighs most, 60%, but is outvoted.",
        "Shared: Ana weighs most, 60%, which is less than half.",
    ]
    arrays = arrays_of(written, 0)
    if "who" not in arrays:
        text = page.run("return document.getElementById('pictures').innerText")
        assert "decides" not in text
        assert "Whom" not in text
        return
    for number, word in enumerate(("Shared: ", " decides, ", " outvoted.")):
        if (arrays["standing"] == number).any():
            assert word in words_at(page, arrays, arrays["standing"] == number)[2]


LAYERS = ["image", "result", "votes", "why", "dispute", "uncertainty", "trust"]


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_show_what_python_computes(page, written, layer):
    arrays = arrays_of(written, 0)
    if layer == "trust" and "who" not in arrays:
        assert page.run("return document.querySelector('input[value=trust]')") is None
        return
    page.click(f"input[value={layer}]")
    page.click("#with-hatching")
    step = 2 if layer in ("image", "result", "why", "trust") else 8  # between two colours
    assert_same_colours(canvas(page, "colours"), expected_colours(arrays, layer), step)


def test_undisputed_pixels_are_washed_and_hatched(page, written):
    undisputed = arrays_of(written, 0)["undisputed"] == 1
    page.click("input[value=votes]")
    page.click("#with-result")
    washed = canvas(page, "colours")
    assert {tuple(p) for p in washed[undisputed]} == {tuple(washed[undisputed][0])}
    hatched = canvas(page, "lines")[..., 3] > 0
    zoom = hatched.shape[0] // undisputed.shape[0]
    enlarged = undisputed.repeat(zoom, axis=0).repeat(zoom, axis=1)
    assert hatched[enlarged].mean() > 0.1
    assert not hatched[~enlarged].any()
    page.click("#with-hatching")
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


def test_outlines_are_where_annotators_drew_or_would_draw(page, written):
    arrays = arrays_of(written, 0)
    page.click("input[value=image]")
    page.click("#with-result")
    page.click("#with-outlines")
    drawn = canvas(page, "lines")
    zoom, line = page.run("const {zoom, line} = lineSizes(shown.maps); return [zoom, line]")
    outlines = [outline(drawn_by(arrays, n), zoom, line) for n in range(len(PEOPLE))]
    assert np.array_equal(drawn[..., 3] > 0, np.any(outlines, axis=0))
    for n, expected in enumerate(outlines):
        alone = expected & (np.sum(outlines, axis=0) == 1)
        assert {tuple(p[:3]) for p in drawn[alone]} <= {annotator_palette(4)[n]}
    both = {tuple(p[:3]) for p in drawn[np.sum(outlines, axis=0) > 1]}
    assert len(both) > 1 or not both  # they take turns
    note = page.run("return document.getElementById('legend-note').innerText")
    given = "masks" in arrays
    assert ("Outlines: as each annotator drew." in note) == given
    real = listing(written)["images"][0]["disputed_in_masks"]
    assert (f"In the masks: {real or 0:.0%}." in note) == given


def test_the_result_is_outlined_in_dashes(page, written):
    arrays = arrays_of(written, 0)
    page.click("input[value=image]")
    drawn = canvas(page, "lines")
    zoom, line = page.run("const {zoom, line} = lineSizes(shown.maps); return [zoom, line]")
    expected = outline(arrays["result"], zoom, math.ceil(2 * line / 3))
    assert np.array_equal(drawn[..., 3] > 0, expected)
    assert {tuple(p[:3]) for p in drawn[expected]} == {(0, 0, 0), (255, 255, 255)}


def test_the_legend_names_what_is_shown(page, written):
    arrays = arrays_of(written, 0)
    legend = "return document.getElementById('legend').innerText"
    assert page.run(legend).split() == [CLASSES[label] for label in np.unique(arrays["result"])]
    page.click("input[value=why]")
    words = page.run(legend)
    assert [name for name in PEOPLE if name in words] == [
        PEOPLE[n] for n in np.unique(arrays["reason"])
    ]
    for layer, low, high in (
        ("votes", "4 of 4", "2 of 4 or fewer"),
        ("dispute", "0%", "67% or more"),
        ("uncertainty", "0 sure", "1 all classes alike"),
    ):
        page.click(f"input[value={layer}]")
        words = page.run(legend)
        assert low in words
        assert high in words
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
    for _ in range(20):
        page.press("Tab")
        name, outlines = page.run(
            "const e = document.activeElement;"
            "const around = [e, e.closest('label')].filter(Boolean);"
            "return [e.id || e.className, around.map((n) => getComputedStyle(n).outlineStyle)]"
        )
        reached.append(name)
        unseen += [name] if set(outlines) == {"none"} else []
        if name == "with-hatching":
            break
    order = [reached.index(name) for name in ("skip", "image", "stage", "with-result")]
    assert order == sorted(order)
    assert reached[-1] == "with-hatching"
    assert unseen == []


def test_all_that_is_operated_has_a_name(page):
    nameless = page.run(
        "return [...document.querySelectorAll('button, input, select, a, [role=img], [tabindex]')]"
        ".filter((e) => !(e.innerText || '').trim() && !e.getAttribute('aria-label') && "
        "!(e.labels && e.labels.length) && !e.closest('details:not([open])') && "
        "e.tagName !== 'A').map((e) => e.outerHTML.slice(0, 80))"
    )
    assert nameless == []


def test_of_many_voices_some_are_named_and_the_others_counted(browser, tmp_path):
    people = [f"Annotator {i}" for i in range(40)]
    model = MadeUpModel(people, ("background", "cell"))
    write_report(ExplainedImages(model, MadeUpImages({"a": (40, 40)}), grey_picture), tmp_path)
    open_page(browser, tmp_path / "index.html")
    told, words = spot(browser), browser.run("return document.getElementById('spot').innerText")
    for voices in ("agreeing", "dissenting"):
        if len(told[voices]) > 5:
            assert f"and {len(told[voices]) - 5} more" in words
    assert len(told["agreeing"]) + len(told["dissenting"]) == 40


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_a_desk(browser, written, width, scheme):
    browser.size(width, 844)
    browser.prefers(scheme)
    open_page(browser, written / "index.html")
    browser.run("document.querySelectorAll('details').forEach((d) => (d.open = true))")
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


def test_a_request_and_a_complaint_would_be_noticed(browser, written, tmp_path):
    text = (written / "index.html").read_text(encoding="utf-8")
    spoilt = tmp_path / "spoilt.html"
    spoilt.write_text(text.replace('src="data:image/', 'src="http://localhost:9/', 1), "utf-8")
    browser.console()
    open_page(browser, spoilt)
    assert any("Content Security Policy" in words for words in browser.console())


def test_other_scripts_than_the_page_s_own_do_not_run(browser, written, tmp_path):
    text = (written / "index.html").read_text(encoding="utf-8")
    spoilt = tmp_path / "spoilt.html"
    spoilt.write_text(text.replace("<main>", "<main><script>window.ran = 1</script>"), "utf-8")
    open_page(browser, spoilt)
    assert browser.run("return window.ran") is None


def test_an_address_leads_to_a_picture(browser, written):
    open_page(browser, written / "index.html", "#picture=2")
    wait_for(browser, "document.getElementById('image').value === '2'")
    browser.run(
        "const s = document.getElementById('image'); s.value = '1';"
        "s.dispatchEvent(new Event('change'))"
    )
    wait_for(browser, "shown.maps.number === 1")
