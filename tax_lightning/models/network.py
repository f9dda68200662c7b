"""The TAX network: dense features -> kernel bank and prototype memory -> who, why and the result.

A plain ``nn.Module`` without training logic. All arithmetic of the method stands in
:meth:`TAXNetwork.encode`, :meth:`TAXNetwork.gate` and :meth:`TAXNetwork.decode`. There are N
annotators with K kernels each. f are the features of a pixel, and h the encoder's deepest features
there, which tell more about the object that the pixel belongs to:

    z    = A f + B h + b, at unit length            embedding
    e_nk = cos(z, P_nk) / tau + prior_n             evidence for kernel (n, k)
    a_nk = softmax of e over all (n, k)             assignment
    w_n  = sum_k a_nk                               WHO: weight of annotator n at this pixel; after
                                                    training as far as it can be trusted, see
                                                    :class:`~tax_lightning.models.trust.Trust`
    g_nk = a_nk / w_n                               which of n's kernels
    p_nk = softmax over classes of W_nk * f + b_nk  segmentation of kernel (n, k)
    p_n  = sum_k g_nk p_nk                          annotator n's own segmentation
    p    = sum_n w_n p_n                            the resulting segmentation
    s_nk = a_nk p_nk(c) / p(c)                      WHY: share of kernel (n, k) in the decision c
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tax_lightning.models.backbone import DenseNetwork
from tax_lightning.models.kernel_bank import KernelBank
from tax_lightning.models.mixture import full_precision, mix_kernels, split, unit_length
from tax_lightning.models.output import EVERYBODY, Panel, TAXOutput, TAXWeights
from tax_lightning.models.prototypes import PrototypeMemory
from tax_lightning.models.trust import Trust

EMBEDDING_CHANNELS = 32
TEMPERATURE = 0.1
DISPUTE_THRESHOLD = 0.1
# Share of the gradient of who and why that reaches the last features. All of it would make these
# features serve who, at the cost of each annotator's own segmentation.
GRADIENT_SHARE = 0.3
# float32 numbers in a band at inference: 64 MB, but what fits a processor's cache, 4 MB.
BAND_VALUES, BAND_VALUES_CPU = 2**24, 2**20


class Encoded(NamedTuple):
    """What the network sees in a batch of images."""

    features: Tensor  # f, which the kernels are applied to, ``[B, D, H, W]``
    embedding: Tensor  # z, which prototypes are compared with, of unit length, ``[B, E, H, W]``


class TAXNetwork(DenseNetwork):
    """Segmentation network that says who decides each pixel and which prototype is the reason.

    Source: Tendency-and-Assignment Explainer, arXiv 2302.09561; the formulation (see the module's
    docstring) is this project's own.

    Args:
        annotators: number of annotators N.
        classes: number of classes C, the background included.
        kernels: kernels, and prototypes, per annotator K.
        kernel_size: side of a kernel in pixels, odd.
        **backbone: arguments of :class:`~tax_lightning.models.backbone.DenseNetwork`.

    Raises:
        ValueError: as in the base class, or if a number is out of its range.

    Example:
        >>> network = TAXNetwork(annotators=3, classes=2, encoder="resnet18")
        >>> output = network(torch.randn(1, 3, 40, 50))
        >>> output.probs.shape, output.who.shape
        (torch.Size([1, 2, 40, 50]), torch.Size([1, 3, 40, 50]))
    """

    dispute_threshold: Tensor

    def __init__(
        self,
        annotators: int,
        classes: int,
        *,
        kernels: int = 2,
        kernel_size: int = 3,
        **backbone: Any,  # noqa: ANN401 - of DenseNetwork
    ) -> None:
        super().__init__(**backbone, context=True)
        self.projection = nn.Conv2d(self.channels, EMBEDDING_CHANNELS, kernel_size=1)
        self.context_projection = (
            nn.Conv2d(self.context_channels, EMBEDDING_CHANNELS, kernel_size=1, bias=False)
            if self.context_channels
            else None
        )
        self.bank = KernelBank(annotators, kernels, classes, self.channels, kernel_size)
        self.memory = PrototypeMemory(annotators, kernels, EMBEDDING_CHANNELS, classes, TEMPERATURE)
        self.trust = Trust(annotators)
        # Expected disagreement below which pictures are hatched, set on validation images.
        self.register_buffer("dispute_threshold", torch.tensor(DISPUTE_THRESHOLD))
        self.frozen = False
        self.frozen_prototypes = False

    @property
    def kernels(self) -> int:
        """Kernels per annotator K."""
        return self.bank.weight.shape[1]

    def check_names(self, annotators: Sequence[str], classes: Sequence[str]) -> None:
        """Raise a ``ValueError`` unless built for as many annotators and classes as are named."""
        built_for = self.bank.weight.shape[0], self.bank.weight.shape[2]
        if built_for != (len(annotators), len(classes)):
            raise ValueError(
                f"network: built for {built_for[0]} annotators and {built_for[1]} classes, but "
                f"{len(annotators)} annotators {tuple(annotators)} and {len(classes)} classes "
                f"{tuple(classes)} are named. Build it for these numbers."
            )

    def forward(self, images: Tensor, panel: Panel = EVERYBODY) -> TAXOutput:
        """Segment images ``[B, ch, H, W]``, of any height and width, and say who and why.

        Of a panel of annotators only what they need is computed, as if there were no others.
        """
        return self.decode(self.encode(images), panel)

    def features_and_context(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """As of :class:`~tax_lightning.models.backbone.DenseNetwork`; no gradient if frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return super().features_and_context(images)

    def encode(self, images: Tensor) -> Encoded:
        """Features and embedding of images ``[B, ch, H, W]``."""
        features, context = self.features_and_context(images)
        return Encoded(features, self.embed(features, context))

    def embed(self, features: Tensor, context: Tensor | None = None) -> Tensor:
        """The embedding ``[B, E, H, W]`` of features and, where there is one, their context."""
        height, width = features.shape[-2:]
        bias: Any = self.projection.bias
        added = bias.view(1, -1, 1, 1)
        if self.context_projection is not None and context is not None:
            # First to few channels, then to the full size: the other order costs more.
            coarse = self.context_projection(context) + added
            added = self.at_pixels(coarse, height, width)
        # The values of `features`, and a share of their gradient.
        seen = torch.lerp(features.detach(), features, GRADIENT_SHARE).flatten(2)
        # A convolution of one pixel, with the sum in the same pass.
        weight = self.projection.weight.flatten(1).expand(seen.shape[0], -1, -1)
        embedding = torch.baddbmm(added.flatten(2), weight, seen)
        embedding = embedding.unflatten(2, (height, width))
        # In float32 also where the convolutions run in bf16.
        with torch.autocast(features.device.type, enabled=False):
            return unit_length(full_precision(embedding))

    def gate(self, embedding: Tensor, panel: Panel = EVERYBODY) -> TAXWeights:
        """Who and why, of an embedding ``[B, E, H, W]``."""
        # In float32 also where the convolutions run in bf16, so that the shares add up.
        with torch.autocast(embedding.device.type, enabled=False):
            within, annotator_evidence = split(self.memory(embedding, panel), dim=2)
            log_who = self.trust(annotator_evidence, panel)
        return TAXWeights(log_who, within, embedding)

    def decode(self, encoded: Encoded, panel: Panel = EVERYBODY) -> TAXOutput:
        """Who, why and the segmentations, of what was encoded."""
        log_who, within, embedding = self.gate(encoded.embedding, panel)
        log_odds = full_precision(self.bank.log_odds(encoded.features, panel))
        return TAXOutput(mix_kernels(within, log_odds), log_who, within, log_odds, embedding)

    def bands(
        self, encoded: Encoded, panel: Panel = EVERYBODY, most_values: int | None = None
    ) -> Iterator[TAXOutput]:
        """:meth:`decode` by horizontal bands, so that memory does not grow with N, K and C.

        A decoded pixel holds N * K * C values, of which a user keeps a few. Kernels see beyond the
        edge of a band: the features of bands overlap, and each output is cut. Bands come from top
        to bottom, and have at least one row.
        """
        batch, _, height, width = encoded.features.shape
        if most_values is None:
            on_cpu = encoded.features.device.type == "cpu"
            most_values = BAND_VALUES_CPU if on_cpu else BAND_VALUES
        rows = max(1, most_values // (self.bank.bias[panel].numel() * batch * width))
        reach = self.bank.weight.shape[-1] // 2
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            first, last = max(0, top - reach), min(height, bottom + reach)
            output = self.decode(Encoded(*(part[:, :, first:last] for part in encoded)), panel)
            yield TAXOutput(*(part[..., top - first : bottom - first, :] for part in output))

    def freeze(self, frozen: bool = True, *, prototypes: bool = True) -> None:
        """Hold everything but the kernels fixed: features, batch-norm statistics, prototypes.

        After the prototypes were moved onto training pixels, the kernels are fitted to them. If the
        features moved on, those pixels would no longer lie where the prototypes are. With
        ``prototypes=False`` the prototypes are trained all the same.
        """
        self.frozen = frozen
        self.frozen_prototypes = frozen and prototypes
        self.train(self.training)

    def frozen_parameters(self) -> list[nn.Parameter]:
        """The parameters that :meth:`freeze` holds fixed; empty while nothing is frozen."""
        parts: list[nn.Module] = [self.backbone, self.projection] if self.frozen else []
        if self.frozen and self.context_projection is not None:
            parts.append(self.context_projection)
        parts += [self.memory] if self.frozen_prototypes else []
        parameters = [parameter for part in parts for parameter in part.parameters()]
        return [parameter for parameter in parameters if parameter.requires_grad]

    def train(self, mode: bool = True) -> TAXNetwork:
        """Set training mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self
