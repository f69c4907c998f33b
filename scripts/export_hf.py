"""The policy of a run as a Hugging Face model: weights, tokenizer, template, settings, model card.

python scripts/export_hf.py logs/matchtir_soft/runs/<time>            # writes <run>/export
python scripts/export_hf.py <run> --weights best --dtype bfloat16 --out my-policy

transformers and vLLM load the folder; so does `python src/eval.py policy=<folder>`. At the end the
folder is loaded again and its log-probabilities are compared with those of the run's weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from hydra.utils import instantiate
from jinja2 import Environment
from omegaconf import OmegaConf
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers import GenerationConfig

from matchtir.evaluation.policies import renderer_of_run
from matchtir.policy.loading import (
    POLICY_FOLDER,
    LoadedPolicy,
    load_pretrained,
    save_pretrained,
)
from matchtir.utils.loggers import quiet
from matchtir.utils.run_folder import CONFIG_FILE, RESULT_FILE, leaves

WEIGHTS = ("end", "best", "last")
SAME = 1e-4  # nats, in the precision of the run: what another order of sums may change

# Settings that say what was done; a card lists those that the run has.
SHOWN = """
    iterations tasks_per_iteration group_size mini_batches seed zero_advantage
    module.sampling.temperature module.max_grad_norm optimizer._target_ optimizer.lr
    reward._target_ assignment._target_ advantage._target_ advantage.gamma
    advantage.turn_groups advantage.turn_scale advantage.turn_baseline
    loss.aggregation loss.clip_low loss.clip_high loss.kl_coefficient
    penalties.unmatched penalties.no_answer turn_reduction
    model.lora.r model.lora.alpha model.lora.target_modules
    rollout.limits.max_turns rollout.limits.max_prompt_tokens rollout.limits.max_response_tokens
    trainer.precision
"""
CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
{% if base %}
base_model: {{ base }}
{% endif %}
tags: [tool-calling, reinforcement-learning, matchtir]
---

# {{ name }}

{% if base %}
Trained from `{{ base }}`, whose licence holds for these weights too.
{% else %}
A small policy trained from random weights (Qwen3's architecture, hidden \
{{ settings["model.hidden_size"] }}, {{ settings["model.layers"] }} layers).
{% endif %}

## Method

The policy was trained by policy gradient with one advantage per turn. The calls of an attempt \
are matched to the calls of a gold solution (arXiv 2601.10712); each turn is paid for the calls \
that it made, the last one for the answer, and every token of a turn gets the advantage of that \
turn. Tool results stay in the context and carry no loss.
{% for heading, values in tables.items() %}

## {{ heading }}

| key | value |
|---|---|
{% for key, value in values.items() %}
| `{{ key }}` | `{{ value }}` |
{% endfor %}
{% endfor %}

## Results

{% if result %}
Means over {{ result.tasks }} test tasks, greedy decoding; paired bootstrap.\
{% if weights != "end" %} They belong to the end of the run, not to these weights ({{ weights }}).\
{% endif %}


| metric | before | after | gain, 95 % interval |
|---|---|---|---|
{% for metric, gain in result.gain.items() %}
| {{ metric }} | {{ "%.3f" % result.before[metric] }} | {{ "%.3f" % result.after[metric] }} \
| {{ "%+.3f [%+.3f, %+.3f]" % (gain.mean, gain.low, gain.high) }} |
{% endfor %}
{% else %}
The run has not ended: nothing was measured on its test tasks.
{% endif %}

## Use

The chat template writes tools and tool results; a turn ends at one of the stop tokens in
`generation_config.json`. Loading needs nothing of the project:

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("<this folder>")
    tokenizer = AutoTokenizer.from_pretrained("<this folder>")

`config.yaml` is the whole configuration of the run; with it
`python src/eval.py policy=<this folder>` renders conversations as in training.
"""


