#!/bin/sh
# Every GPU figure of docs/performance.md in one command, on one NVIDIA GPU:
#     sh benchmarks/gpu.sh SEUNGWONPARK_CLONE JIAMINREN_CLONE > gpu.log
# bf16, channels_last, eager and compiled, batch 256, in evaluation and training; peak memory of training steps.
set -e
seungwonpark=${1:?a clone of seungwonpark/RandWireNN}
jiaminren=${2:?a clone of JiaminRen/RandWireNN}
cd "$(dirname "$0")"
gpu='--device cuda --dtype bfloat16 --batch 256 --autotune'
python floors.py --device cuda --dtype bfloat16 --batch 256
for train in '' --train; do
    python speed.py $gpu $train --network randwire_ws_small_s1 --seungwonpark "$seungwonpark" --jiaminren "$jiaminren" \
        --beside mobilenetv2_140
    python speed.py $gpu $train --network randwire_ws_c109 --jiaminren "$jiaminren" --beside resnet50
    python speed.py $gpu $train --network randwire_ws_c154 --batch 128 --beside resnet101
done
python memory.py --train --device cuda --batch 64 --seungwonpark "$seungwonpark" --jiaminren "$jiaminren"
python scaling.py --device cuda
