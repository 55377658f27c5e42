"""Inception-v3 of 2015-12-05, on whose 2,048 features the published FIDs rest.

It is torchvision's with these differences: the average pools of blocks A, C and E leave the padding
out of the count, the last E block max-pools, and there are 1,008 classes. Images are resized to
299 x 299 by TensorFlow 1's legacy bilinear rule (pixel i of the result lies at i * extent / 299 in
the source: no half-pixel shift, no antialiasing) and scaled to (x - 128) / 128. At 32 pixels any
other resize differs by up to 158 grey levels, which moves an FID of 2 by more than the differences
one wants to see. Activations are float32 and kept so, exactly; widened to float64 they would be the
same numbers, and statistics are taken in float64, so nothing is lost where others store float64.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import Inception3
from torchvision.models import inception as blocks

from linear_structure.system.errors import UsageError
from linear_structure.system.files import digest_of_state

SIZE = 299  # pixels, what the network sees
CLASSES = 1008


def average(x: Tensor) -> Tensor:
    """Mean over 3 x 3 neighbours inside the image: (n, C, H, W) -> the same shape."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(blocks.InceptionA):
    """Block A, its average pool without the padding."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, 224 + pool features, H, W)."""
        branches = [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(average(x)),
        ]
        return torch.cat(branches, 1)


class BlockC(blocks.InceptionC):
    """Block C, its average pool without the padding."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, 768, H, W) -> the same shape."""
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branches = [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(average(x)),
        ]
        return torch.cat(branches, 1)


class BlockE(blocks.InceptionE):
    """Block E, its average pool without the padding."""

    pool = staticmethod(average)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, 2048, H, W)."""
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self.pool(x)),
        ]
        return torch.cat(branches, 1)


class LastBlock(BlockE):
    """The last E block: it takes the maximum where the others average."""

    pool = staticmethod(partial(F.max_pool2d, kernel_size=3, stride=1, padding=1))


def inception3() -> Inception3:
    """The published network with random weights: its state dict has the published names."""
    kinds = [blocks.BasicConv2d, BlockA, blocks.InceptionB, BlockC, blocks.InceptionD, BlockE]
    network = Inception3(
        num_classes=CLASSES,
        aux_logits=False,
        init_weights=False,
        inception_blocks=[*kinds, blocks.InceptionAux],
    )
    network.Mixed_7c = LastBlock(2048)
    return network


class Inception(nn.Module):
    """The 2,048 features of the published FIDs.

    `name`, `distance_name`, `dim` and `digest` are as in `Features`.

    Args:
        weights: state dict of the published checkpoint, 566 entries.
        tf32: let NVIDIA GPUs round the factors of products to 10 bits; the name then says so.

    Raises:
        UsageError: these are not the weights of this network.
    """

    distance_name = "FID"
    dim = 2048

    def __init__(self, weights: Mapping[str, Tensor], tf32: bool = False) -> None:
        super().__init__()
        network = inception3()
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise UsageError(
                "these are not weights of the Inception-v3 of 2015-12-05: expected the "
                f"{len(network.state_dict())} entries of its state dict, found {len(weights)} "
                "or other shapes"
            ) from error
        self.name = "inception-v3-2015-12-05" + ("-tf32" if tf32 else "")
        self.digest = digest_of_state({}, network.state_dict())
        self.tf32 = tf32
        network.fc = nn.Identity()
        self.network = network.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 2048) float32 of uint8 images (n, 1 or 3, H, W); ValueError for other images."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"images of shape {tuple(images.shape)} and type {images.dtype}: "
                "Inception takes uint8 images of 1 or 3 channels, (n, C, H, W)"
            )
        x = images.expand(-1, 3, -1, -1).to(self.network.Conv2d_1a_3x3.conv.weight)
        with convolutions(self.tf32):
            return self.network((legacy_resize(x, SIZE) - 128) / 128)


def legacy_resize(x: Tensor, size: int) -> Tensor:
    """TensorFlow 1's bilinear resize: float (n, C, H, W) -> (n, C, size, size)."""
    for dim in (3, 2):
        extent = x.shape[dim]
        scale = torch.tensor(extent / size, dtype=torch.float32)
        position = torch.arange(size, dtype=torch.float32) * scale
        low = position.long()
        high = (low + 1).clamp(max=extent - 1)
        weight = (position - low).view(-1, *[1] * (3 - dim)).to(x)
        before, after = (x.index_select(dim, i.to(x.device)) for i in (low, high))
        x = before + (after - before) * weight
    return x


@contextmanager
def convolutions(tf32: bool) -> Iterator[None]:
    """On NVIDIA GPUs: equal results on every call, and factors rounded to 10 bits or not at all."""
    cudnn = torch.backends.cudnn
    conv = cudnn.conv  # type: ignore[attr-defined]
    before = conv.fp32_precision, cudnn.deterministic
    conv.fp32_precision, cudnn.deterministic = "tf32" if tf32 else "ieee", True
    try:
        yield
    finally:
        conv.fp32_precision, cudnn.deterministic = before
