# Sourced by run_all.sh and run_tests.sh with the lock to install: makes .venv on first use and goes on in it.
# An environment that is active is used instead; it is told what goes into it, and keeps its torch.
#   PYTHON=…     the interpreter for .venv (default: the newest of Python 3.11 to 3.14 that is there)
#   TORCH=cpu    PyTorch's CPU-only build, from its own index: 0.9 GB instead of 6 (pytorch.org/get-started/locally)
lock=$1
give_up() {
  echo "error: $*" >&2
  exit 1
}
fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; }

environment=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
if [ -z "$environment" ]; then
  environment=$PWD/.venv
  if ! [ -f .venv/complete ]; then
    python=
    for candidate in ${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3}; do
      if fits "$candidate"; then
        python=$candidate
        break
      fi
    done
    [ -n "$python" ] || give_up "Python 3.11 to 3.14 is needed, and ${PYTHON:-none of them} is not it;" \
      "install one and name it: PYTHON=/path/to/python3"
    [ -w . ] || give_up "cannot make .venv in $PWD, which is read-only; activate an environment of your own first"
    rm -rf .venv
    if command -v uv >/dev/null; then
      uv venv --quiet --python "$(command -v "$python")" .venv || give_up "uv could not make .venv with $python"
    else
      "$python" -m venv .venv || give_up "$python cannot make .venv; Debian and Ubuntu have its package python3-venv"
    fi
    touch .venv/complete
  fi
  . .venv/bin/activate
else
  fits python || give_up "the active environment $environment has $(python --version 2>&1); 3.11 to 3.14 are right"
fi

stamp=$environment/installed-$(basename "$lock")
wanted=$(cat "$lock" && echo "TORCH=${TORCH:-}")
if [ "$wanted" != "$(cat "$stamp" 2>/dev/null)" ]; then
  rm -f "$stamp" # what breaks off is not taken for whole
  installing=$environment/installing-$(basename "$lock")
  pip_options=() uv_options=() size=7
  if [ "$environment" != "$PWD/.venv" ] && python -c 'import torch' 2>/dev/null; then
    size=1
    grep -v -E '^(torch|torchvision|triton|nvidia-|cuda-)' "$lock" >"$installing"
    echo "torch==$(python -c 'import torch; print(torch.__version__)')" >>"$installing"
    python -c 'import torchvision' 2>/dev/null || echo "torchvision" >>"$installing"
  elif [ "${TORCH:-}" = cpu ]; then
    size=2
    grep -v -E '^(triton|nvidia-|cuda-)' "$lock" >"$installing"
    pip_options=(--extra-index-url https://download.pytorch.org/whl/cpu)
    uv_options=(--torch-backend cpu)
  else
    cp "$lock" "$installing"
  fi
  free=$(($(df -Pk "$environment" | awk 'NR == 2 { print $4 }') / 1000000))
  [ "$free" -ge "$size" ] || give_up "$environment has $free GB of space left, and $size are needed; TORCH=cpu needs 2"
  echo "installing $lock into $environment (once: up to $size GB, most of it PyTorch)"
  if command -v uv >/dev/null; then
    uv pip install --quiet --python "$environment/bin/python" --no-deps "${uv_options[@]}" -r "$installing"
  else
    python -m pip install --quiet --disable-pip-version-check --no-deps "${pip_options[@]}" -r "$installing"
  fi || give_up "$lock could not be installed (the reason stands above); the same command tries again"
  rm "$installing"
  echo "$wanted" >"$stamp"
fi
