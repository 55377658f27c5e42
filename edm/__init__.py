"""What has weights: networks, their files, their training, their scores (Karras et al. 2022).

What people look for here and is not of networks alone comes from `linear_structure`.
"""

from edm.checkpoints import load as load_network
from edm.network import Network, network_of
from linear_structure.sampling.grids import sigma_grid
from linear_structure.sampling.samplers import dpmpp_2m, euler, heun, unipc

__all__ = [
    "Network",
    "dpmpp_2m",
    "euler",
    "heun",
    "load_network",
    "network_of",
    "sigma_grid",
    "unipc",
]
