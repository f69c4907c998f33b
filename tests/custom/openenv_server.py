"""Two environments for OpenEnv's own server: one with named tools, one with actions."""

from fastmcp import FastMCP
from openenv.core.env_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation
from openenv.core.env_server.types import Action, Observation, State


class Sums(MCPEnvironment):
    """Add a number of the seed to 5; the sum is submitted."""

    SUPPORTS_CONCURRENT_SESSIONS = True
    state = State()

    def __init__(self):
        server = FastMCP("sums")
        self.given = None

        @server.tool
        def add(a: int, b: int) -> int:
            """The sum of two numbers."""
            return a + b

        @server.tool
        def submit(answer: int) -> str:
            """Say the answer."""
            self.given = answer
            return "thanks"

        super().__init__(server)

    def reset(self, seed=None, **kwargs):
        self.seed, self.given = seed, None
        return Observation(metadata={"question": f"What is {seed} + 5?"})

    def _step_impl(self, action, timeout_s=None, **kwargs):
        raise NotImplementedError

    async def step_async(self, action, timeout_s=None, **kwargs):
        observation = await super().step_async(action, timeout_s=timeout_s, **kwargs)
        if self.given is not None:
            observation.done, observation.reward = True, float(self.given == self.seed + 5)
        return observation


class Walk(Action):
    """Walk so far."""

    metres: int


class Place(Observation):
    at: int = 0


class Path(Environment):
    """A goal three metres away; a step costs a tenth."""

    SUPPORTS_CONCURRENT_SESSIONS = True
    state = State()

    def reset(self, seed=None, **kwargs):
        self.at = 0
        return Place(at=0)

    def step(self, action, timeout_s=None, **kwargs):
        self.at += action.metres
        arrived = self.at == 3
        return Place(at=self.at, done=arrived, reward=1.0 if arrived else -0.1)


sums = create_app(
    Sums, CallToolAction, CallToolObservation, reset_observation_cls=Observation, env_name="sums"
)
path = create_app(Path, Walk, Place, env_name="path", max_concurrent_envs=4)
