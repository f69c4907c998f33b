"""Every config that the command line can name composes, and nothing in it goes unread."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict, read_write

from matchtir.training.settings import unfit_settings
from matchtir.utils.config_check import ConfigError, check, check_after_imports
from matchtir.utils.run_folder import register_resolvers, sampler_dtype

CONFIGS = Path(__file__).parents[1] / "configs"
# What a command line must give besides the option under test, by program and by option.
NEEDED = {"train": [], "eval": ["policy=gold"]}
OPTION_NEEDS = {
    "model=huggingface": ["model.name_or_path=a/model"],
    "hparams_search=curve": ["curve.parameter=penalties.unmatched", "curve.values=[0,1]"],
    "data=custom": ["data.path=tasks.jsonl"],
    "user=endpoint": ["user.endpoint.url=http://localhost:8000"],
    "data=openenv": ["sandbox.url=http://localhost:8000"],
    "sandbox=openenv": ["sandbox.url=http://localhost:8000"],
    "benchmark=custom": ["benchmark.custom.tasks.path=tasks.jsonl"],
}
PROGRAMS = list(NEEDED)


def options(group):
    return sorted(path.stem for path in (CONFIGS / group).glob("[!_]*.yaml"))


def composed(program, *overrides):
    """The config of a command line, with Hydra's own part."""
    register_resolvers()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(program, [*NEEDED[program], *overrides], return_hydra_config=True)


def check_program(program, *overrides):
    config = composed(program, *overrides)
    config.hydra.runtime.output_dir = "logs/a/runs/b"
    hydra = HydraConfig.instance()
    hydra.set_config(config)  # for interpolations, as inside the program
    try:
        assert str(config.hydra.run.dir).startswith("logs/")
        with read_write(config), open_dict(config):
            del config["hydra"]
        module = importlib.import_module(program)
        also = unfit_settings(config) if program == "train" else ()
        check(config, module.KNOWN_KEYS, module.SETTINGS, also)
        check_after_imports(config)
    finally:
        hydra.cfg = None


def groups_of(program):
    choices = composed(program).hydra.runtime.choices
    yield from (group for group in choices if (CONFIGS / group).is_dir())


# A group that both programs have is composed once.
EVERY_OPTION = {
    f"{group}={option}": program
    for program in PROGRAMS
    for group in groups_of(program)
    for option in options(group)
}


@pytest.mark.parametrize("override", EVERY_OPTION)
def test_every_option_composes_and_fits(override):
    check_program(EVERY_OPTION[override], override, *OPTION_NEEDS.get(override, []))


def test_every_group_belongs_to_a_program():
    used = {override.partition("=")[0] for override in EVERY_OPTION}
    folders = {path.parent.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob("*/**/*.yaml")}
    assert folders - used == set()


# At the default scale it is one of the options above; the other scales override the same groups.
# An experiment that only names reward and advantage overrides none of them.
@pytest.mark.parametrize("scale", ["paper_8b", pytest.param("single_gpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "override",
    [
        *(f"{group}={option}" for group in ("rollout", "data") for option in options(group)),
        *("experiment=matchtir_soft", "experiment=sft", "experiment=smoke", "trainer=fsdp"),
    ],
)
def test_one_word_is_enough_at_every_scale(override, scale):
    check_program("train", f"scale={scale}", override, *OPTION_NEEDS.get(override, []))


def test_vllm_computes_in_what_the_trainer_computes_in():
    config = composed("train", "rollout=vllm", "trainer.precision=bf16-mixed")
    assert config.rollout.engine.settings.dtype == "bfloat16"
    dtypes = {"bf16-true": "bfloat16", "16-mixed": "float16", "32-true": None}
    assert {precision: sampler_dtype(precision) for precision in dtypes} == dtypes


# What docs/extending.md adds itself is tested in test_extending.py.
DOCUMENTS = [CONFIGS.parent / "README.md", *sorted((CONFIGS.parent / "docs").glob("*.md"))]


def documented():
    """Program and words of the commands of the documents that are more than one option."""
    texts = (f.read_text(encoding="utf-8") for f in DOCUMENTS if f.stem != "extending")
    for text in texts:
        commands = re.findall(r"python src/(train|eval)\.py ([^\n`]*)", text.replace("\\\n", " "))
        for program, line in commands:
            words = [word for word in shlex.split(line, comments=True) if "=" in word]
            words = [word for word in words if not re.search(r"^(seed|ckpt_path)=|[<…$]", word)]
            # The first of several that are swept over or evaluated.
            words = [word if "[" in word else word.partition(",")[0] for word in words]
            if len(words) > 1:
                yield program, shlex.join(words)


@pytest.mark.parametrize(("program", "line"), sorted({*documented()}))
def test_commands_of_the_documents_compose(program, line):
    words = shlex.split(line)
    check_program(program, *(n for word in words for n in OPTION_NEEDS.get(word, [])), *words)


def test_a_sweep_of_wandb_gives_what_the_program_takes():
    sweep = yaml.safe_load((CONFIGS.parent / "scripts" / "wandb_sweep.yaml").read_text())
    points = [
        f"{name}={space['min'] if 'min' in space else space['values'][0]}"
        for name, space in sweep["parameters"].items()
    ]
    words = [word for word in sweep["command"] if "=" in word]
    check_program("train", *words, *points, f"objective={sweep['metric']['name']}")


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_says_how_it_is_run(experiment):
    text = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert re.search(rf"python src/train\.py .*experiment={experiment}\b", head)


@pytest.mark.parametrize(
    ("program", "override", "named"),
    [
        *((program, "+sed=1", "sed: nothing reads this key") for program in PROGRAMS),
        ("train", "+callbacks.progress.every=2", "callbacks.progress.every"),
        ("eval", "+sandbox.worker=2", "sandbox.worker: .* did you mean workers"),
    ],
)
def test_a_mistyped_key_is_refused(program, override, named):
    with pytest.raises(ConfigError, match=named):
        check_program(program, override)
