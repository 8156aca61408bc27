#!/usr/bin/env bash
# The numeric tests again, as other x86-64 processors would run them. Usage: tests/portable.sh PYTHON
set -euo pipefail
python=$(realpath -s "$1")
tests=(
  tests/shards/format tests/shards/images
  tests/trainer/networks tests/trainer/losses tests/trainer/perceptual
  tests/trainer/training/test_optim.py tests/trainer/training/test_flat_buffers.py
  tests/trainer/weights tests/trainer/evaluation/test_metrics.py tests/trainer/evaluation/test_spectrum.py tests/trainer/upscaling/test_tiling.py
  tests/compatibility
)

run() { # TITLE ENVIRONMENT…
  echo "== $1"
  env "${@:2}" "$python" -m pytest "${tests[@]}"
}

run "torch without vector instructions" ATEN_CPU_CAPABILITY=default
run "torch for AVX2, oneDNN for AVX2" ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
run "oneDNN for AVX512 without bf16" ONEDNN_MAX_CPU_ISA=AVX512_CORE
run "a processor with bf16 and AMX, as far as torch reports it" USRGAN_TEST_CPU_FEATURES=avx512_bf16,amx_bf16

# no C compiler on the PATH, and no kernel compiled before
empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT
for tool in env bash cat mkdir rm; do ln -s "$(command -v $tool)" "$empty/$tool"; done
run "no C compiler" PATH="$empty" XDG_CACHE_HOME="$empty/cache" CC=
