#!/usr/bin/env bash
# The comparisons: installs on first use, runs the methods, prints the tables and says where the pictures are.
#   ./run_all.sh                   every method × seeds 0 … 4 × {dirichlet:0.5, shards:2}, 15 rounds; docs/results.md
#   ./run_all.sh --compatibility   optimizers × {dense, low-rank, FedPara} × {32, 8 bits}, 3 seeds, 6 rounds;
#                                  docs/compatibility.md
#   ./run_all.sh --quick           five methods, one seed, one partition, 10 rounds: under three minutes on two cores
# Anything else on the command line goes to benchmarks/run.py, e.g. --out elsewhere, and leaves docs/ as it is. A job
# that was stopped goes on. RANKS: processes in the group (default: one server and a worker per core).
set -euo pipefail
cd "$(dirname "$0")"
. ./environment.sh requirements.lock

report=()
case "${1:-}" in
--quick)
  shift
  what=(--algo local fedavg fedper pfedme pfedpara --seed 0 --partition dirichlet:0.5 --rounds 10 --out runs/quick)
  ;;
--compatibility)
  shift
  what=(--algo fedavg fedprox scaffold feddyn fedavgm fedadam fedyogi --parameterization dense lowrank fedpara
    --quantize 32 8 --seed 0 1 2 --partition dirichlet:0.5 --rounds 6 --eval-every 0 --out runs/compatibility)
  report=(--grid)
  if [ $# -eq 0 ]; then report+=(--command "./run_all.sh --compatibility" --page docs/compatibility.md); fi
  ;;
*)
  # Not fedbn: it keeps norm layers private, and the mlp has none.
  what=(--algo local fedavg fedprox scaffold feddyn fedavgm fedadam fedyogi fedper fedrep lg-fedavg fedbabu fedavg-ft
    per-fedavg ditto apfl pfedme pfedpara fedpara lowrank
    --seed 0 1 2 3 4 --partition dirichlet:0.5 shards:2 --rounds 15 --out runs/full)
  if [ $# -eq 0 ]; then report=(--command ./run_all.sh --page docs/results.md); fi
  ;;
esac
out=$(python -c 'import sys; a = sys.argv; print(a[len(a) - a[::-1].index("--out")])' "${what[@]}" "$@")
mpirun -np "${RANKS:-$(($(nproc) + 1))}" python benchmarks/run.py "${what[@]}" "$@"
python benchmarks/report.py "$out" "${report[@]}"
