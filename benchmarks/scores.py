"""Statistics over seeds and tasks. A seed's score is the mean return over the episodes of its last evaluation.

Intervals are 95 % t intervals of the mean over seeds, on both sides of a comparison, and its verdict is Welch's test.
They cover 95 % at every number of seeds if scores are normally distributed. From LEAST_BOOTSTRAP seeds on, percentile
intervals of the stratified bootstrap of Agarwal et al. (2021), "Deep Reinforcement Learning at the Edge of the
Statistical Precipice", stand beside them for the interquartile mean (rliable). Over fewer seeds these are too narrow:
nominal 95 % intervals of the mean of normal scores cover about 75 % at 3 seeds, 85 % at 5 and 90 % at 10, of the
interquartile mean 75 %, 91 % and 94 %.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from records import CELL, FIRST_TUNING_SEED, OURS
from rliable import library, metrics
from scipy.special import stdtrit  # quantiles of Student's t

SAME_STEP = 0.025  # relative: on-policy evaluations fall on the ends of rollouts, near the round numbers
LONGEST_GAP = 0.1025  # of a run: between evaluations further apart nothing is interpolated
LEAST_BOOTSTRAP = 10
RESAMPLES = 2_000
Interval = tuple[float, float]


def half_width(sd: float | np.ndarray, n: int) -> float | np.ndarray:
    """Half the width of the 95 % t interval of the mean of n >= 2 scores, from their standard deviation."""
    return stdtrit(n - 1, 0.975) * sd / np.sqrt(n)


def t_interval(mean: float, sd: float | None, n: int) -> Interval | None:
    """95 % interval of the mean of n scores from their standard deviation; None without deviation or spread."""
    return (mean - half_width(sd, n), mean + half_width(sd, n)) if sd and n > 1 else None


def bootstrap(scores: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
    """Percentile interval [2, k] of statistic(scores [seeds, tasks]) [k]; None below LEAST_BOOTSTRAP seeds."""
    if len(scores) < LEAST_BOOTSTRAP:
        return None
    state = np.random.get_state()
    np.random.seed(0)  # rliable draws from the global generator; the same scores always give the same digits
    try:
        return library.get_interval_estimates({"": scores}, statistic, reps=RESAMPLES)[1][""]
    finally:
        np.random.set_state(state)


@dataclass(frozen=True)
class Difference:
    """Mean of ours minus mean of theirs, and its 95 % interval (None where nothing varies or there is one seed)."""

    value: float
    interval: Interval | None
    seeds: tuple[int, int | None]
    untested: str
    """Why there is no verdict; the interval, if there is one, is that of ours alone. "" where it is Welch's."""

    @property
    def verdict(self) -> str:
        """higher, lower or not separable, as the interval lies above, below or around 0; or not tested."""
        if self.untested:
            return "not tested"
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "not separable"
        return "higher" if self.value > 0 else "lower"

    def __str__(self) -> str:
        """For example "higher (n = 3 | 10): +897 [500, 1294]"."""
        remark = f", {self.untested}" if self.untested else "" if self.interval else ", no spread"
        sign, (ours, theirs) = "+" * (self.value >= 0), self.seeds
        return f"{self.verdict} (n = {ours} | {theirs or '?'}): {sign}{number(self.value, self.interval)}{remark}"


def welch(ours: np.ndarray, mean: float, sd: float | None, n: int | None) -> Difference:
    """Scores of ours [seeds] against n scores of which mean and standard deviation (divided by n - 1) are known.

    Welch's interval: the difference -+ t * sqrt(s1^2 / n1 + s2^2 / n2), with the degrees of freedom of Welch and
    Satterthwaite (1947).
    """
    value, seeds = float(np.mean(ours) - mean), (len(ours), n)
    if len(ours) < 2:
        return Difference(value, None, seeds, "1 seed")
    if sd is None:
        interval = t_interval(value, np.std(ours, ddof=1), len(ours))
        return Difference(value, interval, seeds, "no spread over seeds there")
    errors = np.array([np.var(ours, ddof=1) / len(ours), sd**2 / n])  # squared standard errors
    if not errors.any():
        return Difference(value, None, seeds, "")
    freedom = errors.sum() ** 2 / (errors**2 / [len(ours) - 1, n - 1]).sum()
    half = stdtrit(freedom, 0.975) * np.sqrt(errors.sum())
    return Difference(value, (value - half, value + half), seeds, "")


