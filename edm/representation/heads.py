"""Classifiers of a curve of codes: what reads K levels of d numbers each.

    PerLevel      K networks, one for each level, none of which sees the others
    Concatenated  one network of all K d numbers
    Recurrent     a gated recurrent unit (Cho et al. 2014) along the levels, its last state
    Attentive     a token that attends to the levels (Vaswani et al. 2017)
    Linear        K linear classifiers, one for each level

Codes (B, K, d) are standardised (`probing.Split`). A hidden level tells nothing: its code is 0, the
mean, or it is left out. Every head is made as `head(levels, dim, classes, dropout)`.

Few numbers may hold many factors, in a pattern finer than one hidden layer learns to follow: every
head but the linear one has two layers or more behind each code. Dropout comes before the last
layer alone: between the others it costs such a pattern its edges.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edm.networks.layers import Init, kaiming_uniform
from linear_structure.system.errors import UsageError

WIDTH = 128  # of a hidden layer
STATE = 64  # numbers of a recurrent state, and of a level that is attended to
UNIFORM = Init(kaiming_uniform, bias=1.0)  # biases that are 0 would fold all codes at one place


class Head(nn.Module):
    """Class scores of codes; what all heads check."""

    def __init__(self, levels: int, dim: int, classes: int, dropout: float) -> None:
        super().__init__()
        if min(levels, dim, classes) < 1:
            raise UsageError(
                f"a head of {levels} levels, {dim} numbers each and {classes} classes: "
                "expected 1 or more of each"
            )
        self.levels, self.dim, self.classes, self.dropout = levels, dim, classes, dropout

    def forward(self, z: Tensor, visible: Tensor | None = None) -> Tensor:
        """Scores of codes z (B, K, d): (B, classes), or (B, K, classes) from a head of each level.

        Args:
            visible: (K,) bool, the levels that are shown; None: all.

        Raises:
            UsageError: the codes have other levels or numbers, or no level is visible.
        """
        return self.scores(z, self._checked(z, visible))

    def scores(self, z: Tensor, visible: Tensor) -> Tensor:
        """`forward` of codes and levels that fit."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.levels}, {self.dim}, {self.classes}, {self.dropout}"

    def _checked(self, z: Tensor, visible: Tensor | None) -> Tensor:
        """The visible levels, (K,) bool."""
        if z.shape[1:] != (self.levels, self.dim):
            raise UsageError(
                f"the codes are {tuple(z.shape)}: "
                f"this head expects (B, {self.levels}, {self.dim}), levels and numbers of each"
            )
        if visible is None:
            return torch.ones(self.levels, dtype=torch.bool, device=z.device)
        if visible.shape != (self.levels,) or visible.dtype != torch.bool or not visible.any():
            raise UsageError(
                f"visible levels are {visible.tolist()}: "
                f"expected {self.levels} of true and false, one true at least"
            )
        return visible.to(z.device)


