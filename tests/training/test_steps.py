"""What a run works on is known by hashes; starting weights have a name by theirs."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from matchtir.policy.loading import LoadedPolicy
from matchtir.training import steps as module_under_test
from matchtir.training.data import Stage, TaskDataModule
from matchtir.training.steps import fingerprint, policy_hashes, task_hashes
from tests.policy.tiny_policy import small
from tests.training.training_parts import TaskList, tasks

SETTINGS = {"model": {"layers": 1}, "seed": 1}


def test_the_hashes_of_tasks_and_policy_are_of_their_content():
    def data(*given):
        return TaskDataModule([Stage(TaskList(given), 1, 1)], TaskList(given), seed=1)

    first, second = tasks(2)
    known = task_hashes(data(first, second))
    assert known.keys() == {"training tasks of stage 0", "validation tasks", "test tasks"}
    assert task_hashes(data(first, second)) == known
    for other in (data(second, first), data(first), data(first, replace(second, answer="other"))):
        assert not known.items() & task_hashes(other).items()

    loaded = small(layers=1)
    known = policy_hashes(loaded)
    assert policy_hashes(small(layers=1)) == known
    next(loaded.policy.parameters()).data[0, 0] += 1e-6
    loaded = LoadedPolicy(loaded.policy, deepcopy(loaded.tokenizer))  # others use it, too
    loaded.tokenizer.chat_template += " "
    assert not known.items() & policy_hashes(loaded).items()


def test_the_fingerprint_is_of_settings_code_and_libraries(tmp_path, monkeypatch):
    root = Path(module_under_test.matchtir.__file__).parent
    assert all([*(root / folder).glob("*.py")] for folder in module_under_test.SOURCES)
    monkeypatch.setattr(module_under_test.matchtir, "__file__", str(tmp_path / "__init__.py"))
    source = tmp_path / "policy" / "policy.py"
    source.parent.mkdir()
    source.write_text("one")
    known = fingerprint(SETTINGS)
    assert fingerprint({"seed": 1, "model": {"layers": 1}}) == known
    changes = {"model": {"layers": 2}}, {"seed": 1.5}, {"more": None}
    found = [known, *(fingerprint({**SETTINGS, **change}) for change in changes)]
    source.write_text("two")
    found.append(fingerprint(SETTINGS))
    source.rename(source.with_name("other.py"))
    found.append(fingerprint(SETTINGS))
    monkeypatch.setattr(module_under_test.metadata, "version", lambda library: "0.0")
    assert len({*found, fingerprint(SETTINGS)}) == len(found) + 1


def test_the_fingerprint_is_of_the_files_that_settings_name(tmp_path):
    file = tmp_path / "tools.py"
    file.write_text("one")
    tasks = {"path": str(file), "tools": [f"{file}:Name"], "quarantine": str(tmp_path / "bad")}
    settings = {"stages": [{"tasks": tasks}]}
    known = fingerprint(settings)
    (tmp_path / "bad").write_text("bad rows are found while the weights are made")
    assert fingerprint(settings) == known
    file.write_text("two")
    assert fingerprint(settings) != known


def test_a_run_without_test_tasks_ends_with_a_result(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: {}")
    module_under_test.report(tmp_path, {}, {}, seed=0, seconds=1.0)
    assert '"tasks": 0' in (tmp_path / "result.json").read_text()
