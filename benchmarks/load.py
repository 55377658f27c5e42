"""Loading a full-size CIFAR-10 snapshot: seconds, and memory beside the size of the file.

    python benchmarks/load.py [--folder FOLDER]

Makes a file of the published form and size (55,733,891 parameters, random), then measures each way
of reading it in a fresh process whose libraries are imported and whose file is cached:

- bytes: reads the file once, the arithmetic limit of both columns;
- naive: `pickle.Unpickler` with torch's own functions, a network with initial values, and copies;
- snapshot: `edm.checkpoints.checkpoint.load` of the same file;
- safetensors: `edm.checkpoints.checkpoint.load` of that network, converted.

Memory is the peak resident size over what was resident before, in units of the file's size. The
goals of `snapshot` are 10 s and 3 times the size.
"""

import argparse
import importlib.util
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from timing import Report, parse

CONFIG = {
    "precondition": "EDMPrecond",
    "model_type": "SongUNet",
    "img_resolution": 32,
    "img_channels": 3,
    "channel_mult": [2, 2, 2],
    "augment_dim": 9,
    "dropout": 0.13,
}
WAYS = ("bytes", "naive", "snapshot", "safetensors")


def published() -> ModuleType:
    """The writer of snapshots that the tests use."""
    path = Path(__file__).resolve().parents[1] / "tests" / "published.py"
    spec = importlib.util.spec_from_file_location("published", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def make(folder: Path, channels: int) -> None:
    """Write `network.pkl` and `network.safetensors`."""
    from edm.checkpoints.checkpoint import save
    from edm.precondition import build

    config = CONFIG | {"model_channels": channels}
    network, writer = build(config), published()
    with (folder / "network.pkl").open("wb") as file:
        form = writer.Form()
        writer.dump(writer.snapshot(config, network.state_dict(), form), file, form)
    save(network, folder / "network.safetensors", {"source": "random"})


def naive(path: Path) -> Any:
    """What a loader without limits does, but for executing the source text in the file."""
    from edm.precondition import build

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module == "torch_utils.persistence":
                return lambda meta: meta["state"]
            return super().find_class(module, name)

    def flat(state: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found = {prefix + k: v for k, v in (state["_parameters"] | state["_buffers"]).items()}
        for name, inner in state["_modules"].items():
            found |= flat(inner if isinstance(inner, dict) else vars(inner), f"{prefix}{name}.")
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    with path.open("rb") as file:
        state = flat(Unpickler(file).load()["ema"])
    network = build(CONFIG | {"model_channels": state["model.map_layer0.weight"].shape[1]})
    network.load_state_dict(state)
    return network


def measure(way: str, folder: Path) -> None:
    """Print seconds, peak memory in bytes and size of the file of one way to load."""
    from edm.checkpoints.checkpoint import load

    suffix = "safetensors" if way == "safetensors" else "pkl"
    path = folder / f"network.{suffix}"
    ways: dict[str, Callable[[Path], Any]] = {"bytes": Path.read_bytes, "naive": naive}
    before, start = resident(), time.perf_counter()
    result = ways.get(way, load)(path)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(seconds, peak - before, path.stat().st_size)
    del result


def resident() -> int:
    """Bytes of memory that this process holds now."""
    pages = Path("/", "proc", "self", "statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def step(name: str, folder: Path, channels: int) -> list[float]:
    """Run one step in a process of its own."""
    command = [sys.executable, __file__, "--step", name, "--folder", str(folder)]
    command += ["--channels", str(channels)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [float(word) for word in output.split()]


def table(report: Report, folder: Path, channels: int) -> None:
    step("make", folder, channels)
    for way in WAYS:
        seconds, memory, size = step(way, folder, channels)
        told = {"memory_by_size": memory / size, "size_megabytes": size / 1e6}
        report.row(way, seconds=seconds, **told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where to put 450 MB of files and keep them")
    parser.add_argument("--channels", type=int, default=128, help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=("make", *WAYS), help=argparse.SUPPRESS)
    args = parse(parser, repeats=1, devices=("cpu",), channels=8)
    if args.step == "make":
        make(args.folder, args.channels)
    elif args.step:
        measure(args.step, args.folder)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = args.folder or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            table(Report("load", args.json), folder, args.channels)


if __name__ == "__main__":
    main()
