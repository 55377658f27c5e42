"""The hidden linear structure of diffusion models: denoisers in closed form, and what walks along.

Everything is a denoiser D(x, sigma): a Gaussian, a mixture, the images themselves, a network.
"""

from typing import TYPE_CHECKING

from linear_structure.system.lazy import lazily

if TYPE_CHECKING:
    from linear_structure.data.datasets import Dataset
    from linear_structure.data.datasets import load as load_dataset
    from linear_structure.denoise import Denoiser, Model, Position, Posterior, score, slope
    from linear_structure.fit import fit as fit_model
    from linear_structure.fit import fit_gaussian
    from linear_structure.gaussian import Gaussian, Isotropic
    from linear_structure.images import from_uint8, save_png, to_uint8
    from linear_structure.images import grid as image_grid
    from linear_structure.mixture import GaussianMixture
    from linear_structure.moments import Moments
    from linear_structure.parameters import load as load_parameters
    from linear_structure.parameters import save as save_parameters
    from linear_structure.points import PointCloud
    from linear_structure.sampling.grids import sigma_grid
    from linear_structure.sampling.samplers import Step, dpmpp_2m, euler, final, heun, unipc
    from linear_structure.sampling.seeds import Seeds
    from linear_structure.spectral import Spectral
    from linear_structure.system.errors import UsageError, WorkError
    from linear_structure.teleport import Teleport, carry
else:
    __getattr__ = lazily(__name__, __file__)

__version__ = "0.1.0"
__all__ = [
    "Dataset",
    "Denoiser",
    "Gaussian",
    "GaussianMixture",
    "Isotropic",
    "Model",
    "Moments",
    "PointCloud",
    "Position",
    "Posterior",
    "Seeds",
    "Spectral",
    "Step",
    "Teleport",
    "UsageError",
    "WorkError",
    "carry",
    "dpmpp_2m",
    "euler",
    "final",
    "fit_gaussian",
    "fit_model",
    "from_uint8",
    "heun",
    "image_grid",
    "load_dataset",
    "load_parameters",
    "save_parameters",
    "save_png",
    "score",
    "sigma_grid",
    "slope",
    "to_uint8",
    "unipc",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