def number(value: float, interval: Sequence[float] | None = None) -> str:
    """A score for people, and its interval if there is one: "10574", "96.2 [93.0, 99.4]", "-3.87 [-4.11, -3.63]"."""
    text = f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"
    return f"{text} [{', '.join(map(number, interval))}]" if interval is not None and len(interval) else text


@dataclass(frozen=True, eq=False)
class Cell:
    """The runs of one algorithm on one task that have the same length and settings; some may not count."""

    source: str
    algorithm: str
    env_id: str
    total: int
    settings: dict
    name: str
    """Name in tables and legends."""
    runs: pd.DataFrame
    """Rows of runs.csv, by seed."""
    evaluations: pd.DataFrame
    """Rows of results.csv of the runs that are done, by seed and step."""

    @functools.cached_property
    def seeds(self) -> list[int]:
        """Seeds that count."""
        return list(self.evaluations["seed"].unique())

    def has(self, metric: str) -> bool:
        """Whether there are runs that count, and all report it."""
        return bool(self.seeds) and self.evaluations[metric].notna().all()

    def curve(self, metric: str) -> pd.DataFrame:
        """One column per seed, at the steps of the first; the others' are interpolated where they lie elsewhere."""
        table = self.evaluations.pivot_table(index="step", columns="seed", values=metric, dropna=False)
        steps = table.index[table[self.seeds[0]].notna()]
        return table.interpolate(method="index").loc[steps]

    def final(self, metric: str) -> np.ndarray:
        """Values of the last evaluation [seeds]."""
        return self.evaluations.groupby("seed")[metric].last().to_numpy()

    def at(self, step: float, metric: str) -> np.ndarray | None:
        """Values at a step [seeds]: of the nearest evaluation within 2.5 %, else interpolated.

        None beyond the run, and between evaluations further apart than a tenth of it.
        """
        if not self.has(metric) or not step <= (1 + SAME_STEP) * self.total:
            return None
        values = []
        for _, rows in self.evaluations.groupby("seed"):
            steps, scores = rows["step"].to_numpy(), rows[metric].to_numpy()
            nearest, after = np.abs(steps - step).argmin(), np.searchsorted(steps, step)
            if abs(steps[nearest] - step) <= SAME_STEP * step:
                values.append(scores[nearest])
            elif 0 < after < len(steps) and steps[after] - steps[after - 1] <= LONGEST_GAP * self.total:
                values.append(np.interp(step, steps, scores))
            else:
                return None
        return np.array(values)


def is_tuning(runs: pd.DataFrame) -> pd.Series:
    """Which runs are of ours and on a seed for tuning."""
    return (runs["source"] == OURS) & (runs["seed"] >= FIRST_TUNING_SEED)


