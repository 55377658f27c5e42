"""The classifier whose features a distance of ours is taken on."""

import dataclasses
import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as serialize
from torch import Tensor, nn
from torchvision.models import resnet

from edm.evaluation import features
from edm.evaluation.classifier import BasicBlock, Classifier, Options, accuracy, judge, load, save
from edm.training.features import RECIPES, held_out
from linear_structure.data import datasets
from linear_structure.system.errors import UsageError
from linear_structure.system.files import digest_of_file

WEIGHTS = Path(__file__).resolve().parents[3] / "edm" / "weights"
SHIPPED = WEIGHTS / "digits-features.safetensors"


pytestmark = pytest.mark.usefixtures("one_thread")


def images(count: int = 40, channels: int = 1, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, size, size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def test_features_have_the_promised_form() -> None:
    network = features.load(SHIPPED)
    found = network(images())
    assert found.shape == (40, network.dim)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert (network.name, network.distance_name) == ("classifier-digits", "FD-digits")
    assert network(images(0)).shape == (0, network.dim)


def test_features_of_an_image_do_not_depend_on_the_others() -> None:
    network, batch = load(SHIPPED), images(600)
    whole = network(batch)
    assert torch.equal(network(batch), whole)
    torch.testing.assert_close(network(batch.flip(0)).flip(0), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network(batch[7:8]), whole[7:8], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stride, width", [(1, 8), (2, 16)])
@pytest.mark.parametrize("training", [True, False])
def test_a_block_is_torchvisions_to_the_bit(stride: int, width: int, training: bool) -> None:
    def made(block: Callable[..., nn.Module]) -> nn.Module:
        torch.manual_seed(0)
        projection = nn.Conv2d(8, width, 1, stride, bias=False)
        shortcut = nn.Sequential(projection, nn.BatchNorm2d(width)) if stride > 1 else None
        network = block(8, width, stride, shortcut).train(training)
        return network.to(memory_format=torch.channels_last)

    def found(block: nn.Module) -> list[Tensor]:
        x = torch.randn(3, 8, 6, 6, generator=torch.Generator().manual_seed(1))
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        end = block(x)
        end.square().sum().backward()
        return [end, x.grad, *(value.grad for value in block.parameters())]

    ours, theirs = made(BasicBlock), made(resnet.BasicBlock)
    assert all(map(torch.equal, found(ours), found(theirs)))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))


@pytest.mark.parametrize("wrong", [images(4, channels=3), images(4).float()])
def test_images_of_another_kind_are_refused(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected torch\.uint8 with 1"):
        load(SHIPPED)(wrong)


def test_file_keeps_the_network(tmp_path: Path) -> None:
    options = Options(knows="noise", channels=3, classes=5, widths=(8, 16, 24), blocks=2)
    network = Classifier(options).eval()
    save(network, tmp_path / "features.safetensors", {"seed": 0})
    loaded = load(tmp_path / "features.safetensors")
    assert loaded.options == options
    assert loaded.dim == 24
    batch = images(5, channels=3, size=16)
    torch.testing.assert_close(loaded(batch), network(batch).detach(), atol=1e-5, rtol=1e-5)


def test_digest_is_that_of_the_network_and_not_of_its_file(tmp_path: Path) -> None:
    network, path = load(SHIPPED), tmp_path / "features.safetensors"
    save(network, path, {"source": "elsewhere"})
    assert load(path).digest == network.digest
    others = [load(SHIPPED), Classifier(dataclasses.replace(network.options, knows="noise"))]
    others[0].head.bias[0] = torch.nextafter(network.head.bias[0], torch.tensor(9.0))
    others[1].load_state_dict(network.state_dict())
    assert len({network.digest, *(other.digest for other in others)}) == 3


def test_a_full_disk_keeps_the_file_before(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    save(load(SHIPPED), path, {})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=r"features\.safetensors"):
            save(load(SHIPPED), path, {"more": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_verdict_is_that_of_each_image_alone() -> None:
    """Counted one by one, over more images than go through the network at once."""
    network = load(SHIPPED)
    batch = torch.cat([datasets.load("digits").images()[:500], images(20)])
    sure, counts = 0, [0] * 10
    for image in batch:
        odds = network.logits(image[None]).double().exp()[0]
        sure += bool(odds.max() / odds.sum() > 0.8)
        counts[int(odds.argmax())] += 1
    verdict = judge(network, batch)
    assert (verdict.sure, sum(counts)) == (sure / 520, 520)
    assert verdict.shares.tolist() == [count / 520 for count in counts]


@pytest.mark.parametrize("name", ["digits-denoiser.safetensors", "digits.md"])
def test_another_file_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is not a feature network"):
        load(WEIGHTS / name)


def test_a_file_that_claims_a_giant_network_is_refused_unbuilt(tmp_path: Path) -> None:
    options = {**dataclasses.asdict(load(SHIPPED).options), "widths": [4096] * 8, "blocks": 64}
    path = tmp_path / "giant.safetensors"
    metadata = {"classifier": json.dumps(options), "provenance": "{}"}
    path.write_bytes(serialize({"weight": torch.zeros(1)}, metadata))
    with pytest.raises(UsageError, match="not those of its options"):
        load(path)


def test_shipped_features_are_what_their_card_says() -> None:
    card = (WEIGHTS / "digits.md").read_text()
    assert digest_of_file(SHIPPED) in card
    assert f"{SHIPPED.stat().st_size:,} bytes" in card
    digits = datasets.load("digits")
    _, rest = held_out(digits.count, RECIPES["digits"].held_out, RECIPES["digits"].seed)
    found = accuracy(load(SHIPPED), digits.images()[rest], digits.labels()[rest])
    assert found > 0.98
    assert f"{found:.2%}" in card
