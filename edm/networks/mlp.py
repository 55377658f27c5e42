"""A multilayer perceptron, for points in a few dimensions and for images of a few pixels.

    e = silu(M embedding(noise) + labels)
    h_i = silu(W_i h_{i-1} + V_i e),   h_0 = x
    F = W h_depth

Every hidden layer is told the noise level. All but the V_i have biases.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from edm.networks.layers import Init, Linear, PositionalEmbedding
from edm.networks.unet import added, label_layer
from linear_structure.system.errors import UsageError
from linear_structure.system.options import count

GENERAL, ZERO = Init(), Init(weight=1e-5)


@dataclass(frozen=True, kw_only=True)
class MLPOptions:
    """Resolution of the images, 1 for points; number of classes; width and number of layers."""

    img_resolution: int = count()
    label_dim: int = count(0, low=0)
    width: int = count(64, low=4)
    depth: int = count(3, high=64)

    def __post_init__(self) -> None:
        if self.width % 2:
            raise UsageError(f"option 'width' is {self.width}: expected even")


class Trunk(nn.Module):
    """All of the network but its last layer: what it makes of an image and a noise level."""

    def __init__(self, options: MLPOptions, in_channels: int) -> None:
        super().__init__()
        self.options = o = options
        self.map_noise = PositionalEmbedding(o.width, endpoint=True)
        self.map_label = label_layer(o.label_dim, o.width, GENERAL)
        self.map_layer = Linear(o.width, o.width, GENERAL)
        inputs = [in_channels * o.img_resolution**2] + [o.width] * (o.depth - 1)
        self.layers = nn.ModuleList(Linear(size, o.width, GENERAL) for size in inputs)
        self.told = nn.ModuleList(Linear(o.width, o.width, GENERAL, bias=False) for _ in inputs)

    @property
    def out_features(self) -> int:
        return self.options.width

    def features(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None
    ) -> Tensor:
        """x (N, in, R, R), or (N, in) where R = 1, and labels as a `UNet` takes them -> (N, E)."""
        noise = self.map_layer(self.map_noise(noise_labels))
        embedding = F.silu(added(noise, self.map_label, class_labels)).to(x.dtype)
        h = x.flatten(1)
        for layer, told in zip(self.layers, self.told, strict=True):
            h = F.silu(layer(h) + told(embedding))
        return h


class MLP(Trunk):
    """A network F without convolutions; `edm.precondition` makes a denoiser of it."""

    def __init__(self, options: MLPOptions, in_channels: int, out_channels: int) -> None:
        super().__init__(options, in_channels)
        self.out_channels = out_channels
        self.out = Linear(options.width, out_channels * options.img_resolution**2, ZERO)

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """As `features` takes them -> as x. Of an augmentation it is told nothing."""
        h = self.features(x, noise_labels, class_labels)
        return self.out(h).reshape(len(x), self.out_channels, *x.shape[2:])