def run_policy(run: Path, weights: str) -> LoadedPolicy:
    """The policy of a run: at its end, or of one of its checkpoints.

    Raises:
        FileNotFoundError: the run has no such weights.
    """
    folder = run / POLICY_FOLDER if weights == "end" else run / "checkpoints" / f"{weights}.ckpt"
    if not folder.exists():
        others = [name for name in WEIGHTS if name != weights]
        raise FileNotFoundError(f"{folder} is not there; --weights {' or '.join(others)}?")
    if weights == "end":
        return load_pretrained(str(folder))
    loaded: LoadedPolicy = instantiate(OmegaConf.load(run / CONFIG_FILE).model)
    state = checkpoint_weights(folder)
    loaded.policy.load_state_dict({k.removeprefix("policy."): v for k, v in state.items()})
    return loaded


def checkpoint_weights(path: Path) -> dict[str, Any]:
    """The weights in a checkpoint: one file, or a folder of shards."""
    if path.is_file():
        return torch.load(path, map_location="cpu", weights_only=False)["state_dict"]
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole.ckpt")
        dcp_to_torch_save(path, whole)
        return torch.load(whole, weights_only=False)["state_dict"]


def export(run: Path, out: Path, weights: str, dtype: str | None) -> LoadedPolicy:
    """Write the folder; returns the run's policy."""
    loaded = run_policy(run, weights)
    settings = leaves(OmegaConf.to_container(OmegaConf.load(run / CONFIG_FILE)))
    renderer = renderer_of_run(str(run))(loaded.tokenizer)
    save_pretrained(loaded, out)
    if dtype:
        shrunk = load_pretrained(str(out), dtype=dtype)
        save_pretrained(shrunk, out)
    GenerationConfig(
        do_sample=True,
        temperature=settings.get("module.sampling.temperature", 1.0),
        eos_token_id=list(renderer.stop_token_ids),
        pad_token_id=renderer.pad_id,
        max_new_tokens=settings["rollout.limits.max_turn_tokens"],
    ).save_pretrained(out)
    result = run / RESULT_FILE
    measured = json.loads(result.read_text(encoding="utf-8")) if result.exists() else None
    card = model_card(settings.get("identity.name") or run.name, settings, measured, weights)
    (out / "README.md").write_text(card, encoding="utf-8")
    shutil.copy(run / CONFIG_FILE, out / CONFIG_FILE)
    return loaded


def model_card(
    name: str, settings: Mapping[str, Any], result: Mapping[str, Any] | None, weights: str
) -> str:
    """The card as Markdown.

    Args:
        name: of the policy.
        settings: the leaves of the run's config, by dotted key.
        result: `result.json` of the run; None: it has not ended.
        weights: which ones were exported: "end", "best" or "last".
    """
    tables = {
        "Data": {key: value for key, value in settings.items() if key.startswith("data.")},
        "Settings": {k: settings[k] for k in SHOWN.split() if settings.get(k) is not None},
    }
    facts = {"name": name, "settings": settings, "result": result, "weights": weights}
    card = Environment(trim_blocks=True, keep_trailing_newline=True).from_string(CARD)
    return card.render(base=settings.get("model.name_or_path"), tables=tables, **facts)


@torch.no_grad()
def largest_difference(one: LoadedPolicy, other: LoadedPolicy) -> float:
    """Between the log-probabilities of some hundred tokens, in nats."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(len(one.tokenizer), (4, 64), generator=generator)
    scored = torch.ones_like(ids, dtype=torch.bool)
    scores = [each.policy.eval()(ids, scored).logprobs for each in (one, other)]
    return float((scores[0] - scores[1]).abs().max())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, help="default: export in the folder of the run")
    parser.add_argument("--weights", choices=WEIGHTS, default="end")
    parser.add_argument("--dtype", help="of the exported weights; default: the run's own")
    options = parser.parse_args()
    quiet()
    out = options.out or options.run / "export"
    try:
        loaded = export(options.run, out, options.weights, options.dtype)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    difference = largest_difference(loaded, load_pretrained(str(out)))
    print(f"{out}: log-probabilities differ from the run's by at most {difference:.1e}")
    if not options.dtype and difference > SAME:
        raise SystemExit("the exported policy is not that of the run")


if __name__ == "__main__":
    main()
