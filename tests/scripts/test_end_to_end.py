"""The paper's experiment from nothing but its commands, on small files served from 127.0.0.1.

The server holds what the published hosts do, in the same formats and smaller: the CIFAR-10 archive,
a network snapshot, Inception weights (random) and reference statistics. It cuts every first answer.
"""

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from edm.evaluation import fid
from edm.evaluation.inception import inception3

ROOT = Path(__file__).resolve().parents[2]
ARCHIVE = "cifar-10-python.tar.gz"
NETWORK = "edm-cifar10-32x32-uncond-vp.pkl"
REFERENCE = "cifar10-32x32.npz"
WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
SWEEP = ("cifar10", "--seeds", "0-7", "--block", "4", "--skips", "0,4")


class Handler(BaseHTTPRequestHandler):
    """Serves a folder with Range; the first answer for each file stops half-way."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name = self.path.lstrip("/")
        content = self.server.files[name]
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        first = name not in self.server.answered
        self.server.answered.append(name)
        self.wfile.write(body[: len(body) // 2] if first else body)
        self.close_connection = True

    def log_message(self, *_):
        pass


def cifar_archive() -> bytes:
    """Five batches of ten images as Python 2 pickled them."""
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for batch in range(1, 6):
            pixels = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
            content = pickle.dumps(
                {b"data": pixels, b"labels": list(range(10)), b"batch_label": b"one of five"}, 2
            )
            entry = tarfile.TarInfo(f"cifar-10-batches-py/data_batch_{batch}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def network_snapshot(published) -> bytes:
    """A tiny unconditional VP network in the form of the published ones."""
    shape = {"img_resolution": 32, "channel_mult": [1, 1], "attn_resolutions": [16]}
    network = tiny.network(augment_dim=9, **shape)
    file = io.BytesIO()
    form = published.Form()
    published.dump(
        published.snapshot(tiny.config(augment_dim=9, **shape), network.state_dict(), form),
        file,
        form,
    )
    return file.getvalue()


def inception_weights() -> bytes:
    torch.manual_seed(0)
    file = io.BytesIO()
    torch.save(inception3().state_dict(), file)
    return file.getvalue()


def reference(folder: Path) -> bytes:
    features = torch.rand(64, 2048, generator=torch.Generator().manual_seed(0))
    statistics = fid.measure([features])
    path = folder / REFERENCE
    np.savez(path, mu=statistics.mu.numpy(), sigma=statistics.sigma.numpy())
    return path.read_bytes()


@pytest.fixture(scope="module")
def mirror(tmp_path_factory, published):
    """The server, and the environment that points the presets there."""
    folder = tmp_path_factory.mktemp("mirror")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answered = []
    server.files = {
        ARCHIVE: cifar_archive(),
        NETWORK: network_snapshot(published),
        REFERENCE: reference(folder),
        WEIGHTS: inception_weights(),
    }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    sources = {
        name: {
            "urls": [f"{address}/{name}"],
            "sha256": hashlib.sha256(content).hexdigest(),
            "size_limit": len(content),
        }
        for name, content in server.files.items()
    }
    (folder / "sources.json").write_text(json.dumps(sources))
    server.environment = {
        **os.environ,
        "LINEAR_STRUCTURE_SOURCES": str(folder / "sources.json"),
        "LINEAR_STRUCTURE_CACHE": str(folder / "cache"),
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    yield server
    server.shutdown()
    server.server_close()


def run(mirror, folder: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env=mirror.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_four_entry_points(mirror, tmp_path):
    python, *scripts = sys.executable, "run_experiments_with_skips.sh", "run_plot_scores.sh"
    get_parameters = str(ROOT / "linear_structure" / "get_parameters.py")
    run(mirror, tmp_path, python, get_parameters, "CIFAR10", "gaussian", "gaussian_params")
    sweep = run(mirror, tmp_path, "bash", str(ROOT / scripts[0]), *SWEEP)
    table = run(mirror, tmp_path, python, str(ROOT / "process_experiments_with_skips.py"))
    run(mirror, tmp_path, "bash", str(ROOT / scripts[1]), "cifar10", "--seeds", "0-3")

    assert sweep.count("FID") == 3
    assert "| 4 | 19.4 | 27 | 23% |" in table
    lines = (tmp_path / "experiments_with_skip_results.txt").read_text().splitlines()
    head, *rows = (line.split() for line in lines)
    assert head[:2] == ["n_skip", "fid"] and [row[0] for row in rows] == ["0", "4"]
    assert all(float(row[1]) > 0 for row in rows)
    for picture in ("experiments_with_skip_graph.png", "scores/scores.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    for name in mirror.files:  # cut once, completed by a second answer, and never asked for again
        assert mirror.answered.count(name) == 2


def test_dry_run_touches_nothing(mirror, tmp_path):
    script = str(ROOT / "run_experiments_with_skips.sh")
    answered = list(mirror.answered)
    said = run(mirror, tmp_path, "bash", script, *SWEEP, "--dry-run")
    for word in ("network calls", "images", "FLOP", "memory", "download", "time"):
        assert word in said
    assert list(tmp_path.iterdir()) == []
    assert mirror.answered == answered
