# Sourced by run_all.sh and run_tests.sh with the lock to install: makes .venv on first use and goes on in it.
# An environment that is active is used instead; it is told what goes into it, and it keeps its torch.
#   PYTHON=…     the interpreter for .venv (default: the newest of Python 3.11 to 3.14 that is there)
#   TORCH=cpu    PyTorch's CPU-only build, from PyTorch's own index: 2 GB of space instead of 7
lock=$1
give_up() {
  echo "error: $*" >&2
  exit 1
}
fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; }
has() { python -c "import $1" 2>/dev/null; }

environment=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
if [ -n "$environment" ]; then
  fits python || give_up "the active environment $environment has $(python --version 2>&1); Python 3.11 to 3.14 is right"
else
  environment=$PWD/.venv
  if ! [ -f .venv/whole ]; then
    for python in ${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3} ""; do
      if [ -z "$python" ] || fits "$python"; then break; fi
    done
    [ -n "$python" ] || give_up "no Python 3.11 to 3.14 was found (tried ${PYTHON:-python3.11 to python3.14, python3});" \
      "install one, or name it by PYTHON=/path/to/python3"
    rm -rf .venv && mkdir .venv || give_up "cannot make $environment; activate an environment of your own first"
    if command -v uv >/dev/null; then
      uv venv --quiet --allow-existing --python "$(command -v "$python")" .venv
    else
      "$python" -m venv .venv
    fi || give_up "$python cannot make .venv; on Debian and Ubuntu the package python3-venv is needed"
    touch .venv/whole
  fi
  . .venv/bin/activate
fi

install() {
  local said
  if command -v uv >/dev/null; then
    said=$(uv pip install --quiet --python "$(command -v python)" "$@" 2>&1)
  else # pip would compile every module; Python compiles those that it imports
    said=$(python -m pip install --quiet --no-compile --disable-pip-version-check "$@" 2>&1)
  fi && return
  if [[ $said =~ NewConnectionError|NameResolutionError|ProxyError|ConnectTimeout|"dns error"|"tcp connect error"|"timed out" ]]; then
    give_up "$lock could not be installed, since the package index does not answer; the same command tries again"
  fi
  echo "$said" >&2
  give_up "$lock could not be installed into $environment, see above; the same command tries again"
}
stamp=$environment/installed-$lock
wanted=$(cat "$lock" && echo "TORCH=${TORCH:-}")
if [ "$wanted" != "$(cat "$stamp" 2>/dev/null)" ]; then
  rm -f "$stamp" # what breaks off is not taken for whole
  size=7 without='^$' index=()
  if [ "$environment" != "$PWD/.venv" ] && has torch; then
    size=1 without='^(torch|torchvision|triton|nvidia-.*|cuda-.*)=='
  elif [ "${TORCH:-}" = cpu ]; then
    size=2 without='^(triton|nvidia-.*|cuda-.*)=='
    index=(--extra-index-url https://download.pytorch.org/whl/cpu)
    if command -v uv >/dev/null; then index=(--torch-backend cpu); fi
  fi
  free=$(($(df -Pk "$environment" | awk 'NR == 2 { print $4 }') / 1000000))
  [ "$free" -ge "$size" ] || give_up "$environment has $free GB of space left, $size are needed (2 with TORCH=cpu)"
  echo "installing $lock into $environment (once; up to $size GB, most of it PyTorch)"
  grep -v -E "$without" "$lock" >"$environment/installing"
  install --no-deps "${index[@]}" -r "$environment/installing"
  if [ $size = 1 ] && ! has torchvision; then # the one that goes with the torch that is there
    install torchvision "torch==$(python -c 'import torch; print(torch.__version__)')"
  fi
  rm "$environment/installing"
  echo "$wanted" >"$stamp"
fi
