#!/usr/bin/env bash
# `make demo`: photos -> shards -> both training stages -> scores -> upscaled pictures -> a report.
# Usage: docs/demo.sh FOLDER PHOTOS   (run it again to go on where it was stopped)
set -euo pipefail
demo=$1 photos=$2
held_out=(astronaut coffee)
train=(brick camera chelsea grass gravel hubble_deep_field ihc motorcycle_left motorcycle_right retina rocket)

bold='' plain=''
if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; fi
step() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }

mkdir -p "$demo/photos/train" "$demo/photos/held-out"
for name in "${train[@]}"; do cp "$photos/$name".* "$demo/photos/train/"; done
for name in "${held_out[@]}"; do cp "$photos/$name".* "$demo/photos/held-out/"; done
printf '%s\n' "${held_out[@]}" >"$demo/held-out.txt"

step "1. photos to shards"
prep-shards --src "$demo/photos" --out "$demo/shards" --val-list "$demo/held-out.txt"
inspect-shards verify --deep "$demo/shards"

step "2. SRCNN for comparison, then a small generator through both stages"
train-sr --shards "$demo/shards" --config srcnn --stage psnr --out "$demo/srcnn" --set epochs=4 --set epoch_patches=128 \
  --set batch_size=4 --set optim.warmup_patches=32 --set ema.halflife_patches=100 --set validation.patches=64
train-sr --shards "$demo/shards" --config tiny --stage both --out "$demo/run"

step "3. whole held-out photos: bicubic, SRCNN, stage psnr, stage gan"
weights=$demo/run/checkpoints
models=(--model "$demo/srcnn/checkpoints/best-psnr_y/psnr.safetensors"
  --model "$weights/best-psnr_y/psnr.safetensors" --model "$weights/final/gan.safetensors")
eval-sr --hr "$demo/photos/held-out" "${models[@]}" --strips "$demo/run/strips" --json >"$demo/run/evaluation.json"
eval-sr --hr "$demo/photos/held-out" "${models[@]}"

step "4. held-out photos upscaled"
upscale-sr "$demo/photos/held-out" -o "$demo/upscaled" --model "$weights/final/gan.safetensors" --overwrite

step "5. the report"
train-sr --report "$demo/run"

step "Done"
echo "report:   $PWD/$demo/run/report.html"
echo "pictures: $PWD/$demo/upscaled"
echo "weights:  $PWD/$weights"
echo "the same table of the standard test sets, for who has them (folders with HR and LRx4 below):"
echo "  $(command -v eval-sr) --hr Set5 --hr Set14 ${models[*]}"
