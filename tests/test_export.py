"""One file of a model for other programs: the same numbers, named, for images of any size."""

import contextlib
import copy
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from baseline_scenes import make as make_baseline
from PIL import Image
from squares import ANNOTATORS, CLASSES, make_module, make_trainer
from timm.layers.conv2d_same import Conv2dSame

from tax_lightning import TAXLightningModule, export
from tax_lightning.__main__ import main
from tax_lightning.baselines import GatedMultiHead, MultiHead, Pionono, ProbabilisticUNet
from tax_lightning.batch import unpacked
from tax_lightning.data.images import images_for
from tax_lightning.data.preparation import Preparation
from tax_lightning.export import METADATA, export_model

SMP = {
    "encoder": "tu-test_resnet.r160_in1k",
    "backbone_options": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
}
SIZES = (1, 40, 56), (3, 67, 41), (2, 65, 130)


def varied(module):
    for weights in module.parameters():  # so that outputs differ from pixel to pixel
        weights.data += 0.1 * torch.randn_like(weights)
    return module.eval()


def opened(path):
    """What the file says of images, as a function, and its metadata."""
    if path.suffix == ".pt2":
        extra = {METADATA: ""}
        program = torch.export.load(path, extra_files=extra).module()
        return lambda images: {
            name: value.detach().numpy() for name, value in program(images).items()
        }, json.loads(extra[METADATA])
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(
        zip(names, session.run(None, {"images": images.numpy()}), strict=True)
    ), json.loads(session.get_modelmeta().custom_metadata_map[METADATA])


