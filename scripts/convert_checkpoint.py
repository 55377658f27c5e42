"""Convert a published EDM snapshot to safetensors, without running what is in it.

    python scripts/convert_checkpoint.py edm-cifar10-32x32-uncond-vp.pkl network.safetensors

The result carries the network's configuration, and the name and SHA-256 of the snapshot. It is
read wherever a network is asked for, as the snapshot is. The licence of the weights stays theirs:
NVIDIA's are published under CC BY-NC-SA 4.0.
"""

if __name__ == "__main__":
    import start  # noqa: F401

import argparse
import sys
from pathlib import Path

from linear_structure.system.errors import importing, run_command


def parse_arguments() -> argparse.Namespace:
    """IN, OUT and the digest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="IN", help="snapshot: path or URL")
    parser.add_argument("target", metavar="OUT.safetensors", type=Path)
    parser.add_argument("--sha256", help="digest that IN must have, compared before it is read")
    return parser.parse_args()


def main() -> None:
    """Read, write, and say which network it is."""
    options = parse_arguments()
    with importing():  # not before: --help needs none of it
        from edm.checkpoints import checkpoint
        from linear_structure.system.download import given, located, public
        from linear_structure.system.files import digest_of_file
    path = located(given(options.source, options.sha256))
    network = checkpoint.load(path)
    provenance = {"source": public(options.source), "sha256": digest_of_file(path)}
    checkpoint.save(network, options.target, provenance)
    print(f"{options.target}: network {network.digest}")


if __name__ == "__main__":
    sys.exit(run_command(main))
