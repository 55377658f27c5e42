"""What has weights: networks, their files, their training, their scores (Karras et al. 2022).

What people look for here and is not of networks alone comes from `linear_structure`.
"""

from typing import TYPE_CHECKING

from linear_structure import __version__
from linear_structure.system.lazy import lazily

if TYPE_CHECKING:
    from edm.checkpoints import load as load_network
    from edm.checkpoints import save as save_network
    from edm.checkpoints import shipped
    from edm.evaluation.features import Features
    from edm.evaluation.features import load as load_features
    from edm.evaluation.fid import Statistics
    from edm.evaluation.fid import frechet as frechet_distance
    from edm.evaluation.fid import measure as feature_statistics
    from edm.network import Network, network_of
    from linear_structure.sampling.grids import sigma_grid
    from linear_structure.sampling.samplers import Step, dpmpp_2m, euler, final, heun, unipc
else:
    __getattr__ = lazily(__name__, __file__)

__all__ = [
    "Features",
    "Network",
    "Statistics",
    "Step",
    "__version__",
    "dpmpp_2m",
    "euler",
    "feature_statistics",
    "final",
    "frechet_distance",
    "heun",
    "load_features",
    "load_network",
    "network_of",
    "save_network",
    "shipped",
    "sigma_grid",
    "unipc",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
