"""Your network: net(x, sigma), sigma (B,); a --network of commands, too (docs/own.md). Here it is
trained in seconds. Prints how far digits of 21 calls are from those of 35 (RMS, -1 to 1): 0.020"""

import torch

from edm import final, heun, network_of, sigma_grid
from linear_structure import Gaussian, from_uint8, load_dataset


class Net(torch.nn.Sequential):
    def forward(self, x, sigma):
        flat, s = x.flatten(1), sigma.view(-1, 1)
        out = super().forward(torch.cat([flat / (1 + s), s.log()], 1))
        return (flat / (1 + 2 * s**2) + out * s / (1 + s)).view_as(x)


torch.manual_seed(0)
images = from_uint8(load_dataset("digits").images())
net = Net(torch.nn.Linear(65, 256), torch.nn.SiLU(), torch.nn.Linear(256, 64))
optimizer = torch.optim.Adam(net.parameters(), 2e-3)
for _ in range(500):
    y, sigma = images[torch.randint(1797, (256,))], (1.5 * torch.randn(256, 1, 1, 1)).exp()
    optimizer.zero_grad()
    (net(y + sigma * torch.randn_like(y), sigma) - y).square().mean().backward()
    optimizer.step()
network, sigmas = network_of(net, shape=(1, 8, 8)), sigma_grid(18)
x = torch.randn(64, 1, 8, 8) * sigmas[0]
jump = Gaussian.from_samples(images.flatten(1)).flow(x, sigmas[0], sigmas[7])
far = final(heun(network, jump, sigmas[7:])) - final(heun(network, x, sigmas))
print(f"{far.square().mean().sqrt():.3f}")
