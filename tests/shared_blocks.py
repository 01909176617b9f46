"""Keeps the blocks that several algorithm files share equal.

`problems(folder)` lists every breach of the rules in algorithms/README.md; the command copies blocks:

    python tests/shared_blocks.py td3      # every block of td3.py to the other files that have one of that name
"""

import ast
import difflib
import functools
import io
import re
import sys
import tokenize
from pathlib import Path

ALGORITHMS = Path(__file__).parent.parent / "algorithms"
WRITTEN_PER_FILE = {  # name -> why its text differs
    "Args": "each algorithm has its own settings",
    "train": "each algorithm has its own loop",
    "collect": "REINFORCE collects whole episodes, the others a fixed number of steps",
}
BUDGET = {  # most code lines, as counted by code_lines
    "reinforce": 680, "a2c": 627, "ppo": 655, "trpo": 709, "ddpg": 605, "td3": 590, "sac": 630, "her_ddpg": 679,
    "section 5": 363,
}  # fmt: skip
DIFFERENT_DEFAULTS = {  # settings whose best value is a matter of the algorithm
    "learning_rate": "each method's published step size; A2C's a larger one for its longer rollouts",
    "num_steps": "A2C makes one gradient step per rollout, so rollouts are short; TRPO one policy step",
    "update_epochs": "TRPO's are full-batch steps of the critic alone",
    "num_minibatches": "TRPO's are full-batch steps of the critic alone",
    "num_envs": "REINFORCE: whole episodes of 1000 steps per update, so more environments mean fewer updates",
    "env_id": "her_ddpg needs a task with goals",
    "gamma": "HER's episodes of 50 steps: 1 - 1/50",
    "batch_size": "HER: that of 8 processes with 256 each, as published",
    "tau": "HER moves its targets once per cycle of updates, not with every update",
    "learning_starts": "as published; HER's random actions go on, with probability random_eps, instead of such a phase",
    "exploration_noise": "each method's published noise",
}
DIFFERENT_HELP = {"num_envs": "REINFORCE: also the number of episodes in an update"}
IMPORTABLE = {  # import name -> requirement
    "gymnasium": "gymnasium", "numpy": "numpy", "torch": "torch", "tyro": "tyro", "tqdm": "tqdm", "filelock": "torch",
    "wandb": "wandb", "gymnasium_robotics": "gymnasium-robotics",
}  # fmt: skip
ON_WINDOWS = {  # parts of the standard library that differ between systems: what Windows has too
    "os": {"environ", "fsync", "getcwd", "replace", "path", "name"},
    "signal": {"SIGINT", "SIGTERM", "signal", "getsignal", "default_int_handler"},
    "fcntl": set(), "grp": set(), "pwd": set(), "resource": set(), "termios": set(),
}  # fmt: skip
BANNER = re.compile(r"^# =+\n# (.+)\n# =+$", re.MULTILINE)


parse = functools.cache(ast.parse)


@functools.cache
def blocks(source: str) -> dict[str, str]:
    """Top-level functions, classes and constants of a file: name -> source text, decorators included."""
    lines, found = source.splitlines(keepends=True), {}
    for node in parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            found[node.name] = "".join(lines[first - 1 : node.end_lineno])
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = "".join(lines[node.lineno - 1 : node.end_lineno])
    return found


def fields(source: str) -> dict[str, tuple[str, str, str]]:
    """Fields of Args: name -> (type, help text, default), each as source text."""
    body = next(n for n in parse(source).body if isinstance(n, ast.ClassDef) and n.name == "Args").body
    found = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            text = after.value.value if documented else ""
            found[node.target.id] = (ast.unparse(node.annotation), text, ast.unparse(node.value))
    return found


def settings_read(source: str) -> set[str]:
    """Names read as args.NAME or something.args.NAME outside of Args, whose checks alone do nothing with a setting."""
    tree, found = parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = node.value
            if "args" in (getattr(owner, "id", ""), getattr(owner, "attr", "")):
                found.add(node.attr)
    return found


