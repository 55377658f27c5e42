"""Images from seeds in a folder: any sampler, any skip, resumable and in any number of processes.

The list of seeds is cut into batches by position. A batch is computed whole, by one process, and
is done when all its images are there. So a run that was killed and resumed, and one of several
processes, end with the bytes of one that was not. `generation.json` beside the images holds all
that they depend on: a folder with other settings is refused, so nothing stale is ever reused.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from edm.precondition import Preconditioned
from experiments.sampling import carry, check_skip, final, image_shape
from experiments.teleports import Flow, check_shape, flow_of
from linear_structure.denoise import Denoiser
from linear_structure.images import save_png, to_uint8
from linear_structure.parameters import Parameters
from linear_structure.sampling.ablation import Ablation, Schedule
from linear_structure.sampling.grids import Churn
from linear_structure.sampling.samplers import Noise, Step, ablation, discard, dpmpp_2m, heun, unipc
from linear_structure.sampling.seeds import Seeds, check_class, format_seeds
from linear_structure.system import machine
from linear_structure.system.errors import UsageError
from linear_structure.system.files import write_json

SETTINGS = "generation.json"
SAMPLERS = ("heun", "ablation", "dpmpp_2m", "unipc")
PER_FOLDER = 1000  # seeds of one folder of --subdirs


@dataclass(frozen=True)
class Generation:
    """Images of some seeds, and everything they depend on.

    Attributes:
        network: the denoiser, on `device`; `network_digest` identifies its weights.
        seeds: in the order in which batches are cut.
        outdir: folder of the images.
        device: where latents and noise are drawn and everything is computed.
        threads: of the CPU, recorded, since sums depend on it in the last bits.
        settings: grid and churn; what else they hold is for the sampler "ablation".
        sampler: "heun" (the published EDM sampler), "ablation", "dpmpp_2m" or "unipc".
        skip: steps to skip by the flow of the model of `parameters`.
        label: class of all images; None: each seed draws one, if the network has classes.
        batch: seeds that are sampled together.
        subdirs: a folder for every thousand seeds.
        compiled: whether the network is, recorded.
        tf32: whether it computes in TF32 on a GPU, recorded.

    Raises:
        UsageError: two of these do not fit together, or one is out of range.
    """

    network: Preconditioned
    network_digest: str
    seeds: tuple[int, ...]
    outdir: Path
    device: torch.device
    threads: int
    settings: Ablation = field(default_factory=Ablation)
    sampler: str = "heun"
    skip: int = 0
    parameters: Parameters | None = None
    label: int | None = None
    batch: int = 64
    subdirs: bool = False
    compiled: bool = False
    tf32: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"a batch of {self.batch} seeds: expected 1 or more")
        check_skip(self.skip, len(self.schedule.stages))
        if self.skip and self.teleport is None:
            raise UsageError(f"skip {self.skip} needs the parameters of a model to teleport with")
        if self.parameters is not None:
            check_shape(self.parameters.model, self.network)
        _check_images(self.network, self.label)
        _check_sampler(self.sampler, self.settings)

    @cached_property
    def schedule(self) -> Schedule:
        """The full grid within the network's range, with the lift and the weights of each step."""
        network = self.network
        return self.settings.plan(network.sigma_min, network.sigma_max, network.round_sigma)

    @property
    def teleport(self) -> Flow | None:
        """What skips the first steps."""
        return flow_of(self.parameters.model) if self.parameters else None

    @property
    def inputs(self) -> dict[str, Any]:
        """What the images depend on, as JSON values."""
        dtype = self.network.compute_dtype
        return {
            "network": self.network_digest,
            "dtype": str(dtype).removeprefix("torch.") if dtype else "as published",
            "compiled": self.compiled,
            **({"tf32": True} if self.tf32 else {}),
            "device": self.device.type,
            "threads": self.threads,
            "sampler": self.sampler,
            **asdict(self.settings),
            "churn": _changed(self.settings.churn),
            "sigmas": self.schedule.sigmas.tolist(),
            "skip": self.skip,
            "parameters": self.parameters.digest if self.parameters else None,
            "class": self.label,
            "seeds": format_seeds(self.seeds),
            "batch": self.batch,
            "subdirs": self.subdirs,
        }

    def path(self, seed: int) -> Path:
        """Where the image of a seed lies, named as published."""
        folder = f"{seed - seed % PER_FOLDER:06d}" if self.subdirs else ""
        return self.outdir / folder / f"{seed:06d}.png"

    def steps(self, denoise: Denoiser, x: Tensor, noise: Noise | None) -> Iterator[Step]:
        """The steps that are left, from x at the level where the skip ends."""
        schedule = self.schedule[self.skip :]
        match self.sampler:
            case "ablation":
                return ablation(denoise, x, schedule, noise)
            case "dpmpp_2m":
                return dpmpp_2m(denoise, x, schedule.sigmas)
            case "unipc":
                return unipc(denoise, x, schedule.sigmas)
            case _:
                return heun(denoise, x, schedule.sigmas, schedule.lifts, noise)


