"""Networks in files: our own, NVIDIA's published ones read as data, those shipped with `edm`."""

from edm.checkpoints.checkpoint import load, save, shipped

__all__ = ["load", "save", "shipped"]
