"""What the trace viewer writes; how it looks and behaves is tested in a browser."""

import gzip
import json
import random
import re
import subprocess
import sys
from base64 import b64decode
from itertools import product
from pathlib import Path

import pytest

from matchtir.evaluation.traces import write_traces
from matchtir.reports import viewer
from tests.reports.trace_files import a_hostile_run, a_run, answering, record

SCRIPT = Path(__file__).parents[2] / "scripts" / "view.py"


def block(page, name):
    text = page.read_text(encoding="utf-8")
    (data,) = re.findall(rf'<script type="application/gzip" id="{name}">(.*?)</script>', text)
    return json.loads(gzip.decompress(b64decode(data)))


def test_a_page_has_every_record(tmp_path):
    run = a_run(tmp_path / "grpo" / "runs" / "now")
    (page,) = viewer.write_viewer(run, run / "view.html")
    texts = [file.read_text() for file in sorted((run / "traces").iterdir())]
    written = [json.loads(line) for text in texts for line in text.splitlines()]
    found = block(page, "records")
    assert [record.pop("place") for record in found] == ["1"] * 3 + ["10"] * 3
    assert found == written
    assert block(page, "meta")["run"] == "grpo/runs/now"


def test_a_page_is_whole_and_lets_nothing_in(tmp_path):
    (page,) = viewer.write_viewer(a_hostile_run(tmp_path), tmp_path / "view.html")
    text = page.read_text(encoding="utf-8")
    assert "window.hacked" not in text and "onerror" not in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    assert "default-src 'none'" in text


def test_many_traces_are_spread_over_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(viewer, "MAX_BYTES", 600_000)
    letters = random.Random(0)
    for iteration in range(1, 6):
        noise = "".join(letters.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=60_000))
        turns, places = [answering(noise)], product(range(2), repeat=2)
        records = [record(turns, iteration=iteration, group=g, attempt=a) for g, a in places]
        write_traces(tmp_path / "traces" / f"iteration_{iteration:06d}.jsonl", records)
    pages = viewer.write_viewer(tmp_path, tmp_path / "look.html")
    assert [page.name for page in pages[:2]] == ["look.html", "look_2.html"]
    assert all(page.stat().st_size < viewer.MAX_BYTES for page in pages)
    keys = [(int(r["place"]), r["group"]) for page in pages for r in block(page, "records")]
    assert keys == [(i, g) for i in range(1, 6) for g in range(2) for _ in range(2)]
    listed = block(pages[0], "meta")["pages"]
    assert [each["file"] for each in listed] == [page.name for page in pages]
    assert listed[0]["places"]["1"][0] == 0 and listed[-1]["places"]["5"][1] == 1


def test_the_benchmarks_of_an_evaluation_are_kept_apart(tmp_path):
    for name in ("ftrl", "toolhop"):
        ended = [(1, 0), (0, 1), (1, 1), (0, 0)]  # attempts at two tasks, as they came to their end
        records = [record([answering("yes")], group=g, attempt=a) for g, a in ended]
        write_traces(tmp_path / "traces" / f"{name}.jsonl", records)
    (page,) = viewer.write_viewer(tmp_path, tmp_path / "view.html")
    keys = [(r["place"], r["group"], r["attempt"]) for r in block(page, "records")]
    assert keys == list(product(("ftrl", "toolhop"), (0, 1), (0, 1)))


def test_numbers_that_a_browser_cannot_read_are_none(tmp_path):
    made = record([answering("yes")])
    made["turns"][0]["log_ratios"] = [float("nan"), float("-inf")]
    write_traces(tmp_path / "traces" / "iteration_000001.jsonl", [made])
    (page,) = viewer.write_viewer(tmp_path, tmp_path / "view.html")
    assert block(page, "records")[0]["turns"][0]["log_ratios"] == [None, None]


@pytest.mark.parametrize(
    ("line", "named"),
    [("{", "not JSON"), ('{"task": "t"}', "no question, group"), ("[]", "no task")],
)
def test_a_bad_line_is_named(tmp_path, line, named):
    run = a_run(tmp_path)
    file = run / "traces" / "iteration_000010.jsonl"
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(ValueError, match=rf"iteration_000010.jsonl, line 4: .*{named}"):
        viewer.write_viewer(run, run / "view.html")
    assert not (run / "view.html").exists()
    file.write_text(file.read_text().removesuffix(line + "\n") + line)  # cut short: left out
    viewer.write_viewer(run, run / "view.html")


def test_a_run_without_attempts_is_an_error(tmp_path):
    write_traces(tmp_path / "traces" / "ftrl.jsonl", [])
    with pytest.raises(FileNotFoundError, match="empty"):
        viewer.write_viewer(tmp_path, tmp_path / "view.html")


def test_the_command_line(tmp_path):
    run = a_run(tmp_path)
    done = subprocess.run([sys.executable, SCRIPT, run], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(run / "view.html"))
    failed = subprocess.run([sys.executable, SCRIPT, "no"], capture_output=True, text=True)
    assert failed.returncode == 1 and "no traces" in failed.stderr
