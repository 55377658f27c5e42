"""Convert a network to safetensors: a published EDM snapshot, without running it, or one of ours.

    python scripts/convert_checkpoint.py edm-cifar10-32x32-uncond-vp.pkl network.safetensors
    python scripts/convert_checkpoint.py ours.safetensors half.safetensors --dtype float16
    python scripts/convert_checkpoint.py state-dict.pt network.safetensors --options options.json

The last is for a bare state dict, of torch.save or in safetensors, whose tensors have EDM's names
but which does not say of which network they are: options.json does, as {"precondition":
"EDMPrecond", "model_type": "SongUNet", "img_resolution": 32, "img_channels": 3, ...}; what it does
not name has EDM's default.

The result carries the network's configuration, the name and SHA-256 of the source, and how one of
ours was trained. It is read wherever a network is asked for. The licence of the weights stays
theirs: NVIDIA's are published under CC BY-NC-SA 4.0.
"""

if __name__ == "__main__":
    import start  # noqa: F401

import argparse
import sys
from pathlib import Path
from typing import Any

from linear_structure.system.errors import UsageError, importing, run_command
from linear_structure.system.options import named_path, word


def parse_arguments() -> argparse.Namespace:
    """IN, OUT and the digest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", type=word, metavar="IN", help="snapshot or state dict: path or URL")
    add("target", type=named_path, metavar="OUT.safetensors")
    digest = "digest that IN must have, compared before it is read"
    add("--sha256", type=word, help=digest)
    bare = "file of the options of a bare state dict"
    add("--options", type=named_path, metavar="JSON", help=bare)
    half = "round the weights to it: half the file; a network that is read computes in float32"
    add("--dtype", choices=["float16", "bfloat16"], help=half)
    return parser.parse_args()


def options_in(path: Path) -> dict[str, Any]:
    """A network's options in a file of JSON; UsageError where it holds none."""
    from linear_structure.system.files import read_json

    try:
        found = read_json(path)
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f'{path} holds no options: expected {{"precondition": "EDMPrecond", ...}}')
    return found


def main() -> None:
    """Read, round, write, and say which network it is."""
    options = parse_arguments()
    with importing():  # not before: --help needs none of it
        from edm.checkpoints import checkpoint
        from linear_structure.system.download import given, located, public
        from linear_structure.system.files import check_output, digest_of_file
    check_output(options.target, options.source, options.options)
    path = located(given(options.source, options.sha256))
    if options.options:
        network = checkpoint.load_bare(path, options_in(options.options))
    else:
        network = checkpoint.load(path)
    provenance = {"source": public(options.source), "sha256": digest_of_file(path)}
    if checkpoint.is_safetensors(path) and not options.options:
        provenance = {**checkpoint.provenance(path), **provenance}
    if options.dtype:
        checkpoint.round_weights(network, options.dtype)
        provenance["dtype"] = options.dtype
    checkpoint.save(network, options.target, provenance)
    print(f"{options.target}: network {network.float().digest}")


if __name__ == "__main__":
    sys.exit(run_command(main))