class LevelLinear(nn.Module):
    """`x_k W_k + b_k` for each level: (K, B, in) -> (K, B, out) in one product."""

    def __init__(self, levels: int, in_features: int, out_features: int) -> None:
        super().__init__()
        shape, fans = (levels, in_features, out_features), (in_features, out_features)
        self.weight = UNIFORM.parameter(shape, fans, UNIFORM.weight)
        self.bias = UNIFORM.parameter((levels, 1, out_features), fans, UNIFORM.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class Linear(Head):
    """`z_k -> classes`, linear, for each level: (B, K, classes)."""

    def __init__(self, levels: int, dim: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__(levels, dim, classes, dropout)
        self.out = LevelLinear(levels, dim, classes)

    def scores(self, z: Tensor, visible: Tensor) -> Tensor:
        return self.out((z * visible[:, None]).transpose(0, 1)).transpose(0, 1)


class PerLevel(Head):
    """`z_k -> 128 -> 128 -> classes` for each level: (B, K, classes).

    Dropout hides the same units from all levels, those that a level alone would miss.
    """

    def __init__(self, levels: int, dim: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__(levels, dim, classes, dropout)
        self.first = LevelLinear(levels, dim, WIDTH)
        self.second = LevelLinear(levels, WIDTH, WIDTH)
        self.out = LevelLinear(levels, WIDTH, classes)

    def scores(self, z: Tensor, visible: Tensor) -> Tensor:
        first = F.relu(self.first((z * visible[:, None]).transpose(0, 1)))
        hidden = F.relu(self.second(first))
        kept = F.dropout(hidden.new_ones(hidden.shape[1:]), self.dropout, self.training)
        return self.out(hidden * kept).transpose(0, 1)


class Concatenated(Head):
    """`(z_1 .. z_K) -> 128 -> 128 -> classes`: (B, classes)."""

    def __init__(self, levels: int, dim: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__(levels, dim, classes, dropout)
        self.whole = PerLevel(1, levels * dim, classes, dropout)

    def scores(self, z: Tensor, visible: Tensor) -> Tensor:
        return self.whole((z * visible[:, None]).flatten(1)[:, None])[:, 0]


class Recurrent(Head):
    """A gated recurrent unit from the first level to the last, its state -> classes."""

    def __init__(self, levels: int, dim: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__(levels, dim, classes, dropout)
        self.unit = nn.GRU(dim, STATE, batch_first=True)
        self.out = nn.Linear(STATE, classes)

    def scores(self, z: Tensor, visible: Tensor) -> Tensor:
        _, state = self.unit(z[:, visible])
        return self.out(F.dropout(state[0], self.dropout, self.training))


class Attentive(Head):
    """One block of attention, in which a learned token asks and the levels answer -> classes.

        h_k = P_k(z_k) + p_k,   t' = t + O sum_k w_k V h_k,   scores = C n(t' + MLP(n(t')))

    with P_k of one hidden layer, w the softmax of the token's query with the levels' keys, and
    normalised inputs n of every part. What levels would ask each other is not read by the token,
    and so left out.

    Args:
        heads: of attention.
        sees_itself: whether the token is among the answers; then the levels' weights sum to less
            than 1.
    """

    def __init__(
        self,
        levels: int,
        dim: int,
        classes: int,
        dropout: float = 0.0,
        heads: int = 4,
        sees_itself: bool = False,
    ) -> None:
        super().__init__(levels, dim, classes, dropout)
        self.heads, self.sees_itself = heads, sees_itself
        self.first, self.project = LevelLinear(levels, dim, WIDTH), nn.Linear(WIDTH, STATE)
        self.token = nn.Parameter(torch.randn(STATE) * STATE**-0.5)
        self.position = nn.Parameter(torch.randn(levels, STATE) * STATE**-0.5)
        self.norm_in, self.norm_mid, self.norm_out = (nn.LayerNorm(STATE) for _ in range(3))
        self.query = nn.Linear(STATE, STATE)
        self.key_value = nn.Linear(STATE, 2 * STATE)
        self.merge = nn.Linear(STATE, STATE)
        self.wide, self.narrow = nn.Linear(STATE, WIDTH), nn.Linear(WIDTH, STATE)
        self.out = nn.Linear(STATE, classes)

    def scores(self, z: Tensor, visible: Tensor) -> Tensor:
        """Of what the token gathers."""
        weights, levels = self._attend(z, visible)
        _, value = self._parts(self.key_value.weight)
        _, bias = self._parts(self.key_value.bias)
        seen = torch.einsum("hbk,bks->hbs", weights, levels)
        mixed = torch.einsum("hbs,hcs->bhc", seen, value) + bias
        h = self.token + self.merge(mixed.flatten(1))
        h = h + self.narrow(F.gelu(self.wide(self.norm_mid(h))))
        return self.out(F.dropout(self.norm_out(h), self.dropout, self.training))

    def weights(self, z: Tensor, visible: Tensor | None = None) -> Tensor:
        """How much the token takes from each level: (heads, B, K), 0 of a hidden one.

        They sum to 1 over the levels, unless the token sees itself. Arguments and errors are those
        of `forward`.
        """
        shown = self._checked(z, visible)
        weights, _ = self._attend(z, shown)
        found = weights.new_zeros(*weights.shape[:2], self.levels)
        found[..., shown] = weights[..., int(self.sees_itself) :]
        return found

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.heads}, {self.sees_itself}"

    def _attend(self, z: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (heads, B, k) and levels (B, k, C), visible ones; the token before them if it
        sees itself.

        It asks the same of all images, so its query meets the keys' weights but once; their bias
        would add the same to all levels.
        """
        first = F.relu(self.first(z.transpose(0, 1)))[visible].transpose(0, 1)
        levels, token = self.project(first) + self.position[visible], self.norm_in(self.token)
        levels = self.norm_in(levels)
        if self.sees_itself:
            levels = torch.cat([token.expand(len(z), 1, -1), levels], dim=1)
        query = self.query(token).unflatten(0, (self.heads, -1))
        key, _ = self._parts(self.key_value.weight)
        asked = torch.einsum("hc,hcs->sh", query, key) / math.sqrt(query.shape[-1])
        return (levels @ asked).permute(2, 0, 1).softmax(-1), levels

    def _parts(self, parameter: Tensor) -> Tensor:
        """That of keys and that of values: (2, heads, C / heads, ...)."""
        return parameter.unflatten(0, (2, self.heads, -1))


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean over images of the cross-entropy, summed over levels, in nats: ().

    A sum of losses without a common parameter: each level learns as if it were alone.

    Args:
        scores: (B, classes) or (B, K, classes).
        labels: (B,) int64.
    """
    by_class = scores.movedim(-1, 1)
    targets = labels.unsqueeze(1).expand(-1, scores.shape[1]) if scores.ndim == 3 else labels
    return F.cross_entropy(by_class, targets, reduction="sum") / len(scores)
