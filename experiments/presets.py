"""What an experiment is made of: data, network, grid, skips, features, seeds, published numbers.

A preset is a frozen value; the command line and tests replace any part of it. Files are a path of
the user's, a `Source` that is fetched into the cache, or a file shipped with `edm`.
"""

from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from edm.checkpoints import shipped
from edm.evaluation.features import WEIGHTS as INCEPTION
from experiments.networks import Code, File
from linear_structure.sampling import table
from linear_structure.sampling.ablation import Ablation
from linear_structure.sampling.seeds import SeedRange
from linear_structure.sampling.table import SAMPLERS, Sampler, Settings
from linear_structure.system.download import Source
from linear_structure.system.errors import UsageError
from linear_structure.system.options import named_path, word

EDM = "https://nvlabs-fi-cdn.nvidia.com/edm"
MEGABYTE = 1_000_000
REFERENCE_LIMIT = 34 * MEGABYTE  # mean and covariance of 2,048 features in float64


OWN = "own"  # the user's images and network
PARTS = ("dataset", "network", "parameters", "features", "reference")


def titled(name: str, replaced: Sequence[str]) -> str:
    """A preset's name in titles, with those of its parts that were replaced."""
    return f"{name} with another {', '.join(replaced)}" if replaced else name


def parse_skips(text: str) -> tuple[int, ...]:
    """Ascending numbers of a comma list, each once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ArgumentTypeError(f"{text!r}: expected numbers and commas, such as 0,2,4")
    return tuple(sorted({int(part) for part in parts}))


def parse_levels(text: str) -> tuple[float, ...]:
    """Noise levels of a comma list, in order."""
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise ArgumentTypeError(f"{text!r}: expected levels and commas, such as 80,19.4") from None


def parse_range(text: str) -> SeedRange:
    """An inclusive range FIRST-LAST."""
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise ArgumentTypeError(f"{text!r}: expected FIRST-LAST, such as 0-999")
    return SeedRange(int(first), int(last))


def value(meaning: str, default: Any = MISSING, **form: Any) -> Any:
    """A field that users may change: what it means, and how it is read where its type is no hint.

    Args:
        form: for argparse; or `file`: a path or URL, with an option for its digest.
    """
    return field(default=default, metadata={"meaning": meaning, **form})


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One experiment; what most of its values mean stands beside them.

    Attributes:
        name: what users type.
        settings: of the sampler.
        threads: CPU threads of a process; None: all usable cores. A small network is as fast on
            one, and then does not suffer from what else the machine does.
        knowledge: settings of the network, for a forecast before it is fetched.
        sigma_skip: where teleports end, a level for each of the skips; (): at the grid's own.
        published: skipped steps -> published distance.
        source: of the published distances, in words.
        defined: this preset as it was defined, which `dataclasses.replace` keeps.
    """

    name: str
    dataset: str | None = value("known name, folder, zip or array of images", parse=word)
    parameters: Path = value(
        "parameter directory to teleport with; the preset's own is made from the dataset",
        parse=named_path,
        metavar="DIR",
    )
    eigenvalue_scale: float = value(
        "on the eigenvalues of --parameters: 4 where they describe pixels in [0, 1]", 1.0
    )
    network: File | Code = value(
        "checkpoint, or module:function of yours that returns a denoiser", file=True
    )
    features: File = value("feature network", file=True)
    reference: File | None = value("feature statistics (.npz) of real images", file=True)
    steps: int = value("steps of the sigma grid", 18)
    sigma_min: float = value("lowest noise level above 0", 0.002)
    sigma_max: float = value("highest noise level", 80.0)
    rho: float = value("exponent of the grid", 7.0)
    sampler: str = value("of the steps left", "heun", words=SAMPLERS)
    settings: Settings = field(default_factory=Settings)
    by_class: bool = value("teleport a conditional network's samples by class", False)
    skips: tuple[int, ...] = value(
        "skipped steps, such as 0,2,4", (*range(9), 10, 12), parse=parse_skips, metavar="K,K"
    )
    seeds: SeedRange = value("such as 0-999", parse=parse_range, metavar="FIRST-LAST")
    block: int = value("seeds sampled together; the last bits depend on it")
    threads: int | None = None
    knowledge: dict[str, Any] = field(default_factory=dict, hash=False)
    sigma_skip: tuple[float, ...] = ()
    published: dict[int, float] = field(default_factory=dict, hash=False)
    source: str = ""
    defined: "Preset" = field(default=None, repr=False, compare=False)  # type: ignore[assignment]

    @property
    def replaced(self) -> tuple[str, ...]:
        """The names of the values that are not those of the preset as it was defined."""
        names = (each.name for each in fields(self) if each.compare)
        return tuple(name for name in names if getattr(self, name) != getattr(self.defined, name))

    @property
    def title(self) -> str:
        """Its name in titles, and which of its `PARTS` are others."""
        return titled(self.name, [name for name in self.replaced if name in PARTS])

    @property
    def makes_parameters(self) -> bool:
        """Whether the parameter directory is the preset's own, made from its images if absent."""
        return self.defined.dataset is not None and "parameters" not in self.replaced

    @property
    def row(self) -> Sampler:
        """The sampler's row in the table; UsageError where there is none."""
        return table.find(self.sampler)

    def calls(self, skip: int) -> int:
        """Network calls of an image after `skip` skipped steps: none where all of them are."""
        return self.row.calls(self.steps, skip, self.settings) if skip < self.steps else 0

    @property
    def ablation(self) -> Ablation:
        """The settings of the grid that the sampler is made for."""
        return Ablation(
            steps=self.steps,
            discretization=self.row.discretization,
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
            rho=self.rho,
        )

    @property
    def grid(self) -> Tensor:
        """The levels, (N + 1,) float64; UsageError where there is no such grid."""
        return self.ablation.grid()

    def __post_init__(self) -> None:
        if self.defined is None:
            object.__setattr__(self, "defined", self)
        wrong = [k for k in self.skips if not 0 <= k < self.steps]
        if wrong:
            raise UsageError(
                f"skips {', '.join(map(str, wrong))} of {self.name}: with {self.steps} steps "
                f"they lie from 0 to {self.steps - 1}"
            )
        if self.seeds.count < 1 or self.seeds.first < 0:
            raise UsageError(f"seeds {self.seeds}: expected FIRST-LAST with 0 <= FIRST <= LAST")
        levels = (*self.sigma_skip, self.sigma_min)
        if self.sigma_skip and len(self.sigma_skip) != len(self.skips):
            raise UsageError(
                f"{len(self.sigma_skip)} levels for {len(self.skips)} skips: expected one for each"
            )
        if any(low >= high for high, low in pairwise(levels)):
            raise UsageError(
                f"levels {', '.join(map(str, self.sigma_skip))}: expected them to fall, and to "
                f"stay above sigma_min {self.sigma_min:g}"
            )
        if self.block < 1:
            raise UsageError(f"a block of {self.block} seeds: expected 1 or more")
        _ = self.grid


