"""Keeps algorithms/README.md, the reading guide, true to lectures.csv and to the tags in the code.

    make guide

writes anew what stands between the guide's markers, the line numbers of its links, and beside the experiments' pictures
what they show. A tag such as [TD3.2] at the end of a comment marks the line that computes an equation; lectures.csv
says of every formula of the lectures which tags compute it, in the algorithm files or in an experiment, or why it is
theory only.
"""

import ast
import csv
import io
import itertools
import re
import sys
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

ALGORITHMS = Path(__file__).parent.parent / "algorithms"
PROGRAMS = ALGORITHMS.parent / "benchmarks" / "experiments"
LECTURES = ("PGM", "PWD", "AC2", "CAS", "papers")  # in reading order; "papers" holds equations that no slide shows
FILES = ("reinforce", "a2c", "trpo", "ppo", "ddpg", "td3", "sac", "her_ddpg")
EXPERIMENTS = (
    "pg_variance", "importance_sampling", "q_actor_critic", "critics_lambda", "trust_region", "ppo_kl_penalty",
    "pathwise_variance", "svg0_dpg", "cem", "dqn", "target_networks", "overestimation", "hindsight", "soft_q",
    "temperature",
)  # fmt: skip
TAG = re.compile(r"\[([A-Z][A-Z0-9]*\.[0-9]+)\]")
LINK = re.compile(r"\[(`?)([A-Za-z]\w*(?:\.\w+)?)\1\]\((\w+)\.py#L\d+\)")  # [TD3.2](td3.py#L1), [`follow`](td3.py#L1)
SHOWN = re.compile(r"(!\[(\w+)\]\(\.\./benchmarks/experiments/pictures/\2\.png\)\n)(?:\n> .*\n)?")  # on a screen
LISTED = re.compile(r"(\[picture\]\(\.\./benchmarks/experiments/pictures/(\w+)\.png\)).* \|$", re.MULTILINE)
SLIPS = {"loose": "*Loosely written:* ", "wrong": "*A slip:* "}


@dataclass
class Source:
    """An algorithm file or an experiment: where its tags and its functions are."""

    path: str = ""  # as the guide links it
    tags: dict[str, list[int]] = field(default_factory=dict)  # tag -> lines whose comment holds it
    fullest: dict[str, int] = field(default_factory=dict)  # tag -> the one of these with the longest comment
    lines: dict[str, int] = field(default_factory=dict)  # function, class or Class.method -> line of its def
    methods: dict[int, str] = field(default_factory=dict)  # line -> innermost of these around it


def read_source(path: Path) -> Source:
    """The tags and functions of a file."""
    folder = "../benchmarks/experiments/" if path.parent == PROGRAMS else ""
    text, source = path.read_text(), Source(folder + path.name)
    for node in ast.parse(text).body:
        inner = node.body if isinstance(node, ast.ClassDef) else []
        for part, name in [(node, ""), *((x, f"{node.name}.") for x in inner)]:
            if isinstance(part, ast.FunctionDef | ast.ClassDef):
                source.lines[name + part.name] = part.lineno
                source.methods |= dict.fromkeys(range(part.lineno, part.end_lineno + 1), name + part.name)
    comments: dict[str, list[str]] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        for tag in TAG.findall(token.string) if token.type == tokenize.COMMENT else []:
            source.tags.setdefault(tag, []).append(token.start[0])
            comments.setdefault(tag, []).append(token.string)
    for tag, texts in comments.items():
        source.fullest[tag] = source.tags[tag][texts.index(max(texts, key=len))]
    return source


