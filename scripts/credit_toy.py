"""Bias of every advantage against the exact policy gradient of a process of a few turns.

    OMP_NUM_THREADS=1 python scripts/credit_toy.py [--rounds 2000] [--seed 0]

In a turn the policy answers, makes a right call or makes a wrong one; after the last turn the
episode is over. All attempts are enumerated, which gives the gradient of the expected reward
exactly. A round draws some groups, as an iteration of training does, and estimates it from their
advantages, every turn being one token that counts as any other. Discounts are 1, so that every
estimator aims at that gradient and none is charged for its discount.

* projection: of the mean estimate on the exact gradient, 1 where it has its length (an advantage
  of two terms: 2). Scales change it, and so does a value that is in its own baseline.
* cosine: between the two.
* bias: of the mean estimate at right angles to the exact gradient, in lengths of its projection:
  what no learning rate makes good. Its direction comes from half of the rounds and its size from
  the other half, so that an interval covers 0 for an unbiased estimator in 19 of 20 cases.
* noise: standard deviation of one round's estimate, in the same unit.

The last line is `RESULT {json}`, with the 95 % intervals of projection and bias.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from jaxtyping import Float, Int
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from matchtir.credit.advantages import Advantage, RewardBatch

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ANSWER, RIGHT, WRONG = ACTIONS = range(3)
GOLD = 2  # right calls that are paid for; the answer's reward is the share of them made
GROUPS, GROUP_SIZE = 8, 8  # of a round, and attempts in each
SETTINGS = ("advantage_level", "singleton", "turn_groups", "turn_scale", "turn_baseline")
NO_SCALE = "turn_scale=none advantage.trajectory_scale=none"
VARIANTS = (
    *(f"advantage=turn turn_scale={scale}" for scale in ("batch", "shrunk", "none")),
    "advantage=turn turn_scale=none singleton=zero",
    "advantage=turn turn_scale=none turn_groups=kind_and_index",
    "advantage=turn turn_scale=none turn_baseline=others",
    "advantage=turn turn_scale=none turn_baseline=absorbing",
    "advantage=turn turn_scale=batch turn_baseline=others",
    "advantage=turn turn_scale=batch turn_baseline=absorbing",
    "advantage=dual turn_groups=kind_and_index singleton=zero",
    "advantage=dual turn_scale=shrunk",
    "advantage=dual turn_scale=batch turn_baseline=absorbing advantage.trajectory_scale=batch",
    f"advantage=dual {NO_SCALE} turn_baseline=others",
    f"advantage=dual {NO_SCALE} turn_baseline=absorbing",
)

Step = tuple[int, int, float]  # state, action, reward


class Toy:
    """All K attempts of up to `turns` turns, with their probabilities; P logits make the policy."""

    def __init__(self, turns: int, seed: int) -> None:
        self.turns = turns
        self.states = turns * (GOLD + 1)
        logits = np.random.default_rng(seed).normal(size=(self.states, len(ACTIONS)))
        self.policy = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        self.attempts = list(self._attempts(0, 0))

    def _attempts(self, turn: int, right: int) -> Iterator[tuple[Step, ...]]:
        """Every way to go on after so many turns and right calls."""
        for action in ACTIONS:
            useful = action == RIGHT and right < GOLD
            reward = right / GOLD if action == ANSWER else 1.0 if useful else -0.25
            step = turn * (GOLD + 1) + right, action, reward
            if action == ANSWER or turn == self.turns - 1:
                yield (step,)
                continue
            for rest in self._attempts(turn + 1, right + useful):
                yield (step, *rest)

    @cached_property
    def mask(self) -> np.ndarray[Any, Any]:
        """Turns that an attempt has, [K, T]."""
        return np.arange(self.turns) < np.array([[len(each)] for each in self.attempts])

    def padded(self, part: int) -> np.ndarray[Any, Any]:
        """States (0), actions (1) or rewards (2) of all attempts, [K, T]."""
        found = np.zeros(self.mask.shape, dtype=float if part == 2 else int)
        found[self.mask] = [step[part] for each in self.attempts for step in each]
        return found

    @cached_property
    def probability(self) -> Float[np.ndarray, " K"]:
        """How likely the policy makes each attempt."""
        return np.where(self.mask, self.policy[self.padded(0), self.padded(1)], 1.0).prod(axis=1)

    @cached_property
    def score(self) -> Float[np.ndarray, "K T P"]:
        """Gradient of the log-probability of every turn's action."""
        found = np.zeros((*self.mask.shape, self.states, len(ACTIONS)))
        rows = np.nonzero(self.mask)
        state, action = self.padded(0)[rows], self.padded(1)[rows]
        found[*rows, state] -= self.policy[state]
        found[*rows, state, action] += 1.0
        return found.reshape(*self.mask.shape, -1)

    @cached_property
    def gradient(self) -> Float[np.ndarray, " P"]:
        """Of the expected reward: the sum of p(k) R(k) grad log p(k) over all attempts."""
        return (self.probability * self.padded(2).sum(axis=1)) @ self.score.sum(axis=1)

    def batch(self, drawn: Int[np.ndarray, " N"], group: Int[np.ndarray, " N"]) -> RewardBatch:
        """What an estimator sees of these attempts."""
        rewards, mask, calls = self.padded(2)[drawn], self.mask[drawn], self.padded(1)[drawn] > 0
        outcome = np.where(~calls & mask, rewards, 0.0).sum(axis=1)
        states = np.where(mask, self.padded(0)[drawn] + self.states * group[:, None], -1)
        actions = np.where(mask, self.padded(1)[drawn], -1)
        return RewardBatch(
            rewards, mask, group, calls & mask, rewards.sum(axis=1), outcome, states, actions
        )

    def estimate(
        self, advantages: Float[np.ndarray, "N T"], drawn: Int[np.ndarray, " N"]
    ) -> Float[np.ndarray, " P"]:
        """The gradient that these advantages make: the mean over the attempts."""
        sums = np.zeros(self.mask.shape)
        np.add.at(sums, drawn, advantages)
        return np.tensordot(sums, self.score, 2) / len(drawn)


