"""Distances between sets of images: FID, KID, improved precision and recall.

    python scripts/fid.py calc --images FOLDER_OR_ZIP --ref STATS.npz --num 50000
    python scripts/fid.py ref --images FOLDER_OR_ZIP --out STATS.npz
    torchrun --nproc-per-node 4 -- scripts/fid.py calc ...   (with the --)

Features go through files, so the memory of FID does not rise with the number of images; KID,
precision and recall hold all features in memory. On a CPU, equal --batch and --threads give equal
bits, whatever the number of processes and however often the work was stopped and continued. Of two
equal commands at once, the second waits for the first.
"""

if __name__ == "__main__":
    import start  # noqa: F401

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from edm.evaluation import features as networks
from edm.evaluation import fid, kid, precision_recall
from edm.evaluation.classifier import Classifier
from edm.evaluation.extraction import Extractor, Measured, Selection
from experiments.options import check_unused
from experiments.own import side_for
from linear_structure.data import datasets
from linear_structure.data.datasets import IMAGES
from linear_structure.data.pictures import LABEL_FILE
from linear_structure.system.arrays import names_in
from linear_structure.system.download import cache_dir, given, located
from linear_structure.system.errors import UsageError, run_command
from linear_structure.system.files import alone, check_output, digest_of, write_json
from linear_structure.system.machine import Machine, add_options, gathered, rank
from linear_structure.system.options import folder, named_path, positive, word

OF_TF32 = "it is of Inception on NVIDIA GPUs"


