"""Seconds of an iteration of the laptop run by stage, and from the command to its first iteration.

python scripts/bench_loop.py
python scripts/bench_loop.py --threads 1 2 --iterations 40 experiment=grpo

Each number of threads is a run of `src/train.py` of its own, in turn, `--rounds` times; medians
over all of their iterations but the first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from matchtir.utils.run_folder import METRICS_FILE, read_metrics

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("sync", "rollout", "credit", "update")


def measure(threads: int, iterations: int, overrides: list[str]) -> tuple[float, dict[str, list]]:
    """Seconds from the command to the first iteration, and the metrics of each iteration."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "src/train.py", *overrides, f"iterations={iterations}"),
            f"extras.threads={threads}",
            *("data.sizes={train: 4096, validation: 1, test: 1}", "trainer.limit_val_batches=0"),
            *("callbacks.progress.every_n_iterations=1", f"paths.run_dir={folder}"),
        ]
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}
        started = time.monotonic()
        run = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        assert run.stdout is not None
        first = next(time.monotonic() for line in run.stdout if line.startswith("iteration 1/"))
        run.stdout.read()
        if run.wait():
            raise SystemExit(f"{' '.join(command)} ended with {run.returncode}")
        curves = read_metrics(Path(folder, METRICS_FILE))
    metrics = {name: values for name, (_, values) in curves.items()}
    metrics["seconds"] = [*map(sum, zip(*(metrics[f"time/{s}"] for s in STAGES), strict=True))]
    return first - started - metrics["seconds"][0], metrics


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("overrides", nargs="*", default=["experiment=matchtir_hard"])
    options = parser.parse_args()
    columns = ("seconds", *(f"time/{stage}" for stage in STAGES), "train/tokens_per_s")
    found: dict[int, dict[str, list[float]]] = {
        threads: {column: [] for column in ("start", *columns)} for threads in options.threads
    }
    for _ in range(options.rounds):
        for threads, samples in found.items():
            start, metrics = measure(threads, options.iterations, options.overrides)
            samples["start"].append(start)
            for column in columns:
                samples[column] += metrics[column][1:]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print(f"{'threads':>8}" + "".join(f"{name.split('/')[-1]:>14}" for name in ("start", *columns)))
    medians = {
        threads: {name: median(values) for name, values in samples.items()}
        for threads, samples in found.items()
    }
    for threads, row in medians.items():
        print(f"{threads:>8}" + "".join(f"{value:>14.3f}" for value in row.values()))
    best = min(medians.values(), key=lambda row: row["seconds"])
    result = {"seconds_per_iteration": best["seconds"], "start_seconds": best["start"]}
    print("RESULT", json.dumps({name: round(value, 3) for name, value in result.items()}))


if __name__ == "__main__":
    main()
