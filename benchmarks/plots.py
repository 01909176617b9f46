"""Pictures of a benchmark: learning curves, milestones, return against wall-clock time, scores across tasks.

Every function writes one PNG, white behind, so that it can be read on light and dark pages. An algorithm has the same
colour everywhere. The same runs always give the same bytes.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from published import Published, can_compare, compare, number, select
from records import METRICS, SAME_STEP, count
from scores import AGGREGATES, Result, aggregates, band, estimate_at, nearest, profile
from suites import SUITES

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MILESTONES = (100_000, 300_000, 500_000, 1_000_000)
NEAR_STEP = 0.1  # relative: published curves have points up to 8 % before the milestones; shown with their own step
ORDER = ("reinforce", "a2c", "trpo", "ppo", "ddpg", "td3", "sac", "her_ddpg")  # of the colours
PLACE = {label: k for k, label in enumerate(ORDER)} | {
    label: len(ORDER) + k  # within its suite
    for suite in SUITES.values()
    for k, label in enumerate(dict.fromkeys(e.label for e in suite if e.variant))
}


def rank(label: str) -> int:
    """Place of an algorithm in legends; the variants of a suite follow."""
    return PLACE.get(label, len(ORDER))


def colour(label: str) -> Any:
    """Colour of an algorithm or variant; ten of them, so that variants of different suites share theirs."""
    return plt.get_cmap("tab10")(rank(label) % 10)


def panels(tasks: list[str], results: list[Result]) -> tuple[plt.Figure, dict[str, plt.Axes]]:
    """A figure with one panel per task, and under all of them a legend of the algorithms."""
    columns = 1 if len(tasks) == 1 else 2 if len(tasks) <= 4 else 3
    rows = -(-len(tasks) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(5.4 * columns, 3.8 * rows + 0.8), squeeze=False, layout="constrained", facecolor="white"
    )
    for axes in grid.flat[len(tasks) :]:
        axes.set_axis_off()
    for task, axes in zip(tasks, grid.flat, strict=False):
        axes.set_title(task)
        axes.set_ylabel(METRICS[metric_of(task, results)])
        axes.grid(alpha=0.3)
    labels = sorted({result.label for result in results}, key=rank)
    handles = [plt.Line2D([], [], color=colour(label), linewidth=2, label=label) for label in labels]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(labels), 8), frameon=False)
    return figure, dict(zip(tasks, grid.flat, strict=False))


def metric_of(task: str, results: list[Result]) -> str:
    """What is drawn for a task: the success rate where it is known."""
    known = [result.estimates for result in results if result.env_id == task]
    return "success_rate" if any("success_rate" in estimates for estimates in known) else "return"


def save(figure: plt.Figure, path: Path, title: str) -> None:
    """Write and close."""
    figure.suptitle(textwrap.fill(title, int(10 * figure.get_figwidth())))  # about 10 characters per inch
    figure.savefig(path, dpi=110)
    plt.close(figure)


def common_curves(result: Result, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Evaluations at the steps [e] of the first counting seed: steps [e], values [seeds, e].

    Those of the others are interpolated: REINFORCE is evaluated at the end of a batch of episodes, which is not quite
    the same step for each seed.
    """
    steps = result.scored[0].steps
    return steps, np.stack([np.interp(steps, run.steps, run.values[metric]) for run in result.scored])


def draw_mean(axes: plt.Axes, result: Result, metric: str, against: str) -> None:
    """A result's mean over seeds, with its band, against "steps" or "minutes"."""
    steps, curves = common_curves(result, metric)
    x = steps if against == "steps" else np.mean([run.seconds_at(steps) for run in result.scored], 0) / 60
    marker = "." if len(steps) < 30 else ""
    axes.plot(x, curves.mean(0), color=colour(result.label), marker=marker, linewidth=1.5)
    bounds = band(curves)
    if bounds is not None:
        axes.fill_between(x, *bounds, color=colour(result.label), alpha=0.18, linewidth=0)