@pytest.fixture(scope="module", params=[".pt2", ".onnx"])
def exported(request, tmp_path_factory):
    """A model, its file, what that says, and its metadata."""
    if request.param == ".onnx":
        pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    module, trainer = varied(TAXLightningModule(ANNOTATORS, CLASSES, **SMP)), make_trainer()
    module.preparation = Preparation(3, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    trainer.strategy.connect(module)
    folder = tmp_path_factory.mktemp("export")
    trainer.save_checkpoint(folder / "run" / "checkpoints" / "best.ckpt")
    path = folder / "new" / f"cells{request.param}"
    with contextlib.redirect_stdout(io.StringIO()) as told:
        main(["export", str(folder / "run"), str(path)])
    assert float(told.getvalue().rpartition("from PyTorch: ")[2].split()[0]) <= 1e-4
    return module, path, *opened(path)


@pytest.mark.parametrize("size", SIZES)
def test_the_file_says_what_the_model_says(exported, size):
    module, _, run, _ = exported
    images = torch.randn(size[0], 3, *size[1:])
    found = run(images)
    expected = module.explain(images)
    named = {
        "result": expected.probs,
        "annotator_probs": expected.annotator_probs,
        "who": expected.who,
        "votes": expected.votes,
        "dispute": expected.dispute,
    }
    assert found.keys() == {*named, "why"}
    for name, value in named.items():
        np.testing.assert_allclose(found[name], value.numpy(), atol=1e-4, err_msg=name)
    why = expected.reason * module.network.kernels + expected.reason_kernel
    assert found["why"].dtype == np.int64
    assert (found["why"] == why.numpy()).mean() > 0.999  # but for shares that are nearly equal
    assert len(np.unique(found["why"])) > 1


def test_names_and_sources_are_in_the_file(exported):
    said = exported[-1]
    assert said["annotators"] == list(ANNOTATORS)
    assert said["classes"] == list(CLASSES)
    assert said["trust"]["kind"] == "image"
    assert said["dispute_threshold"] == pytest.approx(0.1)
    assert said["preparation"]["mean"] == pytest.approx([0.1, 0.2, 0.3])
    assert said["preparation_is_known"] is True
    places = [(source["annotator"], source["kernel"]) for source in said["prototypes"]]
    assert places == [(name, kernel) for name in ANNOTATORS for kernel in range(2)]


def test_where_weights_are_constant_the_reason_is_that_of_the_explanation(tmp_path):
    module = varied(make_module(TAXLightningModule))
    module.network.trust.scale.fill_(0.0)
    module.network.trust.offset.copy_(torch.tensor([3.0, 0.0, 0.0]))
    export_model(module, tmp_path / "a.pt2")
    images = torch.randn(1, 3, 40, 40)
    run, said = opened(tmp_path / "a.pt2")
    found = run(images)
    assert said["trust"]["kind"] == "constant"
    assert (found["why"] // 2 == module.explain(images).reason.numpy()).all()


def test_a_baseline_has_the_outputs_that_it_has(tmp_path):
    for kind, names in ((MultiHead, ()), (GatedMultiHead, ("who",))):
        module = varied(make_baseline(kind))
        export_model(module, tmp_path / "a.pt2")
        run, said = opened(tmp_path / "a.pt2")
        found = run(images := torch.randn(1, 3, 50, 40))
        assert list(found) == ["result", "annotator_probs", "votes", "dispute", *names]
        assert list(said["outputs"]) == list(found)
        assert said["preparation"] == Preparation.usual(3).to_primitives()
        assert said["preparation_is_known"] is False
        own = module.predict(images, annotator="Ben")
        np.testing.assert_allclose(found["annotator_probs"][:, 1], own, atol=1e-4)


def test_the_script_of_the_docs_needs_no_more_than_the_file(exported, tmp_path, monkeypatch):
    module, path, *_ = exported
    if path.suffix != ".onnx":
        pytest.skip("the script is for ONNX")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cells.onnx").symlink_to(path)
    noise = np.random.default_rng(0).integers(0, 256, (50, 61, 3), np.uint8)
    Image.fromarray(noise).save("new.png")
    page = Path(__file__).parent.parent / "docs" / "export.md"
    script = page.read_text("utf-8").partition("```python\n")[2].partition("```")[0]
    assert re.findall(r"^(?:import|from) (\w+)", script, re.MULTILINE) == [
        *("json", "numpy", "onnxruntime", "PIL")
    ]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.startswith("most disputed: row "), done.stderr
    (sample,) = images_for(module, ["new.png"], None).images
    expected = module.predict(unpacked(dict(sample))["image"][None]).argmax(1)[0]
    assert (np.asarray(Image.open("mask.png")) == expected.numpy()).mean() > 0.999
    assert 0 < expected.float().mean() < 1


def test_refused_are_other_kinds_of_files_and_missing_libraries(tmp_path, monkeypatch, capsys):
    for target, said in (("a.pt", "expected .onnx"), ("a.onnx", 'tax-lightning[onnx]"')):
        monkeypatch.setitem(sys.modules, "onnxscript", None)
        with pytest.raises(SystemExit) as stop:
            main(["export", "no.ckpt", str(tmp_path / target)])
        assert said in str(stop.value)
    assert list(tmp_path.iterdir()) == []


def test_refused_are_models_that_draw(tmp_path):
    with pytest.raises(ValueError, match="ProbabilisticUNet draws samples that belong to no"):
        export_model(make_baseline(ProbabilisticUNet), tmp_path / "a.pt2")
    with pytest.raises(ValueError, match="random"):
        export_model(make_baseline(Pionono), tmp_path / "a.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_says_something_else_is_not_written(tmp_path, monkeypatch):
    def write(graph, *_):
        kept = copy.deepcopy(graph)
        return lambda images: {name: x + 0.001 for name, x in kept(images).items()}

    monkeypatch.setattr(export, "_write_pt2", write)
    module = make_module(TAXLightningModule).train()
    with pytest.raises(ValueError, match=r"differ from those of the model by .*not written"):
        export_model(module, tmp_path / "a.pt2")
    assert module.training
    assert {weights.dtype for weights in module.parameters()} == {torch.float32}
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_is_no_graph_is_refused(tmp_path):
    class Broken(torch.nn.Conv2d):
        def forward(self, images):
            return super().forward(images) * (2 if float(images.mean()) > 0 else 1)

    module = make_module(TAXLightningModule, network=Broken(3, 4, 1))
    with pytest.raises(
        ValueError, match=r"TAXLightningModule cannot be exported: .*random numbers"
    ):
        export_model(module, tmp_path / "a.pt2")


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 2), ((5, 3), (2, 1)), (1, 2)])
def test_padding_that_is_known_beforehand_is_the_same(kernel, stride):
    convolution, maps = Conv2dSame(2, 4, kernel, stride, groups=2), torch.randn(1, 2, 32, 64)
    expected = convolution(maps)
    with export._any_size(torch.nn.Sequential(convolution)):
        assert torch.equal(convolution(maps), expected)
    assert "forward" not in vars(convolution)
