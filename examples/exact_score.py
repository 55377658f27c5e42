"""The exact score of your images: each of them a point, and their cloud a model as any other.

Prints, at four noise levels, how many of 1,797 digits a noised one may have been (the exponential
of the entropy), and how far other scores are from the exact one, |ds| / |s|:

    sigma 20: 1756 images; Gaussian 0.0001, network 0.0016
    sigma 5: 1262 images; Gaussian 0.0061, network 0.0088
    sigma 2: 296 images; Gaussian 0.0723, network 0.0468
    sigma 0.5: 1 images; Gaussian 0.5346, network 0.3524
"""

from edm import load_network, shipped
from linear_structure import PointCloud, Seeds, fit_gaussian, from_uint8, load_dataset, score

digits = load_dataset("digits")  # or a folder of images, a zip, an .npy
exact = PointCloud(digits.images().flatten(1))
gaussian, _ = fit_gaussian(digits)
network = load_network(shipped("digits-denoiser.safetensors"))
noise = Seeds.of(range(digits.count)).latents(digits.shape).double()

for sigma in (20, 5, 2, 0.5):
    x = from_uint8(digits.images()) + sigma * noise
    s, count = score(exact.denoise, x, sigma), exact.posterior(x, sigma).entropy.exp().mean()
    a, b = ((score(d, x, sigma) - s).norm() / s.norm() for d in (gaussian.denoise, network))
    print(f"sigma {sigma}: {count:.0f} images; Gaussian {a:.4f}, network {b:.4f}")
