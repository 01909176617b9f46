"""The reading guide is true: tags, lectures.csv, links, commands and names of settings, in both directions."""

import dataclasses
import importlib
import re
import shlex
import sys
import tokenize

import guide
import pytest
from guide import ALGORITHMS, EXPERIMENTS, FILES, LECTURES, PROGRAMS, read_lectures, renew

PATHS = {name: ALGORITHMS / f"{name}.py" for name in FILES} | {path.stem: path for path in PROGRAMS.glob("*.py")}
TEXT = (ALGORITHMS / "README.md").read_text()
ROWS = read_lectures()


def comments(file: str) -> dict[int, str]:
    """The comments of an algorithm file or an experiment: line number -> text."""
    with PATHS[file].open() as text:
        return {x.start[0]: x.string for x in tokenize.generate_tokens(text.readline) if x.type == tokenize.COMMENT}


COMMENTS = {file: comments(file) for file in PATHS}
IN_CODE = {file: {t for x in lines.values() for t in guide.TAG.findall(x)} for file, lines in COMMENTS.items()}


def test_the_guide_is_as_make_guide_writes_it():
    assert renew(TEXT) == TEXT, "run `make guide` and look at what it changed"


def test_every_tag_is_in_code_lectures_and_guide():
    code = set().union(*IN_CODE.values())
    assert code == {tag for row in ROWS for tag in row["tags"].split()}
    assert code == set(re.findall(r"^\| ([A-Z][A-Z0-9]*\.\d+) \|", TEXT, re.MULTILINE))
    named = set(re.findall(r"\*\*([A-Z][A-Z0-9]*\.\d+)\*\*|\[([A-Z][A-Z0-9]*\.\d+)\]", TEXT))
    assert {tag for pair in named for tag in pair if tag} == code
    for file in FILES:
        docstring = set(guide.TAG.findall((ALGORITHMS / f"{file}.py").read_text().split('"""')[1]))
        assert docstring <= IN_CODE[file], f"{file}.py: its docstring has a tag that no line has"
        name = "HER" if file == "her_ddpg" else file.upper()
        screen = re.search(rf"^### {name}\n(.+?)^##", TEXT, re.MULTILINE | re.DOTALL)[1]
        for tag in (x for x in IN_CODE[file] if x.startswith(f"{name}.")):  # its own
            assert f"[{tag}]({file}.py" in screen, f"{tag} is not on the screen of {name}"


def test_every_link_leads_to_its_tag_or_function():
    links = re.findall(r"\[([^\]]+)\]\((\w+)\.py#L(\d+)\)", TEXT)
    assert len(links) > 600
    for name, file, line in links:
        source = (ALGORITHMS / f"{file}.py").read_text().splitlines()[int(line) - 1]
        if re.fullmatch(r"[A-Z][A-Z0-9]*\.\d+", name):
            assert f"[{name}]" in COMMENTS[file].get(int(line), ""), f"{file}.py:{line} is not {name}"
        elif name[0] == "`":
            last = name.strip("`").split(".")[-1]
            assert re.match(rf"\s*(def|class) {last}\b", source), f"{file}.py:{line} is not {name}"
        else:
            assert name == f"{file}.py:{line}"
    # in the tables a tag is followed by methods and lines, up to the next tag or the end of the cell
    cells = r"(?:\*\*|^\| )([A-Z][A-Z0-9]*\.\d+)(?:\*\*| \|) ((?:[^*|])+?)(?:<br>| \|)"
    seen = set()
    for tag, places in re.findall(cells, TEXT, re.MULTILINE):
        for method, rest in re.findall(r"`([\w.]+)` ([^`]+)", places):
            for file, line in re.findall(r"\((?:\.\./benchmarks/experiments/)?(\w+)\.py#L(\d+)\)", rest):
                assert f"[{tag}]" in COMMENTS[file][int(line)], f"{file}.py:{line} is not {tag}"
                before = PATHS[file].read_text().splitlines()[: int(line)]
                indent, name = "    " * method.count("."), method.split(".")[-1]
                pattern = r"\S" if name == "module" else rf"{indent}(def|class) "
                last = [x for x in before if re.match(pattern, x)][-1]
                assert f"def {name}(" in last or (name == "module" and last == before[-1]), (
                    f"{file}.py:{line} is in `{last.strip()}`, not in {method}"
                )
                seen.add((file, tag))
    assert seen == {(file, tag) for file, tags in IN_CODE.items() for tag in tags}


