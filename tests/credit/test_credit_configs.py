from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.credit.builders import attempt, call, says, task, turn
from tests.test_configs import check_program

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TRAJECTORY = attempt(task(call("a")), turn(call("a")), says("blue"))


def names(group):
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def built(**choices):
    """The objects of these choices, as `group: name`, and of no others."""
    overrides = [f"+{group}={name}" for group, name in choices.items()]
    overrides += ["+penalties.unmatched=0.0", "+penalties.no_answer=0.0", "+turn_reduction=mean"]
    overrides += ["+turn_groups=index", "+turn_scale=group", "+turn_baseline=group"]
    overrides += [
        "+singleton=raw",
        "+advantage_level=turn",
        "+rollout.limits.max_response_tokens=7",
    ]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(overrides=overrides)
    assert not OmegaConf.missing_keys(config)
    return instantiate(config, _convert_="all")


@pytest.mark.parametrize("name", names("assignment"))
def test_every_assignment_scores_inside_the_reward(name):
    made = built(assignment=name, reward="integrated")
    assert made["reward"].assignment == made["assignment"]
    assert made["reward"]([TRAJECTORY])[0].total == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize(("name", "total"), [("integrated", 2), ("turn", 1), ("outcome", 1)])
def test_rewards_pay_the_parts_of_their_name(name, total):
    assert built(assignment="hard", reward=name)["reward"]([TRAJECTORY])[0].total == total


@pytest.mark.parametrize("group", ["advantage", "loss", "reward"])
def test_every_advantage_loss_and_reward_is_built(group):
    assert built(loss="dr_grpo")["loss"].length == 7  # what a response can be long
    for name in names(group):
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
