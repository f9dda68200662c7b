"""A model as one file for other programs: a graph of ``torch.export`` or ONNX, with named outputs.

The graph takes normalised images ``[B, ch, H, W]`` of any number and size. What a program must know
beside it (names, how images are prepared, sources of prototypes) is JSON in the same file.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from tax_lightning.constants import __version__
from tax_lightning.data.preparation import Preparation
from tax_lightning.explanation import expected_disagreement, most_likely
from tax_lightning.extras import check_exported, needed
from tax_lightning.files import appearing, plain
from tax_lightning.models.backbone import DenseNetwork, evaluating
from tax_lightning.models.network import TAXNetwork

TOLERANCE = 1e-4  # largest difference from PyTorch, of numbers in [0, 1] or votes
METADATA = "tax_lightning.json"  # key of the metadata in either kind of file

OUTPUTS = {
    "result": "probability of each class in the result [B, C, H, W]",
    "annotator_probs": "probability of each class as each annotator would say [B, N, C, H, W]",
    "votes": "expected number of annotators who say what is decided [B, H, W]",
    "dispute": "expected share of pairs of annotators who disagree [B, H, W]",
    "who": "weight of each annotator in the result [B, N, H, W]",
    "why": "index of the prototype with the largest share in the decision [B, H, W] int64",
}
"""The outputs by name; they mean the same as in :class:`~tax_lightning.explanation.Explanation`."""

Graph = Callable[[Tensor], dict[str, Tensor]]


class NamedOutputs(nn.Module):
    """A model whose outputs have the names of :data:`OUTPUTS`; ``who`` and ``why`` if it has them.

    Example:
        >>> from tax_lightning import TAXLightningModule
        >>> names = ["Ana", "Ben"], ["background", "cell"]
        >>> model = TAXLightningModule(*names, network=nn.Conv2d(3, 4, 1))
        >>> outputs = NamedOutputs(model)(torch.rand(1, 3, 5, 8))
        >>> list(outputs)
        ['result', 'annotator_probs', 'votes', 'dispute', 'who', 'why']
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - a Lightning module of ours
        super().__init__()
        network: Any = getattr(model, "network", None)
        self.explains = isinstance(network, TAXNetwork)
        self.weighs = bool(model.weighs)
        self.all_alike = self.explains and network.trust.kind != "image"
        self.model: nn.Module = network if self.explains else model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs for images ``[B, ch, H, W]``."""
        output = self.model(images)
        own, decision = output.log_annotator_probs.exp(), most_likely(output.log_probs, dim=1)
        chosen = decision[:, None, None].expand(-1, own.shape[1], 1, -1, -1)
        named = {
            "result": output.log_probs.exp(),
            "annotator_probs": own,
            "votes": own.gather(2, chosen).squeeze(2).sum(dim=1),
            "dispute": expected_disagreement(own),
        }
        if self.weighs:
            named["who"] = output.log_who.exp()
        if self.explains:
            named["why"] = output.reason(decision, all_alike=self.all_alike)
        return named


def export_model(model: Any, path: str | Path) -> float:  # noqa: ANN401 - a Lightning module of ours
    """Write a model as one file, after the graph was compared with the model.

    Args:
        model: a :class:`~tax_lightning.TAXLightningModule`, or a baseline that names annotators.
        path: the file; ``.onnx`` or ``.pt2`` at its end chooses the kind.

    Returns:
        The largest difference between the outputs of file and model, over random images of two
        sizes. Where it is above the tolerance, the model is asked in double precision, and the
        smaller difference counts: PyTorch too rounds. Outputs are compared where the model's
        decision, and for ``why`` its largest share, is ahead by more than the tolerance.

    Raises:
        ModuleNotFoundError: if the extra ``onnx`` is not installed, for an ONNX file.
        ValueError: if the suffix is unknown, the model cannot be exported, or the outputs differ by
            more than 1e-4. No file is left then.
    """
    path = Path(path)
    check_exported(path)
    if not model.named:
        raise ValueError(
            f"{type(model).__name__} draws samples that belong to no annotator, so it has none of "
            "the outputs of an exported file. Export a model that names annotators."
        )
    graph = NamedOutputs(model)
    first, second = _random_images(model)
    metadata = json.dumps(plain(describe(model, graph)), ensure_ascii=False)
    write = _write_onnx if path.suffix == ".onnx" else _write_pt2
    with evaluating(graph), torch.no_grad(), appearing(path) as part:
        with _any_size(graph), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of exporters, about their own code
            try:
                exported = write(graph, first, part, metadata)
            except Exception as error:
                raise ValueError(
                    f"{type(model).__name__} cannot be exported: {_root(error)} Its forward must "
                    "be one graph for images of all sizes, without random numbers."
                ) from error
        worst = max(_difference(exported, graph, images) for images in (first, second))
        if worst > TOLERANCE:  # perhaps by the rounding of PyTorch itself
            try:
                graph.double()
                exact = max(_difference(exported, graph, images) for images in (first, second))
            finally:
                graph.float()  # the same numbers as before
            worst = min(worst, exact)
        if not worst <= TOLERANCE:
            raise ValueError(
                f"{path}: the outputs of the file differ from those of the model by {worst:.1e}, "
                f"expected {TOLERANCE:.0e} at most. It is not written. A model that draws random "
                "numbers, as Pionono does, cannot be exported."
            )
    return worst


def describe(model: Any, graph: NamedOutputs) -> dict[str, Any]:  # noqa: ANN401
    """What a program must know beside the graph, in primitives."""
    noted = model.preparation
    with torch.no_grad(), evaluating(graph):
        outputs = list(graph(torch.zeros(1, model.hparams["in_channels"], 64, 64)))
    said: dict[str, Any] = {
        "tax_lightning": __version__,
        "model": type(model).__name__,
        "annotators": list(model.shown_names),
        "annotators_are_types": model.types,
        "classes": list(model.classes),
        "outputs": {name: OUTPUTS[name] for name in outputs},
        "preparation": (noted or Preparation.usual(model.hparams["in_channels"])).to_primitives(),
        "preparation_is_known": noted is not None,
    }
    if graph.explains:
        network = model.network
        trust = network.trust.basis(model.reference)
        sources = network.memory.sources(model.shown_names, model.classes)
        said["trust"] = vars(trust)
        said["dispute_threshold"] = float(network.dispute_threshold)
        said["prototypes"] = [  # in the order of the indices in `why`
            {
                "annotator": source.annotator,
                "kernel": source.kernel,
                "active": source.active,
                "taken_from": source.taken_from and vars(source.taken_from),
                "examples": [vars(example) for example in source.examples],
            }
            for row in sources
            for source in row
        ]
    return said


def _write_pt2(graph: nn.Module, images: Tensor, path: Path, metadata: str) -> Graph:
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        graph, (images,), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},)
    )
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={METADATA: metadata})
    with path.open("rb") as file:
        loaded: Any = torch.export.load(file).module()
    return lambda images: dict(loaded(images))


def _write_onnx(graph: nn.Module, images: Tensor, path: Path, metadata: str) -> Graph:
    names = list(graph(images))
    program: Any = torch.onnx.export(
        graph,
        (images,),
        input_names=["images"],
        output_names=names,
        dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
        dynamo=True,
        verbose=False,
    )
    program.model.metadata_props[METADATA] = metadata
    program.save(path)
    session = needed("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> dict[str, Tensor]:
        found = session.run(names, {"images": np.ascontiguousarray(images.numpy())})
        return dict(zip(names, map(torch.from_numpy, found), strict=True))

    return run


def _root(error: BaseException) -> str:
    """The first line of the error that is behind all others."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


