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
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "benchmarks" / "results"
OURS = "gradus"
FIRST_TUNING_SEED = 11
METRICS = {"return": "return", "success": "success rate"}
CELL = ["source", "algorithm", "env_id", "total_timesteps", "settings"]  # seeds with the same are pooled
COLUMNS = [
    "source", "algorithm", "env_id", "seed", "run", "step", "return", "length", "success", "episodes", "protocol"
]  # fmt: skip
RUN_COLUMNS = [
    "source", "algorithm", "env_id", "seed", "run", "state", "total_timesteps", "settings", "versions", "commit",
    "code_sha256", "same_as", "command", "hardware", "seconds", "reason", "error",
]  # fmt: skip
"""settings and versions are JSON; settings: what differs from the script's defaults, but for MACHINERY; reason: why;
same_as: further values of code_sha256 under which the same run was shown to write the same files, as COMMIT:SHA256."""
NUMBERS = ("seed", "total_timesteps", "seconds")  # of RUN_COLUMNS; the others are texts
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


# ======================================================================================================================
# 1 Scripts
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


def script_of(algorithm: str) -> Path:
    """The file of an algorithm or variant of ours: "her_ddpg-no-her" -> algorithms/her_ddpg.py, if there is one."""
    return ROOT / "algorithms" / f"{algorithm.partition('-')[0]}.py"