@contextmanager
def extracting(
    args: argparse.Namespace, extract: Extractor, sets: list[Selection]
) -> Iterator[Extractor]:
    """Alone with the folder of features; what nobody wants to keep is removed if all went well."""
    folder = extract.work / digest_of([extract.key(images) for images in sets])[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = alone(folder.with_suffix(".lock"), "computes the same features")
    with gathered() as meet, nullcontext() if rank() else lock:
        meet()
        yield extract if args.work else replace(extract, work=folder)
        meet()
        if rank() == 0 and not args.work:
            shutil.rmtree(folder)


def selected(args: argparse.Namespace, sources: list[str]) -> list[Selection]:
    """The images of each source: all, or those that --num and --seed choose.

    Raises:
        UsageError: as `Selection.of`, or a seed was typed and there is nothing to choose.
    """
    sets = [Selection.of(source, args.num, args.seed or 0) for source in sources]
    if all(len(images.chosen) == images.dataset.count for images in sets):
        check_unused(args, ("seed",), "all images are taken, of which --num would choose some")
    return sets


def network(args: argparse.Namespace, sets: list[Selection]) -> Extractor:
    """The feature network, which has to suit the images."""
    machine = Machine.chosen(args.device, args.threads)  # TF32 is set by Inception itself
    path = None
    if args.features != "inception":
        path = located(given(args.features, args.features_sha256))
    elif args.features_sha256:
        raise UsageError("--features-sha256 goes with --features: that of Inception is known")
    if machine.device.type == "cpu":
        check_unused(args, ("tf32",), OF_TF32)
    features = networks.load(path, bool(args.tf32), machine.device)
    if isinstance(features, Classifier):
        check_unused(args, ("tf32",), OF_TF32)
    if path and (side := side_for(path, [images.dataset.shape for images in sets])):
        features = networks.Resized(features, side)
        if rank() == 0:
            print(f"note: {features}", file=sys.stderr)
    for images in sets:
        images.features(features, images.chosen[:1])
    return Extractor(features, args.batch, machine, args.work or cache_dir() / "features")


def reference(args: argparse.Namespace) -> Selection | fid.Statistics:
    """What the images are compared with: a set of images, or a file of statistics."""
    if not args.ref.endswith(".npz"):
        if args.ref_sha256:
            raise UsageError("--ref-sha256 goes with an .npz as --ref")
        return Selection.of(args.ref)
    path = located(given(args.ref, args.ref_sha256))
    if names_in(path).intersection(IMAGES):
        return Selection.of(str(path))
    if args.kid or args.precision_recall:
        raise UsageError(
            f"{args.ref} holds statistics, and KID, precision and recall compare with images: "
            "expected images as --ref"
        )
    return fid.read(path)


def measured(args: argparse.Namespace, found: Measured, standard: Measured) -> dict[str, Any]:
    """The distances that were asked for."""
    distance = fid.frechet(found.statistics, standard.statistics)
    outputs: dict[str, Any] = {"count": found.statistics.count, "distance": distance}
    if found.rows is not None and standard.rows is not None:
        sets = found.rows.numpy(), standard.rows.numpy()
        if args.kid:
            outputs["kid"] = kid.kid(*sets, size=args.kid)._asdict()
        if args.precision_recall:
            outputs |= precision_recall.precision_recall(*sets, args.precision_recall)._asdict()
    return outputs


def calculate(args: argparse.Namespace) -> None:
    """Compare each set of images with the reference; only the first process has results."""
    if args.json:
        read = list(filter(None, map(datasets.path_of, (*args.images, args.ref))))
        check_output(args.json, *read, *(each / LABEL_FILE for each in read), args.features)
    sets = selected(args, args.images)
    standard = reference(args)
    everything = [standard, *sets] if isinstance(standard, Selection) else sets
    fid.refuse_unequal([len(images.chosen) for images in sets])  # before anything is computed
    fewest = min(len(images.chosen) for images in everything)
    if args.kid:
        kid.refuse_few(fewest, args.kid)
    if args.precision_recall:
        precision_recall.refuse_few(fewest, args.precision_recall)
    extract = network(args, everything)
    if isinstance(standard, fid.Statistics):
        standard.refuse_other(extract.features.dim, extract.features.digest)
    with extracting(args, extract, everything) as extract:
        results = list(compared(args, extract, sets, standard))
        if len(results) > 1:
            found = fid.Repeated([result["outputs"]["distance"] for result in results])
            print(
                f"{extract.features.distance_name} {found.mean:.6g} +- {found.spread:.2g} over "
                f"{len(results)} sets of n = {results[0]['outputs']['count']}; minimum, the "
                f"published convention: {found.minimum:.6g}"
            )
        if results and args.json:
            write_json(args.json, results)


def compared(
    args: argparse.Namespace,
    extract: Extractor,
    sets: list[Selection],
    standard: Selection | fid.Statistics,
) -> Iterator[dict[str, Any]]:
    """The results in order, each shown as soon as it is there; none but in the first process."""
    keep = bool(args.kid or args.precision_recall)
    if isinstance(standard, Selection):
        against = extract.measure(standard, keep)
    else:
        against = Measured(standard)
    for images in sets:
        found = extract.measure(images, keep)
        if found and against:
            inputs = {"images": images.source, "seed": args.seed or 0}
            inputs |= {**extract.inputs, "reference": against.statistics.digest}
            outputs = measured(args, found, against)
            result = {"inputs": inputs, "outputs": outputs, "made": found.made}
            show(extract.features, result)
            yield result


def show(features: networks.Features, result: dict[str, Any]) -> None:
    """Print one result: what was found, and what it took."""
    outputs = result["outputs"]
    words = [f"{features.distance_name} {outputs['distance']:.6g}"]
    if "kid" in outputs:
        words.append("KID {mean:.6g} +- {deviation:.2g}".format(**outputs["kid"]))
    if "precision" in outputs:
        words.append("precision {precision:.4f}  recall {recall:.4f}".format(**outputs))
    print(*words, f"n = {outputs['count']}", result["inputs"]["images"], sep="  ")
    show_made(result["made"])
    if outputs["count"] <= features.dim:
        print(f"note: {fid.singular(outputs['count'], features.dim)}", file=sys.stderr)


def show_made(made: dict[str, Any]) -> None:
    """Print speed and memory."""
    print(
        "{images_per_second:.1f} images/s in each of {processes} processes, ".format(**made)
        + f"peak memory {made['peak_memory'] / 1e9:.2f} GB, "
        f"on the GPU {made['peak_device_memory'] / 1e9:.2f} GB"
    )


def make_reference(args: argparse.Namespace) -> None:
    """Write the statistics of a set of images."""
    check_output(args.out, datasets.path_of(args.images), args.features)
    if args.out.suffix != ".npz":
        raise UsageError(f"--out {args.out}: expected a name that ends in .npz")
    (images,) = selected(args, [args.images])
    with extracting(args, network(args, [images]), [images]) as extract:
        if found := extract.measure(images):
            fid.write(args.out, found.statistics)
            print(f"{args.out}  n = {found.statistics.count}  {found.statistics.digest}")
            show_made(found.made)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="calc | ref")
    calc = commands.add_parser("calc", help="compare images with a reference")
    calc.set_defaults(run=calculate)
    add = calc.add_argument
    several = "names or paths of datasets; several are repetitions, one for each seed range"
    add("--images", type=word, nargs="+", required=True, help=several)
    against = "path or URL of an .npz of statistics, or images as above"
    add("--ref", type=word, required=True, help=against)
    add("--ref-sha256", type=word, help="what the reference file must have")
    subsets = "also KID, on 100 subsets of this size (default: 1000)"
    add("--kid", nargs="?", type=positive, const=1000, metavar="SIZE", help=subsets)
    near = "also improved precision and recall with K neighbours (default: 3)"
    add("--precision-recall", nargs="?", type=positive, const=3, metavar="K", help=near)
    add("--json", type=named_path, help="write the results to this file too")
    ref = commands.add_parser("ref", help="write the statistics of images")
    ref.set_defaults(run=make_reference)
    ref.add_argument("--images", type=word, required=True, help="name or path of a dataset")
    ref.add_argument("--out", type=named_path, required=True, help="the .npz file to write")
    for command in (calc, ref):
        add_settings(command)
    return parser.parse_args()


def add_settings(command: argparse.ArgumentParser) -> None:
    """Options that both commands have."""
    add = command.add_argument
    add_options(command)
    add("--num", type=int, help="so many images, drawn by --seed (default: all)")
    add("--seed", type=int, help="of the choice of images (default: 0)")
    add("--batch", type=positive, default=64, help="images at a time (default: 64)")
    weights = "inception (default), or weights: path or URL"
    add("--features", type=word, default="inception", help=weights)
    add("--features-sha256", type=word, help="what the file of weights must have")
    faster = "faster products of Inception on NVIDIA GPUs, 10 bits of mantissa"
    add("--tf32", action="store_true", default=None, help=faster)
    kept = "keep features in this folder, and use those that are there "
    add("--work", type=folder, help=kept + "(default: in the cache, until the result is made)")


def main() -> None:
    """Run the command that was typed."""
    args = parse()
    args.run(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
