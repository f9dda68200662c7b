"""The report of explained images: its files, its numbers, its page."""

import base64
import dataclasses
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from made_up import (
    MadeUpImages,
    MadeUpModel,
    grey_picture,
    make_explanation,
    make_sources,
    quarters,
)

from tax_lightning.data.images import ExplainedImages
from tax_lightning.explanation import TrustBasis
from tax_lightning.visualization.gallery import read_cards
from tax_lightning.visualization.page import compact, packed
from tax_lightning.visualization.report import write_page, write_report
from tax_lightning.visualization.summary import standing, trust_words

ODD = "Bär <b>\"1\" & '2'</script>"
TRAINING = np.full((100, 120, 3), 90, np.uint8)


def report(folder, sizes=None, model=None, **options):
    """The page of a made-up model on made-up images."""
    images = MadeUpImages(sizes or {ODD: (24, 32), "plain": (40, 16)})
    return write_report(explained(images, model), folder, **options)


def explained(images, model=None):
    return ExplainedImages(model or MadeUpModel(), images, grey_picture)


class Fixed(MadeUpModel):
    """Says the same of every image."""

    def __init__(self, explanation):
        super().__init__()
        self.explanation = explanation

    def explain(self, images, ids):
        return dataclasses.replace(self.explanation, ids=tuple(ids))


def stored_maps(page, number, entry, planes):
    """The maps as the page holds them, decoded as its script does."""
    text = re.search(rf'id="maps-{number}">([^<]*)<', page)[1]
    values = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    height, width = entry["shown"]
    maps, start = {}, 0
    for plane in planes:
        end = start + plane["count"] * height * width
        maps[plane["name"]] = values[start:end].reshape(plane["count"], height, width)
        start = end
    assert start == values.size
    return maps


def script_data(page):
    """What the page's script knows."""
    text = re.search(r'<script type="application/json" id="report">(.*?)</script>', page, re.S)[1]
    return json.loads(text)