@functools.cache
def today(script: Path) -> tuple[str, str, dict[str, Any]]:
    """(code_sha256, hash of the whole file, defaults of its settings) of a script; empty ones if it is not there."""
    if not script.is_file():
        return "", "", {}
    (fields,) = [
        node.body
        for node in ast.parse(script.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "Args"
    ]
    defaults = {x.target.id: ast.literal_eval(x.value) for x in fields if isinstance(x, ast.AnnAssign) and x.value}
    return code_sha256(script), hashlib.sha256(script.read_bytes()).hexdigest(), defaults


def is_stale(run: pd.Series) -> bool:
    """Whether the code of the script that made a run of ours has changed since."""
    now = today(script_of(run["algorithm"]))[0]
    known = {run["code_sha256"], *(entry.partition(":")[2] for entry in run["same_as"].split())}
    return run["source"] == OURS and now != "" and now not in known


# ======================================================================================================================
# 2 Reading
# ======================================================================================================================


def setting_of(flag: str, value: str) -> tuple[str, Any]:
    """A flag of a plan as a setting: ("no-her", "") -> ("her", False), ("clip-coef", "0.1") -> ("clip_coef", 0.1)."""
    name = flag.replace("-", "_")
    if value == "":
        return (name[3:], False) if name.startswith("no_") else (name, True)
    with contextlib.suppress(ValueError):
        return name, json.loads(value)
    return name, value


def read_run_folder(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Evaluations and the entries of runs.csv of one run folder, whatever of it is there."""
    config, status = read_json(folder / "config.json"), read_json(folder / "harness" / "status.json")
    args = config.get("args", {})
    script, flags = status.get("script_sha256") or config.get("script_sha256"), status.get("flags") or {}
    algorithm = status.get("label") or config.get("algorithm") or folder.parent.parent.name
    code, whole, defaults = today(script_of(algorithm))
    settings = {name: args[name] for name in args if name in defaults and args[name] != defaults[name]}
    if not defaults or not args:  # a script that is not in algorithms/, or one that failed before it began
        settings = dict(setting_of(*flag) for flag in flags.items())
    run = {
        "source": config.get("source", OURS), "algorithm": algorithm,
        "env_id": args.get("env_id", folder.parent.name), "seed": args.get("seed", folder.name),
        "total_timesteps": args.get("total_timesteps") or status.get("total_timesteps") or 0,
        "settings": json.dumps({name: settings[name] for name in sorted(settings) if name not in MACHINERY}),
        "versions": json.dumps(config.get("versions") or status.get("versions") or {}),
        "commit": status.get("commit") or "",
        "code_sha256": status.get("code_sha256") or (code if script == whole else "unknown"), "same_as": "",
        "command": "; ".join(shlex.join(map(str, command)) for command in config.get("commands", [])),
        "hardware": status.get("hardware", ""), "seconds": status.get("seconds"), "reason": status.get("reason", ""),
        "error": (status.get("stderr_tail") or "").strip().rpartition("\n")[2].strip(),
    }  # fmt: skip
    rows = pd.DataFrame(columns=["step", "return", "length"])
    with contextlib.suppress(OSError, pd.errors.EmptyDataError):
        rows = pd.read_csv(folder / "eval.csv", on_bad_lines="skip", encoding_errors="replace")
    rows = rows.apply(pd.to_numeric, errors="coerce").dropna()  # a row that is being written is left out
    evaluations = rows.drop(columns="episode", errors="ignore").groupby("step").mean()
    evaluations["episodes"] = rows.groupby("step").size()
    reached = int(evaluations.index.max()) if len(evaluations) else 0
    run["state"] = status.get("state", "unfinished")
    if reached >= run["total_timesteps"] > 0:
        run["state"] = "done"
    elif run["state"] == "failed":
        run["state"] = f"failed: exit {status.get('exit_code')}"
    else:
        run["state"] = f"{'unfinished' if run['state'] == 'done' else run['state']} at step {count(reached)}"
    return evaluations.reset_index().assign(protocol="deterministic"), run


def read_csv(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Evaluations of a csv in the format above, and its runs. Raises InputError for a missing column or value."""
    try:
        rows = pd.read_csv(path, dtype={"run": str})
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read --results {path} ({error}): name a csv with a row per evaluation") from error
    if missing := [name for name in ("algorithm", "env_id", "seed", "step", "return") if name not in rows]:
        raise InputError(f"{path} has no column {', '.join(missing)}: a row per evaluation with {', '.join(COLUMNS)}")
    rows = rows.assign(**{name: None for name in COLUMNS if name not in rows})
    rows["source"], rows["protocol"] = rows["source"].fillna(path.stem), rows["protocol"].fillna("")
    for name in ("seed", *COLUMNS[5:-1]):
        numbers = pd.to_numeric(rows[name], errors="coerce")
        needed = rows[name].notna() | (name in ("seed", "step", "return"))
        if (wrong := numbers.isna() & needed).any():
            line = wrong.idxmax()
            raise InputError(f"{path}, line {line + 2}: {name} is {rows[name][line]!r}, not a number")
        rows[name] = numbers
    beside, runs = path.with_name("runs.csv"), pd.DataFrame(columns=RUN_COLUMNS)
    if beside.exists():
        runs = pd.read_csv(beside, dtype={name: str for name in RUN_COLUMNS if name not in NUMBERS}).reindex(
            columns=RUN_COLUMNS
        )
    bare = rows[~rows["run"].isin(runs["run"])]
    if len(bare):
        made = unrecorded(bare)
        names = bare[["source", "algorithm", "env_id", "seed"]].merge(made, how="left")["run"]
        rows.loc[bare.index, "run"] = names.to_numpy()
        runs = pd.concat([runs, made]) if len(runs) else made
    return rows.groupby(COLUMNS[:6], as_index=False).agg(
        dict.fromkeys(COLUMNS[6:-1], "mean") | {"protocol": "first"}
    ), runs


def unrecorded(rows: pd.DataFrame) -> pd.DataFrame:
    """The runs of evaluations that runs.csv does not know: done if they are as long as the longest of their cell."""
    cell = ["source", "algorithm", "env_id"]
    runs = rows.groupby([*cell, "seed"], as_index=False)["step"].max()
    runs["total_timesteps"] = runs.groupby(cell)["step"].transform("max")
    whole = runs["step"] >= 0.975 * runs["total_timesteps"]  # evaluations may fall on the ends of rollouts
    runs["state"] = ("ended at step " + runs["step"].map(count)).mask(whole, "done")
    runs = runs.assign(settings="{}", versions="{}").reindex(columns=RUN_COLUMNS)
    return runs.assign(run=runs.apply(run_id, axis=1))


def run_id(run: pd.Series | dict[str, Any]) -> str:
    """Name of a run: 8 letters from what tells it from all others."""
    key = [str(run[name]) for name in [*CELL, "seed"]]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]


def read(paths: Sequence[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(evaluations [COLUMNS], runs [RUN_COLUMNS and `stale`]) of run folders, folders of them, and csv files.

    A folder with results.csv stands for that file. Of copies of a run the last one that has ended counts, else the last
    one. Raises InputError if there is none.
    """
    found_rows, found_runs = [], []
    for path in map(Path, paths):
        files = [path] if path.is_file() else [file for file in [path / "results.csv"] if file.exists()]
        found = {file.parent for file in path.rglob("config.json")}
        found = sorted(found | {file.parent.parent for file in path.rglob("harness/status.json")}) if not files else []
        if not found and not files:
            raise InputError(f"--results {path} holds neither run folders nor results.csv: run something or correct it")
        for file in files:
            rows, made = read_csv(file)
            found_rows.append(rows)
            found_runs.append(made)
        for folder in found:
            rows, run = read_run_folder(folder)
            run["seed"] = int(run["seed"]) if str(run["seed"]).isdigit() else 0
            run["run"] = run_id(run)
            rows = rows.assign(**{name: run[name] for name in COLUMNS[:5]})
            found_rows.append(rows)
            found_runs.append(pd.DataFrame([run]))
    runs = pd.concat([made.assign(part=k) for k, made in enumerate(found_runs)])
    runs = runs.assign(ended=runs["state"].str.match("done|failed")).sort_values(["ended", "part"], kind="stable")
    runs = runs.drop_duplicates("run", keep="last")
    evaluations = pd.concat([rows.assign(part=k) for k, rows in enumerate(found_rows) if len(rows)] or found_rows)
    evaluations = evaluations.reindex(columns=[*COLUMNS, "part"]).merge(runs[["run", "part"]])
    runs = runs.fillna({name: "" for name in RUN_COLUMNS if name not in NUMBERS})[RUN_COLUMNS]
    runs = runs.astype({"seed": int, "total_timesteps": int, "seconds": float}).sort_values([*CELL, "seed"])
    evaluations = evaluations[COLUMNS].astype({"seed": int, "step": int}).sort_values(COLUMNS[:6])
    return evaluations.reset_index(drop=True), runs.assign(stale=runs.apply(is_stale, axis=1)).reset_index(drop=True)


def export(evaluations: pd.DataFrame, runs: pd.DataFrame, folder: Path) -> None:
    """Write results.csv and runs.csv; values are rounded to 6 digits. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = evaluations[COLUMNS].assign(episodes=evaluations["episodes"].astype("Int64"))
    write_atomically(folder / "results.csv", rows.to_csv(index=False, float_format="%.6g"))
    write_atomically(folder / "runs.csv", runs[RUN_COLUMNS].to_csv(index=False, float_format="%.6g"))


# ======================================================================================================================
# 3 Changes that alter nothing
# ======================================================================================================================


@dataclass
class Change:
    """A committed change of a script that is to be shown to alter nothing."""

    algorithm: str
    """Name of the script in algorithms/, without .py."""
    before: str
    """Commit before the change; that after it is HEAD."""
    flags: str = "--seed 1 --total-timesteps 30000"
    """Flags of the two runs, which must reach beyond the start of learning."""
    results: Path = COMMITTED
    """Folder with the runs.csv in which to note it."""


def git(*words: str) -> str:
    """What git prints. Raises InputError with its message."""
    made = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    if made.returncode:
        raise InputError(f"git {' '.join(words)}: {made.stderr.strip()}")
    return made.stdout


def written(text: str, change: Change, folder: Path) -> tuple[str, list[pd.DataFrame]]:
    """code_sha256 of a version of a script, and what it writes but for times. Raises InputError if it fails."""
    script = folder / f"{change.algorithm}.py"
    folder.mkdir()
    script.write_text(text)
    words = [sys.executable, script.name, *shlex.split(change.flags), "--run-dir", "run"]
    if subprocess.run(words, cwd=folder).returncode:
        raise InputError(f"{change.algorithm}.py failed with {change.flags}: see above")
    frames = [pd.read_csv(folder / "run" / f"{name}.csv") for name in ("eval", "train", "metrics")]
    return code_sha256(script), [
        frame.drop(columns=["seconds", "steps_per_second"], errors="ignore") for frame in frames
    ]


def note_same(change: Change) -> int:
    """Run both versions; returns for how many runs it is new that they are of HEAD's code too. Raises InputError."""
    path = f"algorithms/{change.algorithm}.py"
    commit = git("rev-parse", "--short", "HEAD").strip()
    with tempfile.TemporaryDirectory() as folder:
        old, before = written(git("show", f"{change.before}:{path}"), change, Path(folder) / "before")
        new, after = written(git("show", f"HEAD:{path}"), change, Path(folder) / "after")
    if not all(x.equals(y) for x, y in zip(before, after, strict=True)):
        raise InputError(
            f"{path} of {change.before} and of HEAD write different files: its results have to be made again"
        )
    evaluations, runs = read([change.results / "results.csv"])
    known = [{run.code_sha256, *re.findall(r":(\w+)", run.same_as)} for run in runs.itertuples()]
    same = [old in codes and new not in codes for codes in known]
    runs.loc[same, "same_as"] = (runs.loc[same, "same_as"] + f" {commit}:{new}").str.strip()
    export(evaluations, runs, change.results)
    return sum(same)


if __name__ == "__main__":
    try:
        print(f"the same files: noted for {note_same(tyro.cli(Change))} runs")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
