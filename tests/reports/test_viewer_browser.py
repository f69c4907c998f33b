"""The trace viewer in Chromium: it opens from disk, filters, follows links, runs no markup."""

import re

import pytest

from matchtir.evaluation.traces import write_traces
from matchtir.reports import viewer
from matchtir.reports.viewer import write_viewer
from tests.reports.trace_files import (
    MARKUP,
    a_hostile_run,
    a_run,
    answering,
    calling,
    malformed,
    record,
)

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 400, "height": 850}


@pytest.fixture
def url(tmp_path):
    (file,) = write_viewer(a_run(tmp_path), tmp_path / "view.html")
    return file.as_uri()


def shown(page):
    return [row.get_attribute("data-key") for row in page.query_selector_all(".row")]


def opened(page, url):
    page.goto(url)
    page.wait_for_selector(".list-rows p", state="attached")


def test_the_list_and_its_filters(page, url):
    opened(page, url)
    everything = [f"{iteration}/0/{attempt}" for iteration in (1, 10) for attempt in range(3)]
    assert shown(page) == everything
    page.select_option("select[name=iteration]", "10")
    assert shown(page) == ["10/0/0", "10/0/1", "10/0/2"]
    page.select_option("select[name=sort]", "reward, lowest")
    assert shown(page) == ["10/0/1", "10/0/2", "10/0/0"]
    page.select_option("select[name=error]", "timeout")
    assert shown(page) == ["10/0/1"]
    page.select_option("select[name=error]", "")
    page.fill("input[name=min]", "0")
    page.press("input[name=min]", "Enter")
    assert shown(page) == ["10/0/2", "10/0/0"]
    page.fill("input[type=search]", "do not KNOW")
    assert shown(page) == ["10/0/2"]
    # the address has it all
    again = page.url
    page.goto("about:blank")
    opened(page, again)
    assert shown(page) == ["10/0/2"]
    page.click("[data-key='10/0/2']")
    page.wait_for_selector(".row[aria-current][data-key='10/0/2']")
    page.fill("input[type=search]", "nowhere")
    assert page.inner_text(".empty") == "No attempt fits these filters."


def test_the_first_attempt_is_shown_with_its_turns_and_their_credit_above_the_fold(page, url):
    page.set_viewport_size({"width": 1280, "height": 800})
    opened(page, url)
    assert page.get_attribute(".row[aria-current]", "data-key") == "1/0/0"
    box = page.locator(".credit").bounding_box()
    assert box["y"] + box["height"] < 800
    # the attempts at a task stand under its question
    assert page.locator(".task").count() == 2
    assert page.locator(".task:first-child .row").count() == 3
    assert page.inner_text(".detail h2") == "How heavy is it?"
    assert len(page.query_selector_all(".turn")) == 2
    measures = page.inner_text("#turn-1 .measures")
    assert re.sub(r"\s+", " ", measures) == "r +0.75 R +1.50 Ag +1.50 A +1.50"
    call = page.query_selector("#turn-1 .call")
    assert 'find(place="alpha")' in call.inner_text()
    assert "→ g1 similarity 0.80 mass 1.000" in re.sub(r"\s+", " ", call.inner_text())
    folded = page.query_selector(".result pre")
    assert not folded.is_visible()
    page.click(".result summary")
    assert folded.is_visible() and folded.inner_text() == "beta"
    # the matrix: a call, two gold calls, what the matched pair paid, the sum of the row
    assert len(page.query_selector_all(".matrix .cell")) == 2
    assert page.locator(".matrix .paid").all_text_contents() == [".80"]
    assert "similarity 0.8000 × mass 1.00000 = paid 0.8000" in page.text_content(".cell title")
    assert page.locator(".matrix .earned").all_text_contents() == [".80", "+0.80"]
    assert page.inner_text(".gold li:nth-child(2) .missing") == "not matched"
    assert len(page.query_selector_all(".credit tbody tr")) == 2
    facts = re.sub(r"\s+", " ", page.inner_text(".facts"))
    assert facts == "answer 3 kg gold 3 kg reward +1.50 outcome 0.50 answer"


