"""Images from seeds, one PNG for each: any network, sampler and number of skipped steps.

    python scripts/generate.py --preset cifar10 --outdir images --seeds 0-63
    python scripts/generate.py --preset cifar10 --outdir images --skip 4
    torchrun --nproc-per-node 4 scripts/generate.py --network NET.pkl --outdir images --subdirs

A seed's latents are the published ones on the same type of device. The same command continues
what was stopped; a folder that was made with other settings is refused.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from edm.checkpoints import checkpoint
from edm.precondition import Preconditioned
from experiments import presets, settings
from experiments.generation import Generation, generate
from experiments.presets import Preset
from linear_structure import parameters
from linear_structure.parameters import Parameters
from linear_structure.sampling.ablation import OPTIONS, Ablation
from linear_structure.sampling.grids import Churn
from linear_structure.sampling.seeds import parse_seeds
from linear_structure.system.download import located
from linear_structure.system.errors import UsageError, run_command

GRID = ("steps", "sigma_min", "sigma_max", "rho")
ABLATION = ("discretization", "schedule", "scaling", "alpha")
CHURN = ("s_churn", "s_min", "s_max", "s_noise")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", help=f"network, grid and parameters: {', '.join(presets.presets())}")
    add("--network", metavar="PATH_OR_URL", help="checkpoint, in place of the preset's")
    add("--network-sha256", metavar="DIGEST", help="what the file of --network must have")
    add("--outdir", type=Path, required=True, help="folder of the images")
    add("--seeds", type=parse_seeds, default="0-63", help="such as 0-63,70 (default: 0-63)")
    add("--subdirs", action="store_true", help="a folder for every thousand seeds")
    add("--batch", type=int, default=64, help="seeds that are sampled together (default: 64)")
    add("--class", type=int, dest="label", help="of all images (default: each seed draws one)")
    add("--skip", type=int, default=0, metavar="K", help="steps to skip by a closed-form flow")
    settings.add_parameters(add)
    add("--compile", action="store_true", help="compile the network")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="that the network computes in")
    settings.add_machine(parser)
    settings.add_tf32(parser)
    add_sampler(parser)
    return parser.parse_args()


def add_sampler(parser: argparse.ArgumentParser) -> None:
    """Options of the sampler, under the published names."""
    add = parser.add_argument_group("sampler").add_argument
    add("--solver", choices=("heun", "euler", "dpmpp_2m", "unipc"), default="heun")
    add("--steps", type=int, help="(default: the preset's, or 18)")
    add("--sigma-min", type=float, help="lowest noise level (default: 0.002)")
    add("--sigma-max", type=float, help="highest noise level (default: 80)")
    add("--rho", type=float, help="exponent of the grid (default: 7)")
    add("--s-churn", type=float, help="noise added, as a sum over all steps (default: 0)")
    add("--s-min", type=float, help="lowest level at which noise is added (default: 0)")
    add("--s-max", type=float, help="highest level at which noise is added (default: infinite)")
    add("--s-noise", type=float, help="factor of the noise that is added (default: 1)")
    add = parser.add_argument_group(
        "ablation sampler", "used if one of these is given, or the solver is euler"
    ).add_argument
    for name in ("discretization", "schedule", "scaling"):
        add(f"--{name}", choices=OPTIONS[name], help=f"(default: {OPTIONS[name][0]})")
    add("--alpha", type=float, help="where in its step the second slope is taken (default: 1)")


def chosen_settings(options: argparse.Namespace, preset: Preset | None) -> Ablation:
    """Grid, churn and ablation; a discretization other than the preset's has its own range."""
    values: dict[str, Any] = {}
    if preset is not None:
        values = {name: getattr(preset, name) for name in GRID}
    if options.discretization not in (None, "edm"):
        values |= {"sigma_min": None, "sigma_max": None}
    values |= given(options, (*GRID, *ABLATION))
    solver = "euler" if options.solver == "euler" else "heun"
    return Ablation(solver=solver, churn=Churn(**given(options, CHURN)), **values)


def chosen_sampler(options: argparse.Namespace) -> str:
    """The sampler that these options ask for, as published."""
    multistep = options.solver not in OPTIONS["solver"]
    if not multistep and (options.solver == "euler" or given(options, ABLATION)):
        return "ablation"
    return options.solver


def given(options: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """The options of these names that have a value."""
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def chosen_network(options: argparse.Namespace, preset: Preset | None) -> Preconditioned:
    """The network that was named, or the preset's."""
    if options.network:
        return checkpoint.load(options.network, options.network_sha256)
    if options.network_sha256:
        raise UsageError("--network-sha256 goes with --network")
    if preset is None:
        raise UsageError("no network: expected --preset NAME or --network PATH_OR_URL")
    return checkpoint.load(located(preset.network))


def chosen_parameters(
    options: argparse.Namespace, preset: Preset | None, network: Preconditioned
) -> Parameters | None:
    """What to teleport with, if steps are skipped."""
    settings.check_scale(options)
    if not options.skip:
        return None
    if preset is not None:
        changes = given(options, ("parameters", "eigenvalue_scale"))
        return settings.load_parameters(replace(preset, **changes), network)
    if options.parameters is None:
        raise UsageError(f"--skip {options.skip} needs --parameters DIR or --preset NAME")
    return parameters.load(options.parameters, *given(options, ("eigenvalue_scale",)).values())


def main() -> None:
    """Generate the images that were asked for."""
    options = parse()
    preset = presets.find(options.preset) if options.preset else None
    sampling = chosen_settings(options, preset)
    device, threads = settings.chosen_device(options, preset)
    network = chosen_network(options, preset)
    dtype = getattr(torch, options.dtype) if options.dtype else None
    written = generate(
        Generation(
            network=settings.prepared(network, device, dtype, options.compile, options.tf32),
            network_digest=checkpoint.network_digest(network),
            seeds=tuple(options.seeds),
            outdir=options.outdir,
            device=device,
            threads=threads,
            settings=sampling,
            sampler=chosen_sampler(options),
            skip=options.skip,
            parameters=chosen_parameters(options, preset, network),
            label=options.label,
            batch=options.batch,
            subdirs=options.subdirs,
            compiled=options.compile,
            tf32=options.tf32,
        )
    )
    print(f"{written} images written to {options.outdir}, of {len(options.seeds)} asked for")


if __name__ == "__main__":
    sys.exit(run_command(main))
