"""Tokens come up as often as the settings say, and a row depends on itself alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.slot_decoder import sample_tokens

DRAWS = 2000
LOGITS = torch.tensor([1.0, -1.0, 2.0, 0.5, -torch.inf, 0.0])


def shares(logits, params):
    """How often each token comes up where the random numbers cover [0, 1) evenly."""
    uniforms = [(draw + 0.5) / DRAWS for draw in range(DRAWS)]
    rows = logits.expand(DRAWS, -1)
    tokens, logprobs = sample_tokens(rows, [params] * DRAWS, uniforms)
    found = torch.bincount(tokens, minlength=len(logits)) / DRAWS
    # What is reported is the distribution that was drawn from.
    for token, logprob in zip(tokens.tolist(), logprobs.tolist(), strict=True):
        assert found[token].item() == pytest.approx(torch.tensor(logprob).exp().item(), abs=2e-3)
    return found


def test_greedy_is_the_likeliest_token_with_its_log_probability_at_temperature_1():
    tokens, logprobs = sample_tokens(LOGITS[None], [SamplingParams(temperature=0)], [0.999])
    assert tokens.tolist() == [2]
    torch.testing.assert_close(logprobs, LOGITS.log_softmax(dim=-1)[2:3])


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_a_possible_token(uniform):
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]])
    tokens, logprobs = sample_tokens(logits, [SamplingParams()], [uniform])
    assert tokens.tolist() == [1 if uniform == 0 else 2]
    assert logprobs.isfinite().all()


ROW = st.tuples(
    st.lists(st.floats(-5, 5), min_size=6, max_size=6),
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.5, 1.0]),
        top_p=st.sampled_from([0.3, 0.9, 1.0]),
        top_k=st.sampled_from([0, 1, 3]),
    ),
    st.floats(0, 1, exclude_max=True),
)


@settings(deadline=None)
@given(st.lists(ROW, min_size=1, max_size=5))
def test_a_row_depends_on_itself_alone(rows):
    values, params, uniforms = map(list, zip(*rows, strict=True))
    logits = torch.tensor(values, dtype=torch.float32)
    both = torch.stack(sample_tokens(logits, params, uniforms))
    for index, (param, uniform) in enumerate(zip(params, uniforms, strict=True)):
        alone = torch.stack(sample_tokens(logits[index : index + 1], [param], [uniform]))
        assert both[:, index].tolist() == alone[:, 0].tolist()


def test_a_row_without_truncation_is_untouched_by_one_with_it():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3000, generator=generator) * 6
    params = [SamplingParams(), SamplingParams(top_p=0.5)]
    for draw in range(0, 200, 10):
        uniforms = [1 - 0.5 ** (draw / 4), 0.5]  # ever further into the tail
        both = sample_tokens(logits, params, uniforms)
        alone = sample_tokens(logits[:1], params[:1], uniforms[:1])
        assert [one[0].item() for one in both] == [one[0].item() for one in alone]


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.zeros(1, 5000, dtype=torch.bfloat16)
    _, logprobs = sample_tokens(logits, [SamplingParams()], [0.5])
    assert logprobs.dtype == torch.float32
    assert logprobs.item() == pytest.approx(-torch.tensor(5000.0).log().item(), abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"temperature": 0.25}, [0, 1, 2, 3]),
        ({"temperature": 3.0}, [0, 1, 2, 3]),
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 100}, [0, 1, 2, 3]),
        ({"top_p": 0.01}, [0]),  # the likeliest token always stays
        ({"top_p": 0.49}, [0]),
        ({"top_p": 0.51}, [0, 1]),  # the token that crosses it is in
        ({"top_p": 0.81}, [0, 1, 2]),
        ({"top_k": 2, "top_p": 0.6}, [0]),  # the nucleus of what top-k left
        ({"top_p": 0.9, "temperature": 0.1}, [0]),  # of the distribution at the temperature
    ],
)
def test_truncation_keeps_the_likeliest_tokens(settings, kept):
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    params = SamplingParams(**settings)
    scaled = (probabilities.log() / params.temperature).softmax(-1)
    expected = torch.zeros(4)
    expected[kept] = scaled[kept] / scaled[kept].sum()
    torch.testing.assert_close(shares(probabilities.log(), params), expected, atol=2e-3, rtol=0)
