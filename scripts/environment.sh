# Sets PYTHON: the active environment's, else that of .venv in the clone, else the system's.
clone=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    PYTHON=python
elif [ -x "$clone/.venv/bin/python" ]; then
    PYTHON=$clone/.venv/bin/python
else
    PYTHON=python3
fi
