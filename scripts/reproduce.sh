#!/usr/bin/env bash
# Trains what results/runs.csv lacks of a table of scripts/experiments.yaml, adds the rows and writes
# docs/results.md anew. What was interrupted goes on when it is called again.
#
#   scripts/reproduce.sh table1 | table2 | figure3 | twice | figure4 | variants | grid | all
#   JOBS=4 scripts/reproduce.sh all       four runs at a time; default: one per core
set -euo pipefail
cd "$(dirname "$0")/.."
table=${1:?usage: scripts/reproduce.sh table1|table2|figure3|twice|figure4|variants|grid|rates|habits|all}
jobs=${JOBS:-$(nproc)}
python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

"$python" scripts/results.py plan "$table" --jobs "$jobs"
commands=$("$python" scripts/results.py commands "$table")
if [ -n "$commands" ]; then
    for seed in 1 2 3; do
        [ -d "logs/policies/start_$seed/policy" ] || make policies
    done
    "$python" scripts/results.py starts "$table" | xargs -r -P "$jobs" -L 1 "$python"
    echo "$commands" | xargs -P "$jobs" -L 1 "$python"
fi
if [ -d logs/results ]; then
    "$python" scripts/results.py collect logs/results --commit "$(git rev-parse HEAD)"
    "$python" scripts/results.py evaluate logs/results
fi
"$python" scripts/results_page.py
