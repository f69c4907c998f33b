"""The plan of a run as one reads it."""

from __future__ import annotations

from omegaconf import DictConfig
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from matchtir.training.planning.memory import GIB
from matchtir.training.planning.plan import Plan, make_plan


def show_plan(config: DictConfig) -> None:
    """Print the plan of a training config; raises PlanError where the run cannot fit."""
    plan = make_plan(config)
    Console().print(plan_table(plan))
    plan.require_room()


def require_room(config: DictConfig) -> None:
    """Raise PlanError where the memory of a device is stated and the run cannot fit."""
    if config.plan.memory_gib is not None:
        make_plan(config).require_room()


def plan_table(plan: Plan) -> Group:
    """Tokens, memory and time, with what they are reckoned from."""
    size = plan.size
    head = Text(
        f"{size.parameters / 1e9:.2f} billion parameters ({size.layers} layers, hidden "
        f"{size.hidden}, vocabulary {size.vocabulary:,}) on {plan.devices} device(s)"
    )
    return Group(head, _tokens(plan), _memory(plan), _time(plan))


def _tokens(plan: Plan) -> Table:
    table = _table("One iteration", "tokens")
    table.add_row("trajectories", f"{plan.trajectories:,}")
    table.add_row("prompts, at most", f"{plan.prompt_tokens:,}")
    table.add_row("responses, expected", f"{plan.response_tokens:,}")
    table.add_row("responses, at most", f"{plan.response_tokens_at_most:,}")
    return table


def _memory(plan: Plan) -> Table:
    table = _table("Memory of one device", "GiB")
    for name, number in plan.memory.items():
        table.add_row(name, f"{number / GIB:.2f}")
    table.add_section()
    table.add_row("together", f"{plan.total / GIB:.2f}")
    if plan.limit is not None:
        table.add_row("can be used", f"{plan.limit / GIB:.2f}")
    table.add_section()
    table.add_row("conversations of full length in the KV cache", str(plan.conversations))
    if plan.host_memory:
        table.add_row("host memory of all devices, GiB", f"{plan.host_memory / GIB:.2f}")
    return table


def _time(plan: Plan) -> Table:
    table = _table("Expected time, by the throughputs in plan", "hours")
    if not plan.seconds:
        table.add_row("no throughputs are stated", "-")
        return table
    for name, seconds in plan.seconds.items():
        table.add_row(f"{name} of one iteration", f"{seconds / 3600:.2f}")
    whole = sum(plan.seconds.values()) * plan.iterations / 3600
    table.add_row(f"{plan.iterations} iterations", f"{whole:.1f}")
    return table


def _table(title: str, unit: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column(unit, justify="right")
    return table
