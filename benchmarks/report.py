"""Tables and curves of a benchmark: our results beside the published ones.

    python benchmarks/report.py --results DIR --suite NAME [--readme README.md]

reads the run folders DIR/NAME/ALGORITHM/ENV_ID/SEED/ and benchmarks/published.csv, and writes DIR/NAME/report.md and
DIR/NAME/curves.png. A seed's score is its mean return over the episodes of its last evaluation, at total_timesteps.
The same runs always give the same bytes.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from scipy import stats

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PUBLISHED = Path(__file__).parent / "published.csv"
MILESTONES = (100_000, 300_000, 500_000, 1_000_000)
SAME_STEP = 0.025  # relative: on-policy evaluations fall on the ends of rollouts, near the round numbers
NEAR_STEP = 0.1  # relative: published curves have points up to 8 % before the milestones; shown with their own step
CONFIDENCE = 0.95
RESAMPLES = 5_000
METRICS = {"return": "return of the deterministic policy", "success_rate": "success rate of the deterministic policy"}

Interval = tuple[float, float]


class InputError(Exception):
    """What was asked for cannot be done: one line with what, value and remedy."""


# ======================================================================================================================
# 1 Loading
# ======================================================================================================================


@dataclass(frozen=True)
class Run:
    """One run folder; e evaluations at increasing `steps` [e], e = 0 if there is none.

    `values` maps metric -> mean over the episodes of each evaluation, [e]; "success_rate" (0 to 1) is only there where
    the environment reports success. `config` and `status` are the contents of the json files, {} if unreadable.
    """

    algorithm: str
    env_id: str
    seed: str
    config: dict[str, Any]
    status: dict[str, Any]
    steps: np.ndarray
    values: dict[str, np.ndarray]
    reached: int
    """Last step that any log of the run mentions."""
    seconds: float | None
    """Duration of the run, None if unknown."""

    @property
    def total(self) -> int | None:
        """Environment steps the run was meant to take, None if unknown."""
        return self.config.get("args", {}).get("total_timesteps") or self.status.get("total_timesteps")

    @property
    def session(self) -> dict[str, Any]:
        """What the run recorded about its last start: versions, script, platform, command."""
        return (self.config.get("history") or [{}])[-1]

    def trouble(self, total: int | None) -> str | None:
        """Why the run's score does not count in a comparison at `total` steps; None if it does."""
        state = self.status.get("state")
        if state is None:
            return "failed: no status.json"
        if state == "failed":
            return f"failed: exit {self.status.get('exit_code')}"
        if state != "done":
            return f"{state} at step {count(self.reached)}"
        if self.steps.size == 0 or self.steps[-1] != total:
            return f"done, but no evaluation at step {count(total)}"
        return None

    def last_error(self) -> str:
        """Last line the run wrote to stderr, "" if unknown."""
        lines = (self.status.get("stderr_tail") or "").strip().splitlines()
        return lines[-1].strip() if lines else ""


@dataclass(frozen=True)
class Published:
    """A row of published.csv: a `reference` (evaluated at env_steps) or a `headline` (best claim, often a maximum)."""

    kind: str
    algorithm: str
    task: str
    env_version: str
    env_steps: int
    metric: str
    mean: float
    spread: str
    spread_kind: str
    seeds: str
    protocol: str
    source: str
    source_location: str


def split_env_id(env_id: str) -> tuple[str, str]:
    """Task and version of an environment: "my_module:Hopper-v5" -> ("Hopper", "v5"); the version may be ""."""
    task, _, version = env_id.split(":")[-1].rpartition("-")
    return (task, version) if re.fullmatch(r"v\d+", version) else (env_id.split(":")[-1], "")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a json file, {} if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def read_columns(path: Path, names: Sequence[str]) -> np.ndarray:
    """Columns of a csv of numbers, [rows, names]; [0, names] if it is missing. A row cut short is left out."""
    rows = []
    with contextlib.suppress(OSError):
        text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
        for row in csv.DictReader(text.splitlines()):
            with contextlib.suppress(ValueError, TypeError):
                rows.append([float(row.get(name)) for name in names])
    return np.array(rows).reshape(-1, len(names))


