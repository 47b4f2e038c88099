"""Losses of the two pretext tasks: Thurstone's model of pairs and the fidelity loss (Zou et al. 2025, eqs. 1-4).

Everything is computed from log-probabilities: sqrt(q) = exp(log(q) / 2) keeps value and gradient finite where q
itself underflows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

#: A pair whose probability is within this distance of 0 or 1 counts as saturated: it hardly moves the scores.
SATURATION = 1e-3


def fidelity_loss(p: Tensor, log_q: Tensor, log_not_q: Tensor) -> Tensor:
    """1 - sqrt(p q) - sqrt((1 - p)(1 - q)), elementwise, in 0..1 (Tsai et al. 2007; eq. 3).

    `p` is the label in 0..1; `log_q` and `log_not_q` are the logarithms of q and 1 - q. All of one shape.
    """
    return 1 - p.sqrt() * (log_q / 2).exp() - (1 - p).sqrt() * (log_not_q / 2).exp()


def thurstone_log_probabilities(difference: Tensor) -> tuple[Tensor, Tensor]:
    """Log of Phi(d / sqrt 2) and of its complement, for score differences d of any shape (Thurstone 1927)."""
    z = difference / 2**0.5
    return torch.special.log_ndtr(z), torch.special.log_ndtr(-z)


@dataclass(frozen=True)
class RankingLoss:
    """Losses of one minibatch: `per_tag` (T,), the mean over its pairs; `saturated`, a share in 0..1."""

    per_tag: Tensor
    saturated: Tensor


def ranking_loss(scores: Tensor, tags: Tensor, photos: Tensor) -> RankingLoss:
    """Mean fidelity loss of all ordered pairs of faces from different photographs, a tag.

    `scores` (B, T) are the heads' outputs, `tags` (B, T) the EXIF values, `photos` (B,) integers that name the
    photograph of each face. The label of a pair (x, y) is 1 if tag(x) >= tag(y), else 0. A batch whose faces all
    come from one photograph has no pairs and a loss of 0 that still carries a gradient.
    """
    difference = scores.float()[:, None] - scores.float()[None, :]  # (B, B, T)
    labels = (tags[:, None] >= tags[None, :]).to(difference.dtype)  # (B, B, T)
    log_q, log_not_q = thurstone_log_probabilities(difference)
    pairs = (photos[:, None] != photos[None, :]).to(difference.dtype)[..., None]  # (B, B, 1)
    count = pairs.sum().clamp(min=1)
    losses = fidelity_loss(labels, log_q, log_not_q)
    nearly_sure = torch.maximum(log_q, log_not_q).detach() > torch.log1p(torch.tensor(-SATURATION))
    saturated = (nearly_sure * pairs).sum() / (count * scores.shape[1])
    return RankingLoss((losses * pairs).sum((0, 1)) / count, saturated)


def manipulation_loss(logits: Tensor, manipulated: Tensor) -> Tensor:
    """Mean fidelity loss of the manipulation head: `logits` (B,), `manipulated` (B,) in {0, 1} (eq. 4)."""
    logits = logits.float()
    return fidelity_loss(manipulated.to(logits.dtype), F.logsigmoid(logits), F.logsigmoid(-logits)).mean()
