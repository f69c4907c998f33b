"""The tools of a task: what each of them knows, its schema and its Python source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matchtir.tasks.synthetic.plan import Hop
from matchtir.tasks.synthetic.world import Relation, World, draw, spend
from matchtir.types import ToolSpec

_INDENT = "    "
_TIDY = '''def tidy(text):
    """Single spaces between words."""
    return re.sub(r"\\s+", " ", text).strip()
'''


def lookup_tool(
    relation: Relation,
    facts: Mapping[str, str | int],
    *,
    fallback: str | int | None,
    error_object: bool,
    tidies_names: bool,
    punctuates: bool,
) -> ToolSpec:
    """The tool that looks `relation` up in `facts`, by entity: its schema and its source.

    Args:
        fallback: what it says of an entity that it does not know; None: it refuses.
        error_object: errors are objects, else text.
        tidies_names: by a helper function.
        punctuates: a full stop after the output.
    """
    unit, subject = relation.unit, relation.domain
    description = f"{relation.name} of a {subject}"
    properties: dict[str, Any] = {subject: {"type": "string"}}

    def refuse(message: str) -> str:
        said = {"error": message} if error_object else f"Error: {message}"
        return f"{_INDENT}return {said!r}"

    lines = [f'"""{description}"""']
    if unit is not None:
        units = (unit.base, unit.other)
        properties["unit"] = {"type": "string", "enum": [*units], "default": unit.base}
        lines += [f"if unit not in {units!r}:", refuse("unit not found")]
    name = f"tidy(str({subject}))" if tidies_names else f"str({subject})"
    lines += [f"name = {name}", "key = name"]
    if fallback is None:
        lines += ["if key not in RECORDS:", refuse(f"{relation.name} not found")]
        lines.append("value = RECORDS[key]")
    else:
        lines.append(f"value = RECORDS.get(key, {fallback!r})")
    if unit is not None:
        lines += [f"if unit == {unit.other!r}:", f"{_INDENT}value = round(value * {unit.factor})"]
    lines.append(f"return {"f'{value}.'" if punctuates else 'str(value)'}")
    schema = {"type": "object", "properties": properties, "required": [subject]}
    records = "".join(f"{_INDENT}{key!r}: {value!r},\n" for key, value in facts.items())
    taken = subject if unit is None else f"{subject}, unit={unit.base!r}"
    body = "".join(f"{_INDENT}{line}\n" for line in lines)
    parts = ["import re\n", _TIDY] if tidies_names else []
    parts += [f"RECORDS = {{\n{records}}}\n", f"def {relation.tool}({taken}):\n{body}"]
    return ToolSpec(relation.tool, description, schema, "\n\n".join(parts))


def draw_tool(
    relation: Relation, hops: Sequence[Hop], asked: Sequence[Hop], world: World
) -> ToolSpec:
    """A tool that knows the facts of `hops`, and others that would mislead.

    Args:
        hops: the gold calls of this tool; a distractor has none.
        asked: all gold calls of the task: their entities may be found here, too.
    """
    rng = world.rng
    error_object, guesses = rng.random() < 0.6, rng.random() >= 0.9
    rng.random()  # as `spend`
    tidies_names = rng.random() < 0.3
    rng.randrange(4)  # as `spend`
    spend(rng)
    facts = _draw_facts(relation, hops, asked, world)
    fallback = world.draw_fact(relation)
    if world.toolset.twins:
        guesses = False
        foreign = {hop.subject for hop in asked} - {hop.subject for hop in hops}
        facts = {key: fact for key, fact in facts.items() if key not in foreign}
    return lookup_tool(
        relation,
        facts,
        fallback=fallback if guesses else None,
        error_object=error_object,
        tidies_names=tidies_names,
        punctuates=world.toolset.punctuates,
    )


def _draw_facts(
    relation: Relation, hops: Sequence[Hop], asked: Sequence[Hop], world: World
) -> dict[str, str | int]:
    rng = world.rng
    facts = {hop.subject: hop.fact for hop in hops}
    others = [hop.subject for hop in asked if hop.subject not in facts]
    fitting = [h.subject for h in asked if h.relation.domain == relation.domain and not hops]
    subjects = [rng.choice(fitting)] if fitting else []
    for _ in range(draw(world.difficulty.spare_facts, rng)):
        from_task = others and rng.random() < 0.5
        subjects.append(rng.choice(others) if from_task else world.draw_name())
    for subject in subjects:
        facts.setdefault(subject, world.draw_fact(relation))
    items = list(facts.items())
    rng.shuffle(items)
    return dict(items)
