"""The analytic half: denoisers in closed form, their flows, and the moments they are made from."""

from linear_structure.denoise import Denoiser, Model, Posterior, score, slope
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.mixture import GaussianMixture
from linear_structure.moments import Moments, PixelSums
from linear_structure.points import PointCloud

__all__ = [
    "Denoiser",
    "Gaussian",
    "GaussianMixture",
    "Isotropic",
    "Model",
    "Moments",
    "PixelSums",
    "PointCloud",
    "Posterior",
    "score",
    "slope",
]
