"""Results in one format, read from run folders and from csv files, and written as results.csv and runs.csv.

results.csv has one row per evaluation, its values means over the evaluation's episodes (COLUMNS). Of these
`algorithm, env_id, seed, step, return` must be there; `source` is the file's name if missing. `run` names the row of
runs.csv in the same folder that tells what produced it (RUN_COLUMNS): without it, seeds of the same source, algorithm
and environment belong together, and those that end before the others do not count.

    python benchmarks/records.py --algorithm td3 --before COMMIT

shows that a change of a script alters nothing: both versions are run with the same seed, and if they write the same
files, runs.csv notes so and its results are not stale.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import tyro

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "benchmarks" / "results"
OURS = "gradus"
FIRST_TUNING_SEED = 11
METRICS = {"return": "return", "success": "success rate"}
CELL = ["source", "algorithm", "env_id", "total_timesteps", "settings"]  # seeds with the same are pooled
KEY = ["source", "algorithm", "env_id", "seed", "run", "step"]  # of an evaluation
COLUMNS = [*KEY, "return", "length", "success", "episodes", "protocol"]
SEED = ["source", "algorithm", "env_id", "seed"]
REQUIRED = ["algorithm", "env_id", "seed", "step", "return"]
RUN_COLUMNS = [
    "source", "algorithm", "env_id", "seed", "run", "state", "total_timesteps", "settings", "versions", "commit",
    "code_sha256", "same_as", "command", "hardware", "seconds", "reason", "error",
]  # fmt: skip
"""settings and versions are JSON; settings: what differs from the script's defaults, but for MACHINERY; reason: why;
same_as: further values of code_sha256 under which the same run was shown to write the same files, as COMMIT:SHA256."""
RUN_TEXTS = [name for name in RUN_COLUMNS if name not in ("seed", "total_timesteps", "seconds")]
MACHINERY = {
    "env_id", "seed", "total_timesteps", "device", "threads", "compile", "run_dir", "eval_every", "eval_episodes",
    "checkpoint_every", "log_every", "resume", "evaluate", "capture_video", "render", "track", "wandb_project_name",
    "wandb_entity",
}  # fmt: skip
"""Settings that say what is run, or how it is executed and measured, rather than how the algorithm learns."""


class InputError(Exception):
    """What was asked for cannot be done: one line with what, value and remedy."""


def count(steps: float) -> str:
    """Environment steps for people: 64, 60k, 98.3k, 1M."""
    if steps < 1_000:
        return str(int(steps))
    return f"{steps / 1e3:.3g}k" if steps < 999_500 else f"{steps / 1e6:.3g}M"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a json file, {} if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def last_words(text: str) -> str:
    """What an error's text says at its end: its last line, or the first paragraph of a box of tyro's."""
    lines = [words for line in text.splitlines() if (words := line.strip())]
    if not lines or not lines[-1].startswith("╰"):
        return lines[-1] if lines else ""
    top = max((k for k, line in enumerate(lines) if line.startswith("╭")), default=-1)  # -1: it is cut off
    paragraph = itertools.takewhile(bool, (line.strip(" │─") for line in lines[top + 1 : -1]))
    return " ".join(paragraph)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's text; whoever reads it meanwhile sees the old or the new one. Raises OSError."""
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(text.encode())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


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


class Script(NamedTuple):
    """An algorithm's script as it is today; empty values if it is not one of algorithms/."""

    code: str = ""
    """code_sha256"""
    file: str = ""
    """SHA256 of the whole file."""
    defaults: dict[str, Any] = {}


@functools.cache
def script_of(algorithm: str) -> Script:
    """The script of an algorithm or variant of ours: "her_ddpg-no-her" is made by algorithms/her_ddpg.py."""
    path = ROOT / "algorithms" / f"{algorithm.partition('-')[0]}.py"
    if not path.is_file():
        return Script()
    (args,) = [x for x in ast.parse(path.read_text()).body if isinstance(x, ast.ClassDef) and x.name == "Args"]
    fields = [x for x in args.body if isinstance(x, ast.AnnAssign) and x.value]
    defaults = {field.target.id: ast.literal_eval(field.value) for field in fields}
    return Script(code_sha256(path), hashlib.sha256(path.read_bytes()).hexdigest(), defaults)


