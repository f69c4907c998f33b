"""The tools of a task: what each of them knows, its schema and its Python source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matchtir.tasks.synthetic.plan import Hop
from matchtir.tasks.synthetic.world import Relation, World, spend
from matchtir.types import ToolSpec

_INDENT = "    "
_TIDY = '''def tidy(text):
    """Single spaces between words."""
    return re.sub(r"\\s+", " ", text).strip()
'''


@dataclass(frozen=True, slots=True)
class LookupTool:
    """Looks `relation` up in `facts`."""

    relation: Relation
    facts: Mapping[str, str | int]  # by entity
    fallback: str | int  # what it says of an entity that it does not know, if it guesses
    guesses: bool  # instead of refusing
    error_object: bool  # errors are objects, else text
    tidies_names: bool  # by a helper function
    punctuates: bool  # a full stop after the output

    def spec(self) -> ToolSpec:
        """The tool with its schema and its source."""
        relation, unit = self.relation, self.relation.unit
        description = f"{relation.name} of a {relation.domain}"
        properties: dict[str, Any] = {relation.domain: {"type": "string"}}
        if unit is not None:
            units = [unit.base, unit.other]
            properties["unit"] = {"type": "string", "enum": units, "default": unit.base}
        schema = {"type": "object", "properties": properties, "required": [relation.domain]}
        records = "".join(f"{_INDENT}{key!r}: {value!r},\n" for key, value in self.facts.items())
        taken = relation.domain if unit is None else f"{relation.domain}, unit={unit.base!r}"
        body = "".join(f"{_INDENT}{line}\n" for line in (f'"""{description}"""', *self._lines()))
        parts = ["import re\n", _TIDY] if self.tidies_names else []
        parts += [f"RECORDS = {{\n{records}}}\n", f"def {relation.tool}({taken}):\n{body}"]
        return ToolSpec(relation.tool, description, schema, "\n\n".join(parts))

    def _lines(self) -> list[str]:
        """What a lookup does: checks, the entry, its unit."""
        unit, subject = self.relation.unit, self.relation.domain
        lines = []
        if unit is not None:
            lines.append(f"if unit not in {(unit.base, unit.other)!r}:")
            lines.append(_INDENT + self._refuse("unit not found"))
        name = f"tidy(str({subject}))" if self.tidies_names else f"str({subject})"
        lines += [f"name = {name}", "key = name", *self._find()]
        if unit is not None:
            lines.append(f"if unit == {unit.other!r}:")
            lines.append(f"{_INDENT}value = round(value * {unit.factor})")
        said = "f'{value}.'" if self.punctuates else "str(value)"
        return [*lines, f"return {said}"]

    def _find(self) -> list[str]:
        """Sets `value`, and deals with entities that are not there."""
        if self.guesses:
            return [f"value = RECORDS.get(key, {self.fallback!r})"]
        statement = self._refuse(f"{self.relation.name} not found")
        return ["if key not in RECORDS:", _INDENT + statement, "value = RECORDS[key]"]

    def _refuse(self, message: str) -> str:
        """The statement that ends a call with an error."""
        return f"return { ({'error': message} if self.error_object else f'Error: {message}')!r}"


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
    flags = (guesses, error_object, tidies_names, world.toolset.punctuates)
    return LookupTool(relation, facts, fallback, *flags).spec()


def _draw_facts(
    relation: Relation, hops: Sequence[Hop], asked: Sequence[Hop], world: World
) -> dict[str, str | int]:
    rng = world.rng
    facts = {hop.subject: hop.fact for hop in hops}
    others = [hop.subject for hop in asked if hop.subject not in facts]
    fitting = [h.subject for h in asked if h.relation.domain == relation.domain and not hops]
    subjects = [rng.choice(fitting)] if fitting else []
    for _ in range(rng.randint(*world.difficulty.spare_facts)):
        from_task = others and rng.random() < 0.5
        subjects.append(rng.choice(others) if from_task else world.draw_name())
    for subject in subjects:
        facts.setdefault(subject, world.draw_fact(relation))
    items = list(facts.items())
    rng.shuffle(items)
    return dict(items)
