"""Keeps the blocks that several algorithm files share equal.

`problems(folder)` lists every breach of the rules in algorithms/README.md; the command copies blocks:

    python tests/shared_blocks.py td3      # every block of td3.py to the other files that have one of that name
"""

from __future__ import annotations

import ast
import difflib
import re
import sys
from pathlib import Path

ALGORITHMS = Path(__file__).parent.parent / "algorithms"
WRITTEN_PER_FILE = {"Args", "train"}
DIFFERENT_DEFAULTS = {  # settings whose best value is a matter of the algorithm
    "learning_rate": "each method's published step size; A2C's a larger one for its longer rollouts",
    "num_steps": "A2C makes one gradient step per rollout, so rollouts are short; TRPO one policy step",
    "update_epochs": "TRPO's are full-batch steps of the critic alone",
    "num_minibatches": "TRPO's are full-batch steps of the critic alone",
    "num_envs": "REINFORCE: whole episodes of 1000 steps per update, so more environments mean fewer updates",
    "env_id": "her_ddpg needs a task with goals",
    "gamma": "HER's episodes of 50 steps: 1 - 1/50",
    "tau": "HER moves its targets once per cycle of updates, not with every update",
    "learning_starts": "as published; HER's random actions go on, with probability random_eps, instead of such a phase",
    "exploration_noise": "each method's published noise",
}
IMPORTABLE = {  # import name -> requirement
    "gymnasium": "gymnasium", "numpy": "numpy", "torch": "torch", "tyro": "tyro", "tqdm": "tqdm", "wandb": "wandb",
}  # fmt: skip
BANNER = re.compile(r"^# =+\n# (.+)\n# =+$", re.MULTILINE)


def blocks(source: str) -> dict[str, str]:
    """Top-level functions, classes and constants of a file: name -> source text, decorators included."""
    lines, found = source.splitlines(keepends=True), {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            found[node.name] = "".join(lines[first - 1 : node.end_lineno])
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = "".join(lines[node.lineno - 1 : node.end_lineno])
    return found


def fields(source: str, class_name: str) -> dict[str, tuple[str, str, str]]:
    """Fields of a settings class: name -> (type, help text, default), each as source text."""
    body = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == class_name).body
    found = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            text = after.value.value if documented else ""
            found[node.target.id] = (ast.unparse(node.annotation), text, ast.unparse(node.value))
    return found


def settings_read(source: str) -> set[str]:
    """Names read as args.NAME, run.NAME or something.args.NAME, something.run.NAME, and in Args.check as self.NAME."""
    tree = ast.parse(source)
    check = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "check")
    holders = {"args", "run"}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
            if name in holders:
                found.add(node.attr)
    return found | {n.attr for n in ast.walk(check) if isinstance(n, ast.Attribute)}


def imports(source: str) -> set[str]:
    """Top-level names of all modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
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
        for name, (kind, text, default) in fields(source, "Args").items():
            other, known = first_field.setdefault(name, (file, (kind, text, default)))
            same = (kind, text) == known[:2] and (default == known[2] or name in DIFFERENT_DEFAULTS)
            if not same:
                found.append(f"Args.{name} differs between {other}.py {known} and {file}.py {(kind, text, default)}")
        for class_name in ("Args", "RunArgs"):
            read = settings_read(source)
            for name, (_, text, _) in fields(source, class_name).items():
                if name not in read:
                    found.append(f"{file}.py: {class_name}.{name} is never read: a flag that does nothing")
                if not text and name != "run":
                    found.append(f"{file}.py: {class_name}.{name} has no help text under it")
        banners = BANNER.findall(source)
        first_banners = first_banners or (file, banners)
        if banners != first_banners[1]:
            found.append(f"banners differ: {first_banners[0]}.py {first_banners[1]}, {file}.py {banners}")
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
