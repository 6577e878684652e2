#!/usr/bin/env bash
# The comparisons: installs on first use, runs the methods, prints the tables and says where the pictures are.
#   ./run_all.sh                   every method × seeds 0 … 4 on mnist5k, {dirichlet:0.5, shards:2}, and on the data of
#                                  each suite full-*.yaml that are here; docs/results.md
#   ./run_all.sh --compatibility   optimizers × {dense, low-rank, FedPara} × {32, 8 bits}, 3 seeds, 6 rounds;
#                                  docs/compatibility.md
#   ./run_all.sh --paper           each suite paper-*.yaml whose data can be had, then docs/paper.md's tables; hours
#   ./run_all.sh --frontier        methods over their sizes, bits and codecs, 96 runs; then what a megabyte buys
#   ./run_all.sh --access          who is left out when a round closes after so many seconds; docs/access.md
#   ./run_all.sh --hijack          one client of ten poisons, and what a stolen shared part is worth; docs/privacy.md
#   ./run_all.sh --quick           six methods, one seed, one partition, 10 rounds: under three minutes on two cores
# Each is a suite: --NAME runs benchmarks/suites/NAME.yaml. Anything else on the command line goes to benchmarks/run.py,
# e.g. --out elsewhere, and leaves docs/ as it is. A job that was stopped goes on. RANKS: processes in the group
# (default: one server and a worker per core).
set -euo pipefail
cd "$(dirname "$0")"
. ./environment.sh requirements.lock

compare() { mpirun -np "${RANKS:-$(($(nproc) + 1))}" python benchmarks/run.py --suite "$@"; }
elsewhere() { [[ " $* " == *" --out "* ]]; }

name=${1:-} && name=${name#--}
if [ -n "$name" ] && [ -f "benchmarks/suites/$name.yaml" ]; then
  shift
  compare "$name" "$@"
  python benchmarks/report.py --suite "$name" --run "$@"
  if [ "$name" = frontier ] && ! elsewhere "$@"; then python -m benchmarks.analysis.frontier runs/frontier; fi
  exit
fi

suites=(benchmarks/suites/full{,-*}.yaml)
if [ "$name" = paper ]; then shift && suites=(benchmarks/suites/paper-*.yaml); fi
folders=() missing=()
for suite in "${suites[@]}"; do
  suite=$(basename "$suite" .yaml)
  if compare "$suite" "$@"; then
    folders+=("runs/$suite")
  elif [ $? = 2 ]; then # run.py has said what is wrong: that its data are not there, mostly
    missing+=("$suite")
  else
    exit 1
  fi
done
[ ${#missing[@]} = 0 ] || echo "left out, as said above: ${missing[*]}" >&2
[ ${#folders[@]} != 0 ] || exit 2
if elsewhere "$@"; then folders=(); fi # the report finds the folder itself
python benchmarks/report.py "${folders[@]}" --suite "$(basename "${suites[0]}" .yaml)" --run "$@"
if [ "$name" = paper ] && ! elsewhere "$@"; then
  python -m benchmarks.analysis.claims "${folders[@]}" --picture runs/fig5.png
fi
