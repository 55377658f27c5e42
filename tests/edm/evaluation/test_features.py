"""The feature networks: Inception against an independent implementation, and files of weights."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from edm.checkpoints import shipped
from edm.evaluation import features
from edm.evaluation.inception import Inception, convolutions, inception3, legacy_resize
from linear_structure.system.download import fetch
from linear_structure.system.errors import UsageError, WorkError


def random_state():
    """Weights under which the signal reaches the end: its features tell images apart."""
    torch.manual_seed(0)
    network = inception3()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return network.state_dict()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(random_state(), path)
    return path


@pytest.fixture(scope="module")
def inception(weights):
    return features.load(weights)


@pytest.fixture(scope="module")
def independent(weights):
    return FeatureExtractorInceptionV3(
        "independent", ["2048"], feature_extractor_weights_path=str(weights)
    )


def random_images(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("size", [28, 32, 64, 299])
def test_features_equal_torch_fidelity_bit_for_bit(inception, independent, one_thread, size):
    images = random_images(2, 3, size, size)
    ours = inception(images)
    assert torch.equal(ours, independent(images)[0])
    assert ours.shape == (2, inception.dim)
    assert ours.dtype == torch.float32
    assert (ours[0] - ours[1]).abs().mean() > 1e-3 * ours.abs().mean()


def test_grey_images_are_repeated_to_three_channels(inception):
    grey = random_images(1, 1, 8, 8)
    assert torch.equal(inception(grey), inception(grey.repeat(1, 3, 1, 1)))


def test_only_inception_gives_an_fid(inception):
    ours = features.load(shipped("digits-features.safetensors"))
    assert inception.distance_name == "FID"
    assert ours.distance_name == "FD-digits"
    assert ours(random_images(3, 1, 8, 8)).shape == (3, ours.dim)


def test_resize_takes_pixel_i_from_i_times_extent_over_size():
    ramp = torch.arange(32.0).expand(1, 1, 5, 32)
    expected = (torch.arange(299) * 32 / 299).clamp(max=31)
    resized = legacy_resize(ramp, 299)
    assert resized.shape == (1, 1, 299, 299)
    torch.testing.assert_close(resized, expected.expand(1, 1, 299, 299), rtol=0, atol=1e-4)
    torch.testing.assert_close(legacy_resize(ramp.mT, 299), resized.mT, rtol=0, atol=0)


@pytest.mark.parametrize("height, width", [(1, 1), (8, 31), (300, 299), (512, 700)])
def test_resize_equals_torch_fidelity_bit_for_bit(height, width):
    images = random_images(2, 3, height, width).float()
    expected = interpolate_bilinear_2d_like_tensorflow1x(images, (299, 299), align_corners=False)
    assert torch.equal(legacy_resize(images, 299), expected)


def test_resize_to_the_same_size_changes_nothing():
    images = random_images(1, 3, 40, 40).float()
    assert torch.equal(legacy_resize(images, 40), images)


@pytest.fixture(params=["ieee", "tf32"])
def conv(request):
    """The setting of all convolutions, as a program of the user's may have left it."""
    conv = torch.backends.cudnn.conv
    before, conv.fp32_precision = conv.fp32_precision, request.param
    yield conv
    conv.fp32_precision = before


@pytest.mark.parametrize("tf32, precision", [(False, "ieee"), (True, "tf32")])
def test_tf32_is_off_unless_asked_for(conv, tf32, precision):
    before = conv.fp32_precision, torch.backends.cudnn.deterministic
    with convolutions(tf32):
        assert (conv.fp32_precision, torch.backends.cudnn.deterministic) == (precision, True)
    assert (conv.fp32_precision, torch.backends.cudnn.deterministic) == before


def test_the_name_records_tf32_and_the_digest_the_weights(inception):
    state = random_state()
    assert Inception(state, tf32=True).name != inception.name
    assert Inception(state).digest == inception.digest
    state["Mixed_7c.branch_pool.conv.weight"][0] += 1
    assert Inception(state).digest != inception.digest


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 3, 8, 8), random_images(1, 4, 8, 8), random_images(3, 8, 8)]
)
def test_other_images_are_refused(inception, images):
    with pytest.raises(ValueError, match="uint8 images of 1 or 3 channels"):
        inception(images)


class Calls:
    """A pickle that would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "executed"))


def test_files_that_hold_no_weights_are_refused(tmp_path, weights):
    marker = tmp_path / "marker"
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    torch.save({"conv": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save(Calls(marker), tmp_path / "program.pth")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    (tmp_path / "cut.pth").write_bytes(weights.read_bytes()[:1_000_000])
    (tmp_path / "cut.safetensors").write_bytes(b"\x80\0\0\0\0\0\0\0{")
    for path in tmp_path.iterdir():
        with pytest.raises(UsageError):
            features.load(path)
    assert not marker.exists()


def test_any_damaged_byte_of_weights_is_one_sentence_or_none(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"weight": torch.zeros(1)}, path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        try:
            features._state_dict(path)
        except UsageError as error:
            assert "w.pth" in str(error)


def test_published_weights_are_pinned(tmp_path, monkeypatch, weights):
    monkeypatch.setenv("LINEAR_STRUCTURE_CACHE", str(tmp_path))
    monkeypatch.setenv("LINEAR_STRUCTURE_OFFLINE", "1")
    with pytest.raises(WorkError, match="OFFLINE"):
        features.load()
    (tmp_path / features.WEIGHTS.name).write_bytes(weights.read_bytes())
    with pytest.raises(WorkError, match="SHA-256"):
        features.load()
    pinned = replace(features.WEIGHTS, sha256=hashlib.sha256(weights.read_bytes()).hexdigest())
    assert features.load(fetch(pinned)).dim == 2048
