"""A whole step of training (sampling with tools, credit, update) against TRL's GRPOTrainer.

python scripts/bench_step.py [--rounds 3] [--iterations 8] [--trl-batch 64]

Ours is `src/train.py experiment=matchtir_hard`; TRL's runs in an environment of its own
(`make bench-trl-env`). Both begin with the shipped weights, see the same prompts, and have one
thread, the laptop's limits, temperature 1, a reference policy and one optimizer step. Each run is a
process of its own, in turn; the first step of each is left out. Policies sample different amounts,
so speed is sampled tokens per second of a step. The last line is `RESULT {json}`.

What differs: TRL's reward is the outcome, its optimizer AdamW, where ours are matched turns and
Muon; ours executes tools in processes apart, TRL within its own; and where a call cannot be read,
TRL ends the attempt, ours answers with an error message and goes on.
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
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from bench_loop import measure
from omegaconf import OmegaConf
from transformers import AutoTokenizer, TrainerCallback

from matchtir.policy.tiny.model import START
from matchtir.rollout.renderer import Renderer
from matchtir.tasks.synthetic import SyntheticTasks
from matchtir.types import Task

ROOT = Path(__file__).resolve().parents[1]
TRL_PYTHON = ROOT / ".venv-trl" / "bin" / "python"
LAPTOP = OmegaConf.load(ROOT / "configs/scale/laptop.yaml")
LIMITS = LAPTOP.rollout.limits
ATTEMPTS = LAPTOP.tasks_per_iteration * LAPTOP.group_size
Steps = list[tuple[float, float]]  # seconds and sampled tokens of each


def one_core(command: list[str]) -> str:
    """What a command prints."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    run = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {run.returncode}")
    return run.stdout


def our_steps(iterations: int) -> Steps:
    """A run of the project's own command; groups without signal are kept, as TRL keeps them."""
    _, found = measure(1, iterations, ["experiment=matchtir_hard", "zero_advantage=keep"])
    sampling = zip(found["train/tokens_per_s"], found["time/rollout"], strict=True)
    return list(zip(found["seconds"], (speed * s for speed, s in sampling), strict=True))


def trl_steps(iterations: int, batch: int) -> Steps:
    """A run of `train_with_trl` in TRL's environment."""
    numbers = ["--trl-batch", str(batch), "--iterations", str(iterations)]
    command = [str(TRL_PYTHON), str(Path(__file__).resolve()), "--in-trl", *numbers]
    return json.loads(one_core(command).splitlines()[-1])


# -- in TRL's environment --------------------------------------------------------------------------


def toolbox(task: Task) -> type:
    """The tools of a task, as TRL takes those that differ by prompt: methods of a class."""

    def method(name: str, source: str) -> Any:
        namespace: dict[str, Any] = {}
        exec(source, namespace)

        def call(**arguments: Any) -> str:
            value = namespace[name](**arguments)
            return value if isinstance(value, str) else json.dumps(value)

        call.__name__ = name
        return staticmethod(call)

    methods = {spec.name: method(spec.name, spec.source) for spec in task.tools}
    return type("Toolbox", (), methods | {"reset": lambda self, **row: None})


def answered(completions: list[list[dict[str, Any]]], answer: list[str], **_: Any) -> list[float]:
    """Outcome rewards: whether the last message has the answer."""
    said = [messages[-1].get("content") or "" for messages in completions]
    return [float(f"<answer>{a}</answer>" in text) for a, text in zip(answer, said, strict=True)]


class Stopwatch(TrainerCallback):
    """The seconds of each step, without what is logged after it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        self.seconds.append(time.perf_counter() - self.started)


def trl_settings(iterations: int, batch: int, folder: str) -> Any:
    """The laptop's limits and loss, and what makes TRL fastest here."""
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=folder,
        max_steps=iterations,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=ATTEMPTS // batch,
        num_generations=LAPTOP.group_size,
        shuffle_dataset=False,
        max_completion_length=LIMITS.max_response_tokens,
        generation_kwargs={"max_new_tokens": LIMITS.max_turn_tokens},  # of each turn
        max_tool_calling_iterations=LIMITS.max_turns - 1,  # one more turn follows the last
        temperature=1.0,
        loss_type="grpo",
        beta=0.001,
        entropy_coef=0.001,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )


