"""The model card of an exported policy: what it is, how it was made, what it scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Settings that say what was done; a card lists those that the run has.
SHOWN = (
    *("iterations", "tasks_per_iteration", "group_size", "mini_batches", "seed", "silent"),
    *("module.sampling.temperature", "module.max_grad_norm", "optimizer._target_", "optimizer.lr"),
    *("reward._target_", "assignment._target_", "advantage._target_", "advantage.gamma"),
    "advantage.turn_groups",
    *("loss.aggregation", "loss.clip_low", "loss.clip_high", "loss.kl_coefficient"),
    *("penalties.unmatched", "penalties.no_answer", "turn_reduction"),
    *("model.lora.r", "model.lora.alpha", "model.lora.target_modules"),
    *("rollout.limits.max_turns", "rollout.limits.max_prompt_tokens"),
    *("rollout.limits.max_response_tokens", "trainer.precision"),
)
METHOD = (
    "The policy was trained by policy gradient with one advantage per turn. The calls of an "
    "attempt are matched to the calls of a gold solution (arXiv 2601.10712); each turn is paid for "
    "the calls that it made, the last one for the answer, and every token of a turn gets the "
    "advantage of that turn. Tool results stay in the context and carry no loss."
)
USE = """\
The chat template writes tools and tool results; a turn ends at one of the stop tokens in
`generation_config.json`. Loading needs nothing of the project:

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("<this folder>")
    tokenizer = AutoTokenizer.from_pretrained("<this folder>")

`config.yaml` is the whole configuration of the run; with it
`python src/eval.py policy=<this folder>` renders conversations as in training."""


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
    base = settings.get("model.name_or_path")
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    head += [f"base_model: {base}"] if base else []
    head += ["tags: [tool-calling, reinforcement-learning, matchtir]", "---"]
    parts = [
        "\n".join(head),
        f"# {name}",
        _origin(base, settings),
        f"## Method\n\n{METHOD}",
        f"## Data\n\n{_table(_data(settings))}",
        f"## Settings\n\n{_table({k: settings[k] for k in SHOWN if settings.get(k) is not None})}",
        f"## Results\n\n{_results(result, weights)}",
        f"## Use\n\n{USE}",
    ]
    return "\n\n".join(parts) + "\n"


def _origin(base: str | None, settings: Mapping[str, Any]) -> str:
    if base:
        return f"Trained from `{base}`, whose licence holds for these weights too."
    sizes = f"hidden {settings.get('model.hidden_size')}, {settings.get('model.layers')} layers"
    return f"A small policy trained from random weights (Qwen3's architecture, {sizes})."


def _data(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key.startswith("data.")}


def _results(result: Mapping[str, Any] | None, weights: str) -> str:
    if result is None:
        return "The run has not ended: nothing was measured on its test tasks."
    lines = ["| metric | before | after | gain, 95 % interval |", "|---|---|---|---|"]
    for metric, gain in result["gain"].items():
        low, high = gain["low"], gain["high"]
        lines.append(
            f"| {metric} | {result['before'][metric]:.3f} | {result['after'][metric]:.3f} "
            f"| {gain['mean']:+.3f} [{low:+.3f}, {high:+.3f}] |"
        )
    note = f"Means over {result['tasks']} test tasks, greedy decoding; paired bootstrap."
    if weights != "end":
        note += f" They belong to the end of the run, not to these weights ({weights})."
    return "\n".join([note, "", *lines])


def _table(values: Mapping[str, Any]) -> str:
    rows = [f"| `{key}` | `{value}` |" for key, value in values.items()]
    return "\n".join(["| key | value |", "|---|---|", *rows])
