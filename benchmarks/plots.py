"""Pictures of a benchmark: learning curves, steps per second, scores across tasks.

Every function writes one PNG, white behind, so that it can be read on light and dark pages, at twice the size at which
a page 830 pixels wide shows it. The same results always give the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from published import Published, compare, select
from records import METRICS, count
from rliable import plot_utils
from scores import AGGREGATES, Cell, aggregates, bootstrap, t_interval

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WIDTH, DPI = 8.3, 160  # inches, pixels per inch
STYLE = {"font.size": 8, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
         "grid.alpha": 0.3, "lines.linewidth": 1.4, "figure.facecolor": "white", "savefig.dpi": DPI}  # fmt: skip
COLOURS = {  # Okabe and Ito's, for all kinds of colour vision; their yellow darker
    "reinforce": "#000000", "a2c": "#e69f00", "trpo": "#009e73", "ppo": "#0072b2", "ddpg": "#b8a500", "td3": "#d55e00",
    "sac": "#cc79a7", "her_ddpg": "#56b4e9",
}  # fmt: skip
OTHERS = ["#882255", "#44aa99", "#332288", "#999933", "#aa4499", "#117733", "#cc6677", "#88ccee", "#6e4b1f", "#7f7f7f"]


def colours(found: list[Cell]) -> dict[str, str]:
    """Colour of each name: ours have the same everywhere, each other one has its own in this report."""
    names = sorted({cell.name for cell in found})
    strangers = [name for name in names if name not in COLOURS]
    turbo = plt.get_cmap("turbo")(np.linspace(0.03, 0.97, max(len(strangers) - len(OTHERS), 0)))
    others = dict(zip(strangers, [*OTHERS, *map(to_hex, turbo)], strict=False))
    ours = [name for name in COLOURS if name in names]
    return {name: COLOURS[name] for name in ours} | others


def legend_label(name: str, members: list[Cell]) -> str:
    """Name and number of seeds: "ppo (n = 3)", or "ppo (n = 1 to 3)" where the tasks differ."""
    seeds = sorted({len(cell.seeds) for cell in members if cell.name == name})
    return f"{name} (n = {' to '.join(str(n) for n in dict.fromkeys([seeds[0], seeds[-1]]))})"


def save(figure: plt.Figure, path: Path) -> None:
    """Write and close."""
    figure.savefig(path, bbox_inches="tight", pad_inches=0.05)
    plt.close(figure)


# ======================================================================================================================
# 1 Curves
# ======================================================================================================================


def draw_curve(axes: Axes, cell: Cell, metric: str, colour: str) -> list[float]:
    """Mean over seeds, dashed for one, and its 95 % t interval; returns the values after the first evaluation."""
    curve = cell.curve(metric)
    mean, sd, n = curve.mean(axis=1), curve.std(axis=1), len(cell.seeds)
    axes.plot(curve.index, mean, color=colour, linestyle="--" if n == 1 else "-", marker="." if len(curve) < 3 else "")
    if n > 1:
        bounds = [t_interval(m, s, n) or (m, m) for m, s in zip(mean, sd, strict=True)]
        axes.fill_between(curve.index, *np.array(bounds).T, color=colour, alpha=0.1, linewidth=0)
    return curve.iloc[1 if len(curve) > 1 else 0 :].to_numpy().ravel().tolist()


def draw_published(axes: Axes, cell: Cell, rows: list[Published], colour: str, shift: float) -> list[float]:
    """Hollow markers at published points, with the 95 % t interval of their mean; returns the means."""
    for row in rows:
        low, high = row.interval or (row.mean, row.mean)
        axes.errorbar(
            row.step + shift * axes.get_xlim()[1], row.mean, [[row.mean - low], [high - row.mean]], color=colour,
            marker="o", markersize=5, markerfacecolor="white", linewidth=0.8, capsize=2, zorder=3, clip_on=False,
        )  # fmt: skip
    return [row.mean for row in rows]


def draw_curves(path: Path, found: list[Cell], published: list[Published]) -> None:
    """One panel per task (two where it reports success), one line per algorithm; hollow: published at that step."""
    found = [cell for cell in found if cell.seeds]
    colour = colours(found)
    panels = [(task, metric) for task in sorted({cell.env_id for cell in found}) for metric in METRICS
              if any(cell.env_id == task and cell.has(metric) for cell in found)]  # fmt: skip
    columns = min(3, max(len(panels), 1))
    rows = -(-len(panels) // columns)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, 2.3 * rows), squeeze=False, layout="constrained")
        for (task, metric), axes in zip(panels, grid.flat, strict=False):
            members = [cell for cell in found if cell.env_id == task and cell.has(metric)]
            values = [value for cell in members for value in draw_curve(axes, cell, metric, colour[cell.name])]
            axes.set_xlim(0, max(cell.curve(metric).index[-1] for cell in members) * 1.04)
            for k, cell in enumerate(members):
                points = [row for row in select(published, "reference", cell)
                          if row.metric == metric and compare(cell, row).difference]  # fmt: skip
                shift = 0.012 * (k - (len(members) - 1) / 2)  # beside each other
                values += draw_published(axes, cell, points, colour[cell.name], shift)
            low, high = (-0.02, 1.0) if metric == "success" else np.quantile(values, [0.03, 1])
            margin = 0.05 * (high - low) or 1.0
            axes.set_ylim(low - margin, high + margin)
            axes.set_title(task if metric == "return" else f"{task}: {METRICS[metric]}")
            axes.xaxis.set_major_formatter(lambda step, _: count(round(step)))
            axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
        for k, (_, metric) in enumerate(panels):
            grid.flat[k].set_ylabel(METRICS[metric] if metric == "success" or k % columns == 0 else "")
            grid.flat[k].set_xlabel("environment steps" if k + columns >= len(panels) else "")
        handles = [
            plt.Line2D([], [], color=colour[name], label=legend_label(name, found),
                       linestyle="--" if all(len(cell.seeds) == 1 for cell in found if cell.name == name) else "-")
            for name in colour
        ]  # fmt: skip
        if any(axes.containers for axes in grid.flat):
            handles.append(
                plt.Line2D([], [], color="grey", marker="o", markerfacecolor="white", linestyle="", label="published")
            )
        free = list(grid.flat[len(panels) :])
        for axes in free:
            axes.set_axis_off()
        if free and len(handles) <= 13:
            free[0].legend(handles=handles, loc="center left", frameon=False)
        else:
            figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
        figure.suptitle("Mean over seeds with its 95 % t interval; dashed: one seed")
        save(figure, path)


# ======================================================================================================================
# 2 Speed
# ======================================================================================================================


def steps_per_second(found: list[Cell]) -> dict[str, float]:
    """Name -> steps per second of a whole run, evaluations included: the median over its runs that tell."""
    speeds: dict[str, list[float]] = {}
    for cell in found:
        timed = cell.runs[(cell.runs["state"] == "done") & (cell.runs["seconds"] > 0)]
        speeds.setdefault(cell.name, []).extend(timed["total_timesteps"] / timed["seconds"])
    return {name: float(np.median(values)) for name, values in speeds.items() if values}


def draw_speed(path: Path, found: list[Cell]) -> None:
    """Bars of steps per second."""
    colour, speeds = colours(found), steps_per_second(found)
    names = [name for name in colour if name in speeds][::-1]
    with plt.rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure, axes = plt.subplots(figsize=(WIDTH, 0.6 + 0.24 * len(names)), layout="constrained")
        bars = axes.barh(names, [speeds[name] for name in names], color=[colour[name] for name in names], height=0.7)
        axes.bar_label(bars, [f"{speeds[name]:.0f}" for name in names], padding=3)
        axes.set_xscale("log")
        axes.set_xlim(min(speeds.values()) / 2, max(speeds.values()) * 2)
        axes.set_axisbelow(True)
        axes.set_xlabel("environment steps per second (logarithmic)")
        axes.set_title("Speed of whole runs, evaluations included: median over runs")
        save(figure, path)


# ======================================================================================================================
# 3 Across tasks
# ======================================================================================================================


def draw_aggregates(path: Path, matrices: dict[str, np.ndarray], colour: dict[str, str]) -> None:
    """The mean of normalised scores, and the other AGGREGATES if all have intervals, by rliable."""
    estimates = {name: aggregates(matrices[name]) for name in reversed(list(colour)) if name in matrices}
    known = ~np.isnan([bounds for _, bounds in estimates.values()]).any((0, 1))
    kept = np.flatnonzero(known | (np.array(list(AGGREGATES)) == "mean"))  # the mean is always shown
    with plt.rc_context({"font.size": 6, "savefig.dpi": DPI}):
        figure, _ = plot_utils.plot_interval_estimates(
            {name: points[kept] for name, (points, _) in estimates.items()},
            {name: np.where(np.isnan(bounds), points, bounds)[:, kept] for name, (points, bounds) in estimates.items()},
            metric_names=[list(AGGREGATES)[k] for k in kept], algorithms=list(estimates), colors=colour,
            xlabel="normalised score", subfigure_width=0.75 * WIDTH / len(kept), row_height=0.25, wspace=0.15,
            xlabel_y_coordinate=-1.5 / (1 + len(estimates)),
        )  # fmt: skip
        save(figure, path)


def draw_profiles(path: Path, matrices: dict[str, np.ndarray], colour: dict[str, str]) -> None:
    """Share of runs above each normalised score, by rliable; bands where there are seeds enough."""
    names = [name for name in colour if name in matrices]
    thresholds = np.linspace(0, max(1.0, *(matrix.max() for matrix in matrices.values())), 101)

    def profile(scores: np.ndarray) -> np.ndarray:
        return (scores[..., None] > thresholds).mean((0, 1))

    shares = {name: profile(matrices[name]) for name in names}
    bands = {name: bounds for name in names if (bounds := bootstrap(matrices[name], profile)) is not None}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH * 0.75, 2.8), layout="constrained")
        plot_utils.plot_performance_profiles(
            shares, thresholds, bands, ax=axes, colors=colour, xlabel="normalised score",
            ylabel="share of runs above it", labelsize=8, ticklabelsize=8,
        )  # fmt: skip
        axes.legend([f"{name} (n = {len(matrices[name])})" for name in names], frameon=False)
        save(figure, path)
