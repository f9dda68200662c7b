"""The TAX network: dense features -> kernel bank and prototype memory -> who, why and the result.

A plain ``nn.Module`` without any training logic. All arithmetic of the method stands in
:meth:`TAXNetwork.see` and :meth:`TAXNetwork.assign`; with N annotators, K kernels each, features f
of a pixel and the encoder's deepest features c there, which tell more of what it belongs to,

    z    = A f + B c + b, at unit length            embedding
    e_nk = cos(z, P_nk) / tau + prior_n             evidence for kernel (n, k)
    a_nk = softmax of e over all (n, k)             assignment
    w_n  = sum_k a_nk                               WHO: weight of annotator n at this pixel;
                                                    calibrated, it is w_n^scale, normalised anew
    g_nk = a_nk / w_n                               which of n's kernels
    p_nk = softmax over classes of W_nk * f + b_nk  what kernel (n, k) would label
    p_n  = sum_k g_nk p_nk                          annotator n's own segmentation
    p    = sum_n w_n p_n                            the resulting segmentation
    s_nk = a_nk p_nk(c) / p(c)                      WHY: share of kernel (n, k) in the decision c

:mod:`tax_lightning.models.mixture` has the two sums in their other form too, over logits; the share is then
a_nk. In a shared bank W_k, b_k and P_k are the same for all n, which differ in their priors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tax_lightning.models.backbone import DenseNetwork
from tax_lightning.models.kernel_bank import BankKind, KernelBank
from tax_lightning.models.mixture import Mixing, logsumexp, mix
from tax_lightning.models.prototypes import PrototypeMemory

BAND_VALUES = 2**24  # of float32, 64 MB: in a band, at inference


class TAXOutput(NamedTuple):
    """What the network says about a batch.

    Attributes:
        log_probs: log of the resulting segmentation p, ``[B, C, H, W]``.
        log_annotator_probs: log of each annotator's own segmentation p_n, ``[B, N, C, H, W]``.
        log_who: log w_n, ``[B, N, H, W]``.
        log_within: log g_nk, ``[B, N, K, H, W]``; -inf for pruned prototypes.
        log_kernel_probs: log p_nk, ``[B, N, K, C, H, W]``.
        embedding: unit-length z, ``[B, D, H, W]``.
    """

    log_probs: Tensor
    log_annotator_probs: Tensor
    log_who: Tensor
    log_within: Tensor
    log_kernel_probs: Tensor
    embedding: Tensor

    @property
    def log_sample_probs(self) -> Tensor:
        """Log of the set of segmentations that the network expects: the annotators' own."""
        return self.log_annotator_probs

    @property
    def probs(self) -> Tensor:
        """The result in [0, 1], sums to 1 over the C axis, ``[B, C, H, W]``."""
        return self.log_probs.exp()

    @property
    def annotator_probs(self) -> Tensor:
        """Each annotator's own, in [0, 1], sums to 1 over the C axis, ``[B, N, C, H, W]``."""
        return self.log_annotator_probs.exp()

    @property
    def who(self) -> Tensor:
        """w_n in [0, 1], sums to 1 over the N axis, ``[B, N, H, W]``."""
        return self.log_who.exp()

    @property
    def within(self) -> Tensor:
        """g_nk in [0, 1], sums to 1 over the K axis, ``[B, N, K, H, W]``."""
        return self.log_within.exp()

    @property
    def kernel_probs(self) -> Tensor:
        """What each kernel would label, sums to 1 over the C axis, ``[B, N, K, C, H, W]``."""
        return self.log_kernel_probs.exp()


class Seen(NamedTuple):
    """What the network sees in a batch of images.

    Attributes:
        features: f, what the kernels are applied to, ``[B, D, H, W]``.
        embedding: z, what prototypes are compared with, of unit length, ``[B, E, H, W]``.
    """

    features: Tensor
    embedding: Tensor

    def rows(self, first: int, last: int) -> Seen:
        """Those of the rows ``[first, last)`` of the images."""
        return Seen(self.features[:, :, first:last], self.embedding[:, :, first:last])


class TAXWeights(NamedTuple):
    """What the network says of who and why alone, before anything is labelled.

    Attributes:
        log_who: log w_n, ``[B, N, H, W]``.
        log_within: log g_nk, ``[B, N, K, H, W]``; -inf for pruned prototypes.
        embedding: unit-length z, ``[B, D, H, W]``.
    """

    log_who: Tensor
    log_within: Tensor
    embedding: Tensor