def _published(kind: str, name: str, limit: int, sha256: str | None = None) -> Source:
    return Source((f"{EDM}/{kind}/{name}",), f"edm/{kind}/{name}", sha256, limit)


def _unet(resolution: int, channel_mult: list[int], dropout: float) -> dict[str, Any]:
    """Settings of the published unconditional VP networks; the others are the defaults."""
    return {
        "precondition": "EDMPrecond",
        "img_resolution": resolution,
        "img_channels": 3,
        "model_type": "SongUNet",
        "channel_mult": channel_mult,
        "augment_dim": 9,
        "dropout": dropout,
    }


def _edm64(name: str, stem: str, dropout: float, fid: float) -> Preset:
    """The two 64 x 64 presets; their images are brought by the user as an EDM zip."""
    return Preset(
        name=name,
        dataset=f"datasets/{stem}-64x64.zip",
        parameters=Path(f"gaussian_params_{name}"),
        network=_published("pretrained", f"edm-{stem}-64x64-uncond-vp.pkl", 300 * MEGABYTE),
        features=INCEPTION,
        reference=_published("fid-refs", f"{stem}-64x64.npz", REFERENCE_LIMIT),
        steps=40,
        skips=tuple(range(0, 21, 2)),
        seeds=SeedRange(0, 49_999),
        block=250,
        knowledge=_unet(64, [1, 2, 2, 2], dropout),
        published={0: fid},
        source="Karras et al. 2022, minimum of three ranges of 50,000 seeds",
    )


