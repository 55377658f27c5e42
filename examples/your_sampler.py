"""Your sampler: a generator of Steps over any denoiser and any grid; here the midpoint rule.

Prints its error on the Gaussian of the digits, whose end is known in closed form, and how far its
digits of a network with 7 of 18 steps teleported are from those without (RMS of pixels, -1 to 1):

    error 0.0003, teleported 0.023
"""

from itertools import pairwise

from edm import Step, final, load_network, shipped, sigma_grid
from linear_structure import Seeds, fit_gaussian, load_dataset, slope


def midpoint(denoise, x, sigmas):
    for sigma, after in pairwise(sigmas):
        yield (now := Step(x, sigma, denoise(x, sigma)))
        half = (sigma + after) / 2
        halfway = x + (half - sigma) * (x - now.denoised) / sigma
        x = x + (after - sigma) * slope(denoise, halfway, half)
    yield Step(x, sigmas[-1], x)


gaussian, _ = fit_gaussian(load_dataset("digits"))
network, sigmas = load_network(shipped("digits-denoiser.safetensors")), sigma_grid(18)
x = Seeds.of(range(64)).latents(network.shape).double() * sigmas[0]
error = final(midpoint(gaussian.denoise, x, sigma_grid(32))) - gaussian.flow(x, sigmas[0], 0)
jump = gaussian.flow(x, sigmas[0], sigmas[7])
far = final(midpoint(network, jump, sigmas[7:])) - final(midpoint(network, x, sigmas))
print(f"error {error.square().mean().sqrt():.4f}, teleported {far.square().mean().sqrt():.3f}")