def cells(evaluations: pd.DataFrame, runs: pd.DataFrame, tuning: bool = False) -> list[Cell]:
    """One cell per algorithm, task, length and settings, by task. Of ours, only seeds that report, or only `tuning`.

    Runs of earlier code are not pooled with today's: the cell has those of which more are finished. Its name is the
    algorithm, then the source if it is neither ours nor said ("sb3-ppo"), and then the settings where they alone tell
    it from another cell (one of today's code: from another of today's).
    """
    runs = runs[is_tuning(runs) == tuning]
    said = (runs["source"] == OURS) | runs["algorithm"].str.startswith("sb3-")
    names = runs["algorithm"].where(said, runs["algorithm"] + " (" + runs["source"] + ")")
    group, today = [names, runs["env_id"], runs["total_timesteps"]], runs["settings"].mask(runs["stale"])
    alike = runs["settings"].groupby(group).transform("nunique") == 1
    alike |= ~runs["stale"] & (today.groupby(group).transform("nunique") == 1)
    settings = runs["settings"].map(lambda text: ", ".join(f"{k} {v}" for k, v in json.loads(text).items()))
    made = []
    for key, members in runs.assign(name=names.where(alike, (names + " " + settings).str.strip())).groupby(
        [*CELL, "name"]
    ):
        finished = members.loc[members["state"] == "done", "stale"]
        if members["stale"].nunique() > 1:
            members = members[members["stale"] == (finished.sum() > (~finished).sum())]
        done = members.loc[members["state"] == "done", "run"]
        rows = evaluations[evaluations["run"].isin(done)].sort_values(["seed", "step"])
        made.append(Cell(*key[:4], json.loads(key[4]), key[5], members, rows))
    return sorted(made, key=lambda cell: (cell.env_id, cell.total, cell.name))


def longest(found: list[Cell]) -> list[Cell]:
    """Of each name and task the cell with the most steps, of those with a finished run if there are such."""
    best = {(cell.env_id, cell.name): cell for cell in sorted(found, key=lambda cell: (bool(cell.seeds), cell.total))}
    return [best[key] for key in sorted(best)]


AGGREGATES = {
    "IQM": metrics.aggregate_iqm,
    "mean": metrics.aggregate_mean,
    "optimality gap": metrics.aggregate_optimality_gap,
}


def normalised(found: list[Cell], levels: dict[str, Interval]) -> tuple[list[str], dict[str, np.ndarray]]:
    """(tasks, name -> normalised scores [seeds, tasks]) of the algorithms that can be compared across tasks.

    `levels` maps env_id -> returns that count as 0 and as 1. An algorithm can take part with at least 2 seeds on at
    least 2 of these tasks. Since everyone is judged on the same tasks, those algorithms take part whose number times
    that of the tasks that they all have is greatest. Where the numbers of seeds differ between the tasks of an
    algorithm, its first seeds count, as many as there are everywhere.
    """
    finished: dict[str, dict[str, np.ndarray]] = {}
    for cell in found:
        if cell.env_id in levels and len(cell.seeds) > 1:
            low, high = levels[cell.env_id]
            finished.setdefault(cell.name, {})[cell.env_id] = (cell.final("return") - low) / (high - low)
    sets = [scores.keys() for scores in finished.values()]
    shared = [sorted(a & b) for a, b in itertools.product(sets, repeat=2) if len(a & b) > 1]
    tasks = max(shared, key=lambda tasks: (len(tasks) * sum(s >= {*tasks} for s in sets), tasks), default=[])
    matrices = {}
    for name, scores in finished.items():
        if tasks and scores.keys() >= {*tasks}:
            seeds = min(len(scores[task]) for task in tasks)
            matrices[name] = np.stack([scores[task][:seeds] for task in tasks], 1)
    return tasks, matrices


def aggregates(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AGGREGATES of normalised scores [seeds >= 2, tasks] and their intervals: [3] and [2, 3], nan where there is none.

    The optimality gap is the mean of what runs lack to 1. The mean's interval is a t interval for the sum of
    independent means, one per task (Welch and Satterthwaite); the others' are bootstrapped, from LEAST_BOOTSTRAP on.
    """

    def statistic(x: np.ndarray) -> np.ndarray:
        return np.array([function(x) for function in AGGREGATES.values()])

    points, bounds = statistic(scores), bootstrap(scores, statistic)
    bounds = np.full((2, 3), np.nan) if bounds is None else bounds
    seeds, tasks = scores.shape
    errors = scores.var(0, ddof=1) / seeds / tasks**2
    if errors.any():
        freedom = errors.sum() ** 2 * (seeds - 1) / (errors**2).sum()
        bounds[:, 1] = points[1] + np.array([-1, 1]) * stdtrit(freedom, 0.975) * np.sqrt(errors.sum())
    return points, bounds
