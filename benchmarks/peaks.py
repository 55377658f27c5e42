"""The machine: device, versions, the rates of matrix products and of copies, which are limits."""

import argparse
import platform

import torch
from timing import Report, bandwidth, parse, peak

from linear_structure.system.precision import set_tf32


def main() -> None:
    args = parse(argparse.ArgumentParser(description=__doc__), repeats=10)
    report, on_gpu = Report("peaks", args.json), args.device == "cuda"
    report.row(
        "machine",
        device=torch.cuda.get_device_name() if on_gpu else f"CPU, {platform.machine()}",
        sizes="tiny: the numbers mean nothing" if args.quick else "full",
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        cuda=torch.version.cuda or "none",
        python=platform.python_version(),
    )
    set_tf32(False)
    report.row("copy", gigabytes_per_second=bandwidth(args) / 1e9)
    dtypes = (torch.float32, torch.float64, *([torch.bfloat16] if on_gpu else []))
    for dtype in dtypes:
        report.row(f"product, {str(dtype)[6:]}", gflops=peak(args, dtype) / 1e9)
    if on_gpu:
        set_tf32(True)
        report.row("product, TF32", gflops=peak(args) / 1e9)


if __name__ == "__main__":
    main()
