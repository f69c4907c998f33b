"""Writes tools as Python source, in the manner of FTRL's."""

from __future__ import annotations

from collections.abc import Sequence

from matchtir.tasks.synthetic.lookup import REMARK, LookupTool
from matchtir.tasks.synthetic.parameters import signature
from matchtir.tasks.synthetic.records import Parameter

_TIDY = '''def tidy(text):
    """Single spaces between words."""
    return re.sub(r"\\s+", " ", text).strip()
'''
_INDENT = "    "


def write_lookup(tool: LookupTool, verbose: bool) -> str:
    """The source of a lookup tool."""
    relation, behaviour = tool.relation, tool.behaviour
    subject = relation.parameter
    lines = _checks(tool, verbose)
    lines.append(
        f"name = tidy(str({subject}))" if behaviour.tidies_names else f"name = str({subject})"
    )
    parts = ["name", *(qualifier.parameter for qualifier in tool.qualifiers)]
    lines.append(f"key = ({', '.join(parts)})" if len(parts) > 1 else "key = name")
    lines += _find(tool, verbose)
    if relation.unit is not None:
        lines.append(f"if unit == {relation.unit.other!r}:")
        lines.append(f"{_INDENT}value = round(value * {relation.unit.factor})")
    if behaviour.groups_digits and relation.target == "number":
        lines.append('value = f"{value:,}"')
    lines.append(f"return {_output_code(tool)}")

    modules = {"re": behaviour.tidies_names, "json": behaviour.output_style == "json"}
    modules["datetime"] = verbose and any(item.form == "date" for item in tool.qualifiers)
    facts = [(key if len(key) > 1 else key[0], value) for key, value in tool.facts.items()]
    records = "".join(f"{_INDENT}{key!r}: {value!r},\n" for key, value in facts)
    parts = ["".join(f"import {name}\n" for name, used in modules.items() if used)]
    parts += [_TIDY] if behaviour.tidies_names else []
    parts.append(f"RECORDS = {{\n{records}}}\n")
    docstring = _docstring(tool.description, tool.parameters, verbose)
    parts.append(write_function(relation.tool, tool.parameters, docstring, lines))
    return "\n\n".join(part for part in parts if part)


def write_function(
    name: str, parameters: Sequence[Parameter], docstring: str, lines: Sequence[str]
) -> str:
    """A function of these lines."""
    body = "".join(f"{_INDENT}{line}\n" for line in (f'"""{docstring}"""', *lines))
    return f"def {name}({signature(parameters)}):\n{body}"


def _docstring(description: str, parameters: Sequence[Parameter], verbose: bool) -> str:
    if not verbose:
        return description
    arguments = "".join(
        f"\n{_INDENT}{parameter.name}: {parameter.schema['description']}"
        for parameter in parameters
    )
    return f"{description}\n\n{_INDENT}Parameters:{arguments}\n{_INDENT}"


def refuse(style: str, message: str) -> str:
    """The statement that ends a call with an error."""
    if style == "raise":
        return f"raise ValueError({message!r})"
    return f"return { ({'error': message} if style == 'object' else f'Error: {message}')!r}"


def check_choices(parameters: Sequence[Parameter], style: str, verbose: bool) -> list[str]:
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
        lines.append(_INDENT + refuse(style, message if verbose else f"{parameter.name} not found"))
    return lines


def _checks(tool: LookupTool, verbose: bool) -> list[str]:
    style, subject = tool.behaviour.error_style, tool.relation.parameter
    lines = []
    if verbose:
        lines.append(f"if not isinstance({subject}, str) or not {subject}.strip():")
        lines.append(_INDENT + refuse(style, f"{subject} must be a text that is not empty."))
        for qualifier in tool.qualifiers:
            if qualifier.form == "date":
                lines += _check_date(qualifier.parameter, style)
    return lines + check_choices(tool.parameters, style, verbose)


def _check_date(name: str, style: str) -> list[str]:
    return [
        "try:",
        f"{_INDENT}if {name} is not None:",
        f'{_INDENT * 2}datetime.datetime.strptime({name}, "%Y-%m-%d")',
        "except (TypeError, ValueError):",
        _INDENT + refuse(style, f"{name} must be a date of the form YYYY-MM-DD."),
    ]


def _find(tool: LookupTool, verbose: bool) -> list[str]:
    """Sets `value`, and deals with entities that are not there."""
    behaviour, relation = tool.behaviour, tool.relation
    if behaviour.unknown_entity == "wrong":
        return [f"value = RECORDS.get(key, {tool.fallback!r})"]
    missing = f"{relation.noun} not found" if verbose else f"{relation.name} not found"
    statement = refuse(behaviour.error_style, missing + ("." if verbose else ""))
    if behaviour.unknown_entity == "soft":
        texts = (
            f'f"No {relation.noun} was found for {{name}}."',
            f'"{relation.noun.capitalize()} not found for this request."',
            '{"message": "No entry was found for " + name}',
            f'{{{relation.name!r}: "Unknown", "detail": "Not found in any register."}}',
        )
        statement = f"return {texts[behaviour.wording]}"
    return ["if key not in RECORDS:", _INDENT + statement, "value = RECORDS[key]"]


def _output_code(tool: LookupTool) -> str:
    """The expression for what `LookupTool.output` says."""
    relation, style = tool.relation, tool.behaviour.output_style
    if style == "bare":
        return "str(value)"
    if style == "sentence":
        return f'f"The {relation.noun} {relation.link} {{name}} is {{value}}."'
    if style == "value":
        return f"{{{relation.name!r}: value}}"
    remark = repr(REMARK)[1:-1]
    record = f"{{{relation.domain!r}: name, {relation.name!r}: value, {remark}}}"
    return f"json.dumps({record})" if style == "json" else record
