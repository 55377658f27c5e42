"""Networks that commands are given: files, URLs, and functions of the user's own code.

`--network module:function` names a function without arguments that returns any denoiser: what
`network_of` gives, or a callable `D(x, sigma)`, an `nn.Module` among them, whose images are then
taken to have the shape of the dataset's. Such code is the user's, and runs; what a file names is
imported only where the user typed it before (`consent`).
"""

import inspect
import re
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from edm import checkpoints
from edm.network import Network, network_of
from edm.precondition import Preconditioned
from experiments import consent
from linear_structure.system import download
from linear_structure.system.download import Source
from linear_structure.system.errors import UsageError
from linear_structure.system.machine import Machine

File = Source | Path
Shape = tuple[int, int, int]  # C, H, W
FORM = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")
EXPECTED = "expected a function without arguments that returns D(x, sigma), or network_of(D, shape)"
CALLED = (
    "D(x, sigma) gives clean images, of pixels from -1 to 1, for x = image + sigma * noise "
    "(B, C, H, W) and sigma (B,); with classes, network_of(D, shape, label_dim=N) is to be "
    "returned, and labels (B,) come third"
)
PROBED = (80.0, 1.0, 0.002)  # noise levels of a first call


@dataclass(frozen=True)
class Code:
    """A function of the user's, by the name of its module and its own.

    Attributes:
        kept: the folder of results whose record names it; None: it was typed.
    """

    module: str
    function: str
    kept: Path | None = None

    def __str__(self) -> str:
        return f"{self.module}:{self.function}"


def given(text: str, sha256: str | None = None, kept: Path | None = None) -> File | Code:
    """What somebody typed for a network, or what a folder of results has kept of it.

    Raises as `download.given`, and for a digest of code.
    """
    if not FORM.fullmatch(text) or Path(text).exists():
        return download.given(text, sha256)
    if sha256:
        raise UsageError(f"a digest is of a file, and {text} is code of yours: leave it out")
    module, _, function = text.partition(":")
    return Code(module, function, kept)


def load(
    network: File | Code,
    machine: Machine,
    shape: Shape | None = None,
    dtype: torch.dtype | None = None,
    compiled: bool = False,
) -> Network:
    """A network in evaluation mode, on the machine's device.

    Args:
        shape: of its images, where it does not say.
        dtype, compiled: as in `prepared`.

    Raises:
        UsageError: the file holds no network, the function gives none, or one that gives NaN; or
            it is asked for a dtype, or to be compiled, and is code.
    """
    made = made_by(network) if isinstance(network, Code) else None
    if not isinstance(network, Code):
        made = checkpoints.load(download.located(network))
    if isinstance(made, Preconditioned):
        return prepared(made, machine, dtype, compiled)
    if dtype or compiled:
        raise UsageError(f"{network} is code of yours, which decides its own dtype and compilation")
    found = _denoiser(made, str(network), machine, shape)
    _check_calls(found, str(network))
    return found


def prepared(
    network: Preconditioned,
    machine: Machine,
    dtype: torch.dtype | None = None,
    compiled: bool = False,
) -> Preconditioned:
    """The network on the machine's device, in the layout that is fastest there.

    Args:
        dtype: what it computes in; None: as it was published.
        compiled: whether to compile it at the first call.

    Raises:
        UsageError: half precision on a CPU.
    """
    if dtype in (torch.float16, torch.bfloat16) and machine.device.type == "cpu":
        raise UsageError(f"{dtype} is for GPUs: expected float32 on a CPU")
    network.to(machine.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.compute_dtype = dtype
    if compiled:
        network.compile()
    return network


def made_by(code: Code) -> Any:
    """What the function returns; its module is imported, from the current folder if need be.

    Raises:
        UsageError: there is no such module or function, it asks for arguments, or nobody but a
            file asked for it.
    """
    if code.kept and not consent.given(code.kept, str(code)):
        raise UsageError(
            f"the record in {code.kept} names code to run, {code}, which was not typed here: if it "
            f"is yours, type once, with its own --seeds and --skips: bash "
            f"run_experiments_with_skips.sh own --name {code.kept.name} --network {code}"
        )
    module = _imported(code)
    where, function = getattr(module, "__file__", code.module), getattr(module, code.function, None)
    if not callable(function):
        raise UsageError(f"{where} has no function {code.function!r}: {EXPECTED}")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise UsageError(f"{code} asks for arguments ({error}): {EXPECTED}") from error
    return function()


def _imported(code: Code) -> ModuleType:
    """The module; the current folder comes last on the path, and only meanwhile."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        return import_module(code.module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{code.module}.".startswith(f"{error.name}."):
            raise  # of what it imports itself
        sentence = f"there is no module {error.name} in {here}, nor installed: expected a .py here"
        raise UsageError(f"{code}: {sentence}") from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def _denoiser(made: Any, name: str, machine: Machine, shape: Shape | None) -> Network:
    """What a function returned, as a network."""
    if hasattr(made, "bind") and hasattr(made, "digest"):
        return made
    if not callable(made):
        found = "None" if made is None else f"something of type {type(made).__name__}"
        raise UsageError(f"{name} returns {found}: {EXPECTED}")
    if shape is None:
        raise UsageError(f"nothing says of what shape the images of {name} are: {EXPECTED}")
    return network_of(made.to(machine.device) if isinstance(made, nn.Module) else made, shape)


def _check_calls(network: Network, name: str) -> None:
    """Refuse (UsageError), before long work, what fails or gives NaN for noise."""
    denoise = network.bind(torch.zeros(2).long()) if network.label_dim else network
    noise = torch.randn(2, *network.shape, generator=torch.Generator().manual_seed(0))
    levels = (min(max(sigma, network.sigma_min), network.sigma_max) for sigma in PROBED)
    for sigma in levels:
        try:
            denoised = denoise((sigma * noise).to(network.device), torch.tensor(sigma))
        except UsageError as error:
            raise UsageError(f"{name}: {error}; {CALLED}") from error
        if not bool(denoised.isfinite().all()):
            raise UsageError(f"{name} gives NaN or infinity at sigma {sigma:g}; {CALLED}")
