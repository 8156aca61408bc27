#!/usr/bin/env bash
# What is to be measured on a GPU, in steps that each fit ten minutes; docs/internals/gpu-runbook.md says what comes of them.
# Usage: docs/internals/gpu-runbook.sh [--device cpu --tiny] [--work DIR] [--data DIR] STEP…      STEP: see `all` below
set -euo pipefail

device=cuda tiny='' work=gpu-run data=shared/data
while [[ ${1:-} == --* ]]; do
  case $1 in
    --device) device=$2; shift 2 ;;
    --tiny) tiny=1; shift ;;
    --work) work=$2; shift 2 ;;
    --data) data=$2; shift 2 ;;
    *) echo "error: $1: there is no such option; see the head of $0" >&2; exit 2 ;;
  esac
done
all=(machine tests bench-psnr bench-gan shards wait best usrgan table pack)
[[ $# -gt 0 ]] || set -- "${all[@]}"
mkdir -p "$work"

export PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
within=() # set to `timeout …` around what can be stopped and gone on with
# the commands as modules, so that a machine which has the packages needs no installation
tool() { "${within[@]}" "$python" -c "import sys; from $1.cli import $2 as main; sys.argv[0] = '$3'; main()" "${@:4}"; }

small=(--set generator.features=16 --set generator.blocks=1 --set generator.growth=8)
batches=32,64,128 rounds=5 steps=5 extra=() epochs_best=20 epochs_usrgan=200
if [[ -n $tiny ]]; then
  batches=2 rounds=1 steps=1 epochs_best=1 epochs_usrgan=1
  extra=("${small[@]}" --set discriminator.features=4 --set content.layer=conv1_2)
fi

machine() {
  "$python" - <<PY | tee "$work/machine.txt"
import platform, torch
print("python", platform.python_version(), "torch", torch.__version__, "cuda", torch.version.cuda)
if torch.cuda.is_available():
    print(torch.cuda.get_device_name(), "cudnn", torch.backends.cudnn.version())
PY
  { git rev-parse HEAD 2>/dev/null || echo "no commit"; date -u; } | tee -a "$work/machine.txt"
  if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.limit --format=csv | tee -a "$work/machine.txt"
  fi
  missing
}

missing() { # what the commands import; one line names all that is not there
  "$python" - <<PY
import importlib.util, sys
wanted = {
    "torch": "torch", "numpy": "numpy", "cv2": "opencv-python-headless", "PIL": "pillow", "safetensors": "safetensors",
    "click": "click", "rich": "rich", "msgspec": "msgspec", "simplejpeg": "simplejpeg", "isal": "isal",
    "webdataset": "webdataset", "braceexpand": "braceexpand", "yaml": "pyyaml", "jaxtyping": "jaxtyping", "pytest": "pytest",
}
lacking = [package for module, package in wanted.items() if importlib.util.find_spec(module) is None]
if lacking:
    sys.exit(f"error: $python lacks {', '.join(lacking)}: put wheels of them on PYTHONPATH, or set PYTHON")
PY
}

tests() { # none of them passing or failing ends the rest; what other versions of libraries warn of is no failure
  "$python" -m pytest -m gpu -W default --durations 10 -rs tests/trainer/gpu \
    2>&1 | tee "$work/tests.txt" || true
}

bench() { # NAME OPTIONS…
  tool trainer bench_main bench-sr train --config usrgan --device "$device" --rounds $rounds --steps $steps \
    "${extra[@]}" "${@:2}" --save "$work/$1.json" | tee "$work/$1.txt"
}

bench_() { # STAGE: the paper's networks beside every peer
  bench "bench-$1" --stage "$1" --batch $batches --impl auto,plain
}

shards() {
  local many=(--patches-per-image 800 --pre-scale 0.5)
  [[ -z $tiny ]] || many=(--patches-per-image 4)
  tool pipeline main prep-shards --src "$data/photos" --out "$work/shards" --exclude-like "$data/Set5/HR" --exclude-like "$data/Set14/HR" "${many[@]}"
}

wait_() {
  bench wait --stage both --batch "${batches%%,*}" --impl auto --peer none --shards "$work/shards" --workers 8
}

training() { # PRESET EPOCHS: as far as nine minutes reach; the same step again goes on
  local settings=(--set "epochs=$2") code=0
  [[ -n ${USRGAN_VGG19:-} ]] || settings+=(--set content.features=random)
  [[ -z $tiny ]] || settings+=("${extra[@]}" --set epoch_patches=8 --set batch_size=2 --set validation.patches=4)
  within=(timeout --signal=TERM --kill-after=30 "${LIMIT:-540}")
  tool trainer train_main train-sr --shards "$work/shards" --config "$1" --stage both --out "$work/$1" \
    --device "$device" "${settings[@]}" || code=$?
  within=()
  [[ $code == 0 || $code == 75 || $code == 124 ]] # done, or saved and to be gone on with
}

best() { training best $epochs_best; }
usrgan() { training usrgan $epochs_usrgan; }

weights() { # RUN: what it hands on; the best of stage gan by PSNR are the least of a GAN (trainer/best.py)
  local each
  for each in best-psnr_y/psnr final/gan best-lpips/gan; do
    [[ ! -f $work/$1/checkpoints/$each.safetensors ]] || echo "$work/$1/checkpoints/$each.safetensors"
  done
}

table() {
  local options=() run file
  for run in best usrgan; do
    while IFS= read -r file; do options+=(--model "$file"); done < <(weights $run)
  done
  [[ -z ${USRGAN_LPIPS:-} ]] || options+=(--lpips "$USRGAN_LPIPS")
  local sets=(--hr "$data/Set5/HR" --lr "$data/Set5/LRx4" --hr "$data/Set14/HR" --lr "$data/Set14/LRx4")
  tool trainer eval_main eval-sr "${sets[@]}" --device "$device" "${options[@]}" | tee "$work/table.txt"
}

pack() { # what has to come back, in pieces of 8 MB at most: `cat NAME.*.part > NAME`
  rm -rf "$work/back" && mkdir -p "$work/back"
  local run file name
  for run in best usrgan; do
    while IFS= read -r file; do
      name=$run-$(basename "$(dirname "$file")")-$(basename "$file")
      split -b 8000000 -d -a 2 --additional-suffix=.part "$file" "$work/back/$name."
      sha256sum <"$file" | sed "s/-$/$name/" >>"$work/back/SHA256SUMS"
    done < <(weights $run)
  done
  cp "$work"/*.txt "$work"/*.json "$work/back/" 2>/dev/null || true
  ls -l "$work/back"
}

for step in "$@"; do
  printf '\n== %s\n' "$step"
  case $step in
    bench-psnr | bench-gan) bench_ "${step#bench-}" ;;
    wait) wait_ ;;
    machine | tests | shards | best | usrgan | table | pack) $step ;;
    *) echo "error: $step: there is no such step; choose of ${all[*]}" >&2; exit 2 ;;
  esac
done
