"""The tools of a task: their parameters and records, and Python source in the manner of FTRL's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matchtir.tasks.rows import value_text
from matchtir.tasks.synthetic.difficulty import draw, draw_share
from matchtir.tasks.synthetic.world import (
    CALCULATOR,
    Calculation,
    Hop,
    Parameter,
    Qualifier,
    Relation,
    Scalar,
    Unit,
    World,
)
from matchtir.types import ToolSpec

Key = tuple[Scalar | None, ...]  # the entity and a value for each qualifier

_INDENT = "    "
_TYPES = {"year": "integer", "flag": "boolean"}
# What longer results say about their source.
_REMARK = "'status': 'confirmed', 'source': 'general register'"
_TIDY = '''def tidy(text):
    """Single spaces between words."""
    return re.sub(r"\\s+", " ", text).strip()
'''


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a tool answers; the words are those of the difficulty's knobs."""

    verbose: bool
    error_style: str
    unknown_entity: str
    output_style: str
    groups_digits: bool  # 5,700 instead of 5700
    tidies_names: bool  # by a helper function
    wording: int  # which of the texts for an entity that is not found


@dataclass(frozen=True, slots=True)
class LookupTool:
    """Looks `relation` up in `facts`."""

    relation: Relation
    qualifiers: tuple[Qualifier, ...]
    parameters: tuple[Parameter, ...]  # the entity, the qualifiers, the unit, the fillers
    facts: Mapping[Key, str | int]
    fallback: str | int  # for an entity that is not in the facts, where it is not refused
    behaviour: Behaviour
    description: str

    @property
    def expression(self) -> str:
        """The Python expression that the tool returns for a `name` and its `value`."""
        relation, style = self.relation, self.behaviour.output_style
        if style == "bare":
            return "str(value)"
        if style == "sentence":
            return f'f"The {relation.noun} {relation.link} {{name}} is {{value}}."'
        if style == "value":
            return f"{{{relation.name!r}: value}}"
        record = f"{{{relation.domain!r}: name, {relation.name!r}: value, {_REMARK}}}"
        return f"json.dumps({record})" if style == "json" else record

    def output(self, hop: Hop) -> str:
        """What the policy reads after the gold call `hop`."""
        value = hop.number if isinstance(hop.fact, int) else hop.value
        shown = f"{value:,}" if isinstance(value, int) and self.behaviour.groups_digits else value
        return value_text(
            eval(self.expression, {"json": json, "name": hop.subject, "value": shown})
        )

    def spec(self) -> ToolSpec:
        """The tool with its schema and its source."""
        tidies = self.behaviour.tidies_names
        modules = {"re": tidies, "json": self.behaviour.output_style == "json"}
        has_date = any(item.form == "date" for item in self.qualifiers)
        modules["datetime"] = self.behaviour.verbose and has_date
        facts = [(key if len(key) > 1 else key[0], value) for key, value in self.facts.items()]
        records = "".join(f"{_INDENT}{key!r}: {value!r},\n" for key, value in facts)
        docstring = self.description
        if self.behaviour.verbose:
            arguments = "".join(
                f"\n{_INDENT}{parameter.name}: {parameter.schema['description']}"
                for parameter in self.parameters
            )
            docstring += f"\n\n{_INDENT}Parameters:{arguments}\n{_INDENT}"
        parts = [
            "".join(f"import {name}\n" for name, used in modules.items() if used),
            _TIDY if tidies else "",
            f"RECORDS = {{\n{records}}}\n",
            _function(self.relation.tool, self.parameters, docstring, _lookup_lines(self)),
        ]
        source = "\n\n".join(part for part in parts if part)
        return ToolSpec(self.relation.tool, self.description, _schema(self.parameters), source)


