"""What both packages export: every name is there, and costs nothing before it is used."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import edm
import linear_structure

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (edm, linear_structure)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_name_is_there_and_listed(package):
    exported: dict[str, object] = {}
    exec(f"from {package.__name__} import *", exported)
    assert exported.keys() >= set(package.__all__) and set(dir(package)) >= set(package.__all__)
    assert exported["heun"] is import_module("linear_structure.sampling.samplers").heun


def test_what_both_export_is_the_same():
    for name in set(edm.__all__) & set(linear_structure.__all__):
        assert getattr(edm, name) is getattr(linear_structure, name)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_what_is_not_there_is_an_attribute_error_that_names_it(package):
    with pytest.raises(AttributeError, match=rf"'{package.__name__}' has no attribute 'nothing'"):
        _ = package.nothing


def test_a_module_is_found_beside_a_function_of_its_package():
    from linear_structure import fit, parameters

    assert fit.fit is linear_structure.fit_model
    assert parameters.load is linear_structure.load_parameters


def test_torch_is_imported_when_a_name_is_used():
    code = (
        "import sys, edm, linear_structure; before = 'torch' in sys.modules; "
        "linear_structure.Gaussian; print(before, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False True\n"


def test_what_takes_long_to_import_waits_until_it_is_used():
    late = ["scipy.optimize", "scipy.stats", "sklearn", "torchvision", "torch.utils.flop_counter"]
    code = (
        "import sys; sys.path.insert(0, 'scripts')\n"
        "import run_experiments_with_skips, generate, train\n"
        f"print([name for name in {[*late, 'matplotlib']} if name in sys.modules])\n"
        "import represent, reproduce_figures, fid, classify\n"
        f"print([name for name in {late} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n[]\n", done.stderr


def test_the_version_is_that_of_the_citation():
    assert f"\nversion: {edm.__version__}\n" in (ROOT / "CITATION.cff").read_text()
