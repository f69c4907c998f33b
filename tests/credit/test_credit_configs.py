from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from matchtir.credit.assignment import HardAssignment, SoftAssignment
from tests.credit.builders import attempt, call, says, task, turn

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TRAJECTORY = attempt(task(call("a")), turn(call("a")), says("blue"))


def names(group):
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def built(**choices):
    """The objects of these choices, as `group: name`, and of no others."""
    overrides = [f"+{group}={name}" for group, name in choices.items()]
    overrides += ["+penalties.unmatched=0.0", "+penalties.no_answer=0.0", "+turn_reduction=mean"]
    overrides += ["+turn_groups=index", "+singleton=raw"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(overrides=overrides)
    assert not OmegaConf.missing_keys(config)
    return instantiate(config, _convert_="all")


@pytest.mark.parametrize("name", names("assignment"))
def test_every_assignment_scores(name):
    made = built(assignment=name, reward="integrated")
    assert type(made["reward"].assignment) is type(made["assignment"])
    assert made["reward"]([TRAJECTORY])[0].total == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize("group", ["advantage", "loss"])
def test_every_advantage_and_loss_is_built(group):
    for name in names(group):
        assert callable(built(**{group: name})[group]), name


@pytest.mark.parametrize("name", names("reward"))
def test_every_reward_scores(name):
    credit = built(assignment="hard", reward=name)["reward"]([TRAJECTORY])[0]
    assert credit.turn_rewards.shape == (2,)


def test_the_assignment_is_swapped_inside_the_reward():
    for name, kind in {"hard": HardAssignment, "soft": SoftAssignment}.items():
        assert isinstance(built(assignment=name, reward="turn")["reward"].assignment, kind)


def test_variants_change_what_they_say():
    assert built(loss="gspo")["loss"].ratio == "sequence"
    assert built(assignment="hard", reward="turn")["reward"].rewards == "turn"
    assert built(assignment="hard", reward="outcome")["reward"].rewards == "outcome"