def load_run(folder: Path) -> Run:
    """The run in ALGORITHM/ENV_ID/SEED/; whatever is missing there is empty or None in the result."""
    columns = ["step", "return", "success"]
    rows = read_columns(folder / "eval.csv", columns)
    if len(rows) == 0:
        columns = ["step", "return"]
        rows = read_columns(folder / "eval.csv", columns)
    steps = np.unique(rows[:, 0])
    means = np.array([rows[rows[:, 0] == step].mean(0) for step in steps]).reshape(-1, len(columns))
    values = dict(zip(METRICS, means[:, 1:].T, strict=False))  # without success, the return only
    progress = read_columns(folder / "metrics.csv", ["step", "seconds"])
    status = read_json(folder / "status.json")
    return Run(
        algorithm=folder.parent.parent.name,
        env_id=folder.parent.name,
        seed=folder.name,
        config=read_json(folder / "config.json"),
        status=status,
        steps=steps,
        values=values,
        reached=int(max([0, *steps[-1:], *progress[-1:, 0]])),
        seconds=status.get("seconds", progress[-1, 1] if len(progress) else None),
    )


def load_runs(results: Path, suite: str) -> list[Run]:
    """Every run of a suite, sorted by task, algorithm and seed. Raises InputError if there is none."""
    root = results / suite
    if not root.is_dir():
        raise InputError(f"no suite folder {root}: run the suite first or correct --results and --suite")
    folders = [folder for folder in root.glob("*/*/*") if folder.is_dir()]
    if not folders:
        raise InputError(f"{root} holds no run folders ALGORITHM/ENV_ID/SEED: run the suite first")
    return sorted(map(load_run, folders), key=lambda r: (r.env_id, r.algorithm, len(r.seed), r.seed))


def load_published(path: Path = PUBLISHED) -> list[Published]:
    """The published figures, in the order of the file."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Published(**row | {"env_steps": int(row["env_steps"]), "mean": float(row["mean"])})
            for row in csv.DictReader(file)
        ]


# ======================================================================================================================
# 2 Statistics
# ======================================================================================================================


@dataclass(frozen=True)
class Estimate:
    """Mean and interquartile mean of n >= 1 seeds' scores with their 95 % intervals (None for one seed)."""

    seeds: int
    mean: float
    mean_interval: Interval | None
    iqm: float
    iqm_interval: Interval | None


@dataclass(frozen=True)
class Result:
    """One algorithm on one environment: its runs, those that count, and the estimates per metric (empty if none)."""

    algorithm: str
    env_id: str
    total: int | None
    runs: list[Run]
    scored: list[Run]
    estimates: dict[str, Estimate]


def iqm(scores: np.ndarray, axis: int = 0) -> np.ndarray:
    """Interquartile mean along an axis: the mean without the lowest and highest floor(n / 4) of n scores."""
    return stats.trim_mean(scores, 0.25, axis=axis)


