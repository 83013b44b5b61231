#!/bin/sh
# Every figure of docs/performance.md on the processor, in half an hour or more on two idle cores, much of it compiling:
#     sh benchmarks/all.sh docs/data [SEUNGWONPARK_CLONE] [JIAMINREN_CLONE] [INTER_OPERATOR_SCHEDULER_CLONE] && make docs
# PYTHON=…, BATCH=…, ROUNDS=… and COMPILE='' (nothing is compiled) are read. Without both clones the four benchmarks
# beside these networks are left out, and their records in the folder stay as they are.
set -eu
out=${1:?a folder for the records, such as docs/data}
mkdir -p "$out"
out=$(cd "$out" && pwd)
[ -z "${2:-}" ] || seungwonpark=$(cd "$2" && pwd)
[ -z "${3:-}" ] || jiaminren=$(cd "$3" && pwd)
[ -z "${4:-}" ] || scheduler=$(cd "$4" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
rounds=${ROUNDS:-9}
compile=${COMPILE-JiaminRen mobilenetv2_140 resnet50}
few=$(((rounds + 2) / 3))
batch=${BATCH:-8}
small='--network randwire_ws_small_s1 --beside mobilenetv2_140'
c109='--network randwire_ws_c109 --beside resnet50'
peers="--seungwonpark ${seungwonpark-} --jiaminren ${jiaminren-}"
both='--dtype float32 bfloat16'
TORCHINDUCTOR_CACHE_DIR=$(mktemp -d)
export TORCHINDUCTOR_CACHE_DIR
trap 'rm -rf "$TORCHINDUCTOR_CACHE_DIR"' EXIT

run() {
    name=$1 script=$2
    shift 2
    echo "== $name, $(date +%T)"
    "$python" "benchmarks/$script.py" "$@" --json "$out/$name.json"
}

beside_peers() {
    if [ -n "${seungwonpark-}" ] && [ -n "${jiaminren-}" ]; then run "$@"; else echo "== $1: left out, needs clones"; fi
}

run floors floors $both --batch "$batch" randwire_ws_small_s1 randwire_ws_c109 resnet50 mobilenetv2_140
beside_peers eval_small speed $small $peers $both --compile $compile ${compile:+randwire_ws_small_s1} --batch "$batch" \
    --rounds "$rounds"
run eval_c109 speed $c109 $both --compile $compile --batch "$batch" --rounds "$rounds"
for size in 224 320; do
    run "latency_small_$size" speed $small $both --compile $compile --batch 1 --size $size --rounds "$((3 * rounds))"
    run "latency_c109_$size" speed $c109 $both --compile $compile --batch 1 --size $size --rounds "$rounds"
done
beside_peers train_small speed $small $peers $both --train --compile $compile --batch "$batch" --rounds "$((few + 2))"
beside_peers train_c109 speed $c109 --jiaminren "${jiaminren-}" $both --train --compile $compile --batch "$batch" \
    --rounds "$few"
run train_small_64 speed $small $both --train --compile $compile --batch "$((8 * batch))" --size 64 --rounds "$rounds"
run train_c109_64 speed $c109 $both --train --compile $compile --batch "$((8 * batch))" --size 64 --rounds "$few"
run memory_evaluation memory --batch "$batch"
beside_peers memory_training memory --train --batch "$batch" $peers --beside mobilenetv2_140 resnet50
run ordering ordering --measure randwire_ba_small_s1 randwire_er_small_s1 randwire_ws_c109_s3
[ -z "${scheduler-}" ] || run interoperator interoperator --scheduler "$scheduler"
run scaling scaling --batch "$batch" --rounds "$few"
run accuracy accuracy --epochs 10
run compile_time compile_time
run import_time import_time --pairs "$few"
