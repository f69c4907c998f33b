"""A causal language model as the trainer uses it: log-probabilities of given tokens."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from matchtir.policy.packing import layout, packed_states, use_packed_attention

LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class TokenScores(NamedTuple):
    """Per token of a batch, 0 where no score was asked for."""

    logprobs: Float[Tensor, "B L"]  # of the token itself, given everything before it
    entropy: Float[Tensor, "B L"]  # of the distribution it was drawn from, in nats


class Float32Linear(nn.Linear):
    """A linear layer that computes in 32 bits whatever the precision around it and of its weights.

    An output layer in 16 bits was the largest source of what separates sampler and trainer
    (MiniMax-M1, 2506.13585; ScaleRL, 2510.13786).
    """

    def forward(self, input: Tensor) -> Tensor:
        """The product, in 32 bits."""
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return linear(input.float(), self.weight.float(), bias)


class Policy(nn.Module):
    """Wraps any Hugging Face causal LM.

    Args:
        model: with `get_input_embeddings`, `get_output_embeddings` and a base model.
        head_chunk: tokens whose logits exist at once; those of the whole batch never do.
        packing: compute the sequences of a batch in one row: no padding, and a prompt that several
            of them have once.
        head_float32: the output layer computes in 32 bits, here and where this model samples;
            weights in 16 bits are copied for it, chunk after chunk.

    Raises:
        ValueError: `head_chunk` below 1, an output layer that is no `nn.Linear`, a model that does
            more to its logits than that layer (what is computed here would not be its
            log-probabilities), or one that cannot be packed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        head_chunk: int = 2048,
        packing: bool = False,
        head_float32: bool = False,
    ) -> None:
        super().__init__()
        if head_chunk < 1:
            raise ValueError(f"head_chunk must be at least 1, got {head_chunk}")
        for setting in LOGIT_CHANGES:
            if getattr(model.config.get_text_config(), setting, None) not in (None, 1, 1.0):
                raise ValueError(f"models with {setting} are not supported")
        if packing:
            use_packed_attention(model, "packing")
        if head_float32:
            head = model.get_output_embeddings()
            if type(head) is not nn.Linear:
                raise ValueError(f"head_float32 needs a linear output layer, not {type(head)}")
            head.__class__ = Float32Linear  # so it stays the same weight, tied or not
        self.model = model
        self.head_chunk = head_chunk
        self.packing = packing
        self.head_float32 = head_float32

    def train_without_dropout(self) -> None:
        """Activation checkpointing as in training, everything else as in eval mode."""
        self.eval()
        for module in self.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True  # of itself alone: what it consists of stays in eval mode

    def forward(
        self,
        input_ids: Int[Tensor, "B L"],
        scored: Bool[Tensor, "B L"],
        temperature: float = 1.0,
        attention_mask: Bool[Tensor, "B L"] | None = None,
    ) -> TokenScores:
        """Log-probability and entropy of every `scored` token, at the sampler's temperature.

        Sequences are padded on the right, so that causal attention alone hides the padding and
        the fast kernels without a mask apply. With packing, padding (outside of `attention_mask`;
        None: there is none) is not computed at all.
        """
        # The state before a token predicts it; the first token of a sequence has none before it.
        wanted = scored.clone()
        wanted[:, 0] = False
        if self.packing:
            if attention_mask is None:
                attention_mask = torch.ones_like(scored)
            tokens = layout(input_ids, scored, attention_mask)
            hidden = packed_states(self.model.base_model, input_ids, tokens)
            states = hidden[tokens.positions[:, :-1][wanted[:, 1:]]]
        else:
            hidden = self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
            states = hidden[:, :-1][wanted[:, 1:]]
        targets = input_ids[wanted]
        head: Any = self._head
        if torch.is_grad_enabled():  # the logits are computed again in the backward pass
            head = partial(checkpoint, head, use_reentrant=False)
        chunks = zip(states.split(self.head_chunk), targets.split(self.head_chunk), strict=True)
        pieces = [head(state, target, temperature) for state, target in chunks]
        logprobs, entropy = (torch.cat(column) for column in zip(*pieces, strict=True))
        empty = torch.zeros(input_ids.shape, dtype=logprobs.dtype, device=logprobs.device)
        return TokenScores(
            empty.masked_scatter(wanted, logprobs), empty.masked_scatter(wanted, entropy)
        )

    def _head(
        self, states: Float[Tensor, "K H"], targets: Int[Tensor, " K"], temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Scores of K tokens."""
        logits = self.model.get_output_embeddings()(states).float() / temperature
        log_distribution = logits.log_softmax(dim=-1)
        logprobs = log_distribution.gather(-1, targets[:, None]).squeeze(-1)
        entropy = -(log_distribution.exp() * log_distribution).sum(dim=-1)
        return logprobs, entropy