def interval(scores: np.ndarray, statistic: Any = np.mean) -> np.ndarray | None:
    """95 % bootstrap interval of statistic(scores, axis) over n seeds: scores [n, ...] -> [2, ...], low and high.

    Percentile bootstrap over the seeds; for one task that is the stratified bootstrap of Agarwal et al. (2021), "Deep
    RL at the Edge of the Statistical Precipice". The same scores always give the same digits. None if n < 2.
    """
    if len(scores) < 2:
        return None
    low_high = stats.bootstrap(
        (scores,), statistic, axis=0, vectorized=True, method="percentile",
        confidence_level=CONFIDENCE, n_resamples=RESAMPLES, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return np.stack(low_high)


def estimate(scores: np.ndarray) -> Estimate:
    """Mean and interquartile mean of scores [n], n >= 1."""

    def pair(bounds: np.ndarray | None) -> Interval | None:
        return None if bounds is None else (float(bounds[0]), float(bounds[1]))

    return Estimate(
        seeds=len(scores),
        mean=float(np.mean(scores)),
        mean_interval=pair(interval(scores)),
        iqm=float(iqm(scores)),
        iqm_interval=pair(interval(scores, iqm)),
    )


def shared_metrics(runs: list[Run]) -> list[str]:
    """Metrics that every one of the runs recorded."""
    return [metric for metric in METRICS if runs and all(metric in run.values for run in runs)]


def summarise(runs: list[Run]) -> list[Result]:
    """Runs -> one result per environment and algorithm; a run with fewer steps than the longest does not count."""
    results = []
    ordered = sorted(runs, key=lambda run: (run.env_id, run.algorithm))
    for (env_id, algorithm), group in itertools.groupby(ordered, key=lambda run: (run.env_id, run.algorithm)):
        members = list(group)
        total = max((run.total for run in members if run.total is not None), default=None)
        scored = [run for run in members if run.trouble(total) is None]
        estimates = {
            metric: estimate(np.array([run.values[metric][-1] for run in scored])) for metric in shared_metrics(scored)
        }
        results.append(Result(algorithm, env_id, total, members, scored, estimates))
    return results


def nearest(steps: Sequence[int] | np.ndarray, step: int, tolerance: float) -> int | None:
    """Index of the entry of `steps` nearest to `step`, None if it is off by more than tolerance * step."""
    if len(steps) == 0:
        return None
    distance = np.abs(np.asarray(steps) - step)
    index = int(np.argmin(distance))
    return index if distance[index] <= tolerance * step else None


def estimate_at(result: Result, step: int, metric: str) -> Estimate | None:
    """Estimate from each counting run's evaluation nearest to `step` (within 2.5 %); None if one has none there."""
    indices = [nearest(run.steps, step, SAME_STEP) for run in result.scored]
    if metric not in result.estimates or None in indices:
        return None
    return estimate(np.array([run.values[metric][i] for run, i in zip(result.scored, indices, strict=True)]))


# ======================================================================================================================
# 3 Comparison
# ======================================================================================================================

EFFECTS = ("roughly", "caveat", "not comparable")  # of a change between versions on returns, mildest first
NEW_PHYSICS = (2, "roughly", "v2 moved to mujoco-py >= 1.50")
HEALTHY = "v5 gives healthy_reward only while healthy"
FETCH = (
    (2, "roughly", "v2 moved to the mujoco bindings"),
    (3, "roughly", "v3 resets the simulator's internal state"),
    (4, "roughly", "v4 corrects the initial state after a reset"),
)
CHANGES = {  # task -> (version that brought the change, effect on a comparison across it, what changed)
    "HalfCheetah": (NEW_PHYSICS,),
    "Swimmer": (NEW_PHYSICS,),
    "Hopper": (NEW_PHYSICS, (5, "roughly", HEALTHY)),
    "InvertedPendulum": (NEW_PHYSICS, (5, "roughly", HEALTHY)),
    "InvertedDoublePendulum": (
        NEW_PHYSICS,
        (5, "roughly", HEALTHY + " and drops constant zeros from the observation"),
    ),
    "Reacher": (
        NEW_PHYSICS,
        (5, "roughly", "v5 computes the reward after the physics step and drops a constant zero from the observation"),
    ),
    "Walker2d": (
        NEW_PHYSICS,
        (5, "caveat", "v5 gives both feet friction 1.9 (right foot 0.9 before) and " + HEALTHY[3:]),
    ),
    "Ant": (
        NEW_PHYSICS,
        (4, "not comparable", "v4 drops the contact forces from the observation and the reward"),
        (5, "not comparable", "v5 observes contact forces, always charges contact_cost, and " + HEALTHY[3:]),
    ),
    "Humanoid": (
        NEW_PHYSICS,
        (4, "not comparable", "v4 drops contact_cost"),
        (5, "not comparable", "v5 restores contact_cost, drops constant zeros, and " + HEALTHY[3:]),
    ),
    "FetchReach": FETCH,
    "FetchPush": FETCH,
    "FetchSlide": FETCH,
    "FetchPickAndPlace": FETCH,
}


@dataclass(frozen=True)
class Comparison:
    """Our result beside the published ones; any part may be missing (None).

    difference: our mean minus the reference. verdict: "above", "within" or "below" when the published reference lies
    below, inside or above our 95 % interval of the mean, followed by "(roughly)" or "(caveat)" where `note` says what
    changed between the versions; or the reason why there is no verdict.
    """

    reference: Published | None
    headline: Published | None
    difference: float | None
    verdict: str
    note: str | None


def version_effect(task: str, ours: str, published: str) -> tuple[str | None, str | None]:
    """Effect (one of EFFECTS, None if there is none) of two environment versions differing, and what changed.

    The changes in CHANGES are those of the "Version History" in the docstrings of gymnasium/envs/mujoco/*_v5.py, and of
    Gymnasium-Robotics for the Fetch tasks (issues 207 and 251 for v3 and v4); both are also on the environments' pages.
    Changes of the info dictionary, of arguments and of defaults that stay the same are not listed; neither is v3, which
    adds arguments only, nor v4's move to the mujoco bindings, across which Gymnasium calls returns comparable.
    A task without entry counts as comparable at equal versions only.
    """
    if ours == published:
        return None, None
    if task not in CHANGES or not ours or not published:
        return "not comparable", f"{task}: nothing is known about {published or 'its version'} against {ours or 'ours'}"
    low, high = sorted((int(ours[1:]), int(published[1:])))
    crossed = [(EFFECTS.index(effect), what) for version, effect, what in CHANGES[task] if low < version <= high]
    if not crossed:
        return None, None
    worst = max(effect for effect, _ in crossed)
    changes = "; ".join(what for effect, what in crossed if effect == worst)
    return EFFECTS[worst], f"{task} {ours} against {published}: {changes}"


def choose(rows: list[Published], steps: int | None) -> Published | None:
    """The row nearest to `steps`, or that with the most steps if `steps` is unknown; None if there are no rows."""
    if steps is None:
        return max(rows, key=lambda row: row.env_steps, default=None)
    return min(rows, key=lambda row: abs(row.env_steps - steps), default=None)


def select(published: list[Published], kind: str, result: Result) -> list[Published]:
    """The published rows of a kind for a result's algorithm and task."""
    wanted = (kind, result.algorithm, split_env_id(result.env_id)[0])
    return [row for row in published if (row.kind, row.algorithm, row.task) == wanted]


def compare(result: Result, published: list[Published]) -> Comparison:
    """Our result at its number of steps beside the published reference and headline."""
    reference = choose(select(published, "reference", result), result.total)
    headline = choose(select(published, "headline", result), result.total)

    def undecided(reason: str, difference: float | None = None, note: str | None = None) -> Comparison:
        return Comparison(reference, headline, difference, reason, note)

    if reference is None:
        return undecided("no published figure")
    ours = result.estimates.get(reference.metric)
    if ours is None:
        return undecided("no finished run" if not result.scored else f"no {reference.metric} of ours")
    effect, note = version_effect(*split_env_id(result.env_id), reference.env_version)
    reasons = []
    if nearest([reference.env_steps], result.total, SAME_STEP) is None:
        reasons.append(
            f"published at {count(reference.env_steps)}, ours at {count(result.total)}: not comparable at equal steps"
        )
    if effect == "not comparable":
        reasons.append(f"not comparable: {note.partition(':')[0]}")
    if reasons:
        return undecided("; ".join(reasons), note=note)
    difference = ours.mean - reference.mean
    if not np.isfinite(difference):
        return undecided("our mean is not finite", note=note)
    if ours.mean_interval is None:
        return undecided("1 seed, no interval", difference, note)
    low, high = ours.mean_interval
    verdict = "above" if reference.mean < low else "below" if reference.mean > high else "within"
    return Comparison(reference, headline, difference, verdict + (f" ({effect})" if effect else ""), note)


# ======================================================================================================================
# 4 Rendering
# ======================================================================================================================

SUMMARY = [
    "task", "algorithm", "steps", "seeds", "ours: mean [95 % CI]", "ours: IQM [95 % CI]",
    "published reference", "published headline", "difference", "verdict",
]  # fmt: skip
EXPLANATION = f"""\
Ours: a seed's score is its mean return over the episodes of its last evaluation with the deterministic policy, at the
given step; mean and interquartile mean (IQM) over the seeds that finished. CI: 95 % percentile bootstrap over the seeds
({RESAMPLES} resamples); over few seeds it is too narrow. Reference: a published figure evaluated at that step.
Headline: the best published claim, often a maximum over training. Difference: our mean minus the reference.
Verdict: we are above, within or below when the reference lies below, inside or above our CI."""


def count(steps: int | None) -> str:
    """Environment steps for people: 64, 60k, 98.3k, 1M; "?" if unknown."""
    if steps is None:
        return "?"
    if steps < 1_000:
        return str(int(steps))
    return f"{steps / 1e3:.3g}k" if steps < 999_500 else f"{steps / 1e6:.3g}M"


def number(value: float) -> str:
    """A score for people: 10574, 96.2, -3.87."""
    return f"{value:.{0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2}f}"


def with_interval(value: float, bounds: Interval | None) -> str:
    """A score and its interval: "9512 [9107, 9843]"."""
    return number(value) + (f" [{number(bounds[0])}, {number(bounds[1])}]" if bounds else "")


def published_text(row: Published | None, ours: int | None, protocol: bool = True) -> str:
    """A published figure with its step (where it is not ours), version and seeds; on request source and protocol."""
    if row is None:
        return "-"
    step = f" at {count(row.env_steps)}"
    if ours is not None and nearest([row.env_steps], ours, SAME_STEP) is not None:
        step = ""
    details = f"{row.env_version}, {row.seeds or 'unknown'} seed{'' if row.seeds == '1' else 's'}"
    if protocol:
        details += f", {row.source}: {textwrap.shorten(row.protocol, 60, placeholder=' …')}"
    return f"{'success ' * (row.metric == 'success_rate')}{number(row.mean)}{step} ({details})"


def seeds_text(result: Result) -> str:
    """How many seeds count, and what became of the others: "2 of 3 seeds; seed 2 failed: exit 1"."""
    troubles = [f"seed {run.seed} {trouble}" for run in result.runs if (trouble := run.trouble(result.total))]
    runs, scored = len(result.runs), len(result.scored)
    counted = f"{scored} of {runs} seeds" if troubles else f"{runs} seed{'' if runs == 1 else 's'}"
    return "; ".join([counted, *troubles])


def summary_row(result: Result, comparison: Comparison, protocol: bool = True) -> list[str]:
    """The cells of SUMMARY for one result."""
    means, iqms = [], []
    for metric, ours in result.estimates.items():
        name = "success " if metric == "success_rate" else ""
        missing = " (1 seed, no interval)" if ours.mean_interval is None else ""
        means.append(name + with_interval(ours.mean, ours.mean_interval) + missing)
        iqms.append(name + with_interval(ours.iqm, ours.iqm_interval))
    return [
        result.env_id,
        result.algorithm,
        count(result.total),
        seeds_text(result),
        "; ".join(means) or "-",
        "; ".join(iqms) or "-",
        published_text(comparison.reference, result.total, protocol),
        published_text(comparison.headline, result.total, protocol),
        "-"
        if comparison.difference is None
        else f"{'+' * (comparison.difference >= 0)}{number(comparison.difference)}",
        comparison.verdict,
    ]


def milestone_rows(results: list[Result], published: list[Published]) -> list[list[str]]:
    """Per result: task, algorithm, then for each milestone "ours vs published", "" beyond the run's length."""
    rows = []
    for result in results:
        references = select(published, "reference", result)
        metric = references[0].metric if references else "return"
        row = [result.env_id, result.algorithm]
        for step in MILESTONES:
            if result.total is None or step > result.total * (1 + SAME_STEP):
                row.append("")
                continue
            ours = estimate_at(result, step, metric)
            index = nearest([reference.env_steps for reference in references], step, NEAR_STEP)
            theirs = "-"
            if index is not None:
                reference = references[index]
                equal = nearest([reference.env_steps], step, SAME_STEP) is not None
                where = reference.env_version if equal else f"{reference.env_version} at {count(reference.env_steps)}"
                theirs = f"{number(reference.mean)} ({where}, {reference.source})"
            success = "success " * (metric == "success_rate")
            row.append(f"{success}{with_interval(ours.mean, ours.mean_interval) if ours else '-'} vs {theirs}")
        rows.append(row)
    return rows


def provenance_row(run: Run, total: int | None) -> list[str]:
    """What produced one run folder."""
    versions = run.status.get("versions") or run.session.get("versions") or {}
    script = run.status.get("script_sha256") or run.session.get("script_sha256") or "?"
    platform = ", ".join(filter(None, [run.session.get("platform"), run.session.get("device")]))
    command = run.status.get("command") or run.session.get("command") or "?"
    return [
        run.env_id,
        run.algorithm,
        run.seed,
        run.trouble(total) or "done",
        count(run.reached),
        "?" if run.seconds is None else f"{run.seconds / 60:.1f} min",
        ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) or "?",
        script[:8],
        run.status.get("hardware") or platform or "?",
        command if isinstance(command, str) else shlex.join(map(str, command)),
    ]


