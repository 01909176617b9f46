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
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.stats
from records import CELL, FIRST_TUNING_SEED, OURS
from rliable import library, metrics

SAME_STEP = 0.025  # relative: on-policy evaluations fall on the ends of rollouts, near the round numbers
LONGEST_GAP = 0.1025  # of a run: between evaluations further apart nothing is interpolated
LEAST_BOOTSTRAP = 10
RESAMPLES = 2_000
Interval = tuple[float, float]


@functools.cache
def t_quantile(freedom: float) -> float:
    """97.5 % quantile of Student's t with so many degrees of freedom."""
    return float(scipy.stats.t.ppf(0.975, freedom))


def t_interval(mean: float, sd: float | None, n: int) -> Interval | None:
    """95 % interval of the mean of n scores from their standard deviation; None without deviation or spread."""
    if not sd or n < 2:
        return None
    half = t_quantile(n - 1) * sd / np.sqrt(n)
    return mean - half, mean + half


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
    tested: bool
    """Whether both sides have a spread over seeds, so that the interval is Welch's; else it is that of ours alone."""

    @property
    def verdict(self) -> str:
        """higher, lower or not separable, as the interval lies above, below or around 0."""
        if not self.tested or self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "not separable"
        return "higher" if self.value > 0 else "lower"

    def __str__(self) -> str:
        """For example "higher (n = 3 | 10): +897 [500, 1294]"."""
        ours, theirs = self.seeds
        text = f"{self.verdict} (n = {ours} | {theirs or '?'}): {'+' * (self.value >= 0)}{number(self.value)}"
        if self.interval:
            text += f" [{', '.join(map(number, self.interval))}]"
            return text if self.tested else text + ", not tested: no spread over seeds there"
        return text + (", not tested: 1 seed" if ours == 1 else ", no spread")


def welch(ours: np.ndarray, mean: float, sd: float | None, n: int | None) -> Difference:
    """Scores of ours [seeds] against n scores of which mean and standard deviation (divided by n - 1) are known.

    Welch's interval: the difference -+ t * sqrt(s1^2 / n1 + s2^2 / n2), with the degrees of freedom of Welch and
    Satterthwaite (1947).
    """
    value, seeds = float(np.mean(ours) - mean), (len(ours), n)
    if len(ours) < 2:
        return Difference(value, None, seeds, False)
    errors = [np.var(ours, ddof=1) / len(ours), sd**2 / n if sd is not None else 0.0]  # squared standard errors
    freedom = [len(ours) - 1, n - 1 if sd is not None else 1]
    if sum(errors) == 0:
        return Difference(value, None, seeds, sd is not None)
    df = sum(errors) ** 2 / sum(error**2 / f for error, f in zip(errors, freedom, strict=True))
    half = t_quantile(df) * np.sqrt(sum(errors))
    return Difference(value, (value - half, value + half), seeds, sd is not None)


def number(value: float) -> str:
    """A score for people: 10574, 512, 96.2, -3.87."""
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


# ======================================================================================================================
# 1 One algorithm on one task
# ======================================================================================================================


@dataclass(frozen=True, eq=False)
class Cell:
    """The runs of one algorithm on one task that have the same length and settings; some may not count."""

    source: str
    algorithm: str
    env_id: str
    total: int
    settings: dict
    runs: pd.DataFrame
    """Rows of runs.csv, by seed."""
    evaluations: pd.DataFrame
    """Rows of results.csv of the runs that are done, by seed and step."""
    shows_settings: bool = False
    """Whether the name needs the settings to tell it from another cell's."""

    @property
    def name(self) -> str:
        """Name in tables and legends: the algorithm, then the source if it is neither ours nor said ("sb3-ppo")."""
        settings = ", ".join(f"{k} {v}" for k, v in self.settings.items()) * self.shows_settings
        said = self.source == OURS or self.algorithm.startswith("sb3-")
        return " ".join(filter(None, [self.algorithm, "" if said else f"({self.source})", settings]))

    @functools.cached_property
    def seeds(self) -> list[int]:
        """Seeds that count."""
        return list(self.evaluations["seed"].unique())

    def has(self, metric: str) -> bool:
        """Whether every run that counts reports it."""
        return len(self.evaluations) > 0 and self.evaluations[metric].notna().all()

    @functools.cache  # noqa: B019
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
            nearest, after = np.abs(steps - step).argmin(), int(np.searchsorted(steps, step))
            if abs(steps[nearest] - step) <= SAME_STEP * step:
                values.append(scores[nearest])
            elif 0 < after < len(steps) and steps[after] - steps[after - 1] <= LONGEST_GAP * self.total:
                values.append(np.interp(step, steps, scores))
            else:
                return None
        return np.array(values)

    def best(self, metric: str) -> tuple[float, int]:
        """Highest mean over seeds of all evaluations, and its step. A maximum is higher than what can be expected."""
        means = self.curve(metric).mean(axis=1)
        return float(means.max()), int(means.idxmax())

    def last_ten(self, metric: str) -> float:
        """Mean of the last ten evaluations, over seeds."""
        return float(self.evaluations.groupby("seed")[metric].apply(lambda values: values.tail(10).mean()).mean())


def cells(evaluations: pd.DataFrame, runs: pd.DataFrame, tuning: bool = False) -> list[Cell]:
    """One cell per algorithm, task, length and settings, by task. Of ours, only seeds that report, or only `tuning`."""
    apart = (runs["source"] == OURS) & (runs["seed"] >= FIRST_TUNING_SEED)
    made = []
    for key, members in runs[apart if tuning else ~apart].groupby(CELL, sort=True):
        done = members.loc[members["state"] == "done", "run"]
        rows = evaluations[evaluations["run"].isin(done)].sort_values(["seed", "step"])
        made.append(Cell(*key[:-1], json.loads(key[-1]), members, rows))
    names = [(cell.name, cell.env_id, cell.total) for cell in made]
    made = [Cell(**vars(cell) | {"shows_settings": True}) if names.count(name) > 1 and cell.settings else cell
            for cell, name in zip(made, names, strict=True)]  # fmt: skip
    return sorted(made, key=lambda cell: (cell.env_id, cell.total, cell.name))


def longest(found: list[Cell]) -> list[Cell]:
    """Of each name and task the cell with the most steps, for pictures and the matrix."""
    groups = itertools.groupby(sorted(found, key=lambda c: (c.env_id, c.name, c.total)), lambda c: (c.env_id, c.name))
    return [list(members)[-1] for _, members in groups]


# ======================================================================================================================
# 2 Across tasks
# ======================================================================================================================

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
    names, tasks = [], []
    for wanted in {frozenset(scores) for scores in finished.values()}:  # those on whose tasks a group can be built
        for other in {frozenset(scores) for scores in finished.values()}:
            shared = wanted & other
            group = [name for name in finished if shared <= finished[name].keys()]
            if len(shared) > 1 and len(group) * len(shared) > len(names) * len(tasks):
                names, tasks = group, sorted(shared)
    matrices = {}
    for name in names:
        seeds = min(len(finished[name][task]) for task in tasks)
        matrices[name] = np.stack([finished[name][task][:seeds] for task in tasks], 1)
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
    if errors.sum() > 0:
        df = errors.sum() ** 2 * (seeds - 1) / (errors**2).sum()
        bounds[:, 1] = points[1] + np.array([-1, 1]) * t_quantile(df) * np.sqrt(errors.sum())
    return points, bounds
