"""Statistics over seeds and tasks: means, interquartile means, their bootstrap intervals, and scores across tasks.

All intervals are 95 % percentile intervals of the stratified bootstrap of Agarwal et al. (2021), "Deep Reinforcement
Learning at the Edge of the Statistical Precipice", from its authors' library rliable: seeds are drawn anew, with
replacement, for each task. The same scores always give the same digits. One seed has no interval.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from records import METRICS, SAME_STEP, Run
from rliable import library, metrics

CONFIDENCE = 0.95
RESAMPLES = 2_000
AGGREGATES = ("IQM", "median", "mean", "optimality gap")

Interval = tuple[float, float]


@contextlib.contextmanager
def fixed_seed() -> Iterator[None]:
    """Seed NumPy's global generator, from which rliable draws, and put it back afterwards."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)


def interval(scores: np.ndarray | tuple[np.ndarray, np.ndarray], statistic: Callable) -> np.ndarray | None:
    """Interval of statistic(scores) -> [k]: low and high [2, k]. scores is [seeds, tasks, ...], or a pair of these.

    None where all there is is one seed.
    """
    if all(len(x) < 2 for x in (scores if isinstance(scores, tuple) else (scores,))):
        return None
    with fixed_seed():
        _, intervals = library.get_interval_estimates(
            {"": scores}, statistic, reps=RESAMPLES, confidence_interval_size=CONFIDENCE
        )
    return intervals[""]


# ======================================================================================================================
# 1 One task
# ======================================================================================================================


@dataclass(frozen=True)
class Estimate:
    """Mean, median and interquartile mean of n >= 1 seeds' scores with their 95 % intervals (None for one seed)."""

    seeds: int
    mean: float
    mean_interval: Interval | None
    median: float
    median_interval: Interval | None
    iqm: float
    iqm_interval: Interval | None


def iqm(scores: np.ndarray) -> float:
    """Interquartile mean of all scores: the mean without the lowest and highest floor(n / 4) of n."""
    return float(metrics.aggregate_iqm(scores))


def estimate(scores: np.ndarray) -> Estimate:
    """Mean, median and interquartile mean of scores [n], n >= 1."""
    return cached_estimate(tuple(scores))


@functools.cache
def cached_estimate(values: tuple[float, ...]) -> Estimate:
    """`estimate`, computed once for tables and pictures."""
    scores = np.array(values)
    statistics = (np.mean, np.median, iqm)
    bounds = interval(scores[:, None], lambda x: np.array([statistic(x) for statistic in statistics]))
    values = []
    for k, statistic in enumerate(statistics):
        values += [float(statistic(scores)), None if bounds is None else (float(bounds[0, k]), float(bounds[1, k]))]
    return Estimate(len(scores), *values)


def band(curves: np.ndarray) -> np.ndarray | None:
    """Interval of the mean at each evaluation: curves [seeds, e] -> [2, e]; None for one seed."""
    return interval(curves[:, None], lambda x: x.mean((0, 1)))


@dataclass(frozen=True)
class Result:
    """One algorithm on one environment: its runs, those that count, and the estimates per metric (empty if none)."""

    label: str
    env_id: str
    total: int | None
    runs: list[Run]
    scored: list[Run]
    estimates: dict[str, Estimate]


def summarise(runs: list[Run]) -> list[Result]:
    """Runs -> one result per environment and label; a run with fewer steps than the longest does not count."""
    results = []
    ordered = sorted(runs, key=lambda run: (run.env_id, run.label))
    for (env_id, label), group in itertools.groupby(ordered, key=lambda run: (run.env_id, run.label)):
        members = list(group)
        total = max((run.total for run in members if run.total is not None), default=None)
        scored = [run for run in members if run.trouble(total) is None]
        shared = [metric for metric in METRICS if scored and all(metric in run.values for run in scored)]
        estimates = {metric: estimate(np.array([run.values[metric][-1] for run in scored])) for metric in shared}
        results.append(Result(label, env_id, total, members, scored, estimates))
    return results


def nearest(steps: np.ndarray | list[int], step: int, tolerance: float) -> int | None:
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
# 2 Across tasks
# ======================================================================================================================


def normalised(
    results: list[Result], anchors: dict[str, tuple[float, float]]
) -> tuple[list[str], dict[str, np.ndarray]]:
    """(tasks, label -> normalised scores [seeds, tasks]) of the algorithms that can be compared across tasks.

    `anchors` maps env_id -> returns that count as 0 and as 1. An algorithm can take part with at least 2 seeds on at
    least 2 of these tasks. Since everyone is judged on the same tasks, those algorithms take part whose number times
    that of the tasks that they all have is greatest. Where the numbers of seeds differ between the tasks of an
    algorithm, its first seeds count, as many as there are everywhere.
    """
    finished: dict[str, dict[str, np.ndarray]] = {}
    for result in results:
        if result.env_id in anchors and len(result.scored) > 1:
            low, high = anchors[result.env_id]
            final = np.array([run.values["return"][-1] for run in result.scored])
            finished.setdefault(result.label, {})[result.env_id] = (final - low) / (high - low)
    labels, tasks = (), []
    for number in range(len(finished), 0, -1):
        for group in itertools.combinations(finished, number):
            shared = set.intersection(*(set(finished[label]) for label in group))
            if len(shared) > 1 and len(group) * len(shared) > len(labels) * len(tasks):
                labels, tasks = group, sorted(shared)
    matrices = {}
    for label in labels:
        seeds = min(len(finished[label][task]) for task in tasks)
        matrices[label] = np.stack([finished[label][task][:seeds] for task in tasks], 1)
    return tasks, matrices


def aggregates(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AGGREGATES of normalised scores [seeds >= 2, tasks] and their intervals: [4] and [2, 4].

    IQM over all runs of all tasks; median and mean over tasks of the mean over seeds; the optimality gap is the mean
    of what runs lack to 1.
    """
    functions = (
        metrics.aggregate_iqm, metrics.aggregate_median, metrics.aggregate_mean, metrics.aggregate_optimality_gap
    )  # fmt: skip

    def statistic(x: np.ndarray) -> np.ndarray:
        return np.array([function(x) for function in functions])

    return statistic(scores), interval(scores, statistic)


def profile(scores: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Performance profile: the share of runs with a normalised score above each threshold [t], and its interval.

    scores is [seeds >= 2, tasks]; returns [t] and [2, t].
    """
    with fixed_seed():
        shares, intervals = library.create_performance_profile(
            {"": scores}, thresholds, reps=RESAMPLES, confidence_interval_size=CONFIDENCE
        )
    return shares[""], intervals[""]


def improvement(x: np.ndarray, y: np.ndarray) -> tuple[float, Interval]:
    """Probability that a run of X scores higher than one of Y on the same task, averaged over tasks; its interval.

    x and y are [seeds >= 2, tasks]; ties count half. The same as rliable's metric, many times faster.
    """

    def statistic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.array([(1 + np.sign(x[:, None] - y[None]).mean()) / 2])

    low, high = interval((x, y), statistic)[:, 0]
    return float(statistic(x, y)[0]), (float(low), float(high))
