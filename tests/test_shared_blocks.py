"""The algorithm files keep the rules of algorithms/README.md, and the guard notices when they do not."""

from __future__ import annotations

import re
import shutil

import pytest
import shared_blocks
from shared_blocks import ALGORITHMS, blocks, problems, sync

TAG = re.compile(r"\[([A-Z]+[0-9]*\.[0-9]+)\]")


def test_the_files_keep_the_rules():
    assert not problems(), "\n\n".join(problems())


@pytest.fixture
def copy(tmp_path):
    """A copy of the algorithm files and a function that doctors one of them."""
    for path in ALGORITHMS.glob("*.py"):
        shutil.copy(path, tmp_path)

    def doctor(file: str, old: str, new: str) -> None:
        path = tmp_path / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return tmp_path, doctor


@pytest.mark.parametrize(
    ("file", "old", "new", "notice"),
    [
        ("ppo.py", "self.steps += len(r)", "self.steps += 1", "VectorEnvs differs"),
        ("td3.py", '"""Discount factor (0 to 1)."""', '"""Discount."""', "Args.gamma differs"),
        (
            "td3.py",
            "batch_size: Annotated[int, Range(1)] = 256",
            "batch_size: Annotated[int, Range(1)] = 255",
            "batch_size",
        ),
        ("ppo.py", "# 2 Networks", "# 2 Nets", "banners differ"),
        ("td3.py", "import copy\n", "import copy\nimport pandas\n", "imports pandas"),
        ("ppo.py", "    anneal_lr: bool", "    unused: int = 3\n    anneal_lr: bool", "Args.unused is never read"),
        ("ppo.py", "    anneal_lr: bool", "    unused: int = 3\n    anneal_lr: bool", "Args.unused has no help text"),
    ],
)
def test_a_breach_is_noticed(copy, file, old, new, notice):
    folder, doctor = copy
    doctor(file, old, new)
    found = problems(folder)
    assert any(notice in problem for problem in found), found
    assert len(found) == (2 if "unused" in new else 1)


def test_sync_copies_blocks_both_ways(copy):
    folder, doctor = copy
    doctor("ppo.py", "self.steps += len(r)", "self.steps += 1")
    assert "make sync FROM=" in problems(folder)[0]
    assert sync("td3", folder) == ["ppo.py: VectorEnvs"]
    assert not problems(folder)
    assert (folder / "ppo.py").read_text() == (ALGORITHMS / "ppo.py").read_text()
    doctor("ppo.py", "self.steps += len(r)", "self.steps += 1")
    others = sorted(path.name for path in ALGORITHMS.glob("*.py") if path.stem != "ppo")
    assert sync("ppo", folder) == [f"{name}: VectorEnvs" for name in others]
    assert "self.steps += 1" in blocks((folder / "td3.py").read_text())["VectorEnvs"]


def test_requirements_cover_all_imports():
    text = (ALGORITHMS.parent / "requirements.txt").read_text()
    for requirement in shared_blocks.IMPORTABLE.values():
        assert re.search(rf"^{requirement}==", text, re.MULTILINE), requirement


def test_equation_tags_are_indexed_in_both_directions():
    index = {}
    for line in (ALGORITHMS / "README.md").read_text().splitlines():
        if match := re.match(r"\| ([A-Z]+[0-9]*\.[0-9]+) \|", line):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            files = re.findall(r"`(\w+\.py)`", cells[3])
            methods = [m for m in re.findall(r"`([\w.]+)`", cells[3]) if not m.endswith(".py")]
            index[match[1]] = (files, methods)
            assert cells[1] and cells[2] and files and methods, line
    used: dict[str, set[str]] = {}
    for path in sorted(ALGORITHMS.glob("*.py")):
        source = path.read_text()
        docstring, code = source.split('"""', 2)[1:]
        in_code = {tag for line in code.splitlines() if "#" in line for tag in TAG.findall(line.split("#", 1)[1])}
        assert set(TAG.findall(docstring)) == in_code, f"{path.name}: tags of docstring and code differ"
        used[path.name] = in_code
    assert set(index) == set().union(*used.values())
    for tag, (files, methods) in index.items():
        for file in files:
            assert tag in used[file], f"{tag} is not in {file}"
            source = blocks((ALGORITHMS / file).read_text())
            texts = [source[method.split(".")[0]] for method in methods]
            assert any(f"[{tag}]" in text for text in texts), f"{tag} is not in {methods}"
            for method in methods:
                assert f"def {method.split('.')[-1]}(" in source[method.split(".")[0]], f"{method} is not in {file}"
