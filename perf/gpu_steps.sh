#!/usr/bin/env bash
# What is to be found out on a GPU, in steps of less than ten minutes: docs/gpu.md says what each is.
#
#     perf/gpu_steps.sh STEP FOLDER [ARGUMENT ...]
#
# Figures and logs are kept in FOLDER, also those of a step that its time limit cuts off. Arguments
# go to the step's command. Variables: PYTHON, which one; LIMIT, seconds instead of the step's own,
# 0 for none; DATA and MD5, where CIFAR-10's archive lies and its MD5 if it is not the original;
# OUTPUTS, where a training run goes, to continue it.
set -uo pipefail
step=${1:-} out=${2:-}
if ! [[ $step =~ ^[1-7]$ && -n $out ]]; then
    echo "usage: perf/gpu_steps.sh STEP FOLDER [ARGUMENT ...]: STEP must be 1 to 7" >&2
    exit 2
fi
shift 2
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# Run a command for so many seconds at most; what it prints is kept as NAME.txt.
limited() {
    local seconds=${LIMIT:-$1} name=$2 status
    shift 2
    # A training run that is told to end keeps its last epoch, for which it needs some seconds.
    timeout --kill-after=30 "$seconds" "$@" 2>&1 | tee "$out/$name.txt"
    status=${PIPESTATUS[0]}
    if [ "$status" -eq 124 ]; then
        echo "cut off after $seconds s" | tee -a "$out/$name.txt"
    fi
    return "$status"
}

# Train; keep the record, the rows, and the outputs in parts of a size that travels, by a name.
trained() {
    local seconds=$1 name=$2 outputs status
    shift 2
    outputs=${OUTPUTS:-$(mktemp -d)}
    limited "$seconds" "$name" "$python" train.py benchmark=quick "outputs=$outputs" \
        ${DATA:+"data.root=$DATA"} ${MD5:+"data.md5=$MD5"} "$@"
    status=$?
    if [ -d "$outputs/runs" ]; then
        cp "$outputs"/runs/*/run.json "$out/$name.json"
        [ -f "$outputs/results.csv" ] && cp "$outputs/results.csv" "$out/$name.csv"
        # Checkpoints are for going on.
        tar -C "$outputs" $([ "$status" -eq 0 ] && echo --exclude=checkpoints) -cz . |
            split -b 15M -d -a 1 - "$out/$name.tar.gz."
    fi
    [ -n "${OUTPUTS:-}" ] || rm -rf "$outputs"
    return "$status"
}

case $step in
1)
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null || {
        echo "error: there is no GPU that torch can use here" >&2
        exit 2
    }
    "$python" -c 'import xdist' 2>/dev/null && parallel=(-n 6) || parallel=()
    # Only files with such tests: others may need packages that are not there.
    mapfile -t files < <(grep -lE 'mark\.gpu' tests/test_*.py)
    limited 180 tests "$python" -m pytest -m "gpu and not slow" "${parallel[@]}" -rs \
        --durations=10 --junitxml="$out/tests.xml" --continue-on-collection-errors "$@" "${files[@]}"
    ;;
2)
    limited 530 variants "$python" -m perf.gpu_check --protocol quick \
        --json "$out/variants.json" "$@"
    ;;
3) limited 180 batches "$python" -m perf.gpu_batches --json "$out/batches.json" "$@" ;;
4)
    limited 90 end_to_end "$python" -m perf.gpu_end_to_end --protocol quick \
        --json "$out/end_to_end.json" "$@"
    ;;
5) limited 180 training "$python" -m perf.throughput device=gpu "$@" ;;
6)
    trained 360 fast94 "experiment=[fast94,gpu]" \
        "benchmark.variants=[fp32,fused+fp16+channels_last+cuda_graph]" "$@"
    ;;
7) trained 540 best experiment=best "benchmark.variants=[]" "$@" ;;
esac