def train_with_trl(settings: Any) -> Steps:
    """The same tasks and weights with GRPOTrainer."""
    from datasets import Dataset
    from trl import GRPOTrainer
    from trl.chat_template_utils import qwen3_chat_template

    train = settings.max_steps * LAPTOP.tasks_per_iteration
    tasks = SyntheticTasks(sizes={"train": train}).tasks("train")
    tokenizer = AutoTokenizer.from_pretrained(START)
    renderer = Renderer(AutoTokenizer.from_pretrained(START), system_prompt="")
    tokenizer.chat_template = qwen3_chat_template  # TRL knows templates by their exact text
    rows = {
        "prompt": [[{"role": "user", "content": task.question}] for task in tasks],
        "answer": [task.answer for task in tasks],
        "environment": [task.task_id for task in tasks],
    }
    watch = Stopwatch()
    trainer = GRPOTrainer(
        model=str(START),
        reward_funcs=answered,
        args=settings,
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer,
        environment_factory={task.task_id: toolbox(task) for task in tasks},
        callbacks=[watch],
    )
    # The schemas of the tasks, instead of those from docstrings, which would be other prompts.
    trainer._env_tools = {task.task_id: [spec.schema() for spec in task.tools] for task in tasks}
    trainer._batch_environments = rows["environment"]
    prompts = trainer._tokenize_prompts(rows["prompt"])[0]
    if [tuple(ids) for ids in prompts] != [renderer.prompt_ids(task) for task in tasks]:
        raise SystemExit("TRL renders other prompts")
    trainer.train()
    # TRL's lengths count sampled tokens alone, without the results of tools.
    lengths = (row.get("completions/mean_length") for row in trainer.state.log_history)
    sampled = [ATTEMPTS * length for length in lengths if length is not None]
    return list(zip(watch.seconds, sampled, strict=True))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=8, help="of each run; at least 2")
    parser.add_argument("--trl-batch", type=int, default=ATTEMPTS, help="its attempts at a time")
    parser.add_argument("--in-trl", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_trl:
        with tempfile.TemporaryDirectory() as folder:
            settings = trl_settings(options.iterations, options.trl_batch, folder)
            print("\n" + json.dumps(train_with_trl(settings)))
        return
    if not TRL_PYTHON.exists():
        raise SystemExit(f"no {TRL_PYTHON}: make bench-trl-env")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores,", end=" ")
    print(f"one thread: python {' '.join(sys.argv)}")
    steps: dict[str, Steps] = {"ours": [], "trl": []}
    for _ in range(options.rounds):
        steps["ours"] += our_steps(options.iterations)[1:]
        steps["trl"] += trl_steps(options.iterations, options.trl_batch)[1:]
    print(f"\n{'':6}{'seconds a step':>16}{'sampled tokens':>16}{'tokens a second':>17}")
    speeds = {name: median(tokens / s for s, tokens in found) for name, found in steps.items()}
    result: dict[str, float] = {"step_ratio_trl": round(speeds["ours"] / speeds["trl"], 2)}
    for name, found in steps.items():
        seconds, tokens = (median(column) for column in zip(*found, strict=True))
        print(f"{name:6}{seconds:>16.2f}{tokens:>16,.0f}{speeds[name]:>17,.0f}")
        result |= {f"{name}_seconds": round(seconds, 2), f"{name}_tokens": round(tokens)}
        result[f"{name}_tokens_per_s"] = round(speeds[name])
    print("RESULT", json.dumps(result))


if __name__ == "__main__":
    main()
