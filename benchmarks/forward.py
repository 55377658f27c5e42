"""One network evaluation: ours beside a plain transcription of the formulas, on equal weights.

The transcription embeds sigma for each image, keeps the contiguous layout and writes attention as
two `einsum`s. Repetitions alternate, so that both meet the same machine; times are medians. The
arithmetic limit is the rate of a large matrix product in the same precision, measured here.
"""

import argparse
import copy
import math
from argparse import Namespace
from dataclasses import dataclass

import torch
from timing import Report, alternate, parse, peak
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from edm.networks.block import UNetBlock
from edm.networks.layers import Conv2d, Linear
from edm.precondition import Preconditioned, build
from linear_structure.system.precision import set_tf32

CIFAR10 = {
    "precondition": "EDMPrecond",
    "model_type": "SongUNet",
    "img_resolution": 32,
    "img_channels": 3,
    "model_channels": 128,
    "channel_mult": [2, 2, 2],
    "dropout": 0.13,
    "augment_dim": 9,
}
SMALL = CIFAR10 | {"channel_mult": [1, 2], "num_blocks": 1}
SIZES = {"tiny": SMALL | {"model_channels": 16}, "small": SMALL, "cifar10": CIFAR10}
BATCHES = {"cpu": 8, "cuda": 256}


@dataclass(frozen=True)
class Precision:
    """What is multiplied, and whether float32 may be rounded to TF32 for it."""

    name: str
    dtype: torch.dtype = torch.float32
    tf32: bool = False


PRECISIONS = {
    "cpu": [Precision("fp32")],
    "cuda": [
        Precision("fp32"),
        Precision("bf16", dtype=torch.bfloat16),
        Precision("TF32", tf32=True),
    ],
}


# The transcription


def plain_denoise(network: Preconditioned, x: Tensor, sigma: Tensor, dtype: torch.dtype) -> Tensor:
    """D(x, sigma) of DDPM++ with EDM preconditioning: x (B, C, H, W), sigma () -> x's shape."""
    each = sigma.expand(x.shape[0])
    level = each[:, None, None, None]
    variance = level**2 + 0.25
    output = plain_network(network.model, (x / variance.sqrt()).to(dtype), each.log() / 4)
    return 0.25 / variance * x + 0.5 * level / variance.sqrt() * output.float()


def plain_network(model: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
    half = model.map_noise.count
    frequencies = 1e-4 ** (torch.arange(half, device=x.device) / (half - 1))
    angles = noise[:, None] * frequencies
    embedding = torch.cat([angles.sin(), angles.cos()], 1)
    for layer in (model.map_layer0, model.map_layer1):
        embedding = F.silu(plain_linear(layer, embedding))
    skips = []
    for block in model.enc.values():
        x = plain_block(block, x, embedding) if isinstance(block, UNetBlock) else conv(block, x)
        skips.append(x)
    *blocks, (_, norm), (_, head) = model.dec.items()
    for name, block in blocks:
        x = torch.cat([x, skips.pop()], 1) if "_block" in name else x
        x = plain_block(block, x, embedding)
    return conv(head, F.silu(norm(x)))


def plain_block(block: UNetBlock, x: Tensor, embedding: Tensor) -> Tensor:
    shift = plain_linear(block.affine, embedding)[:, :, None, None].to(x.dtype)
    h = conv(block.conv0, F.silu(block.norm0(x)))
    h = conv(block.conv1, F.silu(block.norm1(h + shift)))
    x = (h + (conv(block.skip, x) if block.skip else x)) * math.sqrt(0.5)
    return (plain_attention(block, x) + x) * math.sqrt(0.5) if block.heads else x


def plain_attention(block: UNetBlock, x: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    qkv = conv(block.qkv, block.norm2(x)).reshape(n, channels, 3, height * width)
    q, k, v = qkv.unbind(2)
    logits = torch.einsum("ncq,nck->nqk", q.float(), k.float() / math.sqrt(channels))
    mixed = torch.einsum("nqk,nck->ncq", logits.softmax(2).to(x.dtype), v)
    return conv(block.proj, mixed.reshape(x.shape))


def conv(layer: Conv2d, x: Tensor) -> Tensor:
    if layer.direction:
        kernel = layer.resample_filter.to(x.dtype).repeat(x.shape[1], 1, 1, 1)
        down = layer.direction == "down"
        resampled = F.conv2d if down else F.conv_transpose2d
        x = resampled(x, kernel if down else 4 * kernel, stride=2, groups=x.shape[1])
    weight, bias = layer.weight.to(x.dtype), layer.bias.to(x.dtype)
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


def plain_linear(layer: Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


# Measuring


def flop_per_image(network: Preconditioned, shape: tuple[int, ...]) -> int:
    x = torch.randn(1, *shape, device=next(network.parameters()).device)
    with FlopCounterMode(display=False) as counter:
        plain_denoise(network, x, torch.ones((), device=x.device), torch.float32)
    return counter.get_total_flops()


def random_network(size: str, device: str) -> Preconditioned:
    """Fresh networks end in almost zero: weights of the size of their fan-in instead."""
    torch.manual_seed(0)
    with torch.device(device):
        network = build(SIZES[size]).eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return network


def compare(args: Namespace, report: Report, network: Preconditioned, precision: Precision) -> None:
    """A row for each formulation in one precision."""
    set_tf32(precision.tf32)
    batch = args.batch or BATCHES[args.device]
    sigma = torch.tensor(2.0, device=args.device)
    x = 2 * torch.randn(batch, *network.shape, device=args.device)
    ours = copy.deepcopy(network).to(memory_format=torch.channels_last)
    ours.compute_dtype = precision.dtype
    runs = {
        "plain": lambda: plain_denoise(network, x, sigma, precision.dtype),
        "ours": lambda: ours(x, sigma),
    }
    if args.compile or args.device == "cuda":
        fused = copy.deepcopy(ours)
        fused.compile(fullgraph=True)
        runs["compiled"] = lambda: fused(x, sigma)
    difference = (runs["plain"]() - runs["ours"]()).abs().max() / runs["plain"]().abs().max()
    name = f"{args.size} {precision.name} batch {batch}"
    report.row(f"{name}, ours from plain", largest_relative_difference=float(difference))
    seconds, limit = alternate(runs, args.repeats), peak(args, precision.dtype)
    flop = flop_per_image(network, network.shape) * batch
    report.rates(name, seconds, batch, flop, limit, "plain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--batch", type=int, help="default: 8 on a CPU, 256 on a GPU")
    parser.add_argument("--compile", action="store_true", help="on a CPU too (always on a GPU)")
    args = parse(parser, repeats=9, batch=1, size="tiny")
    network, report = random_network(args.size, args.device), Report("forward", args.json)
    count = sum(parameter.numel() for parameter in network.parameters())
    gflop = flop_per_image(network, network.shape) / 1e9
    report.row(args.size, million_parameters=count / 1e6, gflop_per_image=gflop)
    for precision in PRECISIONS[args.device]:
        with torch.no_grad():
            compare(args, report, network, precision)


if __name__ == "__main__":
    main()
