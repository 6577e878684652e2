#!/usr/bin/env bash
# The fast test suite, installed on first use. ./run_tests.sh -m "slow or not slow" runs everything.
set -euo pipefail
cd "$(dirname "$0")"
. ./environment.sh requirements-dev.lock
if [ $# -eq 0 ]; then set -- -m "not slow"; fi
python -m pytest "$@"