def estimator(command: str) -> Advantage:
    """The advantage that these overrides of `src/train.py` choose, without a discount."""
    name, *overrides = command.removeprefix("advantage=").split()
    defaults: Any = OmegaConf.load(CONFIGS / "train.yaml")
    config = OmegaConf.create({key: defaults[key] for key in SETTINGS})
    config["advantage"] = OmegaConf.load(CONFIGS / f"advantage/{name}.yaml")
    config.merge_with_dotlist(overrides)
    if "gamma" in config.advantage:
        config.advantage.gamma = 1.0
    made: Advantage = instantiate(config.advantage)
    return made


def compared(estimates: Float[np.ndarray, "M P"], exact: Float[np.ndarray, " P"]) -> dict[str, Any]:
    """Projection, cosine, bias and noise of M rounds."""
    length = np.linalg.norm(exact)
    mean, projections = estimates.mean(axis=0), estimates @ exact / length**2
    unit = abs(projections.mean()) * length
    first, second = np.array_split(estimates, 2)
    aside = first.mean(axis=0)
    aside = aside - (aside @ exact) * exact / length**2
    parts = second @ (aside / np.linalg.norm(aside)) / unit
    return {
        "projection": float(projections.mean()),
        "projection_interval": interval(projections),
        "cosine": float(mean @ exact / length / np.linalg.norm(mean)),
        "bias": float(parts.mean()),
        "interval": interval(parts),
        "noise": float(np.sqrt(estimates.var(axis=0).sum()) / unit),
    }


def interval(values: Float[np.ndarray, " M"]) -> list[float]:
    """95 % interval of the mean."""
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    return [float(values.mean() - half), float(values.mean() + half)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and the RESULT line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    toy = Toy(options.turns, options.seed)
    group = np.repeat(np.arange(GROUPS), GROUP_SIZE)
    size = options.rounds, len(group)
    draws = np.random.default_rng(options.seed).choice(len(toy.mask), size, p=toy.probability)
    batches = [toy.batch(drawn, group) for drawn in draws]
    files = sorted((CONFIGS / "advantage").glob("*.yaml"))
    print(f"{'':<92}{'projection':>11}{'cosine':>8}{'bias':>8}{'95 %':>19}{'noise':>7}")
    result = {}
    for command in (*(f"advantage={file.stem}" for file in files), *VARIANTS):
        advantage = estimator(command)
        estimates = [
            toy.estimate(advantage(b), drawn) for b, drawn in zip(batches, draws, strict=True)
        ]
        result[command] = found = compared(np.array(estimates), toy.gradient)
        low, high = found["interval"]
        print(
            f"{command:<92}{found['projection']:>11.3f}{found['cosine']:>8.4f}{found['bias']:>8.3f}"
            f"{f'[{low:.3f}, {high:.3f}]':>19}{found['noise']:>7.2f}",
            flush=True,
        )
    rounded = json.loads(json.dumps(result), parse_float=lambda text: round(float(text), 5))
    print("RESULT " + json.dumps(rounded))


if __name__ == "__main__":
    main()