def draw_tool(
    relation: Relation,
    qualifiers: tuple[Qualifier, ...],
    hops: Sequence[Hop],
    asked: Sequence[Hop],
    world: World,
) -> LookupTool:
    """A tool that knows the facts of `hops`, and others that would mislead.

    Args:
        hops: the gold calls of this tool; a distractor has none.
        asked: all gold calls of the task: their entities may be found here, too.
    """
    knobs, rng = world.difficulty, world.rng
    behaviour = Behaviour(
        verbose=knobs.verbose,
        error_style=draw_share(knobs.error_styles, rng),
        unknown_entity=draw_share(knobs.unknown_entity, rng),
        output_style=draw_share(knobs.output_styles, rng),
        groups_digits="," in world.lexicon.number_format and rng.random() < 0.4,
        tidies_names=rng.random() < 0.3,
        wording=rng.randrange(4),
    )
    entity = {"type": "string", "description": f"Name of the {relation.domain} to look up"}
    own = [Parameter(relation.parameter, entity, required=True)]
    own += [_qualifier_parameter(qualifier, world) for qualifier in qualifiers]
    own += [_unit_parameter(relation.unit)] if relation.unit is not None else []
    own += _draw_fillers(own, world)
    parameters = tuple(_described(parameter, world) for parameter in own)
    facts = _draw_facts(relation, qualifiers, hops, asked, world)
    description = _describe_tool(relation, world)
    fallback = world.draw_fact(relation)
    return LookupTool(relation, qualifiers, parameters, facts, fallback, behaviour, description)


def _qualifier_parameter(qualifier: Qualifier, world: World) -> Parameter:
    """A qualifier as a parameter: required, or with the default that lookups go by."""
    kind = _TYPES.get(qualifier.form, "string")
    schema: dict[str, Any] = {"type": kind, "description": qualifier.description}
    if qualifier.choices:
        schema["enum"] = list(qualifier.choices)
    required = qualifier.form != "flag" and world.rng.random() < world.difficulty.required_share
    if not required and qualifier.default is not None:
        schema["default"] = qualifier.default
    return Parameter(qualifier.parameter, schema, required)


def _unit_parameter(unit: Unit) -> Parameter:
    schema = {"type": "string", "description": "Unit of the result"}
    return Parameter("unit", {**schema, "enum": [unit.base, unit.other], "default": unit.base})


def _draw_fillers(own: Sequence[Parameter], world: World) -> list[Parameter]:
    """Parameters that no gold call needs, to fill a tool up to the number that the knobs say.

    Each has its default, or has none, as often as the knobs say.
    """
    knobs, rng = world.difficulty, world.rng
    taken = {parameter.name for parameter in own}
    fillers: list[Parameter] = []
    for _ in range(draw(knobs.parameters, rng) - len(own)):
        kind = draw_share(knobs.parameter_types, rng)
        pool = [item for item in world.lexicon.fillers.get(kind, ()) if item.name not in taken]
        if not pool:
            continue
        filler = rng.choice(pool)
        taken.add(filler.name)
        schema = dict(filler.schema)
        if rng.random() >= knobs.default_shares.get(kind, 0.0):
            schema.pop("default", None)
        fillers.append(Parameter(filler.name, schema))
    return fillers


def _described(parameter: Parameter, world: World) -> Parameter:
    """The parameter with its final description, which terse difficulties leave out."""
    schema = dict(parameter.schema)
    text = schema.pop("description", "")
    if not world.difficulty.verbose:
        return Parameter(parameter.name, schema, parameter.required)
    sentences = [f"{text}."]
    if "enum" in schema:
        sentences.append(f"One of {', '.join(schema['enum'])}.")
    default = schema.get("default", "")
    if default not in ("", []):
        said = str(default).lower() if isinstance(default, bool) else default
        sentences.append(f"Default is {said}.")
    sentences.append(world.rng.choice(world.lexicon.parameter_remarks))
    schema = {"type": schema.pop("type"), "description": " ".join(sentences), **schema}
    return Parameter(parameter.name, schema, parameter.required)