def markdown_cell(text: str) -> str:
    """Text that stays itself inside a markdown table."""
    for character, escaped in (("\n", " "), ("|", "\\|"), ("*", "\\*"), ("<", "&lt;")):
        text = text.replace(character, escaped)
    return text


def markdown_table(header: list[str], rows: Iterable[Sequence[str]], folded: int = 0) -> str:
    """A markdown table; the last `folded` columns hide in <details>."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for row in rows:
        cells = [markdown_cell(text) for text in row]
        for i in range(len(cells) - folded, len(cells)):
            cells[i] = f"<details><summary>show</summary><code>{cells[i]}</code></details>"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def render_summary(results: list[Result], published: list[Published]) -> str:
    """The summary table and, under it, what changed between the versions compared."""
    comparisons = [compare(result, published) for result in results]
    text = markdown_table(SUMMARY, map(summary_row, results, comparisons))
    notes = sorted({comparison.note for comparison in comparisons if comparison.note})
    return text + "".join(["\nVersions:\n\n", *(f"- {note}\n" for note in notes)] if notes else [])


def render_report(suite: str, results: list[Result], published: list[Published]) -> str:
    """The text of report.md."""
    parts = [f"# Results of suite {suite}\n", EXPLANATION + "\n", render_summary(results, published)]
    runs = [(run, result.total) for result in results for run in result.runs]
    if troubled := [(run, trouble) for run, total in runs if (trouble := run.trouble(total))]:
        header = ["task", "algorithm", "seed", "state", "last line of stderr"]
        rows = [[run.env_id, run.algorithm, run.seed, trouble, run.last_error()] for run, trouble in troubled]
        parts += ["## Runs that do not count\n", markdown_table(header, rows)]
    parts.append("## On the way\n")
    parts.append(
        "Mean return [95 % CI] (success rate where that is what is published) of the seeds above at their evaluation "
        "nearest to the step (within 2.5 %), against the published reference nearest to it (within 10 %; its own step "
        "is given where it differs by more than 2.5 %).\n"
    )
    header = ["task", "algorithm", *(count(step) for step in MILESTONES)]
    parts.append(markdown_table(header, milestone_rows(results, published)))
    parts.append("## Curves\n\n![Learning curves](curves.png)\n")
    header = ["task", "algorithm", "seed", "state", "steps", "duration", "versions", "script", "hardware", "command"]
    rows = [provenance_row(run, total) for run, total in runs]
    parts += ["## Provenance\n", markdown_table(header, rows, folded=1)]
    header = ["algorithm", "task", "kind", "steps", "version", "mean", "spread", "seeds", "protocol", "source"]
    rows = [
        [row.algorithm, row.task, row.kind, str(row.env_steps), row.env_version, number(row.mean),
         f"{row.spread} ({row.spread_kind})" if row.spread else "-", row.seeds or "-", row.protocol,
         f"{row.source}: {row.source_location}"]
        for result in results for kind in ("reference", "headline") for row in select(published, kind, result)
    ]  # fmt: skip
    parts += ["## Published figures\n", markdown_table(header, rows)]
    return "\n".join(parts)


def draw_result(axes: plt.Axes, result: Result, reference: Published | None, metric: str, colour: Any) -> None:
    """One algorithm's curve and, dashed, its published reference."""
    if metric in result.estimates:
        steps = result.scored[0].steps
        for run in result.scored[1:]:
            steps = np.intersect1d(steps, run.steps)
        curves = np.stack([run.values[metric][np.isin(run.steps, steps)] for run in result.scored])
        seeds = len(curves)
        band = interval(curves) if seeds > 2 else np.stack([curves.min(0), curves.max(0)])
        label = f"{result.algorithm}, " + {1: "1 seed", 2: "2 seeds, band: min to max"}.get(seeds, f"{seeds} seeds")
        axes.plot(steps, curves.mean(0), color=colour, label=label, marker="." if len(steps) < 30 else "")
        axes.fill_between(steps, *band, color=colour, alpha=0.2, linewidth=0)
    if reference is not None and reference.metric == metric:
        label = (
            f"{result.algorithm} published: {number(reference.mean)} at {count(reference.env_steps)}"
            f" ({reference.env_version})"
        )
        axes.axhline(reference.mean, color=colour, linestyle="--", linewidth=1.2, label=label)


