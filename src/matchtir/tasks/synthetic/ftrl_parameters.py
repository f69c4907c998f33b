"""Parameters and descriptions of the tools in the `ftrl` worlds."""

from __future__ import annotations

from typing import Any

from matchtir.tasks.synthetic.records import Parameter, Qualifier

# parameter | wording | description | choices, the first of which is the default
_CHOICE_QUALIFIERS = """
source | according to the {} | Record to consult | any official_register press_archive field_survey
edition | in the {} edition | Edition of the record | current first revised abridged annotated
season | in the {} season | Season that the entry refers to | any spring summer autumn winter
status | with {} status | Status that the entry must have | any active provisional archived
era | in the {} era | Era in which the connection held | any colonial industrial post_war digital
jurisdiction | under {} law | Law that the entry was made under | any national maritime cantonal
authority | certified by the {} board | Board that certified it | any heritage science trade harbour
tier | at {} tier | Tier of the directory to search | standard regional premium restricted
census | in the {} census | Census that holds the entry | latest northern southern coastal island
category | in the {} category | Category of the entry | any civic commercial scholarly naval
"""
# parameter | form | wording | description
_OTHER_QUALIFIERS = """
reference_date | date | as of {} | Date for which the entry is wanted, as YYYY-MM-DD
record_date | date | recorded on {} | Date on which the entry was recorded, as YYYY-MM-DD
survey_date | date | surveyed on {} | Date of the survey to go by, as YYYY-MM-DD
census_year | year | in {} | Year for which the entry is wanted
report_year | year | per the report of {} | Year of the report to go by
region | place | in the {} | Region that the entry belongs to
include_annexes | flag | including annexes | Whether entries in the annexes count, too
include_disputed | flag | with disputed entries | Whether entries under dispute count, too
use_revised_figures | flag | after revision | Whether to use the entries as revised
exclude_honorary | flag | without honorary entries | Whether to leave honorary entries out
"""

# name | description
_BOOLEANS = """
include_context | Whether to add background on the entry to the result
include_references | Whether to add the references that support the entry
include_history | Whether to add earlier states of the entry
include_metadata | Whether to add how and when the entry was stored
include_images | Whether to add links to pictures where there are any
include_statistics | Whether to add summary figures on related entries
verified_only | Whether to search only entries that an editor has checked
fuzzy_matching | Whether names that differ in a letter or two count as equal
case_sensitive | Whether upper and lower case letters are told apart
real_time | Whether to consult live feeds besides the stored records
expand_aliases | Whether to look other names of the entity up, too
show_confidence | Whether to add how certain the entry is held to be
group_results | Whether entries of one place are grouped together
"""
_STRINGS = """
additional_notes | Free remarks that are stored with the request and not searched
country | Country that the search is limited to
collection | Name of the collection to search in
curator | Curator whose entries are wanted
keywords | Words that the entry should contain
exclude_keywords | Words that the entry must not contain
publisher | Publisher of the record to be searched
request_label | Label under which the request is logged
author_filter | Author whose entries are wanted
affiliation | Affiliation of the persons in the entry
dialect | Dialect in which names are spelled
archive_code | Code of the archive that holds the record
time_frame | Stretch of time to search, such as '1900 to 1950'
reference_work | Work of reference to prefer over others
terrain | Kind of terrain that the entry refers to
occupation | Occupation of the persons in the entry
"""
# name | description | choices
_CHOICES = """
output_format | Form in which the result is presented | summary json text table xml
detail_level | How much detail the result has | minimal basic standard full
language | Language of the result | English French Spanish German Arabic
sort_order | Order in which several entries are listed | relevance name date size origin
data_quality | Least quality that an entry must have | any low medium high
record_type | Type of record to search | primary secondary tertiary derived
access_level | Level of access under which to search | public member staff editor
time_zone | Zone in which times are stated | utc local origin capital
currency | Currency of amounts in the result | crowns florins thalers ducats
coverage | How wide the search is | local regional national global
priority | Priority of the request | low normal high urgent
citation_style | Style in which references are given | none short long numbered
search_mode | How names are compared | exact prefix phonetic fuzzy substring
update_cycle | How recent the stored copy must be | daily weekly monthly yearly
audience | Readers for whom the result is worded | general expert student press children
projection | Map projection of places in the result | mercator conic polar cylindrical equal_area
script | Script in which names are written | latin greek cyrillic arabic hebrew
catalogue | Catalogue to search first | main maps letters coins portraits
confidence_band | Band of certainty that entries must fall in | any narrow medium wide
ranking_rule | Rule by which entries are ranked | age size fame distance cost
"""
_NUMBERS = """
min_confidence | Least certainty of an entry, from 0 to 1 | 0.5
max_distance | Farthest an entry may be from the place, in kilometres | 50.0
latitude | Latitude of the centre of the search | 0.0
longitude | Longitude of the centre of the search | 0.0
tolerance | How far figures may be off and still count | 0.1
min_score | Least score that an entry must reach | 1.5
"""
_INTEGERS = """
max_results | How many entries are returned at most | 10
offset | How many entries are skipped first | 0
start_year | First year of the stretch to search | 1800
end_year | Last year of the stretch to search | 2020
timeout_seconds | How long to wait for slow archives | 30
"""
_ARRAYS = """
tags | Tags that the entry should carry
languages | Languages of the records to be searched
related_entities | Further names that the entry may mention
fields | Fields of the entry to be returned
excluded_sources | Sources that are not searched
"""
_OBJECTS = """
date_range | Stretch of time to search | start_date end_date | string
coordinates | Place at which the search is centred | latitude longitude | number
size_range | Bounds on the size of what is found | smallest largest | number
contact | Whom to tell when the entry changes | name address | string
"""