class TAXNetwork(DenseNetwork):
    """Segmentation network that says who decides each pixel and which prototype is the reason.

    Source: Tendency-and-Assignment Explainer, arXiv 2302.09561; the formulation (see the module's
    docstring) is this project's own.

    Args:
        annotators: number of annotators N; or a number for each cohort, see
            :class:`~tax_lightning.models.kernel_bank.KernelBank`.
        classes: number of classes C, the background included.
        architecture: as all up to ``backbone`` of :class:`~tax_lightning.models.backbone.DenseNetwork`.
        encoder: of segmentation_models_pytorch.
        encoder_weights: ``"imagenet"`` or ``None``.
        in_channels: channels of an image.
        backbone_options: further arguments for the smp architecture.
        backbone: one's own module, instead of the five arguments above.
        kernels: kernels, and prototypes, per annotator K.
        kernel_size: side of a kernel in pixels, odd.
        embedding_channels: length of the embedding that prototypes are compared with.
        temperature: tau of the assignment.
        context: whether the embedding is made of the encoder's deepest features too, where the
            backbone gives them. What somebody is good at often lies in what an object is, or how
            large, which the last features need not tell.
        explanation_gradient: share, in [0, 1], of the gradient of who and why that reaches the
            last features. Without a context, all of it makes them serve who at the cost of what
            each annotator would draw, and with none who is learnt late; with one, whose own
            gradient is whole, it hardly matters.
        bank: ``"private"``: each annotator has K kernels and prototypes; ``"shared"``: all have
            the same K, the types of annotation, and differ in when they use which.
        mixing: ``"prob"`` mixes what the kernels and annotators say, so that the shares add up to
            the decision exactly; ``"logit"`` mixes the kernels themselves.

    Raises:
        ValueError: if the architecture, encoder, bank or mixing is unknown, there are fewer than 2
            classes, the share of the gradient is none, or the backbone does not give features of
            four dimensions.

    Shape:
        - images: ``[B, ch, H, W]``, any height and width
        - see :class:`TAXOutput`

    Example:
        >>> network = TAXNetwork(
        ...     annotators=3, classes=2, encoder="resnet18",
        ...     backbone_options={"encoder_depth": 3, "decoder_channels": [32, 16, 8]},
        ... )
        >>> output = network(torch.randn(1, 3, 40, 50))
        >>> output.probs.shape, output.who.shape
        (torch.Size([1, 2, 40, 50]), torch.Size([1, 3, 40, 50]))
        >>> torch.allclose(output.who.sum(1), torch.ones(1, 40, 50))
        True
    """

    who_scale: Tensor

    def __init__(
        self,
        annotators: int | Sequence[int],
        classes: int,
        *,
        architecture: str = "unet",
        encoder: str = "resnet34",
        encoder_weights: str | None = None,
        in_channels: int = 3,
        backbone_options: dict[str, Any] | None = None,
        backbone: nn.Module | None = None,
        kernels: int = 4,
        kernel_size: int = 3,
        embedding_channels: int = 32,
        temperature: float = 0.1,
        context: bool = True,
        explanation_gradient: float = 0.3,
        bank: BankKind = "private",
        mixing: Mixing = "prob",
    ) -> None:
        for name, value, known in (
            ("bank", bank, get_args(BankKind)),
            ("mixing", mixing, get_args(Mixing)),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}.")
        if classes < 2:
            raise ValueError(
                f"classes={classes}: expected at least 2, the background and one object class."
            )
        if not 0 <= explanation_gradient <= 1:
            raise ValueError(
                f"explanation_gradient={explanation_gradient}: expected a share in [0, 1]."
            )
        super().__init__(
            architecture=architecture,
            encoder=encoder,
            encoder_weights=encoder_weights,
            in_channels=in_channels,
            backbone_options=backbone_options,
            backbone=backbone,
            context=context,
        )
        self.projection = nn.Conv2d(self.channels, embedding_channels, kernel_size=1)
        self.context_projection = (
            nn.Conv2d(self.context_channels, embedding_channels, kernel_size=1, bias=False)
            if self.context_channels
            else None
        )
        self.bank = KernelBank(annotators, kernels, classes, self.channels, kernel_size, bank)
        self.memory = PrototypeMemory(annotators, kernels, embedding_channels, temperature, bank)
        # Fitted after the final projection, see `tax_lightning.modules.projection.fit_who_scale`.
        self.register_buffer("who_scale", torch.ones(()))
        self.explanation_gradient = explanation_gradient
        self.mixing: Mixing = mixing
        self.classes = classes
        self.frozen = False
        self.fixed_prototypes = False

    @property
    def kernels(self) -> int:
        """Kernels per annotator K."""
        return self.bank.kernels

    def check_names(self, annotators: Sequence[str], classes: Sequence[str]) -> None:
        """Raise a ``ValueError`` unless built for as many annotators and classes as are named."""
        built_for = (self.bank.annotators, self.classes)
        if built_for != (len(annotators), len(classes)):
            raise ValueError(
                f"network: built for {built_for[0]} annotators and {built_for[1]} classes, but "
                f"{len(annotators)} annotators {tuple(annotators)} and {len(classes)} classes "
                f"{tuple(classes)} are named. Build it for these numbers."
            )

    def forward(self, images: Tensor) -> TAXOutput:
        """Segment a batch of images and say who and why."""
        return self.assign(self.see(images))

    def features_and_context(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """As of :class:`~tax_lightning.models.backbone.DenseNetwork`; frozen ones learn nothing."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return super().features_and_context(images)

    def see(self, images: Tensor) -> Seen:
        """What kernels are applied to, and prototypes compared with, of ``[B, ch, H, W]``."""
        features, context = self.features_and_context(images)
        return Seen(features, self.embed(features, context))

    def embed(self, features: Tensor, context: Tensor | None = None) -> Tensor:
        """The embedding ``[B, E, H, W]`` of features and their context, where there is one."""
        # The same values, of which a share of the gradient goes back.
        local = torch.lerp(features.detach(), features, self.explanation_gradient)
        embedding = self.projection(local)
        if self.context_projection is not None and context is not None:
            # Few channels are made of many before they are enlarged.
            coarse = self.context_projection(context)
            embedding = embedding + self.at_pixels(coarse, *features.shape[-2:])
        # In float32 also where the convolutions run in bf16.
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(embedding.float(), dim=1)

    def assign(self, seen: Seen) -> TAXOutput:
        """The arithmetic of the method: what is seen to who, why and the result."""
        log_who, log_within, embedding = self.weigh(seen.embedding)
        logits = self.bank(seen.features)
        with torch.autocast(embedding.device.type, enabled=False):
            log_kernel = logits.float().log_softmax(dim=3)
            log_annotator = mix(log_within, log_kernel, self.mixing)
            log_probs = mix(log_who, log_annotator, self.mixing)
        return TAXOutput(log_probs, log_annotator, log_who, log_within, log_kernel, embedding)

    def weigh(self, embedding: Tensor) -> TAXWeights:
        """The part of :meth:`assign` that says who and why, of an embedding ``[B, E, H, W]``."""
        # In float32 also where the convolutions run in bf16, so that the shares add up.
        with torch.autocast(embedding.device.type, enabled=False):
            evidence = self.memory(embedding)
            annotator_evidence = logsumexp(evidence, dim=2)
            log_who = (annotator_evidence * self.who_scale).log_softmax(dim=1)
            log_within = evidence - annotator_evidence.unsqueeze(2)
        return TAXWeights(log_who, log_within, embedding)

    def shares(self, output: TAXOutput, decision: Tensor) -> Tensor:
        """Share of every kernel in the decision at each pixel; they sum to 1 over N and K.

        Args:
            output: what this network said.
            decision: class ids c ``[B, H, W]``.

        Returns:
            s_nk ``[B, N, K, H, W]`` in [0, 1].
        """
        weighted = output.log_who.unsqueeze(2) + output.log_within
        if self.mixing == "prob":
            chosen = decision[:, None, None, None].expand(*weighted.shape[:3], 1, -1, -1)
            weighted = weighted + output.log_kernel_probs.gather(3, chosen).squeeze(3)
        return weighted.flatten(1, 2).softmax(dim=1).view_as(weighted)

    def bands(self, seen: Seen, most_values: int = BAND_VALUES) -> Iterator[TAXOutput]:
        """:meth:`assign` by horizontal bands, so that memory does not grow with N, K and C.

        At every pixel the assignment holds N * K * C values, of which a user keeps a few. A kernel
        sees beyond the edge of its band: the features overlap, and each output is cut.

        Args:
            seen: of whole images.
            most_values: of ``log_kernel_probs`` in one band; a band has at least one row.

        Yields:
            :class:`TAXOutput` of the bands from top to bottom; their heights add up to H.
        """
        batch, _, height, width = seen.features.shape
        # The first cohort's number, so that bands, and with them the last bits of what these
        # annotators would draw, stay what they were when others are added.
        at_a_pixel = self.memory.priors.sizes[0] * self.bank.kernels * self.classes
        rows = max(1, most_values // (at_a_pixel * batch * width))
        reach = self.bank.weights[0].shape[-1] // 2
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            first, last = max(0, top - reach), min(height, bottom + reach)
            output = self.assign(seen.rows(first, last))
            yield TAXOutput(*(part[..., top - first : bottom - first, :] for part in output))

    def freeze(self, frozen: bool = True, *, prototypes: bool = True) -> None:
        """Hold everything but the kernels fixed: features, batch-norm statistics, prototypes.

        After the prototypes have been moved onto training pixels, the kernels are fitted to them;
        were the features to move on, the pixels would no longer be where the prototypes are.

        Args:
            frozen: ``False`` lets everything be trained again.
            prototypes: ``False`` lets the prototypes be trained all the same.
        """
        self.frozen = frozen
        self.fixed_prototypes = frozen and prototypes
        self.train(self.training)

    def frozen_parameters(self) -> list[nn.Parameter]:
        """The parameters that :meth:`freeze` holds fixed; empty while nothing is frozen."""
        parts: list[nn.Module] = [self.backbone, self.projection] if self.frozen else []
        if self.frozen and self.context_projection is not None:
            parts.append(self.context_projection)
        parts += [self.memory] if self.fixed_prototypes else []
        parameters = [parameter for part in parts for parameter in part.parameters()]
        return [parameter for parameter in parameters if parameter.requires_grad]

    def train(self, mode: bool = True) -> TAXNetwork:
        """Set training mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self
