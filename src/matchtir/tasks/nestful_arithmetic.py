"""NESTFUL's basic arithmetic: the functions that its data name without giving their source."""

from __future__ import annotations

# Written from the descriptions in the tools' schemas: parameters and returned expression.
_EXPRESSIONS = {
    "add": ("arg_0, arg_1", "arg_0 + arg_1"),
    "subtract": ("arg_0, arg_1", "arg_0 - arg_1"),
    "multiply": ("arg_0, arg_1", "arg_0 * arg_1"),
    "negate": ("arg_0", "-arg_0"),
    "inverse": ("arg_0", "1 / arg_0"),
    "power": ("arg_0, arg_1", "arg_0**arg_1"),
    "log": ("arg_0, arg_1=math.e", "math.log(arg_0, arg_1)"),
    "floor": ("arg_0", "math.floor(arg_0)"),
    "remainder": ("arg_0, arg_1", "arg_0 % arg_1"),
    "reminder": ("arg_0, arg_1", "arg_0 % arg_1"),
    "gcd": ("arg_0, arg_1", "math.gcd(arg_0, arg_1)"),
    "lcm": ("arg_0, arg_1", "math.lcm(arg_0, arg_1)"),
    "factorial": ("arg_0", "math.factorial(arg_0)"),
    "choose": ("arg_0, arg_1", "math.comb(arg_0, arg_1)"),
    "min_number": ("arg_0", "min(arg_0)"),
    "negate_prob": ("arg_0", "1 - arg_0"),
    "speed": ("arg_0, arg_1", "arg_0 / arg_1"),
    "diagonal": ("arg_0, arg_1", "math.sqrt(arg_0**2 + arg_1**2)"),
    "circumface": ("arg_0", "2 * math.pi * arg_0"),
    "circle_area": ("arg_0", "math.pi * arg_0**2"),
    "triangle_area": ("arg_0, arg_1", "arg_0 * arg_1 / 2"),
    "rhombus_area": ("arg_0, arg_1", "arg_0 * arg_1 / 2"),
    "rectangle_area": ("arg_0, arg_1", "arg_0 * arg_1"),
    "rectangle_perimeter": ("arg_0, arg_1", "2 * (arg_0 + arg_1)"),
    "square_area": ("arg_0", "arg_0**2"),
    "square_perimeter": ("arg_0", "4 * arg_0"),
    "square_edge_by_area": ("arg_0", "math.sqrt(arg_0)"),
    "square_edge_by_perimeter": ("arg_0", "arg_0 / 4"),
    "cube_edge_by_volume": ("arg_0", "math.cbrt(arg_0)"),
    "surface_cube": ("arg_0", "6 * arg_0**2"),
    "surface_cylinder": ("arg_0, arg_1", "2 * math.pi * arg_0 * (arg_0 + arg_1)"),
    "surface_sphere": ("arg_0", "4 * math.pi * arg_0**2"),
    "volume_cube": ("arg_0", "arg_0**3"),
    "volume_cylinder": ("arg_0, arg_1", "math.pi * arg_0**2 * arg_1"),
    "volume_cone": ("arg_0, arg_1", "math.pi * arg_0**2 * arg_1 / 3"),
    "volume_sphere": ("arg_0", "4 / 3 * math.pi * arg_0**3"),
}

ARITHMETIC_SOURCES = {
    name: f"import math\n\n\ndef {name}({parameters}):\n    return {expression}\n"
    for name, (parameters, expression) in _EXPRESSIONS.items()
}
