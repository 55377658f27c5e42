"""The published networks: DDPM++ and NCSN++ (one class), and ADM; `edm.precondition` uses them."""

from edm.networks.adm import ADM, ADMOptions
from edm.networks.ddpmpp import DDPMpp, DDPMppOptions

__all__ = ["ADM", "ADMOptions", "DDPMpp", "DDPMppOptions"]
