"""Prototypes, the search for their sources, and what a checkpoint keeps of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tax_lightning.models.prototypes import (
    CANDIDATES,
    EXAMPLES,
    ExampleSearch,
    Pixel,
    PrototypeMemory,
    SourceSearch,
)

CLASSES = ("background", "cell")


def direction(degrees: float) -> Tensor:
    """Unit vector in the plane: cosines are known from the angle."""
    return torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])


def pixel(
    similarity: float,
    sample_id: str = "a",
    y: int = 0,
    x: int = 0,
    label: int = 1,
    preferred: bool = False,
) -> Pixel:
    """A pixel whose embedding is as far from (1, 0) as its similarity says."""
    embedding = torch.tensor([similarity, math.sqrt(1 - similarity**2)])
    return Pixel(similarity, sample_id, y, x, label, preferred, embedding)


def search_of(*annotators: list[list[Pixel]]) -> SourceSearch:
    """A search that found these pixels, best first, for each annotator and kernel."""
    search = SourceSearch()
    search.best = {(n, k): f for n, row in enumerate(annotators) for k, f in enumerate(row)}
    return search


def places(memory: PrototypeMemory) -> list[list[tuple[str, int, int] | None]]:
    """Where each prototype was taken from."""
    names = [str(n) for n in range(len(memory.active))]
    return [
        [
            (s.taken_from.sample_id, s.taken_from.y, s.taken_from.x) if s.projected else None
            for s in row
        ]
        for row in memory.sources(names, CLASSES)
    ]


# ---------------------------------------------------------------------- evidence


def test_evidence_is_cosine_over_temperature_plus_prior():
    memory = PrototypeMemory(2, 2, 2, 2, temperature=0.25)
    with torch.no_grad():
        memory.vectors[0] = torch.stack([direction(0) * 3, direction(90)])  # length is no matter
        memory.vectors[1] = torch.stack([direction(180), direction(60)])
        memory.prior.copy_(torch.tensor([0.0, 1.5]))
    z = direction(0).view(1, 2, 1, 1)
    expected = torch.tensor([[4.0, 0.0], [-4.0 + 1.5, 2.0 + 1.5]])
    torch.testing.assert_close(memory(z)[0, ..., 0, 0], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        memory.similarity(z)[0, ..., 0, 0], torch.tensor([[1, 0], [-1, 0.5]]), atol=1e-6, rtol=0
    )


def test_cosines_are_exact_also_under_autocast():
    memory = PrototypeMemory(2, 3, 16, 2)
    z = F.normalize(torch.randn(1, 16, 3, 3), dim=1)
    exact = memory.similarity(z)
    with torch.autocast("cpu", torch.bfloat16):
        found = memory.similarity(z)
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("temperature", [0.0, -0.1])
def test_temperature_must_be_positive(temperature):
    message = f"^temperature={temperature}: expected a number greater than 0.$"
    with pytest.raises(ValueError, match=message):
        PrototypeMemory(1, 1, 2, 2, temperature)


# ---------------------------------------------------------------------- start


def test_prototypes_start_at_the_centres_of_separate_clusters():
    memory = PrototypeMemory(2, 3, 8, 2)
    centres = torch.eye(8)[:6].view(2, 3, 8)
    clusters = centres.repeat(1, 50, 1)
    pixels = F.normalize(clusters + 0.05 * torch.randn_like(clusters), dim=-1)
    memory.start(list(pixels))
    found = torch.einsum("nkd,njd->nkj", memory.unit_vectors, centres)
    assert (found.amax(dim=2) > 0.99).all()
    for n in range(2):
        assert sorted(found[n].argmax(dim=1).tolist()) == [0, 1, 2]


def test_an_annotator_with_too_few_pixels_keeps_the_prototypes():
    memory = PrototypeMemory(3, 2, 4, 2)
    before = memory.vectors.detach().clone()
    many = F.normalize(torch.randn(20, 4), dim=1)
    memory.start([many[:1], many, many[:0]])
    assert torch.equal(memory.vectors[[0, 2]], before[[0, 2]])
    assert not torch.equal(memory.vectors[1], before[1])


def test_start_is_reproducible_and_a_matter_of_the_annotators_own_pixels():
    first, second, third = (PrototypeMemory(2, 2, 4, 2) for _ in range(3))
    ana, ben, cleo = F.normalize(torch.randn(3, 40, 4), dim=2)
    first.start([ana, ben], seed=3)
    second.start([ana, ben], seed=3)
    third.start([cleo, ben], seed=3)
    assert torch.equal(first.vectors, second.vectors)
    assert torch.equal(first.vectors[1], third.vectors[1])


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:One of the clusters is empty:UserWarning")
def test_pixels_that_are_all_alike_do_no_harm():
    memory = PrototypeMemory(1, 3, 4, 2)
    memory.start([F.normalize(torch.ones(10, 4), dim=1)])
    torch.testing.assert_close(memory.vectors.data, torch.full((1, 3, 4), 0.5))


def test_those_to_keep_are_not_started_and_the_others_as_without_them():
    keeping, free = PrototypeMemory(3, 2, 4, 2), PrototypeMemory(3, 2, 4, 2)
    before = keeping.vectors.detach().clone()
    pixels = list(F.normalize(torch.randn(3, 30, 4), dim=2))
    keeping.start(pixels, keep=2)
    free.start(pixels)
    assert torch.equal(keeping.vectors[:2], before[:2])
    assert not torch.equal(keeping.vectors[2], before[2])
    assert torch.equal(keeping.vectors[2], free.vectors[2])


# ---------------------------------------------------------------------- search


def test_search_finds_the_best_eligible_pixel_of_each_image():
    similarity = torch.rand(3, 2, 2, 4, 5) * 2 - 1
    eligible = torch.rand_like(similarity) < 0.5
    eligible[1, 0, 1] = False
    labels = torch.randint(0, 2, (3, 2, 4, 5))
    embedding = F.normalize(torch.randn(3, 8, 4, 5), dim=1)
    search = SourceSearch()
    nowhere = torch.zeros_like(eligible)
    search.update(similarity, eligible, nowhere, labels, embedding, ["a", "b", "c"])
    for n in range(2):
        for k in range(2):
            expected = []
            for b, name in enumerate("abc"):
                candidates = [
                    (similarity[b, n, k, y, x].item(), name, y, x)
                    for y in range(4)
                    for x in range(5)
                    if eligible[b, n, k, y, x]
                ]
                expected += sorted(candidates)[-1:]
            found = search.best[n, k]
            assert [(p.similarity, *p.place) for p in found] == sorted(expected, reverse=True)
            for p in found:
                b = "abc".index(p.sample_id)
                assert p.label == labels[b, n, p.y, p.x]
                assert torch.equal(p.embedding, embedding[b, :, p.y, p.x])
    assert "b" not in [p.sample_id for p in search.best[0, 1]]


def look_at(search: SourceSearch, images: list[tuple[str, list[list[float]]]]) -> SourceSearch:
    """Show the search lines of pixels, image by image; a similarity below -1 is not eligible."""
    for name, similarities in images:
        similarity = torch.tensor(similarities)[None, None, :, None]  # [1, 1, K, 1, W]
        width = similarity.shape[-1]
        search.update(
            similarity,
            similarity >= -1,
            torch.zeros_like(similarity, dtype=torch.bool),
            torch.arange(width).view(1, 1, 1, width),
            torch.eye(width).view(1, width, 1, width),
            [name],
        )
    return search


def found_by(search: SourceSearch) -> list[list[tuple[float, tuple[str, int, int], int]]]:
    return [
        [(p.similarity, p.place, p.label) for p in pixels]
        for pixels in (search.best.get((0, k), []) for k in range(2))
    ]


# Few different values, so that ties are common.
LINES = st.lists(
    st.lists(st.sampled_from([-2.0, -0.5, 0.25, 0.5, 1.0]), min_size=3, max_size=3),
    min_size=2,
    max_size=2,
)
IMAGES = st.lists(LINES, max_size=25).map(
    lambda lines: [(f"image {i:02}", line) for i, line in enumerate(lines)]
)


@given(IMAGES, st.integers(0, 25), st.integers(0, 3))
def test_merged_parts_equal_the_whole(images, cut, shared):
    # Samplers of several processes show some images twice to make the parts equally long.
    first = look_at(SourceSearch(), images[: cut + shared])
    second = look_at(SourceSearch(), images[cut:])
    whole = found_by(look_at(SourceSearch(), images))
    forwards, backwards = SourceSearch(), SourceSearch()
    for part in (first, second):
        forwards.merge(part)
    for part in (second, first):
        backwards.merge(part)
    assert found_by(forwards) == found_by(backwards) == whole


@given(IMAGES)
def test_search_keeps_ten_images_the_best_first(images):
    for k, pixels in enumerate(found_by(look_at(SourceSearch(), images))):
        best = sorted((-max(line[k]), name) for name, line in images if max(line[k]) >= -1)
        expected = [(-similarity, name) for similarity, name in best][:CANDIDATES]
        assert [(similarity, place[0]) for similarity, place, _ in pixels] == expected


@given(IMAGES, st.integers(0, 25), st.integers(0, 3))
def test_examples_are_the_best_three_of_each_class_in_whatever_order_they_come(images, cut, shared):
    labels = torch.tensor([0, 1, 1])

    def look(images: list[tuple[str, list[list[float]]]]) -> ExampleSearch:
        search = ExampleSearch(2)
        for name, lines in images:
            similarity = torch.tensor(lines)[None, None, :, None]
            search.update(similarity, similarity >= -1, labels.view(1, 1, 1, 3), [name])
        return search

    merged = look(images[cut:][::-1])
    merged.merge(look(images[: cut + shared]))
    for search in (merged, look(images)):
        for k in range(2):
            expected = []
            for c in range(2):
                best = [
                    max((line[k][x], -x) for x in range(3) if labels[x] == c) for _, line in images
                ]
                names = [name for name, _ in images]
                pixels = [(-v, name, -x) for (v, x), name in zip(best, names, strict=True)]
                expected += [(c, *pixel) for pixel in sorted(pixels)[:EXAMPLES] if pixel[0] <= 1]
            found = search.examples(0, k)
            assert [(p.label, -p.similarity, p.sample_id, p.x) for p in found] == expected


def test_ties_are_settled_by_name_then_by_place():
    lines = [[0.5, 0.5, -2.0], [-2.0, 0.5, 0.5]]
    search = look_at(SourceSearch(), [("b", lines), ("a", lines)])
    first, second = search.best[0, 0], search.best[0, 1]
    assert [p.place for p in first] == [("a", 0, 0), ("b", 0, 0)]
    assert [p.place for p in second] == [("a", 0, 1), ("b", 0, 1)]


# ---------------------------------------------------------------------- projection


def test_prototypes_move_onto_the_nearest_pixels():
    memory = PrototypeMemory(1, 2, 2, 2)
    a, b = pixel(0.9, "a", 3, 4, label=1), pixel(0.8, "b", 5, 6, label=0)
    memory.project(search_of([[a], [b]]), final=True)
    assert memory.projected
    torch.testing.assert_close(memory.unit_vectors[0], torch.stack([a.embedding, b.embedding]))
    first, second = memory.sources(["Ana"], CLASSES)[0]
    assert (first.annotator, first.kernel, first.active, first.examples) == ("Ana", 0, True, ())
    assert places(memory) == [[("a", 3, 4), ("b", 5, 6)]]
    assert first.taken_from.similarity == pytest.approx(0.9)
    assert (first.taken_from.label, second.taken_from.label) == ("cell", "background")


def test_of_all_pairs_the_most_similar_is_settled_first():
    # Without the pixel that Ana takes, Ben's next best is farther from Ben than it is from Cleo.
    memory = PrototypeMemory(3, 1, 2, 2)
    first, second = ("a", 0, 0), ("b", 0, 0)
    ana = [pixel(0.95, *first)]
    ben = [pixel(0.90, *first), pixel(0.55, *second), pixel(0.54, "c")]
    cleo = [pixel(0.85, *second), pixel(0.3, "d")]
    memory.project(search_of([ana], [ben], [cleo]), final=True)
    assert places(memory) == [[first], [("c", 0, 0)], [second]]


def test_no_pixel_is_the_source_of_two_prototypes():
    search = SourceSearch()
    memory = PrototypeMemory(3, 4, 8, 2)
    for i in range(14):
        z = F.normalize(torch.randn(1, 8, 2, 2), dim=1)
        similarity = memory.similarity(z).detach()
        labels = torch.zeros(1, 3, 2, 2).long()
        anywhere = torch.ones_like(similarity).bool()
        search.update(similarity, anywhere, ~anywhere, labels, z, [f"{i}"])
    for n in range(3):
        search.best[n, 1] = search.best[n, 0]  # the best ten of two prototypes are the same
    memory.project(search, final=True)
    taken = [place for row in places(memory) for place in row]
    assert None not in taken
    assert len(set(taken)) == 12


def test_a_prototype_far_from_all_pixels_is_pruned_at_the_final_projection_only():
    memory = PrototypeMemory(1, 3, 2, 2)
    near, edge, far = [pixel(0.9, "a")], [pixel(0.5, "b")], [pixel(0.49, "c")]
    memory.project(search_of([near, edge, far]), final=False)
    assert not memory.projected
    assert memory.active.all()
    assert places(memory) == [[("a", 0, 0), ("b", 0, 0), ("c", 0, 0)]]
    memory.project(search_of([near, edge, far]), final=True)
    assert memory.active.tolist() == [[True, True, False]]
    assert [source.active for source in memory.sources(["Ana"], CLASSES)[0]] == [True, True, False]
    evidence = memory(direction(0).view(1, 2, 1, 1))
    assert evidence[0, 0, 2].item() == -math.inf
    assert evidence[0, 0, :2].isfinite().all()


def test_every_annotator_keeps_the_best_prototype_active():
    memory = PrototypeMemory(3, 2, 2, 2)
    low = [[pixel(0.1, "a")], [pixel(0.2, "b")]]
    negative = [[pixel(-0.2, "c")], [pixel(-0.4, "d")]]
    nothing: list[list[Pixel]] = [[], []]
    memory.project(search_of(low, negative, nothing), final=True)
    assert memory.active.tolist() == [[False, True], [True, False], [True, False]]


def test_a_prototype_without_a_pixel_stays_where_it_is_and_names_nothing():
    memory = PrototypeMemory(1, 2, 2, 2)
    before = memory.vectors[0, 1].clone()
    memory.project(search_of([[pixel(0.9)], []]), final=True)
    assert torch.equal(memory.vectors[0, 1], before)
    source = memory.sources(["Ana"], CLASSES)[0][1]
    assert not source.projected
    assert not source.active
    assert (source.taken_from, source.examples) == (None, ())


def test_preferred_pixels_come_before_more_similar_ones():
    """Such as disputed ones: within an image, among images, and between prototypes."""
    similarity = torch.tensor([0.9, 0.6]).view(1, 1, 1, 1, 2).repeat(2, 1, 1, 1, 1)
    preferred = torch.tensor([[False, True], [False, False]]).view(2, 1, 1, 1, 2)
    search = SourceSearch()
    anywhere = torch.ones_like(similarity, dtype=torch.bool)
    labels, embedding = torch.zeros(2, 1, 1, 2).long(), torch.ones(2, 2, 1, 2)
    search.update(similarity, anywhere, preferred, labels, embedding, ["disputed", "quiet"])
    assert [p.place for p in search.best[0, 0]] == [("disputed", 0, 1), ("quiet", 0, 0)]
    memory = PrototypeMemory(2, 1, 2, 2)
    quiet, disputed = pixel(0.95, "a"), pixel(0.6, "a", preferred=True)
    memory.project(search_of([[quiet, pixel(0.5, "b")]], [[disputed]]), final=True)
    assert places(memory) == [[("b", 0, 0)], [("a", 0, 0)]]


def test_examples_are_the_most_similar_pixels_of_every_class():
    memory = PrototypeMemory(1, 1, 2, 2)
    memory.project(search_of([[pixel(0.9, "source", 1, 2)]]), final=True)
    cosines = {
        "a": (0.9, 0.3, 0.8),
        "b": (0.5, 0.7, -0.2),
        "c": (0.6, 0.1, 0.4),
        "d": (0.2, 0.1, 0.9),
    }
    labels = torch.tensor([0, 1, 0]).view(1, 1, 1, 3)
    parts = [ExampleSearch(2), ExampleSearch(2)]
    for i, (name, values) in enumerate(cosines.items()):
        similarity = torch.tensor(values).view(1, 1, 1, 1, 3)
        parts[i % 2].update(similarity, similarity > -0.5, labels, [name])
    parts[1].merge(parts[0])
    memory.note_examples(parts[1])
    (source,) = memory.sources(["Ana"], CLASSES)[0]
    assert source.taken_from.sample_id == "source"
    found = {c: [e for e in source.examples if e.label == c] for c in CLASSES}
    assert [(e.sample_id, e.x) for e in found["background"]] == [("a", 0), ("d", 2), ("c", 0)]
    assert [(e.sample_id, e.x) for e in found["cell"]] == [("b", 1), ("a", 1), ("c", 1)]
    assert len(found["cell"]) == EXAMPLES
    assert source.example("cell").similarity == pytest.approx(0.7)
    assert [e.similarity for e in source.examples] == sorted(
        (e.similarity for e in source.examples), reverse=True
    )
    assert memory.has_example.all()


def test_a_prototype_without_an_example_of_a_class_says_so():
    memory = PrototypeMemory(1, 2, 2, 2)
    memory.project(search_of([[pixel(0.9)], []]), final=True)
    search = ExampleSearch(2)
    similarity = torch.full((1, 1, 2, 1, 1), 0.5)
    search.update(similarity, similarity > 0, torch.ones(1, 1, 1, 1).long(), ["a"])
    memory.note_examples(search)
    assert memory.has_example.tolist() == [
        [[False, True], [False, False]]
    ]  # the second has no source
    assert memory.sources(["Ana"], CLASSES)[0][0].example("background") is None


def test_a_new_projection_forgets_the_sources_of_the_one_before():
    memory = PrototypeMemory(1, 2, 2, 2)
    many = [pixel(0.9 - 0.1 * i, f"{i}") for i in range(4)]
    memory.project(search_of([many, [pixel(0.4, "old")]]), final=True)
    memory.project(search_of([[pixel(0.8, "new")], []]), final=False)
    assert places(memory) == [[("new", 0, 0), None]]
    assert memory.sources(["Ana"], CLASSES)[0][0].examples == ()
    assert memory.active.all()
    assert not memory.projected


def test_those_to_keep_stay_to_the_last_bit_and_so_does_what_is_known_of_them():
    memory = PrototypeMemory(3, 2, 2, 2)
    known = [pixel(0.9, "a", 1, 2), pixel(0.7, "b", 3, 4)]
    first = search_of([known, [pixel(0.3, "c")]], [[pixel(0.8, "d")], []], [[], []])
    memory.project(first, final=True)
    assert memory.active.tolist() == [[True, False], [True, False], [True, False]]
    buffers = ("active", "pixel_place", "pixel_label", "pixel_similarity")
    before = {name: getattr(memory, name)[:2].clone() for name in (*buffers, "vectors")}
    ids, sources = memory.pixel_ids[:2], memory.sources("ABC", CLASSES)[:2]
    # The second search would have better pixels for all of them, had they not been settled.
    better = [pixel(0.99, "e", 5, 5)]
    new = [[pixel(0.95, "f", 6, 6)], [pixel(0.6, "g", 7, 7)]]
    memory.project(search_of([better, better], [better, better], new), final=True, keep=2)
    for name, value in before.items():
        assert torch.equal(getattr(memory, name)[:2].nan_to_num(9), value.nan_to_num(9)), name
    assert memory.pixel_ids[:2] == ids
    assert repr(memory.sources("ABC", CLASSES)[:2]) == repr(sources)
    assert places(memory)[2] == [("f", 6, 6), ("g", 7, 7)]
    assert memory.active[2].tolist() == [True, True]
    torch.testing.assert_close(memory.unit_vectors[2, 0], new[0][0].embedding)


@pytest.mark.parametrize("final", [False, True])
def test_the_places_of_those_to_keep_stay_taken(final):
    memory = PrototypeMemory(2, 1, 2, 2)
    runner_up = pixel(0.8, "b")
    memory.project(search_of([[pixel(0.9, "a"), runner_up]], [[]]), final=True)
    wanted = [pixel(0.99, "a"), runner_up]
    memory.project(search_of([[]], [wanted]), final=final, keep=1)
    assert places(memory) == [[("a", 0, 0)], [("b", 0, 0)]]  # a runner-up's place is free
    assert bool(memory.projected) is final


# ---------------------------------------------------------------------- checkpoints


def projected_memory() -> PrototypeMemory:
    memory = PrototypeMemory(2, 2, 2, 2)
    ana = [[pixel(0.9, "a", 1, 2), pixel(0.7, "b", 3, 4)], [pixel(0.3, "c", 5, 6)]]
    ben = [[pixel(0.8, "Über/ß 7", 7, 8, label=0)], []]
    memory.project(search_of(ana, ben), final=True)
    return memory


def test_all_that_is_known_of_prototypes_survives_a_checkpoint(tmp_path):
    memory = projected_memory()
    torch.save(memory.state_dict(), tmp_path / "memory.pt")
    fresh = PrototypeMemory(2, 2, 2, 2)
    fresh.load_state_dict(torch.load(tmp_path / "memory.pt", weights_only=True))
    names = ("Ana", "Ben")
    # repr, because nan is not equal to nan
    assert repr(fresh.sources(names, CLASSES)) == repr(memory.sources(names, CLASSES))
    assert fresh.sources(names, CLASSES)[1][0].taken_from.sample_id == "Über/ß 7"
    assert fresh.projected
    z = F.normalize(torch.randn(1, 2, 3, 3), dim=1)
    assert torch.equal(fresh(z), memory(z))


def test_a_state_dict_does_not_change_with_a_later_projection():
    memory = projected_memory()
    state = memory.state_dict()
    memory.project(search_of([[pixel(0.9, "new")], []], [[], []]), final=True)
    fresh = PrototypeMemory(2, 2, 2, 2)
    fresh.load_state_dict(state)
    assert fresh.pixel_ids[0] == [["a"], ["c"]]


def test_what_is_found_does_not_hold_on_to_the_images():
    search = SourceSearch()
    embedding = F.normalize(torch.randn(1, 4, 64, 64), dim=1)
    search.update(
        similarity=embedding[:, None, None, 0],
        eligible=torch.ones(1, 1, 1, 64, 64, dtype=torch.bool),
        preferred=torch.zeros(1, 1, 1, 64, 64, dtype=torch.bool),
        labels=torch.zeros(1, 1, 64, 64).long(),
        embedding=embedding,
        ids=["a"],
    )
    (pixel,) = search.best[0, 0]
    assert pixel.embedding.untyped_storage().nbytes() == 4 * 4
