"""What the tests of samplers share: a denoiser, and how their Steps are compared."""

import torch


def doubles(*values):
    """A float64 vector."""
    return torch.tensor(values, dtype=torch.float64)


def stub(x, sigma):
    """A denoiser that no model is behind, smooth in x and sigma."""
    return torch.tanh(x / (1 + sigma**2).sqrt()) / (1 + sigma)


def last(steps):
    """Where a trajectory ends."""
    *_, step = steps
    return step.x


def relative_error(x, expected):
    """The largest difference, of the largest value."""
    return float((x - expected).abs().max() / expected.abs().max())


def same(steps, others):
    """Whether two trajectories are equal to the bit."""
    return all(
        torch.equal(a, b)
        for step, other in zip(steps, others, strict=True)
        for a, b in zip(step, other, strict=True)
    )
