#!/usr/bin/env bash
# Every figure of docs/benchmarks.md that needs a GPU, on one card, in about six minutes.
#
#   bash recipes/bench_gpu.sh runs/gpu
#
# 1. Audits and unlearning steps of 1.2 billion random parameters in bfloat16, vocabulary 128,256: ratios to bare forward
#    passes, to the documents one by one, to a re-audit, to dense steps; peak memory. runs/gpu/1b/speed.json
# 2. Stability at 0.1 and 1 billion parameters: the hard world over these random weights with the default settings, so that
#    adapters must move, losses stay finite and other text stay where it was. runs/gpu/stable-*/results.json
#
# On a machine without one, DEVICE=cpu SHAPES=tiny measures nothing of interest and shows that it runs.
set -euo pipefail
out=${1:?directory for the results}
device=${DEVICE:-cuda}
for shape in ${SHAPES:-1b gpt2}; do
  parts=step
  if [ "$shape" != gpt2 ]; then parts=audit,step; fi
  mitigate bench speed --shape "$shape" --parts "$parts" --steps 3 --device "$device" --out "$out/$shape" \
    ${TOKENS:+--set tokens=$TOKENS}
  mitigate bench unlearn --world hard --base "$out/$shape/model-0" --device "$device" --seeds 0 \
    --objectives default --scopes token --tries 1 --no-retrain --set 'epochs=[3]' \
    --set forget=16 --set retain=16 --set holdout=16 --set anchors=8 --set prose=8 \
    --set unlearn.max_steps=40 --set unlearn.check_every=10 --out "$out/stable-$shape"
done
