"""The parameters of a tool: which it has, and how schema, signature and docstring state them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matchtir.tasks.synthetic.difficulty import draw, draw_share
from matchtir.tasks.synthetic.qualifiers import default_of
from matchtir.tasks.synthetic.records import Parameter, Qualifier, Unit
from matchtir.tasks.synthetic.world import World

_TYPES = {"year": "integer", "flag": "boolean"}


def qualifier_parameter(qualifier: Qualifier, world: World) -> Parameter:
    """A qualifier as a parameter: required, or with the default that lookups go by."""
    schema: dict[str, Any] = {"type": _TYPES.get(qualifier.form, "string")}
    schema["description"] = qualifier.description
    if qualifier.choices:
        schema["enum"] = list(qualifier.choices)
    required = qualifier.form != "flag" and world.rng.random() < world.difficulty.required_share
    default = default_of(qualifier)
    if not required and default is not None:
        schema["default"] = default
    return Parameter(qualifier.parameter, schema, required)


def unit_parameter(unit: Unit) -> Parameter:
    """Asks for one unit or the other."""
    schema = {
        "type": "string",
        "description": "Unit of the result",
        "enum": [unit.base, unit.other],
        "default": unit.base,
    }
    return Parameter("unit", schema)


def draw_fillers(world: World, present: int, taken: set[str]) -> list[Parameter]:
    """Parameters that no gold call needs, to fill a tool up to the number that the knobs say."""
    missing = draw(world.difficulty.parameters, world.rng) - present
    fillers: list[Parameter] = []
    for _ in range(missing):
        kind = draw_share(world.difficulty.parameter_types, world.rng)
        pool = [item for item in world.lexicon.fillers.get(kind, ()) if item.name not in taken]
        if not pool:
            continue
        filler = world.rng.choice(pool)
        taken = taken | {filler.name}
        fillers.append(_with_default(filler, kind, world))
    return fillers


def _with_default(filler: Parameter, kind: str, world: World) -> Parameter:
    """The filler with its default, or without, as often as the knobs say."""
    if world.rng.random() < world.difficulty.default_shares.get(kind, 0.0):
        return filler
    schema = {key: value for key, value in filler.schema.items() if key != "default"}
    return Parameter(filler.name, schema)


def describe(parameter: Parameter, world: World) -> Parameter:
    """The parameter with its final description, which terse difficulties leave out."""
    schema = dict(parameter.schema)
    text = schema.pop("description", "")
    if not world.difficulty.verbose:
        return Parameter(parameter.name, schema, parameter.required)
    sentences = [f"{text}."]
    if "enum" in schema:
        sentences.append(f"One of {', '.join(schema['enum'])}.")
    if "default" in schema and schema["default"] not in ("", []):
        sentences.append(f"Default is {_literal(schema['default'])}.")
    sentences.append(world.rng.choice(world.lexicon.parameter_remarks))
    schema = {"type": schema["type"], "description": " ".join(sentences)} | schema
    return Parameter(parameter.name, schema, parameter.required)


def _literal(default: Any) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


def json_schema(parameters: Sequence[Parameter]) -> dict[str, Any]:
    """The schema of a tool's arguments object."""
    return {
        "type": "object",
        "properties": {parameter.name: dict(parameter.schema) for parameter in parameters},
        "required": [parameter.name for parameter in parameters if parameter.required],
    }


def signature(parameters: Sequence[Parameter]) -> str:
    """`name, unit='metres', notes=None`: required parameters first."""
    required = [parameter.name for parameter in parameters if parameter.required]
    optional = [
        f"{parameter.name}={parameter.schema.get('default')!r}"
        for parameter in parameters
        if not parameter.required
    ]
    return ", ".join([*required, *optional])
