"""Teleport: the first steps of a sampler in closed form, with a network that is shipped.

Prints, for each number of skipped steps, where the network takes over, how often it is called, and
how far its 64 digits are from those of all 18 steps (RMS of pixels from -1 to 1):

     0 skipped: from sigma 80.00, 35 calls, 0.000
     4 skipped: from sigma 19.35, 27 calls, 0.007
     7 skipped: from sigma 5.32, 21 calls, 0.030
    10 skipped: from sigma 1.09, 15 calls, 0.161
"""

from edm import final, heun, load_network, shipped, sigma_grid
from linear_structure import Seeds, Teleport, carry, fit_gaussian, load_dataset

network = load_network(shipped("digits-denoiser.safetensors"))
gaussian, _ = fit_gaussian(load_dataset("digits"))
sigmas = sigma_grid(18)
start = Seeds.of(range(64)).latents(network.shape) * sigmas[0]
whole = final(heun(network, start, sigmas))

for k in (0, 4, 7, 10):
    x = carry(start, sigmas, k, Teleport(gaussian))
    far = (final(heun(network, x, sigmas[k:])) - whole).square().mean().sqrt()
    print(f"{k:2} skipped: from sigma {sigmas[k]:.2f}, {2 * (18 - k) - 1} calls, {far:.3f}")
