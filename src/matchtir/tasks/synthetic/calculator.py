"""The calculator, the one tool that looks nothing up."""

from __future__ import annotations

import json

from matchtir.tasks.synthetic.difficulty import draw_share
from matchtir.tasks.synthetic.parameters import describe, json_schema
from matchtir.tasks.synthetic.records import Calculation, Parameter
from matchtir.tasks.synthetic.source import check_choices, refuse, write_function
from matchtir.tasks.synthetic.world import World
from matchtir.types import ToolSpec

NAME = "arithmetic_calculator"

_OPERATION = Parameter(
    "operation",
    {
        "type": "string",
        "description": "What to do with the numbers",
        "enum": ["add", "subtract", "multiply", "divide"],
    },
    required=True,
)
_NUMBERS = Parameter(
    "numbers",
    {
        "type": "array",
        "items": {"type": "number"},
        "description": "The numbers, in the order in which they are combined",
    },
    required=True,
)


def calculator_arguments(calculation: Calculation) -> dict[str, object]:
    """Arguments of the gold call."""
    return {"operation": calculation.operation, "numbers": list(calculation.numbers)}


def build_calculator(calculation: Calculation, world: World) -> tuple[ToolSpec, str]:
    """The tool, and what it returns for the gold call."""
    style = draw_share(world.difficulty.error_styles, world.rng)
    groups_digits = world.rng.random() < 0.5
    parameters = tuple(
        describe(parameter, world)
        for parameter in (_OPERATION, _NUMBERS, *world.lexicon.calculator_fillers)
    )
    lines = [
        *check_choices(parameters, style, verbose=True),
        "if not isinstance(numbers, list) or len(numbers) < 2:",
        "    " + refuse(style, "numbers must be a list of at least two numbers."),
        "result = numbers[0]",
        "for number in numbers[1:]:",
        '    if operation == "add":',
        "        result += number",
        '    elif operation == "subtract":',
        "        result -= number",
        '    elif operation == "multiply":',
        "        result *= number",
        "    elif number == 0:",
        "        " + refuse(style, "numbers must not be divided by zero."),
        "    else:",
        "        result /= number",
        'return f"{result:,}"' if groups_digits else 'return {"result": result}',
    ]
    description = "Adds, subtracts, multiplies or divides numbers, from the first to the last."
    source = write_function(NAME, parameters, description, lines)
    result = calculation.result
    output = f"{result:,}" if groups_digits else json.dumps({"result": result})
    return ToolSpec(NAME, description, json_schema(parameters), source), output
