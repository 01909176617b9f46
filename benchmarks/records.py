"""Run folders of a benchmark, as run.py leaves them and as they are committed: loading, staleness, export.

    python benchmarks/records.py --results runs --suite quick

copies the finished runs of runs/quick that are not stale to benchmarks/results/quick in compact form: config.json,
eval.csv and status.json as they are, train.csv and metrics.csv thinned to at most 200 rows, and nothing else.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import functools
import hashlib
import io
import json
import os
import shutil
import sys
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from suites import SUITES, Experiment

ROOT = Path(__file__).resolve().parent.parent
ON_POLICY = ("reinforce", "a2c", "trpo", "ppo")
COMMITTED = ROOT / "benchmarks" / "results"
SAME_STEP = 0.025  # relative: on-policy evaluations fall on the ends of rollouts, near the round numbers
METRICS = {"return": "return of the deterministic policy", "success_rate": "success rate of the deterministic policy"}
THINNED_ROWS = 200


class InputError(Exception):
    """What was asked for cannot be done: one line with what, value and remedy."""


# ======================================================================================================================
# 1 Runs
# ======================================================================================================================


@dataclass(frozen=True)
class Run:
    """One run folder; e evaluations at increasing `steps` [e], e = 0 if there is none.

    `values` maps metric -> mean over the episodes of each evaluation, [e]; "success_rate" (0 to 1) is only there where
    the environment reports success. `config` and `status` are the contents of the json files, {} if unreadable.
    """

    label: str
    """The algorithm, or the variant of it: the name of the experiment's folder."""
    env_id: str
    seed: str
    config: dict[str, Any]
    status: dict[str, Any]
    steps: np.ndarray
    values: dict[str, np.ndarray]
    clock: np.ndarray
    """Logged (step, seconds of training so far) [k, 2]."""
    stale: str | None
    """Why the result is not what today's script and suite would give; None if nothing is known against it."""

    @property
    def total(self) -> int | None:
        """Environment steps the run was meant to take, None if unknown."""
        return self.config.get("args", {}).get("total_timesteps") or self.status.get("total_timesteps")

    @property
    def reached(self) -> int:
        """Last step that any log of the run mentions."""
        return int(max([0, *self.steps[-1:], *self.clock[-1:, 0]]))

    @property
    def seconds(self) -> float | None:
        """Duration of the run, None if unknown."""
        return self.status.get("seconds", self.clock[-1, 1] if len(self.clock) else None)

    @property
    def session(self) -> dict[str, Any]:
        """What the run recorded about its last start: versions and script; older ones also platform and device."""
        return (self.config.get("history") or [self.config])[-1]

    @property
    def commands(self) -> list[list[str]]:
        """The command of every start."""
        older = [session["command"] for session in self.config.get("history", []) if session.get("command")]
        return self.config.get("commands") or older

    def seconds_at(self, steps: np.ndarray) -> np.ndarray:
        """Seconds of training after so many steps, [e]: between logged rows by interpolation; nan if none is known."""
        if len(self.clock) == 0:
            return np.full(len(steps), np.nan)
        return np.interp(steps, *np.vstack([[0, 0], self.clock]).T)

    def trouble(self, total: int | None) -> str | None:
        """Why the run's score does not count in a comparison at `total` steps; None if it does."""
        state = self.status.get("state")
        if state is None:
            return "failed: no status.json"
        if state == "failed":
            return f"failed: exit {self.status.get('exit_code')}"
        if state != "done":
            return f"{state} at step {count(self.reached)}"
        if self.steps.size == 0 or self.steps[-1] < (total or np.inf):  # it may end a little later, see run.py
            return f"done, but no evaluation at step {count(total)}"
        return None

    def last_error(self) -> str:
        """Last line the run wrote to stderr, "" if unknown."""
        lines = (self.status.get("stderr_tail") or "").strip().splitlines()
        return lines[-1].strip() if lines else ""


