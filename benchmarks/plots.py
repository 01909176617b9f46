"""Pictures of a benchmark: learning curves, steps per second, scores across tasks.

Every function writes one PNG and returns its path. It is white behind, so that it can be read on light and dark pages,
and twice the size at which a page 830 pixels wide shows it. The same results always give the same bytes.
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
from scores import AGGREGATES, Cell, aggregates, bootstrap, half_width

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
    names = {cell.name for cell in found}
    strangers = sorted(names - COLOURS.keys())
    more = plt.get_cmap("turbo")(np.linspace(0.03, 0.97, len(strangers)))
    others = dict(zip(strangers, [*OTHERS, *map(to_hex, more)], strict=False))
    return {name: colour for name, colour in COLOURS.items() if name in names} | others


def save(figure: plt.Figure, path: Path) -> Path:
    """Write and close; returns the path."""
    figure.savefig(path, bbox_inches="tight", pad_inches=0.05)
    plt.close(figure)
    return path


def draw_curve(axes: Axes, cell: Cell, metric: str, colour: str) -> list[float]:
    """Mean over seeds, dashed for one, and its 95 % t interval; returns the values after the first evaluation."""
    curve, n = cell.curve(metric), len(cell.seeds)
    mean = curve.mean(axis=1)
    axes.plot(curve.index, mean, color=colour, linestyle="--" if n == 1 else "-", marker="." if len(curve) < 3 else "")
    if n > 1:
        half = half_width(curve.std(axis=1), n)
        axes.fill_between(curve.index, mean - half, mean + half, color=colour, alpha=0.1, linewidth=0)
    return curve.iloc[min(1, len(curve) - 1) :].to_numpy().ravel().tolist()


def draw_panel(axes: Axes, cells: list[Cell], metric: str, published: list[Published], colour: dict[str, str]) -> None:
    """Curves of one task, and hollow markers at published points, with the 95 % t interval of their mean."""
    values = [value for cell in cells for value in draw_curve(axes, cell, metric, colour[cell.name])]
    end = 1.04 * max(cell.evaluations["step"].max() for cell in cells)
    for k, cell in enumerate(cells):
        for row in select(published, "reference", cell, metric):
            if compare(cell, row).difference:
                step = row.step + 0.012 * end * (k - (len(cells) - 1) / 2)  # beside each other
                half = half_width(row.sd, row.seeds) if row.sd else 0
                axes.errorbar(step, row.mean, half, color=colour[cell.name], marker="o", markersize=5, capsize=2,
                              markerfacecolor="white", linewidth=0.8, zorder=3, clip_on=False)  # fmt: skip
                values.append(row.mean)
    low, high = (-0.02, 1.0) if metric == "success" else np.nanquantile(values, [0.03, 1])
    margin = 0.05 * (high - low) or 1.0
    axes.set(xlim=(0, end), ylim=(low - margin, high + margin), ylabel=METRICS[metric])
    axes.set_title(cells[0].env_id if metric == "return" else f"{cells[0].env_id}: {METRICS[metric]}")
    axes.xaxis.set_major_formatter(lambda step, _: count(round(step)))
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))


def legend_line(name: str, members: list[Cell], colour: str) -> plt.Line2D:
    """A name's line, with its number of seeds: "ppo (n = 3)", or "ppo (n = 1 to 3)" where the tasks differ."""
    seeds = sorted({len(cell.seeds) for cell in members if cell.name == name})
    label = f"{name} (n = {' to '.join(str(n) for n in dict.fromkeys([seeds[0], seeds[-1]]))})"
    return plt.Line2D([], [], color=colour, label=label, linestyle="--" if seeds == [1] else "-")


def draw_curves(path: Path, found: list[Cell], published: list[Published]) -> Path:
    """One panel per task (two where it reports success), one line per algorithm; hollow: published at that step."""
    found = [cell for cell in found if cell.seeds]
    colour = colours(found)
    panels = [(members, metric) for task in sorted({cell.env_id for cell in found}) for metric in METRICS
              if (members := [cell for cell in found if cell.env_id == task and cell.has(metric)])]  # fmt: skip
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, 2.3 * rows), squeeze=False, layout="constrained")
        for k, ((members, metric), axes) in enumerate(zip(panels, grid.flat, strict=False)):
            draw_panel(axes, members, metric, published, colour)
            if metric == "return" and k % columns:
                axes.set_ylabel("")
            if k + columns >= len(panels):
                axes.set_xlabel("environment steps")
        handles = [legend_line(name, found, colour[name]) for name in colour]
        if any(axes.containers for axes in grid.flat):
            handles += [plt.Line2D([], [], color="grey", marker="o", mfc="white", linestyle="", label="published")]
        free = grid.flat[len(panels) :]
        for axes in free:
            axes.set_axis_off()
        if len(free) and len(handles) <= 13:
            free[0].legend(handles=handles, loc="center left", frameon=False)
        else:
            figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
        figure.suptitle("Mean over seeds with its 95 % t interval; dashed: one seed")
        return save(figure, path)


def steps_per_second(found: list[Cell]) -> dict[str, float]:
    """Name -> steps per second of a whole run, evaluations included: the median over its runs that tell."""
    speeds: dict[str, list[float]] = {}
    for cell in found:
        timed = cell.runs[(cell.runs["state"] == "done") & (cell.runs["seconds"] > 0)]
        speeds.setdefault(cell.name, []).extend(timed["total_timesteps"] / timed["seconds"])
    return {name: float(np.median(values)) for name, values in speeds.items() if values}


def draw_speed(path: Path, speeds: dict[str, float], colour: dict[str, str]) -> Path:
    """Bars of steps per second."""
    names = [name for name in colour if name in speeds][::-1]
    with plt.rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure, axes = plt.subplots(figsize=(WIDTH, 0.6 + 0.24 * len(names)), layout="constrained")
        bars = axes.barh(names, [speeds[name] for name in names], color=[colour[name] for name in names], height=0.7)
        axes.bar_label(bars, [f"{speeds[name]:.0f}" for name in names], padding=3)
        axes.set(xscale="log", xlim=(min(speeds.values()) / 2, max(speeds.values()) * 2), axisbelow=True)
        axes.set(xlabel="environment steps per second (logarithmic)")
        axes.set(title="Speed of whole runs, evaluations included: median over runs")
        return save(figure, path)


def draw_aggregates(path: Path, matrices: dict[str, np.ndarray], colour: dict[str, str]) -> Path:
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
        return save(figure, path)


def draw_profiles(path: Path, matrices: dict[str, np.ndarray], colour: dict[str, str]) -> Path:
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
        return save(figure, path)