def _describe_tool(relation: Relation, world: World) -> str:
    if not world.difficulty.verbose:
        return f"{relation.name} of a {relation.domain}"
    article = "an" if relation.domain[0] in "aeiou" else "a"
    entry = f"{relation.noun} {relation.link} {article} {relation.domain}"
    first = f"Looks up the {entry} in the registers of the realm."
    return " ".join([first, *world.rng.sample(world.lexicon.tool_remarks, 2)])


def _draw_facts(
    relation: Relation,
    qualifiers: tuple[Qualifier, ...],
    hops: Sequence[Hop],
    asked: Sequence[Hop],
    world: World,
) -> dict[Key, str | int]:
    def key_of(hop: Hop) -> Key:
        return (hop.subject, *hop.terms.values.values())

    rng = world.rng
    facts: dict[Key, str | int] = {key_of(hop): hop.fact for hop in hops}
    for hop in hops:
        for position, qualifier in enumerate(qualifiers, 1):  # the same entity, otherwise narrowed
            key = list(key_of(hop))
            key[position] = qualifier.default
            facts.setdefault(tuple(key), world.draw_fact(relation))
    known = {hop.subject for hop in hops}
    others = [hop.subject for hop in asked if hop.subject not in known]
    fitting = [h.subject for h in asked if h.relation.domain == relation.domain and not hops]
    subjects = [rng.choice(fitting)] if fitting else []
    for _ in range(draw(world.difficulty.spare_facts, rng)):
        from_task = others and rng.random() < 0.5
        subjects.append(rng.choice(others) if from_task else world.names.draw(relation.domain))
    for subject in subjects:
        values = world.draw_values(qualifiers).values()
        facts.setdefault((subject, *values), world.draw_fact(relation))
    items = list(facts.items())
    rng.shuffle(items)
    return dict(items)


def _schema(parameters: Sequence[Parameter]) -> dict[str, Any]:
    """The schema of a tool's arguments object."""
    return {
        "type": "object",
        "properties": {parameter.name: dict(parameter.schema) for parameter in parameters},
        "required": [parameter.name for parameter in parameters if parameter.required],
    }


def _function(
    name: str, parameters: Sequence[Parameter], docstring: str, lines: Sequence[str]
) -> str:
    """A function of these lines; required parameters come first."""
    taken = [parameter.name for parameter in parameters if parameter.required]
    taken += [
        f"{parameter.name}={parameter.schema.get('default')!r}"
        for parameter in parameters
        if not parameter.required
    ]
    body = "".join(f"{_INDENT}{line}\n" for line in (f'"""{docstring}"""', *lines))
    return f"def {name}({', '.join(taken)}):\n{body}"


def _refuse(style: str, message: str) -> str:
    """The statement that ends a call with an error."""
    if style == "raise":
        return f"raise ValueError({message!r})"
    return f"return { ({'error': message} if style == 'object' else f'Error: {message}')!r}"


def _lookup_lines(tool: LookupTool) -> list[str]:
    """What a lookup does: checks, the entry, its unit and form."""
    relation, behaviour = tool.relation, tool.behaviour
    subject = relation.parameter
    lines = _checks(tool) if behaviour.verbose else []
    lines += _check_choices(tool.parameters, behaviour.error_style, behaviour.verbose)
    tidied = f"tidy(str({subject}))" if behaviour.tidies_names else f"str({subject})"
    lines.append(f"name = {tidied}")
    parts = ["name", *(qualifier.parameter for qualifier in tool.qualifiers)]
    lines.append(f"key = ({', '.join(parts)})" if len(parts) > 1 else "key = name")
    lines += _find(tool)
    if relation.unit is not None:
        lines.append(f"if unit == {relation.unit.other!r}:")
        lines.append(f"{_INDENT}value = round(value * {relation.unit.factor})")
    if behaviour.groups_digits and relation.target == "number":
        lines.append('value = f"{value:,}"')
    return [*lines, f"return {tool.expression}"]