TOOL_REMARKS = (
    "Entries come from several registers that are compared and merged into one every year.",
    "The search can be narrowed by further parameters, most of which may be left out.",
    "It is meant for questions about single entries rather than for surveys of a whole field.",
    "Names must be given as the registers write them, since no spelling is corrected.",
    "Where several entries fit, the one that was confirmed last is returned.",
    "It covers living and historical entries alike, with dates, figures and names of places.",
    "Results are short, and can be presented in several forms and at several degrees of detail.",
    "Parameters that restrict the search are combined, so that an entry has to meet all of them.",
)

PARAMETER_REMARKS = (
    "Leave it out to search without this restriction.",
    "Most requests do not need it.",
    "It is combined with the other parameters.",
    "An entry that does not say so is not found.",
    "Spaces at the ends are ignored.",
    "Used for requests that would otherwise be ambiguous.",
)


def _rows(table: str) -> list[list[str]]:
    return [line.split(" | ") for line in table.strip().splitlines()]


def _of_type(kind: str, table: str) -> tuple[Parameter, ...]:
    """Parameters with their defaults; those of numbers stand in the third column."""
    parameters = []
    for name, description, *default in _rows(table):
        schema: dict[str, Any] = {"type": kind, "description": description}
        if kind == "boolean":
            schema["default"] = not name.startswith(("include", "real", "show", "case"))
        elif default:
            schema["default"] = int(default[0]) if kind == "integer" else float(default[0])
        else:
            schema["default"] = ""
        parameters.append(Parameter(name, schema))
    return tuple(parameters)


def _choices() -> tuple[Parameter, ...]:
    return tuple(
        Parameter(
            name,
            {
                "type": "string",
                "description": description,
                "enum": choices.split(),
                "default": choices.split()[0],
            },
        )
        for name, description, choices in _rows(_CHOICES)
    )


def _arrays() -> tuple[Parameter, ...]:
    return tuple(
        Parameter(
            name,
            {"type": "array", "items": {"type": "string"}, "description": text, "default": []},
        )
        for name, text in _rows(_ARRAYS)
    )


def _objects() -> tuple[Parameter, ...]:
    parameters = []
    for name, description, fields, kind in _rows(_OBJECTS):
        properties = {
            field: {"type": kind, "description": f"The {field.replace('_', ' ')}."}
            for field in fields.split()
        }
        schema = {"type": "object", "description": description, "properties": properties}
        parameters.append(Parameter(name, schema))
    return tuple(parameters)


QUALIFIERS = (
    *(
        Qualifier(name, "choice", description, wording, tuple(choices.split()))
        for name, wording, description, choices in _rows(_CHOICE_QUALIFIERS)
    ),
    *(
        Qualifier(name, form, description, wording)
        for name, form, wording, description in _rows(_OTHER_QUALIFIERS)
    ),
)

FILLERS = {
    "choice": _choices(),
    "string": _of_type("string", _STRINGS),
    "boolean": _of_type("boolean", _BOOLEANS),
    "object": _objects(),
    "number": _of_type("number", _NUMBERS),
    "array": _arrays(),
    "integer": _of_type("integer", _INTEGERS),
}

CALCULATOR_FILLERS = (
    Parameter(
        "precision",
        {"type": "integer", "description": "Digits after the decimal point", "default": 2},
    ),
    Parameter("label", {"type": "string", "description": "Label to log the calculation under"}),
    *(item for item in FILLERS["choice"] if item.name in ("output_format", "priority")),
    *(item for item in FILLERS["boolean"] if item.name in ("include_context", "real_time")),
)
