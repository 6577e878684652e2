#!/usr/bin/env bash
# The comparisons: installs on first use, runs the methods, prints the tables and says where the pictures are.
#   ./run_all.sh                   every method × seeds 0 … 4 × {dirichlet:0.5, shards:2}, 15 rounds; docs/results.md
#   ./run_all.sh --compatibility   optimizers × {dense, low-rank, FedPara} × {32, 8 bits}, 3 seeds, 6 rounds;
#                                  docs/compatibility.md
#   ./run_all.sh --paper           each suite paper-*.yaml whose data can be had, then docs/paper.md's tables; hours
#   ./run_all.sh --frontier        methods over their sizes, bits and codecs, 96 runs; then what a megabyte buys
#   ./run_all.sh --quick           five methods, one seed, one partition, 10 rounds: under three minutes on two cores
# Each is a suite: --NAME runs benchmarks/suites/NAME.yaml. Anything else on the command line goes to benchmarks/run.py,
# e.g. --out elsewhere, and leaves docs/ as it is. A job that was stopped goes on. RANKS: processes in the group
# (default: one server and a worker per core).
set -euo pipefail
cd "$(dirname "$0")"
. ./environment.sh requirements.lock

if [ "${1:-}" = --paper ]; then
  shift
  ran=() failed=()
  for suite in benchmarks/suites/paper-*.yaml; do
    name=$(basename "$suite" .yaml)
    if ./run_all.sh "--$name" "$@"; then ran+=("runs/$name"); else failed+=("$name"); fi
  done
  if [ ${#ran[@]} != 0 ] && [[ " $* " != *" --out "* ]]; then
    python -m benchmarks.analysis.claims "${ran[@]}" --picture runs/fig5.png
  fi
  [ ${#failed[@]} = 0 ] || { echo "left out, as said above: ${failed[*]}" >&2 && exit 1; }
  exit
fi
suite=full
if [ $# -gt 0 ] && [ -f "benchmarks/suites/${1#--}.yaml" ]; then suite=${1#--} && shift; fi
mpirun -np "${RANKS:-$(($(nproc) + 1))}" python benchmarks/run.py --suite "$suite" "$@"
python benchmarks/report.py --suite "$suite" --run "$@"
if [ "$suite" = frontier ] && [[ " $* " != *" --out "* ]]; then python -m benchmarks.analysis.frontier runs/frontier; fi
