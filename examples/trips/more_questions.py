"""More questions (261) for the same tools: every place asked for in every way.

python examples/trips/more_questions.py FILE [--seed 0]

Held-out questions (a third) ask in ways that training knows, for places that it does not ask about
in that way.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOOLS = runpy.run_path(str(Path(__file__).with_name("tools.py")))
FUNCTIONS = ("find_city", "find_country", "find_currency", "euro_rate", "july_warmth")
CITIES = list(TOOLS["_COUNTRIES"])
LANDMARKS = list(TOOLS["_CITIES"])
PARAMETERS = {"find_city": "landmark", "find_country": "city", "find_currency": "country"}
PARAMETERS |= {"euro_rate": "currency", "july_warmth": "city"}
SHARES = {"train": 0.65, "validation": 0.1, "test": 0.25}


def chain(start: str, *tools: str) -> tuple[list[dict[str, Any]], str]:
    """Calls of which each takes what the one before returned, and what the last returns."""
    calls, value = [], start
    for turn, tool in enumerate(tools, start=1):
        calls.append({"name": tool, "arguments": {PARAMETERS[tool]: value}, "turn": turn})
        value = TOOLS[tool](value)
    return calls, str(value)


def the(place: str) -> str:
    """A place as it is spoken of: most landmarks have an article."""
    bare = place in CITIES or place == "Big Ben"
    return place if bare else f"the {place}"


def lookups() -> Iterator[dict[str, Any]]:
    """Chains of one to four calls from a landmark or a city."""
    ways = (
        ("In which city is {}?", LANDMARKS, ("find_city",)),
        ("In which country is {}?", CITIES, ("find_country",)),
        ("How warm is it in July in {}?", CITIES, ("july_warmth",)),
        ("Which currency do they use in {}?", CITIES, ("find_country", "find_currency")),
        ("In which country is {}?", LANDMARKS, ("find_city", "find_country")),
        ("How warm is it in July at {}?", LANDMARKS, ("find_city", "july_warmth")),
        (
            "Which currency do they use at {}?",
            LANDMARKS,
            ("find_city", "find_country", "find_currency"),
        ),
        (
            "How much of its currency is one euro in {}?",
            CITIES,
            ("find_country", "find_currency", "euro_rate"),
        ),
        (
            "How much of its currency is one euro at {}?",
            LANDMARKS,
            ("find_city", "find_country", "find_currency", "euro_rate"),
        ),
    )
    names = {1: "one_call", 2: "two_calls", 3: "three_calls", 4: "four_calls"}
    for question, starts, tools in ways:
        for start in starts:
            calls, answer = chain(start, *tools)
            yield {
                "scenario": names[len(tools)],
                "question": question.format(the(start)),
                "gold_calls": calls,
                "answer": answer,
            }


def flight(origin: str, target: str, turn: int) -> dict[str, Any]:
    """A call."""
    return {
        "name": "flight_hours",
        "arguments": {"origin": origin, "target": target},
        "turn": turn,
    }


def pairs() -> Iterator[dict[str, Any]]:
    """Flights between two cities or landmarks, and how warm both are."""
    for first, second in itertools.combinations(CITIES, 2):
        yield {
            "scenario": "one_call",
            "question": f"How long is the flight from {first} to {second}?",
            "gold_calls": [flight(first, second, 1)],
            "answer": str(TOOLS["flight_hours"](first, second)),
        }
        yield both("two_calls", "How warm are {} and {} in July?", first, second, "july_warmth")
    for first, second in itertools.permutations(LANDMARKS, 2):
        found = both("", "How long is the flight from {} to {}?", first, second, "find_city")
        cities = found["answer"].split(", ")
        yield found | {
            "scenario": "three_calls",
            "gold_calls": [*found["gold_calls"], flight(*cities, 2)],
            "answer": str(TOOLS["flight_hours"](*cities)),
        }
    for first, second in itertools.combinations(LANDMARKS, 2):
        question = "How warm is it in July at {} and at {}?"
        yield both("four_calls", question, first, second, "find_city", "july_warmth")


def both(scenario: str, question: str, first: str, second: str, *tools: str) -> dict[str, Any]:
    """The same chain from two starts, side by side."""
    (calls, answer), (others, other) = chain(first, *tools), chain(second, *tools)
    return {
        "scenario": scenario,
        "question": question.format(the(first), the(second)),
        "gold_calls": [call for step in zip(calls, others, strict=True) for call in step],
        "answer": f"{answer}, {other}",
    }


def plans(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Changes of a plan, which has no answer but a state to reach."""
    for city, other in itertools.permutations(CITIES, 2):
        nights, before = rng.randint(1, 8), rng.randint(1, 8)
        add = {"name": "add_stop", "arguments": {"city": city, "nights": nights}, "turn": 1}
        drop = {"name": "drop_stop", "arguments": {"city": other}, "turn": 1}
        change = {"name": "set_nights", "arguments": {"city": city, "nights": nights}, "turn": 1}
        way = rng.choice(("add", "swap", "change"))
        if way == "add":
            question, calls = f"Stay {nights} nights in {city}.", [add]
            stops, reached = {}, {city: nights}
        elif way == "swap":
            question, calls = f"Skip {other} and stay {nights} nights in {city}.", [drop, add]
            stops, reached = {other: before}, {city: nights}
        else:
            question, calls = f"Make it {nights} nights in {city}.", [change]
            stops = {city: nights % 8 + 1, other: before}
            reached = {city: nights, other: before}
        yield {
            "scenario": "plan",
            "question": question,
            "gold_calls": calls,
            "initial_state": {"TripPlan": {"stops": stops}},
            "gold_state": {"TripPlan": {"stops": reached}},
        }


def main() -> None:
    """Write them, each question once, in seeded splits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    rows = list({r["question"]: r for r in [*lookups(), *pairs(), *plans(rng)]}.values())
    rng.shuffle(rows)
    splits = rng.choices(list(SHARES), list(SHARES.values()), k=len(rows))
    with options.file.open("w", encoding="utf-8") as file:
        for number, (row, split) in enumerate(zip(rows, splits, strict=True)):
            if row["scenario"] == "plan":
                tools = ["add_stop", "drop_stop", "set_nights"]
            else:
                needed = {call["name"] for call in row["gold_calls"]}
                spare = [t for t in (*FUNCTIONS, "flight_hours") if t not in needed]
                tools = sorted([*needed, *rng.sample(spare, 2)])
            line = {"id": f"more-{number:03}", "split": split, "tools": tools, **row}
            file.write(json.dumps(line) + "\n")
    print(f"{len(rows)} questions: {options.file}")


if __name__ == "__main__":
    main()
