"""Chat templates of model families in small, with a tokenizer that has their control tokens."""

from functools import cache

import pytest

from matchtir.policy.tiny.tokenizer import build_tokenizer
from tests.rollout.episode_fakes import WORDS, qwen3_tokenizer, small_tokenizer

# Qwen2.5: ChatML with <tool_call>; a system message of its own where there is none.
QWEN2_5 = """
{%- set own = messages[0].role == 'system' -%}
{%- set rest = messages[1:] if own else messages -%}
{{- '<|im_start|>system\n' -}}
{{- messages[0].content if own else 'You are a helpful assistant.' -}}
{{- '\n\n# Tools\n\n<tools>\n' + (tools | map('tojson') | join('\n')) + '\n</tools>' if tools -}}
{{- '<|im_end|>\n' -}}
{%- for message in rest -%}
  {%- if message.role == 'tool' -%}
    {{- '<|im_start|>user' if loop.first or rest[loop.index0 - 1].role != 'tool' -}}
    {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' -}}
    {{- '<|im_end|>\n' if loop.last or rest[loop.index0 + 1].role != 'tool' -}}
  {%- elif message.tool_calls -%}
    {{- '<|im_start|>assistant' + ('\n' + message.content if message.content else '') -}}
    {%- for call in message.tool_calls -%}
      {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' -}}
      {{- (call.function.arguments | tojson) + '}\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\n' -}}
  {%- else -%}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""

# Llama 3.1: headers, one call a turn as plain JSON, results from `ipython` as JSON strings, tools
# in the first user message.
LLAMA3_1 = """
{{- '<|begin_of_text|>' -}}
{%- set own = messages[0].role == 'system' -%}
{%- set rest = messages[1:] if own else messages -%}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' -}}
{{- 'Environment: ipython\n' if tools -}}
{{- 'Today Date: 26 Jul 2024\n\n' + (messages[0].content if own else '') + '<|eot_id|>' -}}
{%- for message in rest -%}
  {%- if message.role in ('tool', 'ipython') -%}
    {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' -}}
    {{- (message.content | tojson) + '<|eot_id|>' -}}
  {%- elif message.tool_calls -%}
    {%- if message.tool_calls | length != 1 -%}
      {{- raise_exception('This model only supports single tool-calls at once!') -}}
    {%- endif -%}
    {%- set call = message.tool_calls[0].function -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + call.name + '", ' -}}
    {{- '"parameters": ' + (call.arguments | tojson) + '}<|eot_id|>' -}}
  {%- else -%}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' -}}
    {%- if tools and loop.first -%}
      {{- 'Respond in the format {"name": function name, "parameters": arguments}.\n\n' -}}
      {%- for tool in tools -%}{{- (tool | tojson(indent=4)) + '\n\n' -}}{%- endfor -%}
    {%- endif -%}
    {{- message.content + '<|eot_id|>' -}}
  {%- endif -%}
{%- endfor -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' if add_generation_prompt -}}
"""

# Qwen3.5 and later: functions in tags, the thought begun by the prompt, results trimmed.
QWEN3_5 = """
{%- for message in messages -%}
  {%- if message.role == 'tool' -%}
    {{- '<|im_start|>user' if loop.previtem.role != 'tool' -}}
    {{- '\n<tool_response>\n' + (message.content | trim) + '\n</tool_response>' -}}
    {{- '<|im_end|>\n' if loop.last or loop.nextitem.role != 'tool' -}}
  {%- else -%}
    {{- '<|im_start|>' + message.role + '\n' -}}
    {{- '<think>\n\n</think>\n\n' if message.role == 'assistant' -}}
    {{- (tools | tojson) + '\n' if loop.first and tools -}}
    {{- message.content -}}
    {%- for call in message.tool_calls or [] -%}
      {{- '\n' if not loop.first -}}
      {{- '<tool_call>\n<function=' + call.function.name + '>\n' -}}
      {%- for name, value in call.function.arguments | items -%}
        {{- '<parameter=' + name + '>\n' + (VALUE) + '\n</parameter>\n' -}}
      {%- endfor -%}
      {{- '</function>\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n<think>\n' -}}
  {%- if enable_thinking is false -%}{{- '\n</think>\n\n' -}}{%- endif -%}
{%- endif -%}
"""
JSON_VALUES = "value if value is string else value | tojson"
PYTHON_VALUES = "value | string if value is string or value is not iterable else value | tojson"
LLAMA_TOKENS = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<|eom_id|>", "<|python_tag|>"),
)


def _with(template, special=()):
    tokenizer = build_tokenizer(WORDS)
    tokenizer.chat_template = template
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
        tokenizer.eos_token = "<|eot_id|>"
    return tokenizer


qwen2_5 = cache(lambda: _with(QWEN2_5))
llama3_1 = cache(lambda: _with(LLAMA3_1, LLAMA_TOKENS))
qwen3_5 = cache(lambda: _with(QWEN3_5.replace("VALUE", PYTHON_VALUES)))
qwen3_6 = cache(lambda: _with(QWEN3_5.replace("VALUE", JSON_VALUES)))
FAMILIES = pytest.mark.parametrize(
    "load", [qwen2_5, llama3_1, small_tokenizer, qwen3_tokenizer, qwen3_5, qwen3_6]
)