def test_the_inventory_says_of_every_formula_where_it_is():
    """And the guide shows it under its slide."""
    assert len(ROWS) >= 323 and {row["lecture"] for row in ROWS} == set(LECTURES)
    for row in ROWS:
        where = f"{row['lecture']}, {row['slide']}: {row['formula']}"
        assert row["slide"] and row["formula"] and None not in row, f"{where}: a cell with a comma needs quotes"
        for file in row["files"].split():
            assert IN_CODE[file] & set(row["tags"].split()), f"{where}: none of its tags is in {file}.py"
        if row["status"] == "theory":
            assert row["note"] and not row["tags"], f"{where}: why is it theory only?"
        else:
            files = FILES if row["status"] == "implemented" else PATHS.keys() - FILES
            assert all(any(tag in IN_CODE[file] for file in files) for tag in row["tags"].split()), where
            assert row["tags"] and (row["status"] == "implemented" or row["experiment"]), where
        assert row["experiment"] in ("", *EXPERIMENTS), where
        assert (row["slide_is"] in ("loose", "wrong")) == bool(row["correct_form"]), where
        assert row["extraction"] in ("", "perhaps", "yes") and (not row["extraction"] or row["slide_is"]), where
        part = re.search(rf"<!-- index:{row['lecture']} -->(.*?)<!-- end", TEXT, re.DOTALL)[1]
        section = part.split(f"#### {row['slide']}\n")[1].split("####")[0]
        assert f"`{row['formula']}`" in section.replace(r"\|", "|"), where
    orders = [LECTURES.index(row["lecture"]) for row in ROWS]
    assert orders == sorted(orders)
    slides = [(row["lecture"], row["slide"]) for row in ROWS]
    runs = [pair for k, pair in enumerate(slides) if k == 0 or slides[k - 1] != pair]
    assert len(runs) == len(set(runs)), f"rows of a slide apart: {sorted({x for x in runs if runs.count(x) > 1})}"


def test_every_experiment_is_listed_and_shown():
    where = r"\(\.\./benchmarks/experiments/"
    table = re.findall(
        rf"^\| \[(\w+)\]{where}(\w+)\.py\) \| .*{where}pictures/(\w+)\.png\): \S.* \|$", TEXT, re.MULTILINE
    )
    assert table == [(name, name, name) for name in EXPERIMENTS]
    assert {row["experiment"] for row in ROWS} == {"", *EXPERIMENTS}
    screens = TEXT.split("## The algorithms")[1].split("## Experiments")[0]
    assert set(re.findall(r"\[(\w+)\]\(#experiments\)", screens)) <= set(EXPERIMENTS)
    folder = ALGORITHMS.parent / "benchmarks" / "experiments"
    commands = re.findall(r"^make experiment NAME=(.*)$", screens, re.MULTILINE)
    assert len(commands) >= len(FILES) and set(commands) <= set(EXPERIMENTS)
    pictures = set(re.findall(r"\(\.\./benchmarks/experiments/pictures/(\w+)\.png\)", TEXT))
    programs = {path.stem for path in folder.glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    assert programs <= set(EXPERIMENTS), "the guide's table of experiments lacks some"
    assert all((folder / "pictures" / f"{name}.png").exists() for name in pictures & programs)


def test_headings_that_are_linked_exist_once():
    anchors = [guide.anchor(x) for x in re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)]
    assert guide.anchor("DDPG: Pseudo Code (1/2)") == "ddpg-pseudo-code-12"
    for link in re.findall(r"\]\(#([^)]+)\)", TEXT):
        assert anchors.count(link) == 1, link


