"""An exported policy is the run's: the same log-probabilities, the same table."""

import json
import runpy
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from matchtir.policy.loading import load_pretrained
from tests.scale.whole_runs import ROOT, TINY, run_here


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_here(folder, *TINY, "model.lora={r: 4}", "iterations=2")
    return folder


@pytest.fixture
def export(monkeypatch, capsys):
    """Runs the command line in this process; what it says."""

    def run(*arguments):
        script = ROOT / "scripts" / "export_hf.py"
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    return run


def program(script, *arguments):
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_transformers_alone_loads_it_and_computes_the_same(run, tmp_path, export):
    out = tmp_path / "export"
    said = export(str(run), "--out", str(out))
    assert "differ from the run's by at most" in said
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = torch.tensor([tokenizer.encode("What is the mayor of a city?")])
    with torch.no_grad():
        theirs = model(ids).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        scored = torch.ones_like(ids, dtype=torch.bool)
        ours = load_pretrained(str(run / "policy")).policy.eval()(ids, scored).logprobs[:, 1:]
    assert torch.allclose(theirs, ours, atol=1e-5)
    stops = [tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]
    assert GenerationConfig.from_pretrained(out).eos_token_id == stops
    assert "tool_call" in tokenizer.chat_template
    card = (out / "README.md").read_text(encoding="utf-8")
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert f"| answer_f1 | {result['before']['answer_f1']:.3f} |" in card
    assert "`model.lora.r` | `4`" in card


def test_weights_of_a_checkpoint_and_in_another_precision(run, tmp_path, export):
    out = tmp_path / "export"
    export(str(run), "--out", str(out), "--weights", "last", "--dtype", "bfloat16")
    exported = load_pretrained(str(out)).policy.model.state_dict()
    assert {value.dtype for value in exported.values()} == {torch.bfloat16}
    end = load_pretrained(str(run / "policy")).policy.model.state_dict()
    assert all(torch.equal(exported[name], end[name].bfloat16()) for name in end)
    assert "not to these weights (last)" in (out / "README.md").read_text(encoding="utf-8")


def test_a_run_without_such_weights_says_which_there_may_be(tmp_path, export):
    with pytest.raises(SystemExit, match=r"--weights best or last\?"):
        export(str(tmp_path))


@pytest.mark.slow
def test_the_evaluation_of_the_export_is_that_of_the_run(run, tmp_path):
    program("scripts/export_hf.py", str(run), "--out", str(tmp_path / "export"))
    tables = []
    for policy in (run, tmp_path / "export"):
        paths = [f"hydra.run.dir={tmp_path}/{policy.name}_table", f"policy={policy}", "label=it"]
        said = program("src/eval.py", "benchmark=synthetic", "max_tasks=12", *paths)
        tables.append([line for line in said.splitlines() if "│" in line])
    assert tables[0] and tables[0] == tables[1]
