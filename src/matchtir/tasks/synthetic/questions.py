"""Words the question of a plan."""

from __future__ import annotations

from collections.abc import Sequence

from matchtir.tasks.synthetic.plan import LETTERS
from matchtir.tasks.synthetic.records import Calculation, Hop, Lexicon, Plan


def word_question(plan: Plan, lexicon: Lexicon) -> str:
    """One sentence that says everything the gold calls need."""
    phrases = [_chain_phrase(chain, lexicon) for chain in plan.chains]
    if lexicon.pronoun:  # chains of one task share a relation only where a tool is used twice
        for index, (hop, *_) in enumerate(plan.chains[1:], 1):
            if hop.relation == plan.chains[0][0].relation:
                phrases[index] = f"{lexicon.pronoun} {hop.relation.link} {hop.subject}"
    last = plan.chains[0][-1]
    if plan.closing == "list":
        if len(phrases) == 1:
            beginning = lexicon.questions.get(last.relation.target, "What is")
            return f"{beginning} {phrases[0]}?"
        return f"What are {_enumerate(phrases)}?"
    if isinstance(plan.final_call, Hop):
        way = plan.final_call
        return f"What is the {_noun(way)} between {phrases[0]} and {phrases[1]}?"
    if plan.closing in ("sum", "difference", "calculator"):
        return _word_arithmetic(plan, phrases)
    return _word_comparison(plan.closing, last.relation.target == "number", phrases)


def _noun(hop: Hop) -> str:
    """`height in feet`, `mayor as of April 5, 1923`: the qualifiers stand at the noun."""
    words = [hop.relation.noun, *(narrowing.words for narrowing in hop.terms.narrowings)]
    if hop.relation.unit is not None and hop.terms.in_other_unit:
        words.append(f"in {hop.relation.unit.other}")
    return " ".join(word for word in words if word)


def _chain_phrase(chain: Sequence[Hop], lexicon: Lexicon) -> str:
    """`the port of the mentor of "amber falcon"`."""
    phrase = f"{lexicon.quote}{chain[0].subject}{lexicon.quote}"
    for hop in chain:
        phrase = f"the {_noun(hop)} {hop.relation.link} {phrase}"
    return phrase


def _enumerate(phrases: Sequence[str]) -> str:
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _word_arithmetic(plan: Plan, phrases: Sequence[str]) -> str:
    adds = plan.closing == "sum"
    if isinstance(plan.final_call, Calculation):
        adds = plan.final_call.operation == "add"
    if adds:
        return f"What is the sum of {_enumerate(phrases)}?"
    return f"What is the difference between {phrases[0]} and {phrases[1]}?"


def _word_comparison(closing: str, of_numbers: bool, phrases: Sequence[str]) -> str:
    if closing == "yes_no":
        return f"Is {phrases[0]} {'greater' if of_numbers else 'earlier'} than {phrases[1]}?"
    options = [f"({LETTERS[index]}) {phrase}" for index, phrase in enumerate(phrases)]
    if closing == "rank":
        order = "smallest to largest" if of_numbers else "earliest to latest"
        return f"Rank from {order}: {', '.join(options[:-1])}, and {options[-1]}."
    if len(phrases) == 2:
        degree = "greater" if of_numbers else "earlier"
    else:
        degree = "greatest" if of_numbers else "earliest"
    return f"Which is {degree}: {', '.join(options[:-1])}, or {options[-1]}?"