def test_a_tools_error_penalties_and_mass_without_similarity_are_named(page, tmp_path):
    error = calling("find", '{"error": "no such place"}')
    unlike = record([error, malformed("{"), answering("so?")], similarity=0.0)
    unlike["turns"][1]["calls"][0]["reward"] = -0.25
    unlike |= {"outcome": 0.0, "outcome_reward": -0.5}
    unlike["similarity"][0], unlike["plan"][0] = [0.67, 0.0], [0.0, 0.0]  # g1 is another's
    write_traces(tmp_path / "traces" / "iteration_000001.jsonl", [unlike])
    (file,) = write_viewer(tmp_path, tmp_path / "view.html")
    opened(page, f"{file.as_uri()}#/1/0/0")
    chips = page.locator(".call .chip")
    assert chips.all_text_contents() == ["tool error", "invalid_json"]
    assert page.locator(".call .chip.bad").count() == 2
    assert page.inner_text(".facts .missing") == "none"
    assert page.locator(".call-facts .missing").all_text_contents() == [
        "unpaid: similarity 0.67, but no mass",
        "unpaid: like no gold call",
    ]
    assert page.locator(".side .penalty").all_text_contents() == [
        "Unmatched: p2 −0.25, the penalty for a call that no gold call pays.",
        "No answer: −0.50 in the last turn.",
    ]
    assert not page.query_selector_all(".matrix .paid")
    assert page.locator(".gold .missing").all_text_contents() == ["not matched"] * 2
    page.select_option("select[name=error]", "tool error")
    assert shown(page) == ["1/0/0"]


def test_tokens_are_coloured_by_advantage_or_log_ratio(page, url):
    opened(page, f"{url}#/1/0/0")
    assert "pos" in page.get_attribute("#turn-1 .text span", "class")
    page.click("text=log-ratio")
    spans = page.query_selector_all("#turn-1 .text span")
    assert [("pos" in (span.get_attribute("class") or "")) for span in spans] == [True, False]
    assert spans[1].get_attribute("title") == "token 2: log-ratio −0.1000"
    page.keyboard.press("c")
    assert page.query_selector("#turn-1 .text span") is None
    assert page.url.endswith("#/1/0/0?color=none")


def test_a_call_has_the_colour_of_its_own_advantage(page, tmp_path):
    made = record([calling("find", "beta"), answering("3 kg")])
    made["turns"][0]["spans"] = [["call", 0, 1], ["reasoning", 1, 2]]
    made["turns"][0]["calls"][0]["advantage"] = -4.0
    write_traces(tmp_path / "traces" / "iteration_000001.jsonl", [made])
    (file,) = write_viewer(tmp_path, tmp_path / "view.html")
    opened(page, file.as_uri())
    call, between = page.locator("#turn-1 .text span").all()
    assert call.get_attribute("title") == "call: A −4.00"
    assert between.get_attribute("title") == "reasoning: A +1.00"
    assert "±4.00" in page.inner_text(".tools .legend")
    assert "A −4.00" in page.inner_text("#turn-1 .call-facts")


def test_without_advantages_none_are_shown(page, tmp_path):
    made = record([calling("find", "beta"), answering("And?"), answering("3 kg")], total=0.0)
    made["values"] = {"success": 1.0, "state": None}
    for turn in made["turns"]:
        turn |= {"advantage": 0.0, "reply": "Go on."}
        for name in ("return", "trajectory_advantage", "pieces", "log_ratios"):
            del turn[name]
    write_traces(tmp_path / "traces" / "ftrl 100%.jsonl", [made])
    (file,) = write_viewer(tmp_path, tmp_path / "view.html")
    opened(page, file.as_uri())
    page.click(".row")
    page.wait_for_function("location.hash === '#/ftrl_100_/0/0'")
    assert page.locator(".credit th").all_text_contents() == ["turn", "r"]
    assert page.locator(".switch, .tools .legend").count() == 0
    assert page.locator("text=success 1.00   state null").is_visible()
    assert page.inner_text(".penalty") == "No turn earned anything for its calls."
    assert page.locator("#turn-2 .result").all_inner_texts() == ["user\nGo on."]


# Behind the event that a new address causes, and behind what is drawn because of it.
SHOWN = "new Promise(done => setTimeout(() => requestAnimationFrame(() => setTimeout(done))))"


def test_keys_and_links(page, url):
    opened(page, url)
    places = ["0", "1", "2", "1", "1?turn=1", "1?turn=2", "1?view=group"]
    for key, place in zip("jjlhnng", places, strict=True):
        address = f"#/1/0/{place}"
        page.keyboard.press(key)
        page.wait_for_function("address => location.hash === address", arg=address)
        page.evaluate(SHOWN)  # a key means something once what the last one asked for is shown
    assert len(page.query_selector_all("table.group thead th")) == 1 + 3
    assert page.locator(".switch").count() == 0  # its cells have the colour of the advantage
    page.click("table.group thead th:nth-child(2) a")
    page.wait_for_function("location.hash === '#/1/0/0'")
    page.evaluate(SHOWN)
    page.click(".result summary")
    page.keyboard.press("Escape")
    page.wait_for_function("location.hash === '#/'")
    page.go_back()
    page.wait_for_function("location.hash === '#/1/0/0'")
    page.keyboard.press("/")
    page.keyboard.type("jkl")  # letters typed into the search move nothing
    page.wait_for_function("location.hash === '#/1/0/0?q=jkl'")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.wait_for_function("location.hash.includes('#/?q=jkl')")
    page.keyboard.press("?")
    assert page.is_visible("dialog.help")
    page.go_back()
    page.wait_for_function("location.hash === '#/1/0/0?q=jkl'")
    page.evaluate(SHOWN)
    page.keyboard.press("Escape")
    assert not page.is_visible("dialog.help")


