"""Randomness that belongs to a sample, not to a batch: one generator for each seed.

Each generator gives, in this order: the latents (float32), the class label where the network has
classes (drawn even when another is chosen), and one float64 draw for each sampler step. A sample
depends on its seed and on the type of device alone: not on the batch it is in, not on the number
of processes. The streams of CPU and CUDA generators differ.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Generator, Tensor

from linear_structure.system.errors import UsageError

MOST = 10**7  # more is a slip of the finger, and fills the memory
SEED_LIMIT = 2**32  # generators are seeded modulo this


def parse_seeds(text: str) -> list[int]:
    """Seeds in the order given, from a comma list of numbers and inclusive ranges: "0-63,70".

    Raises:
        UsageError: nothing between commas, not a number or range, a range that runs backwards, a
            seed that comes twice, or that is not below 2^32, or more than 10^7 seeds.
    """
    ranges = [_parse_range(part.strip(), text) for part in text.split(",")]
    if (count := sum(last + 1 - first for first, last in ranges)) > MOST:
        raise UsageError(f"seeds {text!r} are {count:,}: expected at most {MOST:,}")
    if (largest := max(last for _, last in ranges)) >= SEED_LIMIT:  # as one below, by its generator
        raise UsageError(f"seeds {text!r} hold {largest}: expected each of them below 2^32")
    seeds = [seed for first, last in ranges for seed in range(first, last + 1)]
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds {text!r} name a seed twice: expected each of them once")
    return seeds


def _parse_range(part: str, text: str) -> tuple[int, int]:
    """First and last seed of a part of the text."""
    match = re.fullmatch(r"(\d{1,30})(?:-(\d{1,30}))?", part)
    if match is None:
        found = f"hold {part!r}" if part else "have an empty part"
        raise UsageError(f"seeds {text!r} {found}: expected numbers and ranges, such as 0-63,70")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise UsageError(f"seeds {text!r} run backwards in {part!r}: expected {last}-{first}")
    return first, last


def format_seeds(seeds: Iterable[int]) -> str:
    """Numbers and ranges that `parse_seeds` reads as these seeds, in this order."""
    grouped = groupby(enumerate(seeds), lambda placed: placed[1] - placed[0])
    runs = [[seed for _, seed in run] for _, run in grouped]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def check_class(chosen: int, label_count: int) -> None:
    """Raise a UsageError for a class that a network does not know."""
    if not label_count:
        raise UsageError(f"class {chosen} of an unconditional network: it has no classes")
    if not 0 <= chosen < label_count:
        raise UsageError(f"class {chosen} is not known: expected 0 to {label_count - 1}")


@dataclass(frozen=True)
class SeedRange:
    """An inclusive range of at most 10^7 seeds below 2^32; others raise a UsageError."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if self.count > MOST or self.last >= SEED_LIMIT:
            raise UsageError(f"seeds {self}: expected at most {MOST:,}, each below 2^32")

    @property
    def count(self) -> int:
        return self.last - self.first + 1

    def head(self, count: int) -> "SeedRange":
        """The first `count` seeds, or all where there are fewer."""
        return SeedRange(self.first, min(self.last, self.first + count - 1))

    def blocks(self, size: int) -> Iterator[range]:
        """The seeds in order, at most `size` at a time."""
        for first in range(self.first, self.last + 1, size):
            yield range(first, min(first + size, self.last + 1))

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


@dataclass(frozen=True)
class Seeds:
    """The generators of a batch of n samples; every draw moves all of them on together."""

    generators: tuple[Generator, ...]

    @classmethod
    def of(cls, seeds: Sequence[int], device: torch.device | str = "cpu") -> "Seeds":
        """Generators on the sampling device, seeded modulo 2^32."""
        return cls(tuple(Generator(device).manual_seed(seed % 2**32) for seed in seeds))

    def latents(self, shape: Sequence[int]) -> Tensor:
        """Standard normal latents (n, *shape), float32: the first draw."""
        return self._stack(lambda g: torch.randn(shape, generator=g, device=g.device))

    def labels(self, label_count: int, chosen: int | None = None) -> Tensor:
        """Uniform classes (n,), int64, or the chosen one for all: the second draw, made either way.

        Raises as `check_class`.
        """
        if chosen is not None:
            check_class(chosen, label_count)
        drawn = self._stack(lambda g: torch.randint(label_count, (), generator=g, device=g.device))
        return drawn if chosen is None else torch.full_like(drawn, chosen)

    def noise(self, x: Tensor) -> Tensor:
        """Standard normal noise for a step, like x, (n, *S); a ValueError for another n."""
        return self._like(torch.randn, x)

    def uniform(self, x: Tensor) -> Tensor:
        """Uniform draws from [0, 1), like x, (n, *S); a ValueError for another n."""
        return self._like(torch.rand, x)

    def _like(self, draw: Callable[..., Tensor], x: Tensor) -> Tensor:
        if len(x) != len(self.generators):
            raise ValueError(f"{len(x)} samples for {len(self.generators)} seeds: expected as many")
        return self._stack(lambda g: draw(x.shape[1:], generator=g, dtype=x.dtype, device=g.device))

    def _stack(self, draw: Callable[[Generator], Tensor]) -> Tensor:
        return torch.stack([draw(generator) for generator in self.generators])