def count(steps: int | None) -> str:
    """Environment steps for people: 64, 60k, 98.3k, 1M; "?" if unknown."""
    if steps is None:
        return "?"
    if steps < 1_000:
        return str(int(steps))
    return f"{steps / 1e3:.3g}k" if steps < 999_500 else f"{steps / 1e6:.3g}M"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a json file, {} if it is missing or damaged (it is only a record: the run folder decides)."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def status_path(folder: Path) -> Path:
    """status.json of a run folder: in harness/, but in committed results beside the other files."""
    path = folder / "harness" / "status.json"
    return path if path.exists() else folder / "status.json"


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's text; whoever reads it meanwhile sees the old or the new one. The file's mode stays."""
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(text.encode())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_columns(path: Path, names: Sequence[str]) -> np.ndarray:
    """Columns of a csv of numbers, [rows, names]; [0, names] if it is missing. A row cut short is left out."""
    rows = []
    with contextlib.suppress(OSError):
        text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
        for row in csv.DictReader(text.splitlines()):
            with contextlib.suppress(ValueError, TypeError):
                rows.append([float(row.get(name)) for name in names])
    return np.array(rows).reshape(-1, len(names))


def load_run(folder: Path, suite: str) -> Run:
    """The run in SUITE/LABEL/ENV_ID/SEED/; whatever is missing there is empty or None in the result."""
    columns = ["step", "return", "success"]
    rows = read_columns(folder / "eval.csv", columns)
    if len(rows) == 0:
        columns = ["step", "return"]
        rows = read_columns(folder / "eval.csv", columns)
    steps = np.unique(rows[:, 0])
    means = np.array([rows[rows[:, 0] == step].mean(0) for step in steps]).reshape(-1, len(columns))
    status = read_json(status_path(folder))
    config = read_json(folder / "config.json")
    label, env_id = folder.parent.parent.name, folder.parent.name
    return Run(
        label=label,
        env_id=env_id,
        seed=folder.name,
        config=config,
        status=status,
        steps=steps,
        values=dict(zip(METRICS, means[:, 1:].T, strict=False)),  # without success, the return only
        clock=read_columns(folder / "metrics.csv", ["step", "seconds"]),
        stale=staleness(
            status,
            config.get("algorithm", label),
            [e for e in SUITES.get(suite, []) if (e.label, e.env_id) == (label, env_id)],
        ),
    )


def load_runs(results: Path, suite: str) -> list[Run]:
    """Every run of a suite, sorted by task, label and seed. Raises InputError if there is none."""
    root = results / suite
    if not root.is_dir():
        raise InputError(f"no suite folder {root}: run the suite first or correct --results and --suite")
    folders = [folder for folder in root.glob("*/*/*") if folder.is_dir() and folder.name.isdigit()]
    if not folders:
        raise InputError(f"{root} holds no run folders ALGORITHM/ENV_ID/SEED: run the suite first")
    runs = [load_run(folder, suite) for folder in folders]
    return sorted(runs, key=lambda r: (r.env_id, r.label, len(r.seed), r.seed))


# ======================================================================================================================
# 2 Staleness
# ======================================================================================================================


def canonical(node: Any) -> Any:
    """A syntax tree as nested lists, the same for every Python version; statements that are only a string left out."""
    if isinstance(node, list):
        return [canonical(x) for x in node if not (isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant))]
    if isinstance(node, ast.AST):
        return [type(node).__name__, *([k, canonical(v)] for k, v in ast.iter_fields(node) if v not in (None, []))]
    return repr(node)


def code_sha256(script: Path) -> str:
    """Hash of a script's code: comments, docstrings, help texts (strings below a field) and layout do not count."""
    return hashlib.sha256(json.dumps(canonical(ast.parse(script.read_text()))).encode()).hexdigest()


def algorithm_sha256(script: Path) -> str | None:
    """Hash of what decides a script's results: its code above the shared blocks of section 5, settings included.

    Comments, docstrings and blank lines do not count. None if there is no such script.
    """
    return sha256_of(script, script.stat().st_mtime_ns) if script.exists() else None


@functools.cache
def sha256_of(script: Path, _modified: int) -> str:
    """The hash, computed once per version of the file; found from positions, so that it is that of every Python."""
    text = script.read_text().partition("\n# 5 ")[0] + "\n"
    lines = [list(line) for line in text.splitlines()]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1][token.start[1] :] = []
    for node in ast.walk(ast.parse(text)):
        for statement in node.body if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) else []:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                for number in range(statement.lineno, statement.end_lineno + 1):
                    lines[number - 1] = []
    kept = [line for line in map(str.rstrip, map("".join, lines)) if line]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()


def staleness(status: dict[str, Any], algorithm: str, planned: list[Experiment]) -> str | None:
    """Why today's script and suite would not give the result that `status` records; None if nothing is known.

    `planned` holds the suite's experiments with this label and task; it is empty if the suite has none. Only the
    algorithm's part of the script is compared, not the shared blocks.
    """
    if status.get("algorithm_sha256") != algorithm_sha256(ROOT / "algorithms" / f"{algorithm}.py"):
        return f"{algorithm}.py has changed since"
    total = status.get("total_timesteps")
    begun_for = status.get("begun_for") or total
    if begun_for != total and algorithm in ON_POLICY:
        return f"begun for {count(begun_for)} steps, over which its learning rate decayed"
    recorded = status.get("flags"), total
    if planned and recorded not in [(e.flags, e.total_timesteps) for e in planned]:
        return "the suite's settings have changed since"
    return None


# ======================================================================================================================
# 3 Export
# ======================================================================================================================


def thin(text: str, rows: int = THINNED_ROWS) -> str:
    """A csv with its header, its last row and, evenly between, as many others as make `rows` at most."""
    header, *lines = text.splitlines(keepends=True) or [""]
    step = max(1, -(-len(lines) // rows))
    return "".join([header, *lines[::-1][::step][::-1]])


def export(source: Path, target: Path) -> None:
    """Copy what is kept of a run folder; an earlier copy is there until the new one is complete. Raises OSError."""
    new, old = (target.with_name(f".{target.name}.{suffix}") for suffix in ("new", "old"))
    for left in (new, old):  # by an export that was killed
        shutil.rmtree(left, ignore_errors=True)
    new.mkdir(parents=True)
    for path in (source / "config.json", source / "eval.csv", status_path(source)):
        shutil.copy(path, new)
    for name in ("train.csv", "metrics.csv"):
        (new / name).write_text(thin((source / name).read_text()))
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)


@dataclass
class Options:
    """Which suite to copy to benchmarks/results."""

    results: Path
    """Folder of the benchmark; it holds SUITE/ALGORITHM/ENV_ID/SEED/."""
    suite: str
    """Name of the suite, a folder in results."""


def main() -> int:
    """Command line; exit code 2 for what the user can put right."""
    options = tyro.cli(Options, description=__doc__)
    try:
        runs = load_runs(options.results, options.suite)
        kept = [run for run in runs if run.trouble(run.total) is None and not run.stale]
        replaced = 0
        for run in kept:
            where = Path(options.suite, run.label, run.env_id, run.seed)
            replaced += (COMMITTED / where).exists()
            export(options.results / where, COMMITTED / where)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = error.filename or COMMITTED  # a failed write has no name
        print(f"error: cannot copy to {where} ({error.strerror}): put it right and repeat", file=sys.stderr)
        return 2
    print(
        f"{len(kept)} of {len(runs)} runs, those that are finished and not stale, are now in "
        f"{COMMITTED / options.suite}, {replaced} of them in place of an earlier copy"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
