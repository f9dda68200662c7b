"""Trust: how far the evidence for an annotator may weigh in the result."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tax_lightning.explanation import TRUST_KINDS, TrustBasis, TrustKind
from tax_lightning.models.output import EVERYBODY, Panel

LEAST_ROWS = 100  # from fewer pixels all that could be fitted would be a guess
# Of the fitted numbers, so that they stay finite where all pixels are named rightly.
_PENALTY = 1e-3
_LARGEST_SCALE = 10.0  # and 1 / 10 the smallest
# Whether the scale of the evidence is fitted, and whether an offset of each annotator. Few images
# may tell how far to follow the evidence, and yet not whom to prefer besides.
_FORMS = ((False, False), (False, True), (True, False), (True, True))
_UNIFORM, _CONSTANT, _SCALED, _SHIFTED = range(len(_FORMS))


def bounded_scale(logarithm: Tensor) -> Tensor:
    """A scale between 1/10 and 10, by its logarithm: no step of an optimizer makes it infinite.

    Example:
        >>> bounded_scale(torch.tensor([-1e9, 0.0, 1e9]))
        tensor([ 0.1000,  1.0000, 10.0000])
    """
    limit = math.log(_LARGEST_SCALE)
    return (limit * (logarithm / limit).tanh()).exp()


class TrustCases(NamedTuple):
    """Pixels at which annotators disagree and the reference says who of them is right."""

    evidence: Tensor  # ``[M, N]``, -inf for those who did not label the pixel
    right: Tensor  # whose label is right, bool ``[M, N]``; at least one is and one is not
    weight: Tensor  # of the case, ``[M]``; a tie of T labels is T cases with the weight 1 / T
    image: Tensor  # its index, ``[M]``


class Trust(nn.Module):
    """Makes the weights w of the annotators from the evidence: w = softmax(scale e + offset).

    w says whom to believe, and can be no better than what it was taught with. So after training
    three forms of it are fitted and compared on images that were not trained on: ``"uniform"``, the
    same weight for all; ``"constant"``, one weight for each annotator; and ``"image"``, weights
    that follow the evidence at each pixel, with an offset of each annotator only if that is better.
    The simplest that is not worse than the next is kept.

    The score is the log score -log sum_{n right} w_n at pixels where annotators disagree. It is
    proper: in the mean it is smallest for weights that are right as often as they say.

    Example:
        >>> trust = Trust(annotators=2)
        >>> trust(torch.tensor([0.0, 0.0]).view(1, 2, 1, 1)).exp().flatten()
        tensor([0.5000, 0.5000])
        >>> trust.kind
        'image'
    """

    scale: Tensor  # of the evidence, ``[]``; 0 unless the weights follow the image
    offset: Tensor  # of each annotator, ``[N]``
    constant: Tensor  # log of the weights of that form, which a model of the images has to beat
    scores: Tensor  # of the three forms in the order of `TRUST_KINDS`, in nats; NaN until fitted

    def __init__(self, annotators: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("offset", torch.zeros(annotators))
        self.register_buffer("constant", torch.zeros(annotators).log_softmax(0))
        self.register_buffer("scores", torch.full((len(TRUST_KINDS),), torch.nan))

    def forward(self, evidence: Tensor, panel: Panel = EVERYBODY) -> Tensor:
        """Log of the weights of the annotators or of a panel; both ``[B, N, H, W]``."""
        return (evidence * self.scale + self.offset[panel, None, None]).log_softmax(dim=1)

    @property
    def kind(self) -> TrustKind:
        """Which of the three forms the weights have."""
        if self.scale > 0:
            return "image"
        return "constant" if self.offset.any() else "uniform"

    def basis(self, reference: str) -> TrustBasis:
        """What is known of the weights that were taught with these reference labels."""
        uniform, constant, image = self.scores.tolist()
        return TrustBasis(self.kind, reference, (uniform, constant, image))

    def reset(self) -> None:
        """Follow the evidence as it is trained."""
        self.load_state_dict(Trust(len(self.offset)).state_dict())

    def fit(self, cases: TrustCases) -> None:
        """Choose and fit the form of the weights; with too few cases they stay as they are.

        The images are divided in two halves. Each form is fitted to one and scored on the other, so
        that a form with more numbers has no advantage. A form is kept against a simpler one if it
        is better by more than the standard error of the difference over images.
        """
        cases = TrustCases(*(part.detach().cpu().double() for part in cases))
        images = cases.image.unique()
        if len(cases.image) < LEAST_ROWS or len(images) < 2:
            return
        half = cases.image % 2 == 0
        if half.all() or not half.any():
            half = cases.image <= cases.image.median()
        scored = torch.zeros(len(_FORMS), len(cases.image), dtype=torch.float64)
        for part in (half, ~half):
            learnt_from = TrustCases(*(values[part] for values in cases))
            for form, freedom in enumerate(_FORMS):
                scored[form, ~part] = _score(cases, *_minimised(learnt_from, *freedom))[~part]
        of_images = [cases.image == image for image in images]
        by_image = torch.stack([_mean(scored[:, at], cases.weight[at]) for at in of_images])

        def better(form: int, than: int) -> bool:
            gain = by_image[:, than] - by_image[:, form]
            return bool(gain.mean() > gain.std() / len(gain) ** 0.5)

        image = _SHIFTED if better(_SHIFTED, _SCALED) else _SCALED
        chosen = _UNIFORM
        for form in (_CONSTANT, image):
            chosen = form if better(form, chosen) else chosen
        self.scores.copy_(_mean(scored[[_UNIFORM, _CONSTANT, image]], cases.weight))
        self.constant.copy_(_minimised(cases, *_FORMS[_CONSTANT])[1].log_softmax(0))
        scale, offset = _minimised(cases, *_FORMS[chosen])
        self.scale.copy_(scale)
        self.offset.copy_(offset)


def _minimised(cases: TrustCases, follows_evidence: bool, shifts: bool) -> tuple[Tensor, Tensor]:
    """Scale and offset of this form with the best log score on these cases."""
    offset = torch.zeros(cases.evidence.shape[1]).double().requires_grad_(shifts)
    log_scale = torch.zeros(()).double().requires_grad_(follows_evidence)
    learnt = [number for number in (offset, log_scale) if number.requires_grad]
    if not learnt:
        return torch.zeros_like(log_scale), offset
    optimizer = torch.optim.LBFGS(learnt, max_iter=100, line_search_fn="strong_wolfe")

    def scale() -> Tensor:
        return bounded_scale(log_scale) * follows_evidence

    def objective() -> Tensor:
        optimizer.zero_grad()
        score = _mean(_score(cases, scale(), offset), cases.weight)
        loss: Tensor = score + _PENALTY * (offset.square().sum() + log_scale.square())
        loss.backward()
        return loss

    optimizer.step(objective)
    return scale().detach(), (offset - offset.mean()).detach()


def _score(cases: TrustCases, scale: Tensor, offset: Tensor) -> Tensor:
    """-log of the weight of those who are right, of every case ``[M]``."""
    labelled = cases.evidence.isfinite()
    logits = torch.where(labelled, cases.evidence, 0) * scale + offset
    log_who = logits.masked_fill(~labelled, -torch.inf).log_softmax(dim=1)
    return -log_who.masked_fill(cases.right == 0, -torch.inf).logsumexp(dim=1)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Of ``[..., M]`` over M."""
    return (values * weight).sum(-1) / weight.sum()
