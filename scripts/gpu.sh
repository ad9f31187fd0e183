#!/usr/bin/env bash
# Tests that need a GPU, then the benchmark on it, in under 8 minutes on one GPU; the table comes last.
#   scripts/gpu.sh [FOLDER] [KEY=VALUE ...]      such as  scripts/gpu.sh out model=smollm2
# PYTHON names the interpreter of an environment with the package in it (pip install -e ".[dev]").
set -uo pipefail
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-python3}
folder=${1:-runs/gpu-benchmark}
shift || true
parts=cohort_vs_plain,cohort_vs_one_by_one,record_vs_opacus,population_1e6_vs_1e3,overhead_share,cost_curves
parts+=,cohort_vs_flower,cohort_vs_pfl,memory_512_vs_64

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
    echo "scripts/gpu.sh: torch sees no GPU here; see README, \"On a GPU\"" >&2
    exit 2
}
timeout 130 "$python" -m pytest -m gpu
tests=$?
timeout 330 "$python" -m simulations.cli benchmark model.device=cuda benchmark.seconds=10 \
    "benchmark.parts=[$parts]" "output_dir=$folder" "$@"
benchmark=$?
[ "$benchmark" -eq 124 ] && echo "scripts/gpu.sh: out of time; $folder/benchmark.json has the parts so far" >&2
[ "$tests" -eq 0 ] && [ "$benchmark" -eq 0 ]
