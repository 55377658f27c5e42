"""The networks F that `edm.precondition` uses.

The published ones, DDPM++ and NCSN++ (one class) and ADM; and an MLP for points.
"""

from edm.networks.adm import ADM, ADMOptions
from edm.networks.ddpmpp import DDPMpp, DDPMppOptions, Half
from edm.networks.mlp import MLP, MLPOptions, Trunk

__all__ = ["ADM", "MLP", "ADMOptions", "DDPMpp", "DDPMppOptions", "Half", "MLPOptions", "Trunk"]
