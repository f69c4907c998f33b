"""Settings that would be ignored or mean something else are refused by name at the start."""

import subprocess
import sys
from pathlib import Path

import pytest

from matchtir.utils.config_check import ConfigError
from tests.test_configs import check_program

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("+penalties.unmached=0.25", "penalties.unmached: .*did you mean penalties.unmatched"),
        ("ahead=no", "ahead: takes bool, not 'no'"),
        ("penalties.unmatched=high", "penalties.unmatched: takes float, not 'high'"),
        ("zero_advantage=dorp", "module.zero_advantage: .* takes Literal"),
        ("dry_run=no", "dry_run: takes bool, not 'no'"),
        ("extras.matmul_precision=hi", "extras.matmul_precision: takes .*, not 'hi'"),
        ("turn_groups=foo", "module.advantage: turn_groups='foo' is not one of index"),
        ("group_size=0", "group_size: must be 1 or more, not 0"),
        ("module.micro_batch_tokens=0", "module.micro_batch_tokens: must be 1 or more, not 0"),
        ("ahead=true trainer.offload=optimizer", "ahead: with trainer.offload=optimizer"),
        (
            "model=huggingface model.name_or_path=a model.dtype=float32 model.head_float32=true",
            "model.head_float32: all computes in 32 bits",
        ),
        ("+loss.correction._target_=matchtir.policy.losses.MismatchCorrection "
         "+loss.correction.token_range=[0.5,5.0]", "module.objective.*: cap=2.0, token_range"),
        ("module.overlong.penalty=2.0", "module.overlong: .* needs a buffer"),
        ("loss.clip_low=-1.0", "module.objective: clip_low=-1.0 must lie in"),
        ("sandbox.max_sessions=8", "sandbox.max_sessions: with 8 of them .* wait for each other"),
        ("trainer.precision=bf17", "trainer.precision: .* not 'bf17'"),
        ("sandbox.workers=two", "sandbox.workers: .* takes int, not 'two'"),
        ("+module.micro_batch_token=9", "module.micro_batch_token: .* mean micro_batch_tokens"),
        ("trainer.log_every_n_steps=5", "trainer.log_every_n_steps: every iteration is logged"),
        ("objective=val/solve_f2", "objective: .*did you mean val/solve_f1"),
        ("objective=test/solve_f1", "objective: nothing in training measures test/solve_f1"),
        # What nothing in the run reads.
        ("advantage=trajectory turn_groups=state", "turn_groups=state: nothing in this run reads"),
        ("turn_baseline=absorbing", "absorbing needs turn_groups=index, not kind_and_index"),
        ("advantage=intra turn_baseline=others", "turn_baseline=others: nothing in this run reads"),
        ("advantage=rloo advantage_level=call", "advantage_level=call: nothing in this run reads"),
        ("advantage=rloo turn_scale=batch", "turn_scale=batch: nothing in this run reads"),
        ("advantage=rloo singleton=zero", "singleton=zero: nothing in this run reads"),
        ("experiment=grpo assignment=soft", "assignment=soft: nothing in this run reads"),
        ("experiment=grpo assignment.unmatched_penalty=1", "assignment.*: nothing in this run"),
        ("experiment=grpo penalties.unmatched=1", "penalties.unmatched=1: nothing in this run"),
        ("reward=turn penalties.no_answer=1", "penalties.no_answer=1: nothing in this run reads"),
        ("experiment=sft optimizer.lr=0.1", "optimizer.lr=0.1: nothing in this run reads"),
        ("experiment=sft iterations=5", "iterations=5: nothing in this run reads"),
    ],
)  # fmt: skip
def test_it_is_refused(command, named):
    with pytest.raises(ConfigError, match=named):
        check_program("train", *command.split())


@pytest.mark.parametrize(
    "command",
    [
        "turn_groups=state",
        "advantage=gigpo turn_scale=shrunk",
        "assignment=soft penalties.unmatched=0.1",
        "reward.outcome_turns=every reward.malformed_calls=ignored",
        "experiment=grpo penalties.no_answer=0.1",
        "experiment=sft datamodule.eval_batch_size=3",
        "objective=train/reward",
        "benchmark@validation=ftrl objective=val/solve_p",
        "benchmark@validation=nestful objective=val/full_match",
        "benchmark@validation=toolhop validation.split=test",
    ],
)
def test_what_is_read_is_taken(command):
    check_program("train", *command.split())


START = """
import runpy, sys
sys.path[0], sys.argv = "src", sys.argv
try:
    runpy.run_path("src/train.py", run_name="__main__")
except SystemExit as ended:
    print(ended.code)
print("imported", {"torch", "transformers", "lightning"} & sys.modules.keys())
"""


@pytest.mark.parametrize(
    ("command", "named"),
    [
        # The first of these gets as far as the constructors of the reward.
        ("turn_groups=foo", "module.advantage: turn_groups='foo' is not one of"),
        ("ahead=no", "ahead: takes bool, not 'no'"),
        ("iteration=3", "iteration: there is no such key; did you mean iterations?"),
        ("module.sede=3", "module.sede: there is no such key; did you mean module.seed?"),
    ],
)
def test_the_program_refuses_before_it_imports_what_is_slow(tmp_path, command, named):
    arguments = ["experiment=smoke", command, f"paths.log_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", START, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert named in done.stdout + done.stderr
    assert done.stdout.endswith("imported set()\n")
    assert not list(tmp_path.rglob("runs/*"))
