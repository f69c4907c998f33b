"""The shipped starting weights are those of their card."""

import hashlib
import re
from functools import partial
from types import SimpleNamespace

import pytest

from matchtir.evaluation.benchmark import TaskBenchmark
from matchtir.policy.tiny.model import START, load_start
from matchtir.policy.tiny.tokenizer import tiny_tokenizer
from matchtir.rollout.episode import EpisodeLimits
from matchtir.rollout.renderer import Renderer
from matchtir.tasks.synthetic import SyntheticTasks
from matchtir.types import Task, ToolCall
from tests.evaluation.benchmark_helpers import play

CARD = (START / "README.md").read_text(encoding="utf-8")


def test_the_weights_are_those_of_the_card():
    (stated,) = re.findall(r"`([0-9a-f]{64})`", CARD)
    weights = (START / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == stated
    assert len(weights) < 4_000_000
    loaded = load_start()
    assert loaded.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    assert loaded.tokenizer.chat_template == tiny_tokenizer().chat_template


def test_they_score_what_the_card_says(sandbox, tmp_path):
    """Success and Solve-F1 of the held-out tasks, on a quarter of them."""
    row = next(line for line in CARD.splitlines() if "these weights" in line)
    stated = [float(cell.strip(" *")) for cell in row.split("|")[2:-1]]
    tasks, limits = SyntheticTasks("laptop"), EpisodeLimits(8, 16_384, 400, 64)
    quarter = TaskBenchmark("held_out", tasks, {}, limits=limits, max_tasks=64)
    renderer = partial(Renderer, system_prompt="")
    records = play(quarter, str(START), sandbox, tmp_path, renderer=renderer).records
    for name, value in zip(("success", "solve_p", "solve_r", "solve_f1"), stated, strict=False):
        mean = sum(record["values"][name] for record in records) / 64
        assert mean == pytest.approx(value, abs=0.12), name  # two standard errors of 64 tasks


def test_words_of_other_tasks_join_and_the_known_ones_stay():
    task = Task("t", "Which currency has Oslo?", (), (ToolCall("rate", {"city": "Oslo"}),), "")
    loaded, start = load_start(words_of=SimpleNamespace(tasks=lambda split: [task])), load_start()
    size = len(loaded.tokenizer)
    assert size > len(start.tokenizer)
    embeddings = loaded.policy.model.get_input_embeddings().weight
    assert embeddings.shape[0] == loaded.policy.model.config.vocab_size == size
    assert loaded.policy.model.get_output_embeddings().weight is embeddings
    old = start.policy.model.get_input_embeddings().weight
    for token in ("<tool_call>", "<|im_end|>", "Ġrelic"):
        new, known = (each.tokenizer.get_vocab()[token] for each in (loaded, start))
        assert embeddings[new].equal(old[known]), token
