"""Parts of credit as the command line makes them, and what they refuse."""

from functools import partial
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from matchtir.credit.advantages import DualAdvantage, TrajectoryAdvantage, TurnAdvantage
from matchtir.credit.assignment import HardAssignment, PartialAssignment, SoftAssignment
from matchtir.credit.baselines import FtrlReward
from matchtir.credit.similarity import Similarity
from tests.credit.builders import attempt, call, match_reward, says, task, turn
from tests.test_configs import check_program, options

OF_OTHERS = partial(TurnAdvantage, turn_baseline="others")
ABSORBING = partial(TurnAdvantage, turn_baseline="absorbing")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TRAJECTORY = attempt(task(call("a")), turn(call("a")), says("blue"))
SETTINGS = {"penalties.unmatched": 0.0, "penalties.no_answer": 0.0, "turn_reduction": "mean"}
SETTINGS |= {"turn_groups": "index", "turn_scale": "group", "turn_baseline": "group"}
SETTINGS |= {"singleton": "raw", "advantage_level": "turn", "rollout.limits.max_response_tokens": 7}


def built(**choices):
    """The objects of these choices, as `group: name`, and of no others."""
    overrides = [f"+{name}={value}" for name, value in {**choices, **SETTINGS}.items()]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(overrides=overrides)
    assert not OmegaConf.missing_keys(config)
    return instantiate(config, _convert_="all")


@pytest.mark.parametrize(
    ("assignment", "reward", "total"),
    [
        *((name, "integrated", 2) for name in options("assignment")),
        *[("hard", "turn", 1), ("hard", "outcome", 1)],
    ],
)
def test_a_reward_pays_the_parts_of_its_name(assignment, reward, total):
    made = built(assignment=assignment, reward=reward)
    assert made["reward"].assignment == made["assignment"]
    assert made["reward"]([TRAJECTORY])[0].total == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize("group", ["advantage", "loss", "reward"])
def test_every_advantage_loss_and_reward_is_built(group):
    assert built(loss="dr_grpo")["loss"].length == 7  # what a response can be long
    for name in options(group):
        assert callable(built(assignment="hard", **{group: name})[group]), name


@pytest.mark.parametrize(
    "pair",
    [
        "advantage=rloo loss=cispo",
        "advantage=gigpo loss=truncated_is turn_baseline=others turn_scale=batch",
        "advantage=dual loss=gspo advantage_level=call",
        "advantage=turn loss=dr_grpo turn_groups=index turn_baseline=absorbing turn_scale=none",
    ],
)
def test_advantages_and_losses_go_together(pair):
    check_program("train", "experiment=smoke", *pair.split())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Similarity(names="fuzzy"), "names='fuzzy'.*exact, casefold"),
        (lambda: HardAssignment(unmatched_penalty=-1.0), "unmatched_penalty=-1"),
        (lambda: SoftAssignment(unmatched_penalty=-1.0), "unmatched_penalty=-1"),
        (lambda: SoftAssignment(reg=0.0), "reg=0.0"),
        (lambda: SoftAssignment(max_iterations=0), "max_iterations=0"),
        (lambda: SoftAssignment(cost="square"), "cost='square'.*linear, normalized_inversion, exp"),
        (lambda: SoftAssignment(scale="sum"), "scale='sum'.*mass, conditional"),
        (lambda: PartialAssignment(unmatched_penalty=-1.0), "unmatched_penalty=-1"),
        (lambda: PartialAssignment(1.0), "threshold=1"),
        (lambda: PartialAssignment(kind="fuzzy"), "kind='fuzzy'.*matching, transport"),
        (lambda: match_reward(turn_reduction="max"), "turn_reduction='max'"),
        (lambda: match_reward(outcome="bleu"), "outcome='bleu'"),
        (lambda: match_reward(no_answer_penalty=-1.0), "no_answer_penalty=-1"),
        (lambda: FtrlReward("step"), "scope='step'.*turn, trajectory"),
        (lambda: TrajectoryAdvantage(epsilon=0.0), "epsilon=0.0"),
        (lambda: TrajectoryAdvantage(singleton="one"), "singleton='one'.*raw, zero"),
        (lambda: TrajectoryAdvantage(baseline="mean"), "baseline='mean'.*group, others, none"),
        (lambda: TrajectoryAdvantage(scale="some"), "scale='some'.*group, batch, none"),
        (lambda: TurnAdvantage(gamma=1.5), "gamma=1.5"),
        (lambda: TurnAdvantage(turn_groups="any"), "turn_groups='any'.*index, kind_and_index"),
        (lambda: TurnAdvantage(turn_baseline="all"), "turn_baseline='all'.*others, absorbing"),
        (lambda: OF_OTHERS(turn_groups="trajectory"), "compares with no others"),
        (lambda: ABSORBING(turn_groups="state"), "turn_groups=index, not state"),
        (lambda: DualAdvantage(level="word"), "level='word'"),
        (lambda: DualAdvantage(trajectory_scale="shrunk"), "trajectory_scale='shrunk'.*batch"),
        (lambda: DualAdvantage(turn_scale="all"), "turn_scale='all'.*group, batch, shrunk"),
        (lambda: DualAdvantage(gamma=-0.1), "gamma=-0.1"),
        (lambda: DualAdvantage(combination="mean"), "combination='mean'.*sum, product"),
        (lambda: DualAdvantage(trajectory_reward="any"), "trajectory_reward='any'.*total, outc"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