def _cifar10() -> Preset:
    """The paper: NVIDIA's unconditional VP network, 18 Heun steps, 50,000 images."""
    curve = (1.959, 1.957, 1.950, 1.942, 1.934, 1.935, 1.965, 2.127, 3.160)
    return Preset(
        name="cifar10",
        dataset="CIFAR10",
        parameters=Path("gaussian_params"),
        network=_published(
            "pretrained",
            "edm-cifar10-32x32-uncond-vp.pkl",
            223_173_327,
            "4d5dcc1f1d0d41c8934ad21626eeddbdc0460182becf9fc059a0631b1eedb4da",
        ),
        features=INCEPTION,
        reference=_published(
            "fid-refs",
            "cifar10-32x32.npz",
            REFERENCE_LIMIT,
            "4ada108cdfd8e43409ed427f5f76631beac9b9617cdcaf416d41b1e161d85969",
        ),
        seeds=SeedRange(0, 49_999),
        block=500,
        knowledge=_unet(32, [2, 2, 2], 0.13),
        published={**dict(enumerate(curve)), 10: 23.532, 12: 108.217},
        source="slides of a student reproduction (Shlenskii et al. 2023), one range of 50,000 "
        "seeds, teleported to sigmas rounded by hand: 80, 57.6, 40.8, 28.4, 19.4, 12.9, 8.4, 5.3, "
        "3.3, 1.1, 0.3",
    )


def _digits() -> Preset:
    """Embedded: scikit-learn's 1,797 digits and networks of our own, on a laptop."""
    return Preset(
        name="digits",
        dataset="digits",
        parameters=Path("gaussian_params_digits"),
        network=shipped("digits-denoiser.safetensors"),
        features=shipped("digits-features.safetensors"),
        reference=None,
        skips=(0, 2, 4, *range(6, 15)),
        seeds=SeedRange(0, 999),
        block=250,
        threads=1,
    )


def _offline(name: str, stem: str) -> Preset:
    """Images without a download: networks and statistics of our own, shipped under a stem."""
    return Preset(
        name=name,
        dataset=None,
        parameters=shipped(f"{stem}-parameters"),
        network=shipped(f"{stem}-denoiser.safetensors"),
        features=shipped(f"{stem}-features.safetensors"),
        reference=shipped(f"{stem}-reference.npz"),
        seeds=SeedRange(0, 499),
        block=125,
    )


def presets() -> dict[str, Preset]:
    """All presets by name."""
    afhqv2 = _edm64("afhqv2", "afhqv2", 0.25, 1.96)
    own = (_digits(), _offline("fashion", "fashion"), _offline("cifar10-small", "cifar10"))
    known = (*own, _cifar10(), _edm64("ffhq64", "ffhq", 0.05, 2.39), afhqv2)
    return {preset.name: preset for preset in known}


def find(name: str) -> Preset:
    """The preset of this name; UsageError, which lists the known ones, where there is none."""
    known = presets()
    if name not in known:
        yours = f"{OWN}, or a name that a sweep of it was given here"
        raise UsageError(f"unknown preset {name!r}: expected one of {', '.join(known)}, {yours}")
    return known[name]