class Outline(HTMLParser):
    """The elements of a page, each of which must be closed."""

    VOID = ("meta", "link", "img", "br", "input", "circle", "rect")

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def of(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


# ---------------------------------------------------------------------------------- compact maps


def test_maps_are_the_explanation_in_per_cent():
    explanation = MadeUpModel().explain(torch.zeros(1, 1, 20, 30), ["a"])
    maps = compact(explanation, 1024)
    names = ("undisputed", "reason", "reason_kernel", "dissenter", "dissent_kernel", "leader")
    for name in names:
        assert np.array_equal(maps[name], getattr(explanation, name)[0])
    assert np.array_equal(maps["result"], explanation.decision[0])
    assert np.array_equal(maps["standing"], standing(explanation)[0])
    for name, share in {
        "who": explanation.who,
        "votes": explanation.votes / 4,
        "dispute": explanation.dispute,
        "uncertainty": explanation.uncertainty,
        "reason_share": explanation.reason_share,
        "annotator_foreground": explanation.annotator_probs[:, :, 1:],
    }.items():
        assert np.abs(maps[name] / 100 - share[0].numpy()).max() <= 0.005 + 1e-6


def test_who_is_there_where_it_follows_the_image_and_masks_where_they_are_given():
    leader, _ = quarters()
    explanation = make_explanation(leader, trust=TrustBasis("constant"))
    masks = np.arange(192).reshape(3, 8, 8)
    maps = compact(explanation, 4, masks)
    assert not {"who", "leader", "standing"} & set(maps)
    assert np.array_equal(maps["masks"], masks[:, maps["rows"][:, None], maps["columns"]])
    assert "masks" not in compact(explanation, 1024)


def test_of_a_large_image_evenly_spread_pixels_are_kept():
    explanation = MadeUpModel().explain(torch.zeros(1, 1, 40, 100), ["a"])
    maps = compact(explanation, 50)
    assert maps["result"].shape == (20, 50)
    assert maps["rows"][:3].tolist() == [1, 3, 5]
    assert maps["columns"][-1] == 99
    picked = explanation.leader[0][np.ix_(maps["rows"], maps["columns"])]
    assert np.array_equal(maps["leader"], picked)


def test_more_kernels_than_a_byte_holds_are_refused():
    leader, _ = quarters()
    explanation = make_explanation(leader, sources=make_sources(("Ana", "Ben", "Cleo"), "a", 300))
    with pytest.raises(ValueError, match="300 kernels, but a page tells at most 254 apart"):
        compact(explanation, 1024)


def test_maps_of_several_images_are_refused():
    leader, _ = quarters()
    with pytest.raises(ValueError, match="expected 1"):
        compact(make_explanation(leader.expand(2, -1, -1)), 1024)


# ------------------------------------------------------------------ a page of what was explained


@pytest.mark.parametrize("projected", [True, False])
def test_a_page_alone_knows_every_prototype(tmp_path, projected):
    model = MadeUpModel(projected=projected)
    pairs = list(explained(MadeUpImages({"a": (16, 16), "b": (16, 16)}), model))
    cards = read_cards(pairs[0][0].sources, lambda name: TRAINING)
    write_page(pairs, cards, tmp_path / "report.html", "a model")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    known = script_data(page)
    assert [image["id"] for image in known["images"]] == ["a", "b"]
    assert [len(a["prototypes"]) for a in known["annotators"]] == [model.kernels] * 4
    assert ("are no training pixels yet" in page) != projected


def test_two_explanations_of_one_name_are_refused_and_leave_nothing(tmp_path):
    pairs = list(explained(MadeUpImages({"a": (16, 16)}))) * 2
    with pytest.raises(ValueError, match="two images have the id 'a'"):
        write_page(pairs, [], tmp_path / "report.html", "a model")
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------- files


def test_the_page_and_the_npz_hold_the_same_values(tmp_path):
    page = report(tmp_path).read_text(encoding="utf-8")
    known = script_data(page)
    listed = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [image["id"] for image in listed["images"]] == [ODD, "plain"]
    for number, (entry, image) in enumerate(zip(known["images"], listed["images"], strict=True)):
        stored = stored_maps(page, number, entry, entry["planes"])
        with np.load(tmp_path / image["files"]["maps"]) as arrays:
            assert set(arrays) == {"rows", "columns", *stored}
            for name, planes in stored.items():
                assert np.array_equal(planes, arrays[name].reshape(planes.shape))
            assert arrays["who"].shape == (4, *image["shown"])
            assert arrays["annotator_foreground"].shape == (4, 2, *image["shown"])
        assert (tmp_path / image["files"]["panel"]).is_file()


def test_the_numbers_add_up(tmp_path):
    report(tmp_path)
    listed = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    prototypes = [p for annotator in listed["annotators"] for p in annotator["prototypes"]]
    assert sum(prototype["use"] for prototype in prototypes) == pytest.approx(1)
    assert sum(annotator["reason"] for annotator in listed["annotators"]) == pytest.approx(1)
    support = [annotator["support"] for annotator in listed["annotators"]]
    assert sum(support) == pytest.approx(listed["votes"])
    for image in listed["images"]:
        with np.load(tmp_path / image["files"]["maps"]) as arrays:
            disputed = arrays["undisputed"] == 0
            assert image["disputed"] == pytest.approx(disputed.mean())
            votes = 4 * arrays["votes"][disputed].mean() / 100
            assert image["votes"] == pytest.approx(votes, abs=0.01)
            assert image["disputed_in_masks"] is None


def test_masks_are_used_where_they_are_given(tmp_path):
    masks = np.zeros((4, 16, 16), dtype=np.int64)
    masks[1, :4] = 1
    items = [(*item[:2], masks) for item in explained(MadeUpImages({"a": (16, 16)}))]
    names = items[0][0].annotators
    groups = {"tool pen": names[:2], "tool mouse": names[2:]}
    page = write_report(items, tmp_path, groups=groups).read_text(encoding="utf-8")
    assert "masks / model, over the pictures that have masks (1)" in page
    assert page.count('<th scope="row">tool pen</th>') == 2
    (image,) = json.loads((tmp_path / "report.json").read_text())["images"]
    assert image["disputed_in_masks"] == 0.25
    with np.load(tmp_path / image["files"]["maps"]) as arrays:
        assert np.array_equal(arrays["masks"], masks)


def test_of_larger_images_fewer_pixels_are_shown(tmp_path):
    page = report(tmp_path, {"large": (96, 64)}, max_side=48).read_text(encoding="utf-8")
    (image,) = script_data(page)["images"]
    assert image["size"] == [96, 64]
    assert image["shown"] == [48, 32]


def test_a_folder_that_holds_a_report_is_refused(tmp_path):
    report(tmp_path, {"image-0815": (16, 16)})
    with pytest.raises(FileExistsError, match=r"holds a report already.*--overwrite"):
        report(tmp_path, {"second": (16, 16)})
    page = report(tmp_path, {"second": (16, 16)}, overwrite=True)
    assert "image-0815" not in page.read_text(encoding="utf-8")
    assert (tmp_path / "maps" / "image-0815.npz").is_file()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(NotADirectoryError, match="taken is a file, expected a folder"):
        report(tmp_path / "taken")


def test_no_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no images to explain"):
        write_report(explained(MadeUpImages({})), tmp_path)


def test_a_size_too_small_to_see_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--max_side=4: expected"):
        report(tmp_path, max_side=4)


def test_a_report_that_fails_halfway_leaves_no_page(tmp_path):
    class Failing(MadeUpImages):
        def __getitem__(self, index):
            if index:
                raise ValueError("the second image is broken")
            return super().__getitem__(index)

    with pytest.raises(ValueError, match="the second image is broken"):
        write_report(explained(Failing({"a": (16, 16), "b": (16, 16)})), tmp_path)
    left = [path.name for path in tmp_path.iterdir() if path.is_file()]
    assert left == []


def test_twenty_images_of_ten_annotators_fit_in_30_megabytes():
    model = MadeUpModel([f"Annotator {i}" for i in range(10)], ("background", "cell"), kernels=4)
    maps = packed(compact(model.explain(torch.zeros(1, 1, 512, 512), ["a"]), 1024))
    photograph, all_else = 512 * 512 // 2, 2e6
    assert 20 * (len(maps) + photograph) + all_else < 30e6


# ------------------------------------------------------------------------------------------ page


def test_the_page_stands_alone(tmp_path):
    text = report(tmp_path, read=lambda name: TRAINING).read_text(encoding="utf-8")
    page = Outline(text)
    code = re.search(r"<script>(.*?)</script>", text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    policy = next(m["content"] for m in page.of("meta") if "http-equiv" in m)
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    assert all(image["src"].startswith("data:image/") for image in page.of("img") if "src" in image)
    without_data = re.sub(r'base64,[^"<]*|id="maps-\d+">[^<]*', "", text)
    assert not re.search(r"https?:|url\(|@import|import\(|fetch\(|//[a-z]", without_data)


def test_names_are_text_wherever_they_stand(tmp_path):
    people = ("<i>Ana</i>", "Ben & Söhne", '"C"')
    model = MadeUpModel(people, ("back<b>ground", "zelle"))
    text = report(tmp_path, model=model, title="<u>title</u>").read_text(encoding="utf-8")
    page = Outline(text)
    assert not {"i", "u"} & {tag for tag, _ in page.elements}
    assert any(ODD in words for words in page.words)
    for name in people:
        assert name in page.words
    assert [annotator["name"] for annotator in script_data(text)["annotators"]] == list(people)
    assert script_data(text)["images"][0]["id"] == ODD


def test_links_lead_somewhere_and_ids_are_unique(tmp_path):
    page = Outline(report(tmp_path, read=lambda name: TRAINING).read_text(encoding="utf-8"))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [link["href"] for link in page.of("a")]
    assert {link[1:] for link in links} <= set(ids)


def open_page(folder):
    return (folder / "index.html").read_text(encoding="utf-8")


def nowhere(name):
    raise LookupError(name)


@pytest.mark.parametrize(
    ("projected", "read", "said"),
    [
        (False, None, "are no training pixels yet"),
        (True, None, "The training images of 12 of 12 prototypes are not at hand"),
        (True, nowhere, "Give the configuration of the training with --config to see them"),
    ],
)
def test_missing_examples_are_noted(tmp_path, projected, read, said):
    report(tmp_path, model=MadeUpModel(projected=projected), read=read)
    assert said in open_page(tmp_path)
    assert said in (tmp_path / "report.json").read_text(encoding="utf-8")


def of_one_look(probability, **options):
    """A model that expects this probability of a cell of each annotator, at every pixel."""
    leader = torch.zeros(1, 16, 16, dtype=torch.int64)
    p = torch.tensor(probability).view(1, -1, 1, 1).expand(-1, -1, 16, 16)
    probs = torch.stack([1 - p, p], dim=2)
    explanation = make_explanation(leader, **options)
    explanation = dataclasses.replace(explanation, annotator_probs=probs, probs=probs.mean(dim=1))
    return Fixed(explanation)


@pytest.mark.parametrize(
    ("probability", "said"),
    [
        ((0.6, 0.6, 0.6), "The model expects the same of all 3 annotators"),
        ((0.9, 0.3, 0.9), "The model expects nearly the same of Ana and Cleo"),
        ((0.1, 0.3, 0.2), "The result is background everywhere. The model found nothing at any"),
        ((0.9, 0.3, 0.6), None),
    ],
)
def test_what_misleads_is_called_by_name(tmp_path, probability, said):
    report(tmp_path, {"a": (16, 16)}, of_one_look(probability))
    listed = json.loads((tmp_path / "report.json").read_text())
    noted = [note for note in listed["notes"] if "training images" not in note]
    assert [note.startswith(said) for note in noted] == ([True] if said else [])
    assert (said or "Overview") in open_page(tmp_path)


def test_an_error_of_all_stands_on_page_and_in_numbers(tmp_path):
    masks, reference = np.zeros((3, 16, 16), int), np.ones((16, 16), int)
    items = [(*pair, masks, reference) for pair in explained(
        MadeUpImages({"a": (16, 16)}), of_one_look((0.9, 0.3, 0.6)))]  # fmt: skip
    write_report(items, tmp_path)
    title = "On 100% of what is drawn all annotators are wrong alike."
    assert title in open_page(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["notes"][0].startswith(title)


@pytest.mark.parametrize("kind", ["uniform", "constant", "image"])
@pytest.mark.parametrize("measured", [True, False])
def test_the_page_says_what_trust_is_worth(tmp_path, kind, measured):
    trust = TrustBasis(kind, "staple", (0.28, 0.24, 0.25) if measured else (np.nan,) * 3)
    report(tmp_path, {"a": (16, 16)}, of_one_look((0.9, 0.3, 0.6), trust=trust))
    assert trust_words(trust) in open_page(tmp_path)
    assert ('value="trust"' in open_page(tmp_path)) == (kind == "image")
    known = script_data(open_page(tmp_path))["trust"]
    assert known["scores"] == ([0.28, 0.24, 0.25] if measured else [None] * 3)


def test_the_page_says_that_an_error_of_all_cannot_be_seen(tmp_path):
    assert "Where all annotators are wrong alike" in report(tmp_path).read_text(encoding="utf-8")


def test_notes_of_the_caller_stand_on_the_page(tmp_path):
    report(tmp_path, read=lambda name: TRAINING, notes=["Mind the <gap>."])
    page = Outline(open_page(tmp_path))
    assert "Mind the <gap>." in page.words
    assert "not at hand" not in open_page(tmp_path)
