"""The tokenizer of the tiny policy: one token per word of the synthetic worlds, bytes for the rest.

A word-level vocabulary is what lets a policy of under a million parameters learn to copy names
from questions and tool results into arguments within a minute; with sub-word pieces it does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from matchtir.tasks.gold import WORD, task_words
from matchtir.tasks.synthetic import laptop_words
from matchtir.types import Task

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
CHAT_TEMPLATE = Path(__file__).with_name("qwen3_template.jinja")

# Qwen3's added tokens that conversations use; the second kind is not "special" there either.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKUP_TOKENS = (
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    *("<think>", "</think>"),
)

# Stretches of the chat format and of JSON that recur in every conversation: one token each.
FRAMES = (
    "system\n",
    "user\n",
    "assistant\n",
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n",
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within ",
    " XML tags:\n",
    '\n{"name": <function-name>, "arguments": <args-json-object>}\n',
    '{"type": "function", "function": {"name": "',
    '", "description": "',
    '", "parameters": {"type": "object", "properties": {"',
    '"]}}}\n{"type": "function", "function": {"name": "',
    '": {"type": "string"}',
    '": {"type": "string"}}, "required": ["',
    '": {"type": "string"}, "',
    '": {"type": "string", "enum": ["',
    '"], "default": "',
    '"}}, "required": ["',
    '"]}}}',
    '", "',
    '\n{"name": "',
    '", "arguments": {"',
    '": "',
    '"}}\n',
    '{"error": "',
    ' "',
    '"?',
    ", ",
    "<answer>",
    "</answer>",
    "\n\n",
)


# What the schemas of documented functions add to them.
SCHEMA_FRAMES = (
    '": {"type": "string", "description": "',
    '": {"type": "integer", "description": "',
    '": {"type": "number", "description": "',
    '": {"type": "boolean", "description": "',
    '"}, "',
)

_WORDS = (f" ?{WORD}", " ?[0-9]+")
# A name or number is the same token after a space, after a quotation mark and at the beginning: so
# a policy copies it by looking for it, and has not to learn which two tokens belong together.
_NAMES_APART = ("[A-Z][A-Za-z_]*", " ?[a-z_][A-Za-z_]*", "[0-9]+")


def _byte_level(text: str) -> str:
    """The spelling of a text in the byte-level alphabet, in which vocabularies are written."""
    return "".join(piece for piece, _ in BYTES.pre_tokenize_str(text))


def build_tokenizer(
    words: Iterable[str], frames: Sequence[str] = FRAMES, names_apart: bool = False
) -> PreTrainedTokenizerFast:
    """A fast tokenizer with `words` (each alone and after a space), the frames and 256 bytes.

    Any text can be encoded, and decodes to itself. The chat template writes Qwen3's format.

    Args:
        names_apart: whether capitalised words and numbers never take the space before them along.
    """
    units = [*sorted(pre_tokenizers.ByteLevel.alphabet())]
    units += [_byte_level(frame) for frame in frames]
    units += [_byte_level(prefix + word) for word in words for prefix in ("", " ")]
    vocabulary = {unit: index for index, unit in enumerate(dict.fromkeys(units))}

    # No merges: a piece that is in the vocabulary is one token, any other falls apart into bytes.
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    longest_first = sorted(frames, key=len, reverse=True)
    pieces = [*map(re.escape, longest_first), *(_NAMES_APART if names_apart else _WORDS)]
    split = pre_tokenizers.Split(Regex("|".join(pieces)), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, BYTES])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.add_tokens(list(MARKUP_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=131_072,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE.read_text(encoding="utf-8"),
    )


@lru_cache(maxsize=1)
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the tiny policy, with the words of the laptop worlds."""
    return build_tokenizer(laptop_words())


def tiny_tokenizer_for(tasks: Iterable[Task]) -> PreTrainedTokenizerFast:
    """The tokenizer of the tiny policy for these tasks: with their words, names apart."""
    words = [*laptop_words(), *task_words(tasks)]
    return build_tokenizer(words, (*FRAMES, *SCHEMA_FRAMES), names_apart=True)
