"""Training steps: ours beside two other loops, on equal networks and data, in one run.

The plain loop has the contiguous layout, Adam and the moving average one tensor at a time, and no
compiler. The separate loop is ours as it was at 4740262, to the bit: gradients are cleaned and
averages moved one tensor at a time, and each piece of a batch is copied to the device. Repetitions
alternate, so that all meet the same machine; times are medians. FLOPs are those of the forward and
backward pass; the limit is the rate of a large matrix product in the same precision, measured here.
"""

import argparse
import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from timing import Report, alternate, parse, peak
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from edm.precondition import Preconditioned, build
from edm.training import ema
from edm.training.data import NOISE, Data, batches, resident
from edm.training.loss import EDM, denoising_loss
from edm.training.recipes import RECIPES, Recipe
from edm.training.state import State, mixed
from edm.training.steps import GRADIENT_LIMIT, Trainer, accumulate
from linear_structure.data.datasets import Dataset
from linear_structure.system.precision import set_tf32

COLOUR = (3, 32, 32)
SHAPES = {"digits": (1, 8, 8), "laptop": COLOUR, "gpu": COLOUR, "published": COLOUR}
RECIPE = {"cpu": "digits", "cuda": "gpu"}
COUNT = 2048  # random images


def random_images(recipe: str) -> Tensor:
    return torch.randint(256, (COUNT, *SHAPES[recipe]), dtype=torch.uint8)


def network_of(recipe: Recipe, images: Tensor, device: str) -> Preconditioned:
    dataset = Dataset.of("random", images)
    torch.manual_seed(0)
    network = build(replace(recipe, augment=0.0).network(dataset)).to(device)
    network.compute_dtype = getattr(torch, recipe.precision)
    return network


def ours(recipe: Recipe, network: Preconditioned, images: Tensor) -> Callable[[], Tensor]:
    """One step of `edm.training`."""
    state, device = State.start(network), next(network.parameters()).device
    objective = partial(denoising_loss, recipe.criterion(network))
    data = Data(resident(images, device), None, 0, device)
    trainer = Trainer(recipe, data, objective, network)
    order = batches(len(images), recipe.batch, recipe.seed)
    return lambda: trainer.step(state, next(order))


def separate(recipe: Recipe, network: Preconditioned, images: Tensor) -> Callable[[], Tensor]:
    """One step with an operation for each tensor."""
    state, device = State.start(network), next(network.parameters()).device
    objective = partial(denoising_loss, recipe.criterion(network))
    data, order = Data(images, None, 0, device), batches(len(images), recipe.batch, recipe.seed)

    def step() -> Tensor:
        seen, index = state.images_seen, next(order)
        pieces = [
            data.piece(mixed(recipe.seed, NOISE, seen + start), index[start : start + recipe.piece])
            for start in range(0, recipe.batch, recipe.piece)
        ]
        error = accumulate(network, objective, pieces, 1 / recipe.batch)
        for parameter in network.parameters():
            gradient = parameter.grad
            torch.nan_to_num(gradient, 0, GRADIENT_LIMIT, -GRADIENT_LIMIT, out=gradient)
        rate = recipe.learning_rate * (min(seen / recipe.ramp, 1) if recipe.ramp else 1)
        state.optimizer.param_groups[0]["lr"] = rate
        state.optimizer.step()
        state.optimizer.zero_grad()
        decay = ema.decay(recipe.ema_halflife, recipe.ema_ramp, recipe.batch, seen)
        with torch.no_grad():
            both = zip(state.average.parameters(), network.parameters(), strict=True)
            for kept, new in both:
                kept.lerp_(new, 1 - decay)
        state.images_seen += recipe.batch
        return error

    return step


def plain(recipe: Recipe, network: Preconditioned, images: Tensor) -> Callable[[], Tensor]:
    """One step as a textbook writes it."""
    device, loss = next(network.parameters()).device, EDM()
    average = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, foreach=False)

    def step() -> Tensor:
        index = torch.randint(len(images), (recipe.batch,))
        clean = images[index].to(device).float() / 127.5 - 1
        sigma = loss.sigmas(len(clean), device)
        noisy = clean + sigma[:, None, None, None] * torch.randn_like(clean)
        weight = loss.weight(sigma)[:, None, None, None]
        error = (weight * (network(noisy, sigma) - clean) ** 2).sum() / recipe.batch
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        with torch.no_grad():
            for kept, new in zip(average.parameters(), network.parameters(), strict=True):
                kept.copy_(new.lerp(kept, 0.999))
        return error.detach()

    return step


def flop_per_image(network: Preconditioned, images: Tensor) -> float:
    """Of the forward and backward pass."""
    device = next(network.parameters()).device
    x = images[:1].to(device).float()
    with FlopCounterMode(display=False) as counter:
        network(x, torch.ones(1, device=device)).sum().backward()
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", choices=SHAPES, help="default: digits on a CPU, gpu on a GPU")
    parser.add_argument("--batch", type=int, help="default: the recipe's")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true", help="measure ours compiled, too")
    on_gpu = torch.cuda.is_available()
    parser.set_defaults(precision="bfloat16" if on_gpu else "float32", compile=on_gpu)
    args = parse(parser, repeats=20, batch=8, precision="float32")
    name = args.recipe or RECIPE[args.device]
    batch = args.batch or RECIPES[name].batch
    recipe = replace(RECIPES[name], batch=batch, piece=batch, precision=args.precision)
    set_tf32(False)
    images, report = random_images(name), Report("training", args.json)
    network = network_of(recipe, images, args.device)
    flop = flop_per_image(network, images) * batch
    runs = {
        "plain": plain(recipe, copy.deepcopy(network), images),
        "separate": separate(recipe, copy.deepcopy(network), images),
        "ours": ours(recipe, copy.deepcopy(network), images),
    }
    if args.compile:
        compiled = copy.deepcopy(network)
        runs["compiled"] = ours(recipe, compiled, images)
        compiled.compile()
    seconds, limit = alternate(runs, args.repeats, uncounted=2), peak(args, network.compute_dtype)
    what = f"{name} {args.precision} batch {batch}"
    report.row(what, gflop_per_image=flop / batch / 1e9)
    report.rates(what, seconds, batch, flop, limit, "separate")


if __name__ == "__main__":
    main()