def draw_curves(path: Path, results: list[Result], published: list[Published]) -> None:
    """Write curves.png: one panel per environment, one line per algorithm, published references dashed."""
    tasks = sorted({result.env_id for result in results})
    algorithms = sorted({result.algorithm for result in results})
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    height = 3.8 + 0.34 * max(sum(result.env_id == task for result in results) for task in tasks)  # with its legend
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(5.2 * columns, height * rows + 0.4),
        squeeze=False,
        layout="constrained",
        facecolor="white",
    )
    for axes in grid.flat[len(tasks) :]:
        axes.set_axis_off()
    for axes, task in zip(grid.flat, tasks, strict=False):
        members = [result for result in results if result.env_id == task]
        metric = "success_rate" if any("success_rate" in result.estimates for result in members) else "return"
        for result in members:
            reference = compare(result, published).reference
            draw_result(axes, result, reference, metric, plt.get_cmap("tab10")(algorithms.index(result.algorithm)))
        if not any(result.scored for result in members):
            axes.set_xticks([])
            axes.text(0.5, 0.75, "no finished run", transform=axes.transAxes, ha="center", va="center")
        axes.set(title=task, xlabel="environment steps", ylabel=METRICS[metric])
        axes.xaxis.set_major_formatter(lambda step, _: count(round(step)))
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8, frameon=False)
    figure.suptitle("Mean over seeds; band: 95 % bootstrap interval of the mean, unless the legend says otherwise")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def terminal_table(suite: str, results: list[Result], published: list[Published]) -> Table:
    """The columns of the summary that fit a terminal of 80 characters; report.md has the others."""
    kept = [
        i for i, name in enumerate(SUMMARY) if not name.startswith(("ours: IQM", "published headline", "difference"))
    ]
    table = Table(*(SUMMARY[i] for i in kept), title=f"Results of suite {suite}", show_lines=True, padding=(0, 0))
    for result in results:
        row = summary_row(result, compare(result, published), False)
        table.add_row(*(row[i].replace("[", "\\[") for i in kept))
    return table


