"""The algorithm files keep the rules of algorithms/README.md, the guard notices when they do not, mutants fit them."""

import re
from collections import Counter

import pytest
import shared_blocks
from mutants import MUTANTS
from shared_blocks import ALGORITHMS, blocks, code_lines, over_budget, problems, sync

ANY_LENGTH = dict.fromkeys(shared_blocks.BUDGET, 10_000)


def test_the_files_keep_the_rules():
    assert not (found := problems()), "\n\n".join(found)


@pytest.mark.parametrize(
    ("file", "old", "new", "notice"),
    [
        ("ppo.py", "self.steps += self.num_envs", "self.steps += 1", "VectorEnvs differs"),
        ("td3.py", '"""Discount factor (0 to 1)."""', '"""Discount."""', "Args.gamma differs"),
        ("td3.py", "Range(1)] = 10\n", "Range(1)] = 11\n", "eval_episodes"),
        ("ppo.py", "# 2 Networks", "# 2 Nets", "banners differ"),
        ("td3.py", "import copy\n", "import copy\nimport pandas\n", "imports pandas"),
        ("td3.py", "import copy\n", "import copy\n\ncopy = os.fork()\n", "os.fork: does Windows"),
        ("ppo.py", "    anneal_lr: bool", "    unused: int = 3\n    anneal_lr: bool", "Args.unused is never read"),
        ("ppo.py", "    anneal_lr: bool", "    unused: int = 3\n    anneal_lr: bool", "Args.unused has no help text"),
    ],
)
def test_a_breach_is_noticed(copied, file, old, new, notice, monkeypatch):
    folder, doctor = copied
    monkeypatch.setattr(shared_blocks, "BUDGET", ANY_LENGTH)
    doctor(file, old, new)
    found = problems(folder)
    assert any(notice in problem for problem in found), found
    assert len(found) == (2 if "unused" in new else 1)


def test_code_lines_and_budget(monkeypatch):
    source = '"""Doc\n\n"""\n\n# comment\nx = [\n    1,  # one\n]\n"""Help."""\ny = """\n# text\n"""\n'
    assert code_lines(source) == [6, 7, 8, 10, 11, 12]
    source = (ALGORITHMS / "td3.py").read_text()
    now = {"td3": len(code_lines(source))}
    section_5 = re.search(r"# 5 Machinery.*(?=# 6 Entry)", source, re.DOTALL)[0]
    now["section 5"] = len(code_lines(section_5))
    monkeypatch.setattr(shared_blocks, "BUDGET", now)
    assert over_budget("td3", source) == []
    assert len(over_budget("td3", source + "x = 1\n")) == 1
    assert len(over_budget("td3", source.replace("class Run(", "x = 1\n\n\nclass Run("))) == 2


def test_sync_copies_blocks_both_ways(copied, monkeypatch):
    folder, doctor = copied
    monkeypatch.setattr(shared_blocks, "BUDGET", ANY_LENGTH)
    doctor("ppo.py", "self.steps += self.num_envs", "self.steps += 1")
    assert "make sync FROM=" in problems(folder)[0]
    assert sync("td3", folder) == ["ppo.py: VectorEnvs"]
    assert not problems(folder)
    assert (folder / "ppo.py").read_text() == (ALGORITHMS / "ppo.py").read_text()
    doctor("ppo.py", "self.steps += self.num_envs", "self.steps += 1")
    others = sorted(path.name for path in ALGORITHMS.glob("*.py") if path.stem != "ppo")
    assert sync("ppo", folder) == [f"{name}: VectorEnvs" for name in others]
    assert "self.steps += 1" in blocks((folder / "td3.py").read_text())["VectorEnvs"]


def test_requirements_cover_all_imports():
    text = (ALGORITHMS.parent / "requirements.txt").read_text()
    for requirement in shared_blocks.IMPORTABLE.values():
        assert re.search(rf"^{requirement}==", text, re.MULTILINE), requirement


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m['file']}: {m['fault']}")
def test_the_text_to_replace_by_a_mutant_occurs_once(mutant):
    assert (ALGORITHMS / f"{mutant['file']}.py").read_text().count(mutant["text"]) == 1
    assert mutant["replacement"] != mutant["text"] and mutant["fault"]


def test_every_file_has_its_mutants():
    assert min(Counter(m["file"] for m in MUTANTS)[path.stem] for path in ALGORITHMS.glob("*.py")) >= 3