def _checks(tool: LookupTool) -> list[str]:
    """Refuses an entity that is no text, and dates that are none."""
    style, subject = tool.behaviour.error_style, tool.relation.parameter
    lines = [f"if not isinstance({subject}, str) or not {subject}.strip():"]
    lines.append(_INDENT + _refuse(style, f"{subject} must be a text that is not empty."))
    for name in (item.parameter for item in tool.qualifiers if item.form == "date"):
        lines += [
            "try:",
            f"{_INDENT}if {name} is not None:",
            f'{_INDENT * 2}datetime.datetime.strptime({name}, "%Y-%m-%d")',
            "except (TypeError, ValueError):",
            _INDENT + _refuse(style, f"{name} must be a date of the form YYYY-MM-DD."),
        ]
    return lines


def _check_choices(parameters: Sequence[Parameter], style: str, verbose: bool) -> list[str]:
    """Refuses values that are not in the enum of their parameter."""
    lines = []
    for parameter in parameters:
        choices = parameter.schema.get("enum")
        if not choices:
            continue
        optional = not parameter.required and "default" not in parameter.schema
        given = f"{parameter.name} is not None and " if optional else ""
        message = f"{parameter.name} must be one of {', '.join(choices)}."
        lines.append(f"if {given}{parameter.name} not in {tuple(choices)!r}:")
        message = message if verbose else f"{parameter.name} not found"
        lines.append(_INDENT + _refuse(style, message))
    return lines


def _find(tool: LookupTool) -> list[str]:
    """Sets `value`, and deals with entities that are not there."""
    behaviour, relation = tool.behaviour, tool.relation
    if behaviour.unknown_entity == "wrong":
        return [f"value = RECORDS.get(key, {tool.fallback!r})"]
    missing = f"{relation.noun} not found." if behaviour.verbose else f"{relation.name} not found"
    statement = _refuse(behaviour.error_style, missing)
    if behaviour.unknown_entity == "soft":
        texts = (
            f'f"No {relation.noun} was found for {{name}}."',
            f'"{relation.noun.capitalize()} not found for this request."',
            '{"message": "No entry was found for " + name}',
            f'{{{relation.name!r}: "Unknown", "detail": "Not found in any register."}}',
        )
        statement = f"return {texts[behaviour.wording]}"
    return ["if key not in RECORDS:", _INDENT + statement, "value = RECORDS[key]"]


_OPERATION = {
    "type": "string",
    "description": "What to do with the numbers",
    "enum": ["add", "subtract", "multiply", "divide"],
}
_NUMBERS = {
    "type": "array",
    "items": {"type": "number"},
    "description": "The numbers, in the order in which they are combined",
}


def draw_calculator(calculation: Calculation, world: World) -> tuple[ToolSpec, str]:
    """The tool, and what it returns for the gold call."""
    style = draw_share(world.difficulty.error_styles, world.rng)
    groups_digits = world.rng.random() < 0.5
    own = [Parameter("operation", _OPERATION, True), Parameter("numbers", _NUMBERS, True)]
    own += world.lexicon.calculator_fillers
    parameters = [_described(parameter, world) for parameter in own]
    expression = 'f"{result:,}"' if groups_digits else '{"result": result}'
    lines = [
        *_check_choices(parameters, style, verbose=True),
        "if not isinstance(numbers, list) or len(numbers) < 2:",
        "    " + _refuse(style, "numbers must be a list of at least two numbers."),
        "result = numbers[0]",
        "for number in numbers[1:]:",
        '    if operation == "add":',
        "        result += number",
        '    elif operation == "subtract":',
        "        result -= number",
        '    elif operation == "multiply":',
        "        result *= number",
        "    elif number == 0:",
        "        " + _refuse(style, "numbers must not be divided by zero."),
        "    else:",
        "        result /= number",
        f"return {expression}",
    ]
    description = "Adds, subtracts, multiplies or divides numbers, from the first to the last."
    source = _function(CALCULATOR, parameters, description, lines)
    output = value_text(eval(expression, {"result": calculation.result}))
    return ToolSpec(CALCULATOR, description, _schema(parameters), source), output
