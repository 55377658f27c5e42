"""Models fitted to samples and datasets: clusters are found, and kinds that coincide agree."""

import warnings

import pytest
import torch

from linear_structure.data.datasets import Dataset
from linear_structure.fit import cluster, fit, fit_classes, fit_mixture
from linear_structure.gaussian import Gaussian
from linear_structure.system.errors import UsageError

DIM = 8
IMAGES = torch.randint(
    0, 256, (40, 1, 2, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)
DATASET = Dataset.of("noise", IMAGES)


def test_fit_recovers_separate_clusters():
    labels = torch.arange(600) % 3
    centers = torch.eye(3, DIM).double() * 20
    samples = centers[labels] + torch.randn(
        600, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    found = cluster(samples, 3)
    assert torch.equal(found, cluster(samples, 3))
    same_pairs = (found[:, None] == found) == (labels[:, None] == labels)
    assert bool(same_pairs.all())
    by_label = fit_mixture(samples, labels, rank=2)
    assert torch.allclose(by_label.weights, torch.full((3,), 1 / 3, dtype=torch.float64))
    for label, part in enumerate(by_label.components):
        direct = Gaussian.from_samples(samples[labels == label], 2)
        assert torch.equal(part.mean, direct.mean) and part.basis.shape == (DIM, 2)


@pytest.mark.parametrize("kind", ["gaussian", "isotropic", "pointcloud", "mixture"])
@pytest.mark.parametrize("images", ["digits", IMAGES])
def test_what_is_no_dataset_is_told_how_to_become_one(kind, images):
    with pytest.raises(UsageError, match=r"of type (str|Tensor): .* load_dataset.*Dataset\.of"):
        fit(images, kind)


def test_uint8_samples_are_pixels_and_floats_are_taken_as_they_are():
    pixels = Gaussian.from_samples(IMAGES)
    assert torch.allclose(pixels.mean, fit(DATASET)[0].mean)
    floats = Gaussian.from_samples(IMAGES.double())
    assert torch.allclose(floats.mean / 127.5 - 1, pixels.mean)


def test_more_components_than_samples_are_refused():
    with pytest.raises(ValueError, match="9 components"):
        cluster(torch.zeros(6, DIM), 9)


def test_a_mixture_of_one_component_is_fitted_as_the_gaussian():
    (mixture, story), (gaussian, same_story) = fit(DATASET, "mixture", components=1), fit(DATASET)
    assert (story.digest, story.count) == (same_story.digest, same_story.count)
    assert story.sigma_data == pytest.approx(same_story.sigma_data)
    x = torch.randn(5, 1, 2, 4, dtype=torch.float64)
    torch.testing.assert_close(mixture.denoise(x, 0.5), gaussian.denoise(x, 0.5))


def test_the_mean_of_all_kinds_is_one():
    for kind in ("gaussian", "isotropic", "mixture", "pointcloud"):
        model, _ = fit(DATASET, kind, components=3)
        far = model.denoise(torch.zeros(1, DIM, dtype=torch.float64), 1e6)
        mean = (IMAGES.flatten(1).double() / 127.5 - 1).mean(0, keepdim=True)
        torch.testing.assert_close(far, mean, rtol=0, atol=1e-6)


def test_each_class_is_fitted_to_its_own_images():
    labels = torch.arange(40) % 3
    found = list(fit_classes(DATASET, labels))
    assert [story.label for _, story in found] == [0, 1, 2]
    for model, story in found:
        own = Dataset.of("noise", IMAGES[labels == story.label])
        assert torch.equal(model.mean, fit(own)[0].mean) and story.count == own.count


@pytest.mark.parametrize("distinct", [1, 3])
def test_a_mixture_of_fewer_components_than_asked_for_says_so(capsys, distinct):
    images = IMAGES[:distinct].repeat(20, 1, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixture, _ = fit(Dataset.of("few", images), "mixture", components=10)
    assert len(mixture.components) == distinct
    said = f"{distinct} of 10 components: no more of the images differ\n"
    assert capsys.readouterr().err == said
    fit(Dataset.of("few", images), "mixture", components=distinct)
    assert capsys.readouterr().err == ""
