#!/usr/bin/env bash
# Resolves requirements.txt and requirements-dev.txt for Python 3.11 to 3.14 into the versions that the scripts install.
# ./lock.sh keeps the versions that are there; ./lock.sh --upgrade takes the newest; git shows whether a lock was old.
set -euo pipefail
cd "$(dirname "$0")"
compile() { # FedML on every Python, and without its own list: pyproject.toml says what stands in for that
  local lock=$1
  shift
  echo "fedml==0.9.6" | uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header \
    - requirements.txt "$@" --output-file "$lock"
}
compile requirements-dev.lock requirements-dev.txt "$@" # the larger one first: both hold the same versions
compile requirements.lock --constraint requirements-dev.lock "$@"
