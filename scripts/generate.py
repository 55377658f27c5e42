"""Images from seeds, one PNG for each: any network, sampler and number of skipped steps.

    python scripts/generate.py --preset cifar10 --outdir images --seeds 0-63
    python scripts/generate.py --preset cifar10 --outdir images --skip 4
    torchrun --nproc-per-node 4 scripts/generate.py --network NET.pkl --outdir images --subdirs

A seed's latents are the published ones on the same type of device. The same command continues
what was stopped; a folder that was made with other settings is refused.
"""

if __name__ == "__main__":
    import start  # noqa: F401

import argparse
import sys
from typing import Any

from edm.network import Network
from experiments import loading, networks, options
from experiments.generation import ABLATION, Generation, generate
from experiments.presets import Preset
from linear_structure import parameters
from linear_structure.sampling.ablation import Ablation
from linear_structure.sampling.grids import Churn
from linear_structure.sampling.seeds import parse_seeds
from linear_structure.sampling.table import SAMPLERS, Settings, chosen_settings
from linear_structure.system import machine
from linear_structure.system.errors import UsageError, run_command
from linear_structure.system.machine import Machine
from linear_structure.system.options import add_arguments, folder, given, word
from linear_structure.teleport import Teleport

GRID = ("steps", "sigma_min", "sigma_max", "rho")
ABLATED = ("discretization", "schedule", "scaling", "alpha")
CHURN = ("s_churn", "s_min", "s_max", "s_noise")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", type=word, help=f"network, grid and parameters: {options.named()}")
    add("--outdir", type=folder, required=True, help="folder of the images")
    add("--seeds", type=parse_seeds, default="0-63", help="such as 0-63,70 (default: 0-63)")
    add("--subdirs", action="store_true", help="a folder for every thousand seeds")
    add("--batch", type=int, default=64, help="seeds that are sampled together (default: 64)")
    add("--class", type=int, dest="label", help="of all images (default: each seed draws one)")
    add("--skip", type=int, default=0, metavar="K", help="steps to skip by a closed-form flow")
    options.add_values(parser, ("network", "parameters", "eigenvalue_scale"))
    add("--compile", action="store_true", help="compile the network")
    machine.add_options(parser, options.THREADS)
    options.add_precision(parser)
    group = parser.add_argument_group("sampler, under the published names")
    group.add_argument("--solver", choices=(*SAMPLERS, "euler"), default="heun")
    add_arguments(group, Ablation, GRID)
    add_arguments(group, Churn)
    add_arguments(parser.add_argument_group("settings of the sampler"), Settings)
    group = parser.add_argument_group(
        "ablation sampler", "used if one of these is given, or the solver is euler"
    )
    add_arguments(group, Ablation, ABLATED)
    return parser.parse_args()


def chosen_schedule(typed: argparse.Namespace, preset: Preset | None) -> Ablation:
    """Grid, churn and ablation; a discretization that was typed has its own range, but for edm."""
    values: dict[str, Any] = {}
    if preset is not None:
        values = {name: getattr(preset, name) for name in GRID}
    if row := SAMPLERS.get(typed.solver):
        values["discretization"] = row.discretization
    if typed.discretization not in (None, "edm"):
        values |= {"sigma_min": None, "sigma_max": None}
    values |= given(typed, (*GRID, *ABLATED))
    churn = Churn(**given(typed, CHURN))
    if not churn.s_churn:
        options.check_unused(typed, CHURN[1:], "without --s-churn no noise is added")
    solver = "euler" if typed.solver == "euler" else "heun"
    return Ablation(solver=solver, churn=churn, **values)


def chosen_network(typed: argparse.Namespace, preset: Preset | None, machine: Machine) -> Network:
    """The network that was named, or the preset's."""
    shape, file = None, options.chosen_network(typed)
    if preset is not None:
        own = options.changed(preset, typed, ("network",))
        shape, file = loading.shape_of(own), own.network
    if file is None:
        raise UsageError("no network: expected --preset NAME or --network PATH_OR_URL")
    return networks.load(file, machine, shape, options.chosen_dtype(typed), typed.compile)


def chosen_teleport(
    typed: argparse.Namespace, preset: Preset | None, network: Network
) -> Teleport | None:
    """What to teleport with, if steps are skipped."""
    options.check_scale(typed)
    if not typed.skip:
        options.check_unused(typed, ("parameters", "eigenvalue_scale"), "no step is skipped")
        return None
    if preset is not None:
        own = options.changed(preset, typed, ("parameters", "eigenvalue_scale"))
        return loading.load_teleport(own, network)
    if typed.parameters is None:
        raise UsageError(f"--skip {typed.skip} needs --parameters DIR or --preset NAME")
    scale = given(typed, ("eigenvalue_scale",))
    return Teleport(parameters.load(typed.parameters, **scale).model)


def main() -> None:
    """Generate the images that were asked for."""
    typed = parse()
    preset = options.find(typed.preset) if typed.preset else None
    settings = chosen_schedule(typed, preset)
    options.check_rho(typed, settings)
    chosen = options.chosen_machine(typed, preset)
    network = chosen_network(typed, preset, chosen)
    ablated = typed.solver == "euler" or (typed.solver == "heun" and given(typed, ABLATED))
    generation = Generation(
        network=network,
        seeds=tuple(typed.seeds),
        outdir=typed.outdir,
        machine=chosen,
        settings=settings,
        sampler=ABLATION if ablated else typed.solver,
        chain=chosen_settings(typed.solver, given(typed, options.SETTINGS)),
        skip=typed.skip,
        teleport=chosen_teleport(typed, preset, network),
        label=typed.label,
        batch=typed.batch,
        subdirs=typed.subdirs,
        compiled=typed.compile,
    )
    written = generate(generation)
    if machine.rank() == 0:  # of several processes, the one that waits for the others
        machine.wait_for(map(generation.path, generation.seeds))
        print(f"{len(typed.seeds)} images are in {typed.outdir}; this process wrote {written}")


if __name__ == "__main__":
    sys.exit(run_command(main))
