"""A vLLM server of an export reads what the run's renderer writes, and computes the same."""

import asyncio
import runpy
import sys

import torch

from matchtir.policy.loading import load_pretrained
from matchtir.rollout.http import HttpClient
from matchtir.rollout.renderer import Renderer
from matchtir.rollout.vllm_server import VllmProcess
from tests.rollout.engine_helpers import needs_vllm
from tests.rollout.episode_fakes import task
from tests.scale.whole_runs import ROOT, succeeded

# Without dtype vLLM makes 16 bits of float32 weights.
SETTINGS = {"dtype": "float32", "max_model_len": 512, "enforce_eager": True, "block_size": 32}


@needs_vllm
def test_a_server_of_the_export(tmp_path, monkeypatch):
    run, out = tmp_path / "run", tmp_path / "export"
    succeeded(run, "model.hidden_size=64", "model.lora={r: 4}", "iterations=2")  # heads of 32
    monkeypatch.setattr(sys, "argv", ["export_hf.py", str(run), "--out", str(out)])
    runpy.run_path(str(ROOT / "scripts" / "export_hf.py"), run_name="__main__")

    loaded = load_pretrained(str(run / "policy"))
    renderer = Renderer(loaded.tokenizer, system_prompt="")
    asked = task("t", "What is the mayor of a city ?")
    prompt = renderer.prompt_ids(asked)

    settings = {"model": str(out), "served_model_name": "it", **SETTINGS}

    def post(path, body):
        return asyncio.run(HttpClient(server.url, 60, 0).request("POST", path, body))

    server = VllmProcess(settings, kv_cache_gib=1, folder=tmp_path, timeout_s=600)
    try:
        chat = {
            "messages": [{"role": "user", "content": asked.question}],
            "tools": [spec.schema() for spec in asked.tools],
        }
        assert tuple(post("/tokenize", {"model": "it", **chat})["tokens"]) == prompt
        sampling = {"max_tokens": 20, "ignore_eos": True, "temperature": 1.0, "seed": 0}
        wanted = {"prompt_logprobs": 0, "logprobs": 0, "return_token_ids": True}
        body = {"model": "it", "prompt": prompt, **sampling, **wanted}
        sampled = post("/v1/completions", body)
    finally:
        server.stop()
    (choice,) = sampled["choices"]
    theirs = [
        *(next(iter(token.values()))["logprob"] for token in choice["prompt_logprobs"][1:]),
        *choice["logprobs"]["token_logprobs"],
    ]
    ids = torch.tensor([[*prompt, *choice["token_ids"]]])
    with torch.no_grad():
        scores = loaded.policy.eval()(ids, torch.ones_like(ids, dtype=torch.bool))
    difference = (scores.logprobs[0, 1:] - torch.tensor(theirs)).abs().max()
    print(f"largest difference {difference:.1e}")
    assert len(theirs) == len(prompt) + 19 and difference < 1e-4