@functools.cache
def code_lines(source: str) -> list[int]:
    """Numbers of the lines that hold a token of code: docstrings, help texts, comments and blank lines are free."""
    free = set()
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            free |= set(range(node.lineno, node.end_lineno + 1))
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in layout]
    return sorted({line for t in tokens for line in range(t.start[0], t.end[0] + 1)} - free)


def over_budget(file: str, source: str) -> list[str]:
    """What of a file is longer than BUDGET allows."""
    starts = {match[1][:1]: source[: match.start()].count("\n") for match in BANNER.finditer(source)}
    lines = code_lines(source)
    counts = {file: len(lines), "section 5": sum(starts["5"] < n <= starts["6"] for n in lines)}
    return [f"{file}.py: {x} has {n} code lines, at most {BUDGET[x]}" for x, n in counts.items() if n > BUDGET[x]]


def imports(source: str) -> set[str]:
    """Top-level names of all modules that a file imports."""
    names = set()
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    names |= set(re.findall(r"import_module\(\"(\w+)", source))
    return names - {"__future__"}


def problems(folder: Path = ALGORITHMS) -> list[str]:
    """Every breach of the rules, as text with the difference and the remedy; empty if all is well."""
    sources = {path.stem: path.read_text() for path in sorted(folder.glob("*.py"))}
    found = []
    first_seen: dict[str, tuple[str, str]] = {}
    first_field: dict[str, tuple[str, tuple[str, str, str]]] = {}
    first_banners: tuple[str, list[str]] | None = None
    for file, source in sources.items():
        for name, text in blocks(source).items():
            other, other_text = first_seen.setdefault(name, (file, text))
            if name not in WRITTEN_PER_FILE and text != other_text:
                difference = difflib.unified_diff(
                    other_text.splitlines(), text.splitlines(), f"{other}.py", f"{file}.py", lineterm=""
                )
                found.append(
                    f"{name} differs between {other}.py and {file}.py; `make sync FROM={other}` (or FROM={file}) "
                    "copies it:\n" + "\n".join(difference)
                )
        read = settings_read(source)
        for name, (kind, text, default) in fields(source).items():
            other, known = first_field.setdefault(name, (file, (kind, text, default)))
            same_help = text == known[1] or name in DIFFERENT_HELP
            if not (kind == known[0] and same_help and (default == known[2] or name in DIFFERENT_DEFAULTS)):
                found.append(f"Args.{name} differs between {other}.py {known} and {file}.py {(kind, text, default)}")
            if name not in read:
                found.append(f"{file}.py: Args.{name} is never read: a flag that does nothing")
            if not text:
                found.append(f"{file}.py: Args.{name} has no help text under it")
        found += over_budget(file, source)
        banners = BANNER.findall(source)
        first_banners = first_banners or (file, banners)
        if banners != first_banners[1]:
            found.append(f"banners differ: {first_banners[0]}.py {first_banners[1]}, {file}.py {banners}")
        for module, there in ON_WINDOWS.items():
            for name in sorted(set(re.findall(rf"\b{module}\.(\w+)", source)) - there):
                found.append(f"{file}.py uses {module}.{name}: does Windows have it? Then add it to ON_WINDOWS")
        for module in sorted(imports(source) - sys.stdlib_module_names - IMPORTABLE.keys()):
            found.append(f"{file}.py imports {module}, which is neither the standard library's nor a requirement")
    return found


def sync(source_file: str, folder: Path = ALGORITHMS) -> list[str]:
    """Copy the blocks of one file over those of the same name in the others; returns 'file: block' for each change."""
    path = folder / f"{source_file}.py"
    if not path.exists():
        sys.exit(f"error: {path} does not exist: FROM must be one of {sorted(p.stem for p in folder.glob('*.py'))}")
    wanted, changed = blocks(path.read_text()), []
    for other in sorted(folder.glob("*.py")):
        text = other.read_text()
        for name, old in blocks(text).items():
            new = wanted.get(name, old)
            if name not in WRITTEN_PER_FILE and new != old:
                text = text.replace(old, new, 1)
                changed.append(f"{other.name}: {name}")
        other.write_text(text)
    return changed


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("error: name the file to copy from: make sync FROM=td3")
    print("\n".join(sync(sys.argv[1])) or "nothing to copy")
