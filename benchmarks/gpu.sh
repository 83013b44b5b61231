#!/bin/sh
# The figures of docs/performance.md on one NVIDIA GPU, in one command:
#     sh benchmarks/gpu.sh SEUNGWONPARK_CLONE JIAMINREN_CLONE OUTPUT_FOLDER [INTER_OPERATOR_SCHEDULER_CLONE]
# bf16, channels_last, eager and compiled, batch 256, in evaluation and training; peak memory of training steps; and, in
# fp32 at batch 1, the inter-operator scheduler's network eagerly, compiled, as one CUDA graph, and as one whose nodes
# are on several streams.
set -eu
seungwonpark=$(cd "${1:?a clone of seungwonpark/RandWireNN}" && pwd)
jiaminren=$(cd "${2:?a clone of JiaminRen/RandWireNN}" && pwd)
mkdir -p "${3:?a folder for the records}"
out=$(cd "$3" && pwd)
[ -z "${4:-}" ] || scheduler=$(cd "$4" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
gpu='--device cuda --dtype bfloat16'
"$python" benchmarks/floors.py $gpu --batch 256 --json "$out/gpu_floors.json"
for train in '' --train; do
    kind=${train:+train}
    kind=${kind:-eval}
    "$python" benchmarks/speed.py $gpu $train --autotune --batch 256 --network randwire_ws_small_s1 \
        --seungwonpark "$seungwonpark" --jiaminren "$jiaminren" --beside mobilenetv2_140 --json "$out/gpu_${kind}_small.json"
    "$python" benchmarks/speed.py $gpu $train --autotune --batch 256 --network randwire_ws_c109 \
        --jiaminren "$jiaminren" --beside resnet50 --json "$out/gpu_${kind}_c109.json"
    "$python" benchmarks/speed.py $gpu $train --autotune --batch 128 --network randwire_ws_c154 \
        --beside resnet101 --json "$out/gpu_${kind}_c154.json"
done
"$python" benchmarks/memory.py --train --device cuda --batch 64 --seungwonpark "$seungwonpark" --jiaminren "$jiaminren" \
    --json "$out/gpu_memory_training.json"
[ -z "${scheduler-}" ] || "$python" benchmarks/interoperator.py --device cuda --scheduler "$scheduler" \
    --json "$out/gpu_interoperator.json"
"$python" benchmarks/scaling.py --device cuda --json "$out/gpu_scaling.json"
