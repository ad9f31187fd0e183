#!/usr/bin/env bash
# Tests that need a GPU, then the benchmark on it, in under 8 minutes on one GPU; the table comes last.
#   scripts/gpu.sh [FOLDER] [KEY=VALUE ...]      such as  scripts/gpu.sh out model=smollm2
# PYTHON names the interpreter of an environment with the package's dependencies (pip install -e ".[dev]").
# Left out of the benchmark: two_workers_vs_one, which is about CPU cores, and startup.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-python3}
folder=${1:-runs/gpu-benchmark}
shift || true
parts=cohort_vs_plain,cohort_vs_one_by_one,record_vs_opacus,population_1e6_vs_1e3,overhead_share,cost_curves
parts+=,cohort_vs_flower,cohort_vs_pfl,memory_512_vs_64
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# Micro-batches have many shapes, which otherwise leave gaps in the GPU's memory.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
    echo "scripts/gpu.sh: torch sees no GPU here; see README, \"On a GPU\"" >&2
    exit 2
}
timeout 150 "$python" -m pytest -m gpu tests/gpu
tests=$?
[ "$tests" -eq 124 ] && echo "scripts/gpu.sh: the tests ran out of time" >&2
timeout 320 "$python" -m fedsim_userdp.simulations.cli benchmark model.device=cuda benchmark.seconds=10 \
    "benchmark.parts=[$parts]" "output_dir=$folder" "$@"
benchmark=$?
[ "$benchmark" -eq 124 ] && echo "scripts/gpu.sh: out of time; $folder/benchmark.json has the parts so far" >&2
[ "$tests" -eq 0 ] && [ "$benchmark" -eq 0 ]
