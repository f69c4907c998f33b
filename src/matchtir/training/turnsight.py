"""TurnSight (2608.04007): advantages weighted by what a frozen reference thinks in hindsight."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from matchtir.policy.batching import TokenBatch, collate
from matchtir.rollout.renderer import Renderer
from matchtir.types import Trajectory, Turn
from matchtir.utils.options import UserError, check_option

Score = Callable[[TokenBatch], Tensor]  # log-probabilities [B, L] of sampled tokens, by a reference
Place = tuple[int, int, int]  # trajectory, turn, and the last turn whose results are read before it


@dataclass(frozen=True)
class TurnSight:
    """``A* = A [(1 - mixing) + mixing w]``, ``w = 1 + bound tanh(sign(A) delta)``, in every turn.

    delta says whether the turn is likelier to the reference once it has read what came of it, and
    how much likelier than other turns of the group. For token l of turn t and lookahead d

        gap_l^d = log pi_ref(y_l | c_l, H_t^d) - log pi(y_l | c_l)
        H_t^d   = the results of the calls of turns t to t + d - 1, or to the last one
        d*      = of the depths whose mean gap has the majority's sign, the one with the largest
        delta_t = (mean of gap^d* over the turn - mu) / (sigma + epsilon)

    with mu and sigma of gap^d* over the tokens of all such turns of the group. What the paper
    leaves open, or has otherwise:

    * H stands behind the last message before the turn, as one more message of results in the format
      of the chat template: everything up to that message is the same for all d, and is shared.
    * The paper's H also names the calls. Here it has results alone (as its Figure 3 says of what
      works best), since from the turn's own calls the reference would copy.
    * log pi is that of the policy that sampled, as its sampler said, which takes no pass.
      ``without=reference``: that of the reference, which is compared with itself.
    * A turn without calls has no hindsight: its weight is 1, and it is outside mu and sigma.
    * sigma is unbiased; of as many depths with either sign the positive ones are taken.

    Args:
        depths: lookaheads d.
        mixing: lambda, in [0, 1].
        bound: epsilon_w, in [0, 1].
        without: whose log-probabilities without hindsight, ``policy`` or ``reference``.
        epsilon: added to sigma.

    Raises:
        UserError: options out of range.
    """

    depths: Sequence[int] = (1, 2, 3)
    mixing: float = 0.5
    bound: float = 0.5
    without: str = "policy"
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        check_option("without", self.without, ("policy", "reference"))
        if not self.depths or min(self.depths) < 1:
            raise UserError(f"depths={list(self.depths)} must be 1 or more, and some")
        for name in ("mixing", "bound"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} must lie in [0, 1]")

    def __call__(
        self,
        advantages: Float[np.ndarray, "N T"],
        trajectories: Sequence[Trajectory],
        group: Int[np.ndarray, " N"],
        renderer: Renderer,
        score: Score,
    ) -> tuple[Float[np.ndarray, "N T"], dict[str, float]]:
        """The advantages A*, and what they took: sequences and tokens scored, seconds.

        With several processes each scores its own groups, in one call of `score`.
        """
        started, pad = time.perf_counter(), renderer.pad_id
        views: dict[Place, Trajectory] = {}
        for row, each in enumerate(trajectories):
            views |= self._views(row, each, renderer)
        # Never empty, so that every process makes the same passes.
        tokens = collate([*views.values()], pad) if views else TokenBatch.dummy(pad)
        logprobs = score(tokens).double().cpu().numpy()
        scored = {}
        for (place, view), found in zip(views.items(), logprobs, strict=False):
            end = len(view.prompt_ids) + len(view.turns[0].token_ids)
            own = len(trajectories[place[0]].turns[place[1]].token_ids)
            scored[place] = found[end - own : end]
        evidence = self._evidence(scored, trajectories, group, advantages.shape)
        metrics = {
            "train/hindsight_sequences": float(len(views)),
            "train/hindsight_tokens": float(tokens.lengths.sum() if views else 0),
            "time/hindsight": time.perf_counter() - started,
        }
        return self.modulated(advantages, evidence), metrics

    def _through(self, trajectory: Trajectory, turn: int) -> list[int]:
        """For each depth the last turn whose results are read; those without any add nothing."""
        calling = [number for number, each in enumerate(trajectory.turns) if each.results]
        return [max(n for n in calling if n < turn + depth) for depth in self.depths]

    def _views(
        self, row: int, trajectory: Trajectory, renderer: Renderer
    ) -> dict[Place, Trajectory]:
        """What the reference reads, once each; its only turn is the results and the turn."""
        views, context = {}, trajectory.prompt_ids
        for number, turn in enumerate(trajectory.turns):
            if turn.results:
                ends = [n for n, token in enumerate(context) if token in renderer.stop_token_ids]
                before, begun = context[: ends[-1] + 1], context[ends[-1] + 1 :]
                plain = {number - 1} if self.without == "reference" else set()  # no results
                for last in sorted(plain | {*self._through(trajectory, number)}):
                    results = [
                        r for each in trajectory.turns[number : last + 1] for r in each.results
                    ]
                    between = renderer.observation_ids(results) if results else begun
                    ids = (*between, *turn.token_ids)
                    read = (Turn(ids, (0.0,) * len(ids), ""),)
                    views[row, number, last] = replace(trajectory, prompt_ids=before, turns=read)
            context = (*context, *turn.token_ids, *turn.observation_ids)
        return views

    def _evidence(
        self,
        scored: Mapping[Place, Float[np.ndarray, " K"]],
        trajectories: Sequence[Trajectory],
        group: Int[np.ndarray, " N"],
        shape: tuple[int, ...],
    ) -> Float[np.ndarray, "N T"]:
        """delta, 0 where there is no hindsight."""
        evidence = np.zeros(shape)
        selected: dict[tuple[int, int], Float[np.ndarray, " K"]] = {}
        for row, turn in dict.fromkeys(key[:2] for key in scored):
            before = np.array(trajectories[row].turns[turn].logprobs)
            before = scored.get((row, turn, turn - 1), before)
            gaps = [scored[row, turn, n] - before for n in self._through(trajectories[row], turn)]
            selected[row, turn] = gaps[strongest([float(gap.mean()) for gap in gaps])]
        for number in np.unique(group):
            own = {place: gap for place, gap in selected.items() if group[place[0]] == number}
            pool = np.concatenate([np.zeros(0), *own.values()])
            for place, gap in own.items() if len(pool) > 1 else ():
                evidence[place] = (gap.mean() - pool.mean()) / (pool.std(ddof=1) + self.epsilon)
        return evidence

    def modulated(
        self, advantages: Float[np.ndarray, "N T"], evidence: Float[np.ndarray, "N T"]
    ) -> Float[np.ndarray, "N T"]:
        """A*; the sign is that of A."""
        weights = 1 + self.bound * np.tanh(np.sign(advantages) * evidence)
        return advantages * ((1 - self.mixing) + self.mixing * weights)


def strongest(means: Sequence[float]) -> int:
    """The place of the largest magnitude among the numbers with the sign of the majority."""
    signs = [1 if mean >= 0 else -1 for mean in means]
    majority = 1 if sum(signs) >= 0 else -1
    places = [place for place, sign in enumerate(signs) if sign == majority]
    return max(places, key=lambda place: abs(means[place]))
