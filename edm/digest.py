"""What a network is, whatever file held it and whatever is written there beside it."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from linear_structure.files import digest_of


def digest_of_network(options: Any, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (64 hexadecimal digits) of options and weights.

    Args:
        options: JSON values.
        tensors: a state dict; names, types, shapes and values count, their order does not.
    """
    sha = hashlib.sha256(digest_of(options).encode())
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        sha.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        sha.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