@contextmanager
def _any_size(graph: nn.Module) -> Iterator[None]:
    """Pad by operations that do not depend on the size of the images."""
    networks = [part for part in graph.modules() if isinstance(part, DenseNetwork)]
    convolutions: list[Any] = [part for part in graph.modules() if isinstance(part, Conv2dSame)]
    for network in networks:
        network.any_size = True
    for convolution in convolutions:
        convolution.forward = partial(_same_convolution, convolution)
    try:
        yield
    finally:
        for network in networks:
            network.any_size = False
        for convolution in convolutions:
            del convolution.forward


def _same_convolution(convolution: Conv2dSame, maps: Tensor) -> Tensor:
    """What the convolution gives where the sides are multiples of its stride.

    They are: images are padded to the encoder's stride. For sides of any kind timm computes the
    padding anew at each layer, which takes an exporter many minutes.
    """
    pads: list[int] = []
    for axis in (1, 0):  # the last dimension comes first
        reach = (convolution.kernel_size[axis] - 1) * convolution.dilation[axis] + 1
        total = max(reach - convolution.stride[axis], 0)
        pads += [total // 2, total - total // 2]
    weights = convolution.weight, convolution.bias, convolution.stride, 0, convolution.dilation
    result: Tensor = F.conv2d(F.pad(maps, pads), *weights, convolution.groups)
    return result


def _random_images(model: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Two batches of unlike sizes; the sides of the second are no multiples of a stride."""
    channels, generator = model.hparams["in_channels"], torch.Generator().manual_seed(0)
    shapes = (2, channels, 128, 192), (1, channels, 107, 85)
    first, second = (torch.randn(shape, generator=generator) for shape in shapes)
    return first, second


def _difference(exported: Graph, graph: NamedOutputs, images: Tensor) -> float:
    """The largest difference between the outputs for these images."""
    found, images = exported(images), images.to(next(graph.parameters()).dtype)
    output, expected = graph.model(images), graph(images)
    clear = _ahead(expected["result"])
    worst = 0.0
    for name, value in expected.items():
        apart = (found[name] - value).abs().float()
        if name == "votes":
            apart = apart[clear]
        elif name == "why":
            shares = output.shares(most_likely(expected["result"], dim=1))
            shares = shares / output.who.unsqueeze(2) if graph.all_alike else shares
            apart = apart[clear & _ahead(shares.flatten(1, 2))]
        worst = max(worst, float(apart.max())) if apart.numel() else worst
    return worst


def _ahead(values: Tensor) -> Tensor:
    """Where the largest of ``[B, M, H, W]`` over M leads by more than the tolerance."""
    largest = values.topk(min(2, values.shape[1]), dim=1).values
    return (largest[:, 0] - largest[:, -1] > TOLERANCE) | (values.shape[1] == 1)
