"""Make one dataset of pictures of any kind: a zip that every command reads.

    python scripts/prepare_images.py PHOTOS my-images.zip --size 32
    python scripts/prepare_images.py PHOTOS my-images.zip --size 64 --crop none --background black

IN is a folder, with all folders within it, a zip, an array (.npy, .npz), an IDX file as MNIST's, or
a dataset of a known name. What is turned by a note of the camera is turned; what is transparent is
laid on --background; of several pages the first is taken; 16 bits a value become the upper 8;
palettes, CMYK and other modes become RGB; the middle square is resized, by the mean over areas
where it becomes smaller, by Lanczos where it grows. Classes are the folders, if there are several,
or what IN's dataset.json states. Hidden files are passed over. The same command continues what was
stopped.
"""

if __name__ == "__main__":
    import start  # noqa: F401

import argparse
import sys

from PIL import ImageColor

from linear_structure.system.errors import UsageError, importing, run_command
from linear_structure.system.options import named_path, positive, word


def colour(text: str) -> tuple[int, int, int]:
    """A typed colour, for argparse."""
    try:
        red, green, blue, *_ = ImageColor.getrgb(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no colour: expected a name or #rrggbb"
        ) from error
    return red, green, blue


def parse_arguments() -> argparse.Namespace:
    """IN, OUT, and what the images become."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = "folder, .zip, .npy, .npz, or a known name"
    parser.add_argument("source", type=word, metavar="IN", help=known)
    parser.add_argument("target", metavar="OUT.zip", type=named_path)
    parser.add_argument("--size", type=positive, default=32, help="pixels on either side (32)")
    parser.add_argument(
        "--crop",
        choices=("centre", "none"),
        default="centre",
        help="cut out the middle square (default), or squeeze the whole into one",
    )
    channels = parser.add_mutually_exclusive_group()
    for name, count in (("grey", 1), ("rgb", 3)):
        what = f"images of {count} channel{'s' * (count > 1)}, instead of RGB if one has colour"
        channels.add_argument(
            f"--{name}", dest="channels", action="store_const", const=count, help=what
        )
    parser.add_argument(
        "--background", type=colour, default="white", help="behind what is transparent (white)"
    )
    parser.add_argument(
        "--strict", action="store_true", help="refuse, where a file would be left out"
    )
    return parser.parse_args()


def main() -> None:
    """Look at all files, pack them, and say what was done."""
    options = parse_arguments()
    with importing():  # not before: --help needs none of it
        from linear_structure.data.preparation import Form, looking_at
    form = Form(options.size, options.crop, options.background)
    with looking_at(options.source, options.target, form) as prepared:
        used, total = len(prepared.used), len(prepared.records)
        channels = options.channels or (3 if prepared.coloured else 1)
        refused = not used or (options.strict and used < total)
        if refused:  # what is made of the others is kept
            print(prepared.table())
            raise UsageError(
                f"{total - used:,} of {total:,} files in {options.source} cannot be used, as the "
                f"table says: {options.target} is not written; what is made of the others waits in "
                f"{prepared.blocks[0].parent} for the same command"
            )
        labels = prepared.pack(options.target, channels)
    print(prepared.table())
    classes = ", ".join(labels.names) if labels.names else "no names of classes"
    print(
        f"\n{used:,} of {total:,} files are in {options.target}: {form.size} x {form.size}, "
        f"{'RGB' if channels == 3 else 'grey'}; {classes}"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