def draw_references(axes: plt.Axes, references: list[tuple[Result, Published]]) -> None:
    """Lines at published levels, dashed if from our result's step, else dotted, and their labels right of the panel.

    Labels are moved apart where they would overlap, but not above the panel.
    """
    low, high = axes.get_ylim()
    least = 0.075 * (high - low)
    references = sorted(references, key=lambda pair: pair[1].mean)
    heights: list[float] = []
    for _, row in references:  # upwards
        heights.append(max(row.mean, heights[-1] + least if heights else -np.inf))
    for k in reversed(range(len(heights))):  # and down again from the panel's upper end
        heights[k] = min(heights[k], heights[k + 1] - least if k + 1 < len(heights) else high)
    for (result, row), height in zip(references, heights, strict=True):
        label = result.label
        equal = result.total is not None and nearest([row.env_steps], result.total, SAME_STEP) is not None
        style = "--" if equal else ":"
        axes.axhline(row.mean, color=colour(label), linestyle=style, linewidth=1, alpha=0.7)
        axes.annotate(
            f"{label} {number(row.mean)} ({row.env_version}, {count(row.env_steps)})",
            xy=(1, row.mean), xycoords=("axes fraction", "data"), xytext=(1.02, height),
            textcoords=("axes fraction", "data"), fontsize=8, color=colour(label), va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour(label), "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip


def draw_curves(path: Path, results: list[Result], published: list[Published]) -> None:
    """Learning curves: one panel per environment, one line per algorithm, published references dashed."""
    tasks = sorted({result.env_id for result in results})
    figure, axes_of = panels(tasks, results)
    for task, axes in axes_of.items():
        members, metric = [result for result in results if result.env_id == task], metric_of(task, results)
        for result in members:
            if metric in result.estimates:
                draw_mean(axes, result, metric, "steps")
        references = [(result, compare(result, published).reference) for result in members]
        comparable = [
            (result, row) for result, row in references
            if row and row.metric == metric and can_compare(task, row)
        ]  # fmt: skip
        axes.autoscale(axis="y")
        if comparable:
            axes.set_ylim(*spanned(axes.get_ylim(), [row.mean for _, row in comparable]))
        draw_references(axes, comparable)
        if not any(result.scored for result in members):
            axes.text(0.5, 0.5, "no finished run", transform=axes.transAxes, ha="center", va="center")
        axes.set_xlabel("environment steps")
        axes.xaxis.set_major_formatter(lambda step, _: count(round(step)))
    save(
        figure,
        path,
        "Mean over seeds, band: its 95 % interval (none for one seed); dashed: published, dotted: at other steps",
    )


def spanned(limits: tuple[float, float], values: list[float]) -> tuple[float, float]:
    """Limits of an axis, widened to show the values too."""
    low, high = min(limits[0], *values), max(limits[1], *values)
    margin = 0.04 * (high - low)
    return low - margin * (low < limits[0]), high + margin * (high > limits[1])


def draw_wallclock(path: Path, results: list[Result]) -> None:
    """Return against time: one panel per environment. Evaluation and checkpoints are part of the time."""
    tasks = sorted({result.env_id for result in results})
    figure, axes_of = panels(tasks, results)
    for task, axes in axes_of.items():
        metric = metric_of(task, results)
        for result in results:
            if result.env_id == task and metric in result.estimates:
                draw_mean(axes, result, metric, "minutes")
        axes.set_xlabel("wall-clock time of a run (minutes)")
        ends = [line.get_xdata()[-1] for line in axes.lines]
        if ends and max(ends) > 10 * min(ends):
            axes.set_xscale("log", nonpositive="mask")  # leaves out the evaluation at time 0
            axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(lambda minutes, _: f"{minutes:g}")
            axes.set_xlabel("wall-clock time of a run (minutes, logarithmic)")
    names = {run.status.get("hardware", "unknown") for result in results for run in result.scored}
    hardware = sorted({name.removesuffix(", device cpu") for name in names})
    save(
        figure,
        path,
        f"Mean over seeds against the mean time of a run, one thread each, on {' and '.join(hardware)}; "
        "runs that share a machine slow each other down",
    )


def draw_milestones(path: Path, results: list[Result], published: list[Published]) -> bool:
    """Estimates with intervals at 100k, 300k, 500k and 1M steps, hollow: published. False if no run is that long."""
    drawn = [result for result in results if result.total and result.total * (1 + SAME_STEP) >= MILESTONES[1]]
    tasks = sorted({result.env_id for result in drawn})
    if not tasks:
        return False
    figure, axes_of = panels(tasks, drawn)
    for task, axes in axes_of.items():
        metric = metric_of(task, results)
        members = sorted((result for result in drawn if result.env_id == task), key=lambda result: rank(result.label))
        for k, result in enumerate(members):
            rows = [row for row in select(published, "reference", result) if row.metric == metric]
            for place, step in enumerate(MILESTONES):
                x = place + 0.7 * (k + 0.5) / len(members) - 0.35
                if ours := estimate_at(result, step, metric):
                    low, high = ours.mean_interval or (ours.mean, ours.mean)
                    axes.errorbar(x, ours.mean, [[ours.mean - low], [high - ours.mean]], color=colour(result.label),
                                  marker="o", markersize=5, capsize=2, linewidth=1.5)  # fmt: skip
                index = nearest([row.env_steps for row in rows], step, NEAR_STEP)
                if index is not None and can_compare(task, rows[index]):
                    axes.plot(x + 0.05, rows[index].mean, color=colour(result.label), marker="D", markersize=5,
                              markerfacecolor="none", linestyle="")  # fmt: skip
        axes.set_xticks(range(len(MILESTONES)), [count(step) for step in MILESTONES])
        axes.set_xlabel("environment steps")
    save(figure, path, "Mean over seeds with its 95 % interval; hollow: published mean at that step (within 10 %)")
    return True


def draw_aggregates(path: Path, tasks: list[str], matrices: dict[str, np.ndarray]) -> None:
    """The aggregates of normalised scores and, beside them, the performance profiles."""
    labels = sorted(matrices, key=rank)
    figure, grid = plt.subplots(
        1, 1 + len(AGGREGATES), figsize=(16, 1.6 + 0.45 * max(len(labels), 5)), layout="constrained", facecolor="white",
        width_ratios=[1] * len(AGGREGATES) + [2],
    )  # fmt: skip
    for row, label in enumerate(labels):
        points, bounds = aggregates(matrices[label])
        for k, axes in enumerate(grid[: len(AGGREGATES)]):
            axes.barh(row, bounds[1, k] - bounds[0, k], left=bounds[0, k], height=0.6, color=colour(label), alpha=0.4)
            axes.plot([points[k]] * 2, [row - 0.3, row + 0.3], color=colour(label), linewidth=2)
            axes.use_sticky_edges = False  # a margin beside the longest bar
    for name, axes in zip(AGGREGATES, grid, strict=False):
        axes.set(title=name, xlabel="lack to 1" if name == "optimality gap" else "normalised score")
        axes.set_ylim(-0.6, len(labels) - 0.4)
        axes.set_yticks(range(len(labels)), labels if axes is grid[0] else [""] * len(labels))
        axes.invert_yaxis()
        axes.grid(alpha=0.3, axis="x")
    thresholds = np.linspace(0, max(1.0, *(matrix.max() for matrix in matrices.values())), 51)
    for label in labels:
        shares, bounds = profile(matrices[label], thresholds)
        grid[-1].plot(thresholds, shares, color=colour(label), label=label, linewidth=1.5)
        grid[-1].fill_between(thresholds, *bounds, color=colour(label), alpha=0.18, linewidth=0)
    grid[-1].set(title="performance profile", xlabel="normalised score", ylabel="share of runs above it")
    grid[-1].set_ylim(0, 1.02)
    grid[-1].grid(alpha=0.3)
    grid[-1].legend(frameon=False, fontsize=8)
    title = f"Final scores over {', '.join(tasks)}: 0 = random actions, 1 = best published reference"
    save(figure, path, title + "; 95 % intervals")
