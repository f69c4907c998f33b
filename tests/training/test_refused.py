"""Options of training that are out of range, have no effect or do not go together."""

from functools import partial

import pytest

from matchtir.credit.advantages import DualAdvantage
from matchtir.credit.assignment import HardAssignment
from matchtir.credit.rewards import MatchReward
from matchtir.credit.similarity import Similarity
from matchtir.policy.covariance import CovarianceControl
from matchtir.policy.losses import MismatchCorrection
from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.transformers_engine import TransformersEngine
from matchtir.training.base import check_trainer
from matchtir.training.callbacks.checkpoint import LastCheckpoint
from matchtir.training.callbacks.display import Curves, Progress
from matchtir.training.callbacks.traces import Samples, Traces
from matchtir.training.optim import AdamW, MuonAdamW
from matchtir.training.phases import Colocation, Trainer
from matchtir.training.shaping import OverlongPenalty
from matchtir.training.turnsight import TurnSight
from tests.policy.tiny_policy import small
from tests.training.training_parts import policy_gradient, trainer

CORRECTED = {"correction": MismatchCorrection(cap=2.0)}
OUTCOME = MatchReward(Similarity(), HardAssignment(), rewards="outcome")
MODULE = [
    ({"group_size": 0}, "group_size"),
    ({"mini_batches": 0}, "mini_batches"),
    ({"micro_batch_tokens": 0}, "micro_batch_tokens"),
    ({"max_grad_norm": 0.0}, "max_grad_norm"),
    (
        {"advantage": DualAdvantage(level="call"), "reward": OUTCOME},
        "advantage_level=call: this reward pays no single calls",
    ),
    ({"sampling": SamplingParams(temperature=0.0)}, "temperature=0"),
    ({"sampling": SamplingParams(top_p=0.9)}, "top_p=0.9, .*loss=truncated_is"),
    ({"sampling": SamplingParams(top_k=5)}, "top_k=5: .*loss=truncated_is"),
    ({"ahead": True}, "loss=truncated_is"),
    ({"partial_groups": 1}, "loss=truncated_is"),
    ({"ahead": True, "zero_advantage": "replace", "loss": CORRECTED}, "zero_advantage=replace"),
    ({"ahead": True, "scripted": False, "loss": CORRECTED}, "own_weights=true"),
    ({"partial_groups": -1}, "0 or more"),
    ({"zero_advantage": "other"}, "zero_advantage='other'"),
    ({"masked_stops": ["answer"]}, "masked_stops='answer'"),
    ({"policy": small(lora={"r": 4, "lora_dropout": 0.1}).policy}, "lora_dropout=0.1"),
    ({"reference_reset_every": 0}, "reference_reset_every=0"),
    (
        {"reference_reset_every": 5, "loss": {"kl_coefficient": 0.0}},
        "reset_every=5 needs a reference",
    ),
    (
        {"loss": {"covariance": CovarianceControl(coefficient=1.0)}},
        "covariance.coefficient.*mini_batches=1",
    ),
]
PERIODIC = (Progress, Samples, *(partial(each, "f") for each in (Curves, Traces, LastCheckpoint)))
OTHERS = [
    (partial(OverlongPenalty, limit=100, buffer=101), "overlong"),
    (partial(OverlongPenalty, limit=100, buffer=5, penalty=0.0), "overlong"),
    (partial(OverlongPenalty, limit=100, penalty=2.0), "overlong"),
    (partial(TurnSight, depths=()), "depths"),
    (partial(TurnSight, depths=(0, 1)), "depths"),
    (partial(TurnSight, mixing=1.5), "mixing=1.5"),
    (partial(TurnSight, bound=-0.5), "bound=-0.5"),
    (partial(TurnSight, without="nothing"), "without='nothing'.*policy, reference"),
    (partial(AdamW, 1.0, decay="cosine"), "decay.*constant.*linear"),
    (partial(AdamW, 1.0, warmup=-1), "warmup=-1"),
    (partial(MuonAdamW, 1.0, 1.0, decay="cosine"), "decay.*constant.*linear"),
    (partial(MuonAdamW, 1.0, 1.0, warmup=-1), "warmup=-1"),
    *((partial(each, every_n_iterations=0), "every_n_iterations=0") for each in PERIODIC),
    (partial(Trainer, offload="some"), "trainer.offload='some'"),
]
MODULES = [(partial(policy_gradient, **options), named) for options, named in MODULE]


@pytest.mark.parametrize(("make", "named"), [*MODULES, *OTHERS])
def test_options_are_refused_by_name(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_an_engine_that_sleeps_or_has_no_weights_of_its_own_cannot_go_on_alone():
    module = policy_gradient(scripted=False)
    with pytest.raises(ValueError, match="samples from the trainer's weights"):
        Colocation(module.engine, "all", list, list)
    engine = TransformersEngine(module.renderer.stop_token_ids, own_weights=True)
    engine.sleep_level = 2
    with pytest.raises(ValueError, match="sleep_level=0"):
        policy_gradient(scripted=False, loss=CORRECTED, engine=engine, ahead=True)


def test_settings_of_the_trainer_that_would_spoil_it_are_refused(tmp_path):
    spoilt = trainer(tmp_path, max_epochs=2)
    spoilt.strategy.precision_plugin.scaler = object()  # of 16-mixed; it needs a GPU
    with pytest.raises(ValueError, match=r"max_epochs=2(.|\n)*bf16-mixed"):
        check_trainer(spoilt)
    offloading = Trainer(offload="optimizer", accelerator="cpu", default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="offload=optimizer: all is in host memory already"):
        check_trainer(offloading)
