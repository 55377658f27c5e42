"""Heads: shapes, hidden levels, weights of attention, and the loss that is a sum."""

import pytest
import torch
from torch.nn import functional as F

from edm.representation.heads import (
    Attentive,
    Concatenated,
    Linear,
    PerLevel,
    Recurrent,
    cross_entropy,
)
from linear_structure.system.errors import UsageError

HEADS = (PerLevel, Linear, Concatenated, Recurrent, Attentive)
HIDDEN = torch.tensor([True, False, True, True])


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


def codes():
    return torch.randn(7, 4, 3)


@pytest.mark.parametrize("head", HEADS)
def test_heads_score_classes_of_each_image_alone(head):
    made, z = head(4, 3, 5, 0.5).eval(), codes()
    scores = made(z)
    assert scores.shape == ((7, 4, 5) if head in (PerLevel, Linear) else (7, 5))
    assert torch.allclose(scores[2:3], made(z[2:3]), atol=1e-6)
    assert torch.equal(scores, made(z, torch.ones(4, dtype=torch.bool)))


@pytest.mark.parametrize("head", HEADS)
def test_a_hidden_level_tells_nothing_and_a_visible_one_does(head):
    made, z = head(4, 3, 5, 0.0).eval(), codes()
    scores = made(z, HIDDEN)
    for level, visible in enumerate(HIDDEN.tolist()):
        other = z.clone()
        other[:, level] = 1e3
        assert torch.equal(made(other, HIDDEN), scores) != visible


@pytest.mark.parametrize("head", (PerLevel, Linear))
def test_a_head_of_each_level_is_one_network_for_each(head):
    whole, z = head(4, 3, 5, 0.0), codes()
    for level in range(4):
        alone = head(1, 3, 5, 0.0)
        alone.load_state_dict({k: v[level : level + 1] for k, v in whole.state_dict().items()})
        assert torch.allclose(alone(z[:, level : level + 1])[:, 0], whole(z)[:, level], atol=1e-6)


def test_a_perceptron_of_a_level_is_that_of_torch():
    head, z = PerLevel(4, 3, 5, 0.0), codes()
    for level in range(4):
        expected = z[:, level]
        for layer in (head.first, head.second, head.out):
            inputs = expected if layer is head.first else expected.relu()
            expected = F.linear(inputs, layer.weight[level].T, layer.bias[level, 0])
        assert torch.allclose(head(z)[:, level], expected, atol=1e-6)


def test_attention_to_a_hidden_level_is_exactly_0_and_the_rest_sums_to_1():
    head, z = Attentive(4, 3, 5, 0.5).eval(), codes()
    for visible in (None, HIDDEN, torch.tensor([False, False, True, False])):
        weights = head.weights(z, visible)
        assert weights.shape == (4, 7, 4)
        assert torch.allclose(weights.sum(-1), torch.ones(4, 7), atol=1e-6)
        if visible is not None:
            assert bool((weights[..., ~visible] == 0).all())
            assert bool((weights[..., visible] > 0).all())


def test_the_token_is_hidden_from_itself_unless_it_is_to_be_seen():
    z = codes()
    hidden, seen = Attentive(4, 3, 5), Attentive(4, 3, 5, sees_itself=True)
    seen.load_state_dict(hidden.state_dict())
    before, part = hidden.weights(z), seen.weights(z)
    kept = part.sum(-1, keepdim=True)
    assert bool((kept < 0.99).all())
    assert torch.allclose(part / kept, before, atol=1e-6)


def test_attention_is_that_of_torch():
    """The token's query among levels, by `nn.MultiheadAttention` with the same weights."""
    head, z = Attentive(4, 3, 5).eval(), codes()
    width = len(head.token)
    theirs = torch.nn.MultiheadAttention(width, head.heads, batch_first=True).eval()
    for name, ours in (("weight", torch.cat), ("bias", torch.cat)):
        parts = [getattr(head.query, name), getattr(head.key_value, name)]
        getattr(theirs, f"in_proj_{name}").data.copy_(ours(parts))
        getattr(theirs.out_proj, name).data.copy_(getattr(head.merge, name))
    first = head.first(z.transpose(0, 1)).relu().transpose(0, 1)
    levels = head.norm_in(head.project(first) + head.position)
    token = head.norm_in(head.token.expand(7, 1, -1))
    mixed, weights = theirs(
        token, levels, levels, key_padding_mask=~HIDDEN.expand(7, -1), average_attn_weights=False
    )
    assert torch.allclose(weights[:, :, 0].transpose(0, 1), head.weights(z, HIDDEN), atol=1e-6)
    h = head.token + mixed[:, 0]
    h = h + head.narrow(F.gelu(head.wide(head.norm_mid(h))))
    assert torch.allclose(head.out(head.norm_out(h)), head(z, HIDDEN), atol=1e-5)


def test_the_loss_is_the_sum_over_levels():
    scores, labels = torch.randn(7, 4, 5), torch.randint(5, (7,))
    each = [F.cross_entropy(scores[:, level], labels) for level in range(4)]
    assert torch.allclose(cross_entropy(scores, labels), torch.stack(each).sum())
    assert torch.allclose(cross_entropy(scores[:, 0], labels), each[0])


def test_codes_and_levels_that_do_not_fit_are_refused_in_a_sentence():
    for sizes in ((0, 3, 5), (4, 0, 5), (4, 3, 0)):
        with pytest.raises(UsageError, match="expected 1 or more of each"):
            Concatenated(*sizes)
    head = Concatenated(4, 3, 5)
    with pytest.raises(UsageError, match=r"\(7, 3, 4\).*expects \(B, 4, 3\)"):
        head(codes().mT)
    for visible in (torch.zeros(4, dtype=torch.bool), HIDDEN[:3], torch.ones(4)):
        with pytest.raises(UsageError, match="one true at least"):
            head(codes(), visible)