# ======================================================================================================================
# 5 Files
# ======================================================================================================================


def readme_parts(path: Path, suite: str) -> tuple[str, str]:
    """Text of a file before and after its results of a suite, markers included. Raises InputError without markers."""
    start, end = f"<!-- results:{suite} -->", "<!-- /results -->"
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read --readme {path} ({error}): name a text file with the markers") from error
    before, _, rest = text.partition(start)
    inside, found, after = rest.partition(end)
    if not found or "<!-- results:" in inside:
        raise InputError(f"{path} has no markers {start} and {end}: add both, each on a line of its own")
    return before + start, end + after


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's text; whoever reads it meanwhile sees the old or the new one. The file's mode stays."""
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(text.encode())
    if path.exists():
        shutil.copymode(path, temporary)
    os.replace(temporary, path)


@dataclass
class Options:
    """Compare the runs of a benchmark suite with published results."""

    results: Path
    """Folder of the benchmark; it holds SUITE/ALGORITHM/ENV_ID/SEED/."""
    suite: str
    """Name of the suite, a folder in results."""
    readme: Path | None = None
    """File in which to replace the text between `<!-- results:SUITE -->` and `<!-- /results -->` by the summary."""


def report(options: Options) -> None:
    """Write report.md and curves.png (and the README's table), print the summary. Raises InputError."""
    runs = load_runs(options.results, options.suite)
    parts = readme_parts(options.readme, options.suite) if options.readme else None
    published, results = load_published(), summarise(runs)
    folder = options.results / options.suite
    try:
        write_atomically(folder / "report.md", render_report(options.suite, results, published))
        draw_curves(folder / "curves.png", results, published)
        if options.readme:
            write_atomically(options.readme, f"\n\n{render_summary(results, published)}\n".join(parts))
    except OSError as error:
        raise InputError(f"cannot write {error.filename} ({error.strerror}): free it or copy the runs") from error
    Console(width=None if sys.stdout.isatty() else 160).print(terminal_table(options.suite, results, published))
    print(folder / "report.md", folder / "curves.png", sep="\n")


def main() -> int:
    """Command line; exit code 2 for what the user can put right."""
    try:
        report(tyro.cli(Options, description=__doc__))
    except InputError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
