"""The shipped starting weights are those of their card."""

import hashlib
import re
from types import SimpleNamespace

import pytest

from matchtir.evaluation.metrics import measure
from matchtir.policy.tiny.model import START, load_start
from matchtir.policy.tiny.tokenizer import tiny_tokenizer
from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.episode import EpisodeLimits
from matchtir.rollout.renderer import Renderer
from matchtir.rollout.runner import EpisodeRunner
from matchtir.rollout.speakers import TokenSpeaker
from matchtir.rollout.transformers_engine import TransformersEngine
from matchtir.tasks.synthetic import SyntheticTasks
from matchtir.tools.sandbox import ProcessPoolSandbox
from matchtir.types import Task, ToolCall

CARD = (START / "README.md").read_text(encoding="utf-8")
LIMITS = EpisodeLimits(8, 16_384, 400, 64)


def test_the_weights_are_those_of_the_card():
    (stated,) = re.findall(r"`([0-9a-f]{64})`", CARD)
    weights = (START / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == stated
    assert len(weights) < 4_000_000
    loaded = load_start()
    assert loaded.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    assert loaded.tokenizer.chat_template == tiny_tokenizer().chat_template


def test_they_score_what_the_card_says():
    """Success and Solve-F1 of the held-out tasks, on a quarter of them."""
    row = next(line for line in CARD.splitlines() if "these weights" in line)
    stated = [float(cell.strip(" *")) for cell in row.split("|")[2:-1]]
    loaded = load_start()
    renderer = Renderer(loaded.tokenizer, "")
    engine = TransformersEngine(renderer.stop_token_ids)
    engine.sync(loaded.policy.eval(), version=0)
    sandbox = ProcessPoolSandbox(workers=1)
    tasks = SyntheticTasks("laptop").tasks("test")[:64]
    try:
        runner = EpisodeRunner(TokenSpeaker(engine, renderer), sandbox, LIMITS)
        groups = runner.run(tasks, 1, SamplingParams(temperature=0.0), seed=0)
    finally:
        sandbox.shutdown()
    measured = [measure(trajectory) for [trajectory] in groups]
    for name, value in zip(("success", "solve_p", "solve_r", "solve_f1"), stated, strict=False):
        mean = sum(each[name] for each in measured) / len(measured)
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
