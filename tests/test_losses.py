"""The losses against a literal, looped implementation and known values."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from lensborn.pretext.losses import (  # noqa: E402
    fidelity_loss,
    manipulation_loss,
    ranking_loss,
    thurstone_log_probabilities,
)


def phi(z):
    return 0.5 * (1 + torch.erf(z / math.sqrt(2)))


def literal_ranking(scores, tags, photos):
    """Equations 1 to 3, pair by pair, as one would write them on paper."""
    totals = [torch.zeros((), dtype=scores.dtype) for _ in range(scores.shape[1])]
    count = 0
    for i in range(len(scores)):
        for j in range(len(scores)):
            if photos[i] == photos[j]:
                continue
            count += 1
            for t in range(scores.shape[1]):
                q = phi((scores[i, t] - scores[j, t]) / math.sqrt(2))
                # sqrt(p q) + sqrt((1 - p)(1 - q)) for p = 1 or 0, without the gradient of sqrt at 0
                totals[t] = totals[t] + 1 - torch.sqrt(q if tags[i, t] >= tags[j, t] else 1 - q)
    return torch.stack(totals) / max(count, 1)


@given(seed=st.integers(0, 10_000), size=st.integers(2, 9))
@settings(max_examples=25)
def test_ranking_equals_the_literal_loss_with_gradients(seed, size):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(size, 4, generator=generator, requires_grad=True)
    tags = torch.randint(1, 4, (size, 4), generator=generator).double()  # few values: many ties
    photos = torch.randint(0, size, (size,), generator=generator)
    ours = ranking_loss(scores, tags, photos).per_tag
    (mine,) = torch.autograd.grad(ours.sum(), scores)
    literal = literal_ranking(scores.double(), tags, photos)
    if literal.requires_grad:
        (theirs,) = torch.autograd.grad(literal.sum(), scores)
        assert torch.allclose(mine, theirs, atol=1e-6)
    assert torch.allclose(ours.double(), literal, atol=1e-6)


@pytest.mark.parametrize(
    ("distance", "probability"), [(0, 0.5), (math.sqrt(2), 0.8413447461), (-2, 0.0786496035)]
)
def test_a_pair_at_distance_d_has_probability_phi_of_d_over_root_two(distance, probability):
    log_q, log_not_q = thurstone_log_probabilities(torch.tensor(float(distance), dtype=torch.float64))
    assert log_q.exp().item() == pytest.approx(probability, abs=1e-9)
    assert log_not_q.exp().item() == pytest.approx(1 - probability, abs=1e-9)


def test_fidelity_is_zero_when_right_and_one_when_surely_wrong():
    q = torch.tensor([1.0, 0.0, 0.25])
    loss = fidelity_loss(torch.tensor([1.0, 1.0, 0.25]), q.log(), (1 - q).log())
    assert torch.allclose(loss, torch.tensor([0.0, 1.0, 0.0]))


def test_wrong_pairs_far_apart_keep_finite_gradients_and_count_as_saturated():
    scores = torch.tensor([[-40.0], [40.0]], requires_grad=True)
    tags, photos = torch.tensor([[2.0], [1.0]]), torch.tensor([0, 1])
    result = ranking_loss(scores, tags, photos)
    result.per_tag.sum().backward()
    assert torch.isfinite(scores.grad).all()
    assert result.saturated == 1
    assert result.per_tag.item() == pytest.approx(1)


def test_pairs_of_one_photograph_are_left_out():
    scores = torch.tensor([[0.0], [5.0], [1.0]])
    tags = torch.tensor([[1.0], [1.0], [2.0]])
    alone = ranking_loss(scores, tags, torch.tensor([0, 0, 0]))
    assert alone.per_tag.item() == 0
    with_other = ranking_loss(scores, tags, torch.tensor([0, 0, 1])).per_tag
    assert torch.allclose(with_other, literal_ranking(scores, tags, [0, 0, 1]))


@given(logits=st.lists(st.floats(-8, 8), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_manipulation_loss_equals_the_literal_one(logits, seed):
    x = torch.tensor(logits, dtype=torch.float32)
    y = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(seed))
    q = torch.sigmoid(x.double())
    literal = (1 - (y * q).sqrt() - ((1 - y) * (1 - q)).sqrt()).mean()
    assert manipulation_loss(x, y).item() == pytest.approx(literal.item(), abs=1e-6)
