"""A task set as an OpenEnv environment, for trainers and agents outside this project.

python scripts/serve_openenv.py data=custom data.path=tasks.jsonl data.tools=tools.py port=8000

Needs the extra `openenv`. The client is OpenEnv's own: reset(split=..., index=...), then
step({"text": ...}) until the episode is done and has its reward.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import train
from matchtir.utils.config_check import check, check_after_imports, plain_errors
from matchtir.utils.renamed import with_current_names
from matchtir.utils.run_folder import register_resolvers


def run(config: DictConfig) -> None:
    """Serve until the process is stopped."""
    check(config, f"{train.KNOWN_KEYS} {train.SETTINGS} host port max_sessions")
    try:
        import uvicorn
        from openenv.core.env_server.http_server import create_app

        from matchtir.serving import TaskEnvironment, TurnAction, TurnObservation
    except ImportError as error:
        raise SystemExit(f"pip install 'matchtir[openenv]' ({error})") from error
    check_after_imports(config)
    tasks = instantiate(config.data)
    tasks.tasks("train")  # read them now, while no event loop runs
    sandbox, reward = instantiate(config.sandbox), instantiate(config.reward)
    turns = config.rollout.limits.max_turns
    app = create_app(
        lambda: TaskEnvironment(tasks, sandbox, reward, turns),
        TurnAction,
        TurnObservation,
        env_name="matchtir",
        max_concurrent_envs=config.max_sessions,
    )
    try:
        uvicorn.run(app, host=config.host, port=config.port, log_level="warning")
    finally:
        sandbox.shutdown()


@hydra.main(version_base="1.3", config_path="../configs", config_name="serve_openenv")
def main(config: DictConfig) -> None:
    """The command line."""
    with plain_errors():
        run(config)


if __name__ == "__main__":
    register_resolvers()
    sys.argv[1:] = with_current_names(sys.argv[1:])
    main()
