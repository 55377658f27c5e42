"""What a classifier says of images: how many it is sure of, and how many are of each class.

    python scripts/classify.py images --features edm/weights/fashion-features.safetensors

Where the images have labels, also how many it tells right. Behind each share of all images stands
its 95 % interval.
"""

if __name__ == "__main__":
    import start  # noqa: F401

import argparse
import sys

from edm.evaluation import classifier
from edm.evaluation.features import resized
from experiments.own import side_for
from linear_structure.data import datasets
from linear_structure.system.errors import UsageError, run_command
from linear_structure.system.machine import Machine, add_options
from linear_structure.system.options import named_path, word


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=word, help="folder, zip, array or name of a dataset")
    what = "classifier, .safetensors"
    parser.add_argument("--features", type=named_path, required=True, help=what)
    add_options(parser)
    return parser.parse_args()


def share(part: float, count: int) -> str:
    """A share of `count` images in percent, with its 95 % interval by Wilson (1927)."""
    from scipy.stats import binomtest  # takes a second

    low, high = binomtest(round(part * count), count).proportion_ci(method="wilson")
    return f"{part:.2%} ({low:.2%} to {high:.2%})"


def main() -> None:
    """Load, judge, say."""
    arguments = parse_arguments()
    device = Machine.chosen(arguments.device, arguments.threads).device
    network = classifier.load(arguments.features).to(device)
    dataset = datasets.load(arguments.images)
    if dataset.shape[0] != network.options.channels:
        raise UsageError(
            f"{dataset.name} has images of {dataset.shape[0]} channels: expected "
            f"{network.options.channels}, which {arguments.features} was made for"
        )
    images, labels = dataset.images(), dataset.classes()
    if side := side_for(arguments.features, [dataset.shape]):
        images = resized(images, side)
        print(f"images are brought to {side} x {side}, which {arguments.features} learned on")
    verdict = classifier.judge(network, images)
    sure = share(verdict.sure, dataset.count)
    print(f"{dataset.count:,} images; a class above {classifier.SURE}: {sure}")
    print("likeliest class: " + ", ".join(f"{k} {s:.1%}" for k, s in enumerate(verdict.shares)))
    if labels is not None:
        right = share(classifier.accuracy(network, images, labels), dataset.count)
        print(f"told right: {right}")


if __name__ == "__main__":
    sys.exit(run_command(main))