def test_formulas_survive_markdown():
    blocks = re.findall(r"^\$\$\n(.*?)^\$\$$", TEXT, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2 * len(FILES) - 1
    for block in blocks:
        assert not re.search(r"\\[^A-Za-z]", block), f"Markdown eats this backslash: {block}"
        emphasis = re.search(r"(?<![A-Za-z0-9}])_|}_[A-Za-z0-9]", block)
        assert not emphasis, f"Markdown may take this _ for emphasis: {block}"
        assert not re.search(r"^ *([-+*#>=]|\d+[.)])", block, re.MULTILINE), f"Markdown makes a list of it: {block}"
        assert block.count("{") == block.count("}"), block
        assert len(re.findall(r"\\left[\[(]", block)) == len(re.findall(r"\\right[\])]", block)), block


def test_every_algorithm_has_commands_and_all_are_understood(monkeypatch):
    commands = re.findall(r"^python algorithms/(\w+)\.py (.+)$", TEXT, re.MULTILINE)
    assert {file for file, _ in commands} == set(FILES)
    for file, words in commands:
        module = importlib.import_module(file)
        monkeypatch.setattr(sys, "argv", [f"{file}.py", *shlex.split(words)])
        args = module.parse(module.Args, getattr(module, file.upper()))
        args.check()
        assert args != module.Args(), f"a command that changes nothing: {words}"


def test_the_table_of_settings_names_all_and_only_ours():
    table = TEXT.split("## Names of settings")[1].split("\n## ")[0]
    named = {x for line in re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE) for x in re.findall(r"`(\w+)`", line)}
    ours = [{f.name for f in dataclasses.fields(importlib.import_module(file).Args)} for file in FILES]
    machinery = set.intersection(*ours) - {
        "total_timesteps",
        "num_envs",
        "learning_rate",
        "gamma",
    }  # --help explains it
    assert named == set.union(*ours) - machinery


def test_line_numbers_follow_the_code(copied):
    folder, doctor = copied
    doctor("td3.py", "# 2 Networks", "# 2 Networks\n# one line more")
    text = renew(TEXT, folder)
    line = guide.read_source(ALGORITHMS / "td3.py").fullest["TD3.2"]
    assert f"[TD3.2](td3.py#L{line + 1})" in text and f"[td3.py:{line + 1}](td3.py#L{line + 1})" in text
    assert f"td3.py#L{line})" not in text.split("### TD3")[1].split("### SAC")[0]
    assert renew(text, folder) == text
    assert "# y = r" in COMMENTS["td3"][line], "a link of the text leads to the line with the fullest equation"


@pytest.mark.parametrize(
    ("file", "old", "new", "notice"),
    [
        ("td3.py", "[TD3.7]", "", "links TD3.7 in td3.py"),
        ("lectures.csv", "TD3.7,", "TD3.9,", "names TD3.9"),
        ("lectures.csv", "step towards [DDPG.3]", "step towards [DDPG.33]", "mentions [DDPG.33]"),
        ("lectures.csv", "DQN.1,", "DQN.9,", "names DQN.9"),
        ("trpo.py", "def conjugate_gradient", "def conjugate_gradients", "conjugate_gradient in trpo.py"),
    ],
)
def test_a_tag_that_is_nowhere_is_noticed(copied, file, old, new, notice):
    folder, doctor = copied
    doctor(file, old, new)
    with pytest.raises(SystemExit, match=re.escape(notice)):
        renew(TEXT, folder)


def test_missing_markers_are_noticed():
    with pytest.raises(SystemExit, match="index:CAS"):
        renew(TEXT.replace("<!-- end of index:CAS -->", ""))
