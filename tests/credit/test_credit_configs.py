from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.credit.builders import attempt, call, says, task, turn
from tests.test_configs import check_program, options

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