def codes(run: pd.Series) -> set[str]:
    """All values of code_sha256 that a run is known to belong to."""
    return {run["code_sha256"], *re.findall(r":(\w+)", run["same_as"])}


def is_stale(run: pd.Series) -> bool:
    """Whether the code of the script that made a run of ours has changed since."""
    now = script_of(run["algorithm"]).code
    return run["source"] == OURS and now != "" and now not in codes(run)


def setting_of(flag: str, value: str) -> tuple[str, Any]:
    """A flag of a plan as a setting: ("no-her", "") -> ("her", False), ("clip-coef", "0.1") -> ("clip_coef", 0.1)."""
    name = flag.replace("-", "_")
    if value == "":
        return name.removeprefix("no_"), not name.startswith("no_")
    with contextlib.suppress(ValueError):
        return name, json.loads(value)
    return name, value


def run_id(run: pd.Series | dict[str, Any]) -> str:
    """Name of a run: 8 letters from what tells it from all others."""
    key = [str(run[name]) for name in [*CELL, "seed", "code_sha256"]]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]


def read_run_folder(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Evaluations of a run folder, whatever of it is there, and its row of runs.csv."""
    config, status = read_json(folder / "config.json"), read_json(folder / "harness" / "status.json")
    args, seed = config.get("args", {}), str(config.get("args", {}).get("seed", folder.name))
    algorithm = status.get("label") or config.get("algorithm") or folder.parent.parent.name
    script, made_by = script_of(algorithm), status.get("script_sha256") or config.get("script_sha256")
    if script.defaults and args:
        settings = {k: v for k, v in args.items() if k in script.defaults and v != script.defaults[k]}
    else:  # not one of algorithms/, or it failed before it began
        settings = dict(setting_of(*flag) for flag in (status.get("flags") or {}).items())
    run = {
        "source": config.get("source", OURS), "algorithm": algorithm,
        "env_id": args.get("env_id") or status.get("env_id", folder.parent.name),
        "seed": int(seed) if seed.isdigit() else 0,
        "total_timesteps": args.get("total_timesteps") or status.get("total_timesteps") or 0,
        "settings": json.dumps({k: v for k, v in sorted(settings.items()) if k not in MACHINERY}),
        "versions": json.dumps(config.get("versions") or status.get("versions") or {}),
        "commit": status.get("commit") or "",
        "code_sha256": status.get("code_sha256") or (script.code if made_by == script.file else "unknown"),
        "same_as": "", "command": "; ".join(shlex.join(map(str, words)) for words in config.get("commands", [])),
        "hardware": status.get("hardware", ""), "seconds": status.get("seconds", float("nan")),
        "reason": status.get("reason", ""), "error": last_words(status.get("stderr_tail") or ""), "folder": str(folder),
    }  # fmt: skip
    episodes = pd.DataFrame(columns=["step", "return", "length"])
    with contextlib.suppress(OSError, pd.errors.EmptyDataError):
        text = (folder / "eval.csv").read_text(errors="replace").rpartition("\n")[0]  # no row that is being written
        episodes = pd.read_csv(io.StringIO(text), on_bad_lines="skip")
    # a success may be told of successful episodes only
    episodes = episodes.apply(pd.to_numeric, errors="coerce").fillna({"success": 0}).dropna()
    by_step = episodes.drop(columns="episode", errors="ignore").groupby("step")
    evaluations = by_step.mean().assign(episodes=by_step.size(), protocol="deterministic").reset_index()
    reached, state = evaluations["step"].max() if len(evaluations) else 0, status.get("state", "unfinished")
    if reached >= run["total_timesteps"] > 0:
        run["state"] = "done"
    elif state == "failed":
        code = status.get("exit_code") or 0
        run["state"] = f"failed: {signal.Signals(-code).name if code < 0 else f'exit {code}'}"
    else:
        run["state"] = f"{'unfinished' if state == 'done' else state} at step {count(reached)}"
    run["run"] = run_id(run)
    return evaluations.assign(**{name: run[name] for name in KEY[:-1]}), pd.DataFrame([run])


def read_csv(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Evaluations of a csv in the format above, and its runs. Raises InputError for a missing column or value."""
    beside, runs = path.with_name("runs.csv"), pd.DataFrame(columns=RUN_COLUMNS)
    try:
        rows = pd.read_csv(path, dtype={"run": str})
        if beside.exists():
            runs = pd.read_csv(beside, dtype=dict.fromkeys(RUN_TEXTS, str)).reindex(columns=RUN_COLUMNS)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read --results {path} ({error}): name a csv with a row per evaluation") from error
    if missing := [name for name in REQUIRED if name not in rows]:
        raise InputError(f"{path} has no column {', '.join(missing)}: a row per evaluation with {', '.join(COLUMNS)}")
    rows = rows.reindex(columns=COLUMNS).fillna({"source": path.stem, "protocol": ""})
    for name in ["seed", "step", "return", "length", "success", "episodes"]:
        numbers = pd.to_numeric(rows[name], errors="coerce")
        if (wrong := numbers.isna() & (rows[name].notna() | (name in REQUIRED))).any():
            line = wrong.idxmax()
            raise InputError(f"{path}, line {line + 2}: {name} is {rows[name][line]!r}, not a number")
        rows[name] = numbers
    known = rows["run"].isin(runs["run"])
    if not known.all():
        made = unrecorded(rows[~known])
        bare = rows[~known].drop(columns="run").merge(made[[*SEED, "run"]])
        rows, runs = pd.concat([rows[known], bare]), pd.concat([runs, made]) if len(runs) else made
    values = dict.fromkeys(["return", "length", "success", "episodes"], "mean") | {"protocol": "first"}
    return rows.groupby(KEY, as_index=False).agg(values), runs


def unrecorded(rows: pd.DataFrame) -> pd.DataFrame:
    """The runs of evaluations that runs.csv does not know: done if they are as long as the longest of their cell."""
    runs = rows.groupby(SEED, as_index=False)["step"].max()
    runs["total_timesteps"] = runs.groupby(SEED[:-1])["step"].transform("max")
    whole = runs["step"] >= 0.975 * runs["total_timesteps"]  # evaluations may fall on the ends of rollouts
    runs["state"] = ("ended at step " + runs["step"].map(count)).mask(whole, "done")
    runs = runs.reindex(columns=RUN_COLUMNS, fill_value="").assign(settings="{}", versions="{}", seconds=float("nan"))
    return runs.assign(run=runs.apply(run_id, axis=1))


def read(paths: Sequence[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(evaluations [COLUMNS], runs [RUN_COLUMNS, `folder`, `stale`]) of run folders, folders of them, and csv files.

    A folder with results.csv stands for that file; `folder` is "" for runs from a csv file. Of copies of a run the last
    one that has ended counts, else the last one. Raises InputError if there is none.
    """
    parts = []
    for path in map(Path, paths):
        file = path if path.is_file() else path / "results.csv"
        if file.exists():
            parts.append(read_csv(file))
            continue
        folders = {x.parent for x in path.rglob("config.json")}
        folders |= {x.parent.parent for x in path.rglob("harness/status.json")}
        if not folders:
            raise InputError(f"--results {path} holds neither run folders nor results.csv: run something or correct it")
        parts += map(read_run_folder, sorted(folders))
    runs = pd.concat([runs.assign(part=k) for k, (_, runs) in enumerate(parts)])
    runs = runs.reindex(columns=[*RUN_COLUMNS, "folder", "part"]).fillna(dict.fromkeys([*RUN_TEXTS, "folder"], ""))
    notes = runs.groupby("code_sha256")["same_as"].agg(lambda texts: max(texts, key=len))  # true of all runs of a code
    runs = runs.assign(same_as=runs["code_sha256"].map(notes), ended=runs["state"].str.match("done|failed"))
    runs = runs.sort_values(["ended", "part"], kind="stable").drop_duplicates("run", keep="last").drop(columns="ended")
    frames = [rows.assign(part=k) for k, (rows, _) in enumerate(parts)]
    rows = pd.concat([frame for frame in frames if len(frame)] or frames).reindex(columns=[*COLUMNS, "part"])
    rows = rows.merge(runs[["run", "part"]])[COLUMNS].astype({"seed": int, "step": int})
    runs = runs.drop(columns="part").astype({"seed": int, "total_timesteps": int, "seconds": float})
    runs = runs.assign(stale=runs.apply(is_stale, axis=1)).sort_values([*CELL, "seed"], ignore_index=True)
    return rows.sort_values(KEY, ignore_index=True), runs


def export(evaluations: pd.DataFrame, runs: pd.DataFrame, folder: Path) -> None:
    """Write results.csv and runs.csv; values are rounded to 6 digits. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = evaluations[COLUMNS].astype({"episodes": "Int64"})
    write_atomically(folder / "results.csv", rows.to_csv(index=False, float_format="%.6g"))
    write_atomically(folder / "runs.csv", runs[RUN_COLUMNS].to_csv(index=False, float_format="%.6g"))


def git(*words: str) -> str:
    """What git prints. Raises InputError with its message."""
    made = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    if made.returncode:
        raise InputError(f"git {' '.join(words)}: {made.stderr.strip()}")
    return made.stdout.strip()


def written(commit: str, algorithm: str, flags: str) -> tuple[str, list[pd.DataFrame]]:
    """code_sha256 of a version of a script, and what it writes but for times. Raises InputError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / f"{algorithm}.py"
        script.write_text(git("show", f"{commit}:algorithms/{script.name}"))
        words = [sys.executable, script.name, *shlex.split(flags), "--run-dir", "run"]
        if subprocess.run(words, cwd=folder).returncode:
            raise InputError(f"{script.name} of {commit} failed with {flags}: see above")
        files = [pd.read_csv(script.parent / "run" / f"{name}.csv") for name in ("eval", "train", "metrics")]
        return code_sha256(script), [x.drop(columns=["seconds", "steps_per_second"], errors="ignore") for x in files]


def note_same(
    algorithm: str, before: str, flags: str = "--seed 1 --total-timesteps 30000", results: Path = COMMITTED
) -> int:
    """Run a script of two commits; if both write the same files, note that the runs of one are of the other's code too.

    Returns for how many runs that is new. Raises InputError.

    Args:
        algorithm: Name of the script in algorithms/, without .py.
        before: Commit before the change; that after it is HEAD.
        flags: Flags of the two runs, which must reach beyond the start of learning.
        results: Folder with the runs.csv in which to note it.
    """
    head = git("rev-parse", "--short", "HEAD")
    (old, expected), (new, found) = written(before, algorithm, flags), written(head, algorithm, flags)
    if not all(x.equals(y) for x, y in zip(expected, found, strict=True)):
        remedy = "its results have to be made again"
        raise InputError(f"{algorithm}.py of {before} and of HEAD write different files: {remedy}")
    evaluations, runs = read([results / "results.csv"])
    same = runs.apply(lambda run: old in codes(run) and new not in codes(run), axis=1)
    runs.loc[same, "same_as"] = (runs.loc[same, "same_as"] + f" {head}:{new}").str.strip()
    export(evaluations, runs, results)
    return sum(same)


if __name__ == "__main__":
    try:
        print(f"the same files: noted for {tyro.cli(note_same)} runs")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