def test_the_list_stays_where_it_is_and_reaches_what_is_linked(page, tmp_path):
    turns = [calling("find", "beta"), answering("3 kg")] * 6
    many = [record(turns, group=group) for group in range(150)]
    write_traces(tmp_path / "traces" / "iteration_000001.jsonl", many)
    write_traces(tmp_path / "traces" / "iteration_000002.jsonl", many[:1])
    (file,) = write_viewer(tmp_path, tmp_path / "view.html")
    opened(page, f"{file.as_uri()}#/1/120/0?turn=9")
    assert page.title().startswith("1/120/0 · ")
    row = page.locator(".row[aria-current]")
    assert row.get_attribute("data-key") == "1/120/0" and row.bounding_box()["y"] < 900
    page.evaluate("scrollTo(0, 0)")
    page.keyboard.press("c")
    page.evaluate(SHOWN)
    assert page.evaluate("scrollY") == 0  # it is the address that jumps to a turn, not the colour
    above = page.locator("[data-key='1/116/0']")
    place = above.bounding_box()["y"]
    above.click()
    page.wait_for_selector("[data-key='1/116/0'][aria-current]")
    assert above.bounding_box()["y"] == place
    page.click("text=show 100 of 100 before")
    assert page.locator(".row").count() == 151
    page.fill("input[type=search]", "3 kg")
    assert page.evaluate("document.querySelector('.list').scrollTop") < 100
    page.reload()
    page.wait_for_selector("[data-key='1/116/0'][aria-current]")
    page.evaluate("location.hash = '#/1/116/0?iteration=2'")  # less than what was left out above
    page.wait_for_selector("[data-key='2/0/0']")
    opened(page, file.as_uri())
    page.reload()
    page.wait_for_selector(".more")
    assert page.title().startswith("1/0/0 · ")
    page.click(".more")
    assert page.evaluate("document.querySelector('.list').scrollTop") > 1000


def test_a_deep_link_opens_the_turn(page, url):
    opened(page, f"{url}#/10/0/1?turn=2")
    assert "target" in page.get_attribute("#turn-2", "class")
    opened(page, f"{url}#/99/0/0")
    page.reload()
    page.wait_for_selector(".hint")
    assert "no attempt 99/0/0 on this page" in page.inner_text(".hint")


def test_light_and_dark(page, url):
    opened(page, url)
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("t")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert light != dark
    page.reload()
    page.wait_for_selector(".list-rows p", state="attached")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1280", "400"])
@pytest.mark.parametrize("address", ["", "#/1/0/1", "#/1/0/1?view=group"])
def test_nothing_is_wider_than_the_screen(page, url, size, address):
    page.set_viewport_size(size)
    opened(page, url + address)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    narrow_detail = size == NARROW and address
    assert page.is_visible(".filters") != bool(narrow_detail)


def test_a_narrow_screen_has_the_list_or_an_attempt(page, url):
    page.set_viewport_size({"width": 400, "height": 300})
    opened(page, url)
    page.click("[data-key='10/0/1']")
    page.wait_for_selector("#turn-1")
    page.click(".back")
    page.wait_for_selector("[data-key='10/0/1']")
    page.evaluate(SHOWN)
    assert 0 < page.locator("[data-key='10/0/1']").bounding_box()["y"] < 300
    page.click("[data-key='10/0/1']")
    page.wait_for_selector("#turn-1")
    page.keyboard.press("/")
    page.keyboard.type("cj")  # is searched for
    page.wait_for_function("location.hash === '#/?q=cj'")


def test_what_models_and_tools_write_stays_text(page, tmp_path):
    (file,) = write_viewer(a_hostile_run(tmp_path), tmp_path / "view.html")
    for view in ("", "?view=group", "?color=log-ratio", "?color=none"):
        opened(page, f"{file.as_uri()}#/1/0/0{view}")
        page.reload()
        page.wait_for_selector(".detail h2")
        assert page.inner_text(".detail h2") == MARKUP
        assert page.evaluate("window.hacked === undefined && !document.querySelector('img')")


def test_pages_link_to_one_another(page, tmp_path, monkeypatch):
    monkeypatch.setattr(viewer, "MAX_BYTES", viewer.RESERVED + 100)
    first, second = viewer.write_viewer(a_run(tmp_path), tmp_path / "view.html")
    opened(page, f"{first.as_uri()}#/10/0/1")
    page.click("text=Look on view_2.html")
    page.wait_for_selector("#turn-1")
    assert page.url == f"{second.as_uri()}#/10/0/1"
    page.select_option(".topbar select", "view.html")
    page.wait_for_selector("[data-key='1/0/0']")
