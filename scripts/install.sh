# Sets PYTHON to an environment in which the project is installed: the active one, else .venv.
# With EXTRA=test the packages that the tests need are installed too.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    [ -x "$clone/.venv/bin/python" ] || python3 -m venv "$clone/.venv"
    PYTHON=$clone/.venv/bin/python
fi
"$PYTHON" -m pip install --quiet --editable "$clone${EXTRA:+[$EXTRA]}"