def read_lectures(folder: Path = ALGORITHMS) -> list[dict[str, str]]:
    """The rows of lectures.csv, in the order of lectures and slides."""
    with (folder / "lectures.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def tag_links(tag: str, only: str, sources: dict[str, Source]) -> str:
    """A tag and links to all its lines, by method; only names the files (without .py), or is empty for all of them."""
    places: dict[str, list[str]] = {}
    for name, source in sources.items():
        if name in (only.split() or sources):
            for line in source.tags.get(tag, []):
                method = source.methods.get(line, "module")
                places.setdefault(method, []).append(f"[{name}.py:{line}]({source.path}#L{line})")
    if not places:
        sys.exit(f"error: lectures.csv names {tag} in {only or 'any file'}, where no comment has it: mend one of them")
    return f"**{tag}** " + "; ".join(f"`{method}` {', '.join(links)}" for method, links in places.items())


def prose(text: str, sources: dict[str, Source]) -> str:
    """Text of a table's cell as Markdown: a tag becomes a link, `code` stays, all else shows as it is written."""
    parts = []
    for part in re.split(r"(`[^`]*`|\[[A-Z][A-Z0-9]*\.[0-9]+\])", text):
        if tag := TAG.fullmatch(part):
            places = [f"{x.path}#L{x.fullest[tag[1]]}" for x in sources.values() if tag[1] in x.tags]
            if not places:
                sys.exit(f"error: lectures.csv mentions {part}, which no comment in the code has: mend one of them")
            part = f"{part}({places[0]})"
        elif not part.startswith("`"):
            part = re.sub(r"([\\*_~|<\[\]])", r"\\\1", part)
        parts.append(part)
    return "".join(parts)


def remark(row: dict[str, str], sources: dict[str, Source], between: str) -> str:
    """What is to be said of a formula: how the slide differs from it, and how the code does."""
    slip = SLIPS.get(row["slide_is"], "") + prose(row["correct_form"], sources)
    if row["extraction"]:
        slip += " (perhaps only in the text that was taken from the slides)"
    shown = row["experiment"] and row["status"] != "experiment"
    experiment = f"experiment [{row['experiment']}](#experiments)" if shown else ""
    return between.join(x for x in (slip, prose(row["note"], sources), experiment) if x)


def anchor(heading: str) -> str:
    """What GitHub calls a heading in links to it."""
    return re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")


def lecture_index(lecture: str, rows: list[dict[str, str]], sources: dict[str, Source]) -> str:
    """A lecture's slides in order, each with a table of its formulas and a line of those that are theory only."""
    slides = dict.fromkeys(row["slide"] for row in rows if row["lecture"] == lecture)
    parts = ["".join(f"- [{slide}](#{anchor(slide)})\n" for slide in slides)]
    for slide, group in itertools.groupby((r for r in rows if r["lecture"] == lecture), key=lambda row: row["slide"]):
        lines, theory = [f"#### {slide}", ""], []
        shown = "in the paper" if lecture == "papers" else "on the slide"
        table = [f"| {shown} | in the code | remarks |", "|---|---|---|"]
        for row in group:
            formula = "`" + row["formula"].replace("|", r"\|") + "`"
            if row["status"] == "theory":
                theory.append(f"`{row['formula']}`: {remark(row, sources, '; ')}")
                continue
            where = "<br>".join(tag_links(tag, row["files"], sources) for tag in row["tags"].split())
            if row["status"] == "experiment":
                where = f"experiment [{row['experiment']}](#experiments): {where}"
            table.append(f"| {formula}{row['name'] and ' ' + row['name']} | {where} | {remark(row, sources, '<br>')} |")
        lines += [*table, ""] if len(table) > 2 else []
        if theory:
            lines += ["Theory only:", "", *(f"- {x}" for x in theory), ""]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def tag_index(rows: list[dict[str, str]], sources: dict[str, Source]) -> str:
    """For each file, its tags in the order of its lines, and the slides (or papers) that show their equations.

    A slide's pseudo-code of another algorithm is named only where no other slide shows the tag.
    """
    lines, programs = [], [name for name in sources if name not in FILES]
    for title, names in [*((f"{file}.py", [file]) for file in FILES), ("The experiments", programs)]:
        lines += [f"#### {title}", "", "| tag | lines | slides |", "|---|---|---|"]
        for name, tag in ((x, tag) for x in names for tag in sorted(sources[x].tags, key=sources[x].tags.get)):
            shown = [row for row in rows if tag in row["tags"].split()]
            own = [row for row in shown if name in (row["files"].split() or [name])] or shown
            slides = dict.fromkeys((row["lecture"], row["slide"]) for row in own)
            places = [f"{lecture}: [{prose(slide, sources)}](#{anchor(slide)})" for lecture, slide in slides]
            lines.append(f"| {tag} | {tag_links(tag, name, sources).split(' ', 1)[1]} | {'<br>'.join(places)} |")
        lines.append("")
    return "\n".join(lines)


def renew(text: str, folder: Path = ALGORITHMS) -> str:
    """The guide with its generated parts and the line numbers of all its links as they must be."""
    paths = [*(folder / f"{name}.py" for name in FILES), *sorted(PROGRAMS.glob("*.py"))]
    sources, rows = {path.stem: read_source(path) for path in paths}, read_lectures(folder)

    def link(match: re.Match) -> str:
        quote, name, file = match.groups()
        source = sources.get(file, Source())
        line = source.fullest.get(name, source.lines.get(name))
        if line is None:
            sys.exit(f"error: the guide links {name} in {file}.py, which has no such tag or function: mend the link")
        return f"[{quote}{name}{quote}]({file}.py#L{line})"

    def sentences(name: str) -> str:
        return (PROGRAMS / "pictures" / f"{name}.txt").read_text().strip().replace("|", r"\|")

    text = LINK.sub(link, text)
    text = SHOWN.sub(lambda match: f"{match[1]}\n> {sentences(match[2])}\n", text)
    text = LISTED.sub(lambda match: f"{match[1]}: {sentences(match[2])} |", text)
    for name in (*LECTURES, "tags"):
        part = tag_index(rows, sources) if name == "tags" else lecture_index(name, rows, sources)
        begin, end = f"<!-- index:{name} -->\n", f"<!-- end of index:{name} -->"
        whole = f"{begin}\n{part}\n{end}"
        text, count = re.subn(f"{begin}.*?{end}", lambda _, whole=whole: whole, text, flags=re.DOTALL)
        if count != 1:
            sys.exit(f"error: algorithms/README.md needs the lines {begin.strip()} and {end} once: add them")
    return text


def main() -> None:
    path = ALGORITHMS / "README.md"
    old = path.read_text()
    new = renew(old)
    if new != old:
        path.write_text(new)
    print(f"{path}: {'renewed' if new != old else 'up to date'}")


if __name__ == "__main__":
    main()
