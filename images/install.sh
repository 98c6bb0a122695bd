#!/usr/bin/env bash
# Install locked sets: install.sh cuda|cpu INDEX requirements/A.txt [requirements/B.txt ...]
#
# The lock holds CUDA's torch. For `cpu` the same versions of torch and torchaudio come from INDEX, an
# index of CPU wheels, and NVIDIA's libraries are left out. Everything else is held to its SHA-256.
set -euo pipefail

kind=$1
index=$2
shift 2
python=/opt/venv/bin/python

case "$kind" in
cuda)
  uv pip install --no-cache --python "$python" --require-hashes "${@/#/--requirements=}"
  ;;
cpu)
  if [[ -z "$index" ]]; then
    echo "TORCH=cpu needs TORCH_INDEX, the address of PyTorch's CPU wheels (pytorch.org names it)" >&2
    exit 2
  fi
  # A requirement is its line and the indented ones after it.
  leave='^(torch|torchaudio|triton|nvidia-.*|cuda-.*)=='
  for set in "$@"; do
    awk -v leave="$leave" '/^[^ #]/ {kept = $0 !~ leave} kept' "$set" > "$set.cpu"
  done
  kept=("${@/%/.cpu}")
  uv pip install --no-cache --no-deps --python "$python" --require-hashes "${kept[@]/#/--requirements=}"
  versions=$(grep -hE '^(torch|torchaudio)==' "$@" | tr -d ' \\' | sort -u)
  # shellcheck disable=SC2086  # two words
  uv pip install --no-cache --no-deps --python "$python" --index-url "$index" $versions
  ;;
*)
  echo "TORCH is '$kind'; it takes cuda or cpu" >&2
  exit 2
  ;;
esac