def generate(generation: Generation) -> int:
    """Make the images that are missing in this process's share: how many it wrote.

    Raises:
        UsageError: the folder holds images made with other settings.
        WorkError: the network gave NaN or infinity.
    """
    _claim(generation)
    batches = [batch for batch in _share(generation) if _missing(generation, batch)]
    total = len(batches) * len(generation.schedule[generation.skip :].sigmas)
    quiet = machine.rank() != 0 or not batches
    with tqdm(total=total, desc="sampling", unit=" levels", disable=quiet) as bar:
        return sum(_write(generation, batch, bar.update) for batch in batches)


def trajectory(generation: Generation, seeds: Sequence[int]) -> Iterator[Step]:
    """Draws in the published order: latents, classes, then the noise of every step, skipped too."""
    network, skip = generation.network, generation.skip
    drawn = Seeds.of(seeds, generation.device)
    start = drawn.latents(image_shape(network)).double() * generation.schedule.sigmas[0]
    denoise: Denoiser = network
    if network.label_dim:
        denoise = network.bind(drawn.labels(network.label_dim, generation.label))
    x = carry(start, generation.schedule.sigmas, skip, generation.teleport)
    if not generation.settings.churn.s_churn:
        return generation.steps(denoise, x, None)
    discard(drawn.noise, x, skip)
    return generation.steps(denoise, x, drawn.noise)


def _share(generation: Generation) -> Sequence[tuple[int, ...]]:
    """This process's batches, the same ones however many are done."""
    seeds, size = generation.seeds, generation.batch
    return machine.share([seeds[i : i + size] for i in range(0, len(seeds), size)])


def _missing(generation: Generation, seeds: Iterable[int]) -> list[int]:
    return [seed for seed in seeds if not generation.path(seed).exists()]


def _write(generation: Generation, batch: Sequence[int], tick: Callable[[], object]) -> int:
    """Sample a batch and write the images that are not there."""
    missing = set(_missing(generation, batch))
    with torch.inference_mode():
        images = to_uint8(final(_counted(trajectory(generation, batch), tick))).cpu()
    for seed, image in zip(batch, images, strict=True):
        if seed in missing:
            save_png(generation.path(seed), image)
    return len(missing)


def _counted(steps: Iterable[Step], tick: Callable[[], object]) -> Iterator[Step]:
    for step in steps:
        yield step
        tick()


def _claim(generation: Generation) -> None:
    """Write the settings into the folder, or compare those that are there."""
    path = generation.outdir / SETTINGS
    if machine.rank() == 0 and not path.exists():
        if len(_missing(generation, generation.seeds)) < len(generation.seeds):
            raise UsageError(
                f"{generation.outdir} holds images and no {SETTINGS} that says how they were "
                "made: expected another folder"
            )
        write_json(path, generation.inputs)
    machine.wait_for([path])
    _compare(path, generation.inputs)


def _compare(path: Path, inputs: dict[str, Any]) -> None:
    try:
        found = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is damaged: expected another folder") from error
    other = [name for name in inputs | found if found.get(name) != inputs.get(name)]
    if other:
        raise UsageError(
            f"{path} says that another {', '.join(sorted(other))} was used: "
            "expected the same settings or another folder"
        )


def _changed(churn: Churn) -> dict[str, float]:
    """The settings that are not the default: infinity, which is no JSON, is one."""
    return {
        each.name: getattr(churn, each.name)
        for each in fields(churn)
        if getattr(churn, each.name) != each.default
    }


def _check_images(network: Preconditioned, label: int | None) -> None:
    if network.img_channels not in (1, 3):
        raise UsageError(f"the network makes {network.img_channels} channels: PNG has 1 or 3")
    if label is not None:
        check_class(label, network.label_dim)


def _check_sampler(sampler: str, settings: Ablation) -> None:
    if sampler not in SAMPLERS:
        raise UsageError(f"sampler is {sampler!r}: expected one of {', '.join(SAMPLERS)}")
    plain = Ablation()
    same = all(
        getattr(settings, name) == getattr(plain, name)
        for name in ("solver", "schedule", "scaling", "alpha")
    )
    if sampler != "ablation" and not same:
        raise UsageError(
            f"sampler {sampler} takes no schedule, scaling or alpha: they belong to the ablation "
            "sampler, with the solvers heun and euler"
        )
    if sampler in ("dpmpp_2m", "unipc") and settings.churn.s_churn:
        raise UsageError(f"{sampler} is deterministic: churn goes with the solvers heun and euler")
