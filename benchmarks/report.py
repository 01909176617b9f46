"""Tables and pictures of results: run folders and csv files beside each other and beside published returns.

    python benchmarks/report.py --results runs                            # all runs below a folder
    python benchmarks/report.py --results benchmarks/results mine.csv     # ours and your own algorithm
    python benchmarks/report.py --results runs --compare ppo sb3-ppo      # two of them at equal tasks and steps
    python benchmarks/report.py --results runs --export benchmarks/results

The csv format is described in records.py, the statistics in scores.py. The same results always give the same bytes.
"""

from __future__ import annotations

import itertools
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import plots
import tyro
from published import Comparison, Published, anchors, compare, load_published, reference, select
from records import FIRST_TUNING_SEED, METRICS, OURS, InputError, count, export, read, read_json, write_atomically
from rich.console import Console
from rich.table import Table
from scores import AGGREGATES, LEAST_BOOTSTRAP, SAME_STEP, Cell, aggregates, bootstrap, cells, longest, normalised

from scores import is_tuning, number, t_interval, welch  # isort: skip

FEW_SEEDS = 3  # a cell with fewer is printed small
MEAN, VERDICT = "mean [95 % t interval]", "verdict: difference [95 % interval]"
LOST = 0.25  # share of what was learned that is gone at the end


def table(header: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table, "" without rows."""
    texts = [[str(x).replace("\n", " ").replace("|", "\\|") for x in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in [header, *texts]]
    return "\n".join([lines[0], re.sub(r"[^|]+", " --- ", lines[0]), *lines[1:], ""]) if texts else ""


def interval_text(values: np.ndarray) -> str:
    """Mean of scores and its t interval: "9512 [9107, 9917]"."""
    sd = values.std(ddof=1) if len(values) > 1 else None
    return number(values.mean(), t_interval(values.mean(), sd, len(values)))


def published_text(row: Published, steps: float) -> str:
    """A published figure with its step (where it is not `steps`), version, seeds and source."""
    spread = [float(x) for x in row.spread.split("|") if x]
    mean = f"{number(row.mean)} ± {number(*spread)}" if len(spread) == 1 else number(row.mean, spread)
    step = " at unstated steps" if np.isnan(row.step) else f" at {count(row.step)}"
    step = "" if abs(row.step - steps) <= SAME_STEP * steps else step
    seeds = "1 agent, over episodes" if row.kind == "single" else f"{row.seeds or '?'} seed{'s' * (row.seeds != 1)}"
    return f"{mean}{step} ({row.env_id.rpartition('-')[2]}, {seeds}, {row.source})"


def seeds_text(cell: Cell) -> str:
    """How many seeds count, and what became of the others: "2 of 3; seed 2 failed: exit 1; stale"."""
    others = [f"seed {run.seed} {run.state}" for run in cell.runs.itertuples() if run.state != "done"]
    text = f"{len(cell.seeds)} of {len(cell.runs)}" if others else str(len(cell.seeds))
    return "; ".join([text, *others, *["stale"] * bool(cell.runs["stale"].any())])


def is_lost(means: Sequence[float], start: float) -> bool:
    """Whether the last of some means is below the best by more than LOST of what that is above the start."""
    return bool(max(means) - means[-1] > LOST * (max(means) - start) > 0)


def best_text(cell: Cell, metric: str, published: list[Published]) -> str:
    """Best mean over training, and where it was lost: "9347 at 50k, then lost (there too)"."""
    means = cell.curve(metric).mean(axis=1)
    points = [row.mean for row in select(published, "reference", cell, metric)]
    here, there = is_lost(means.to_list(), means.iloc[0]), bool(points) and is_lost(points, means.iloc[0])
    remark = {(True, False): ", then lost", (True, True): ", then lost (there too)", (False, True): " (lost there)"}
    return f"{number(means.max())} at {count(means.idxmax())}" + remark.get((here, there), "")


def measured_speeds(path: Path) -> dict[str, str]:
    """Algorithm -> median steps/s of ours in the table that speed.py wrote; {} if there is none."""
    if not path.exists():
        return {}
    measured = pd.read_csv(path).query("side == 'ours'").groupby("algorithm")["steps_per_second"].median()
    return {name: f"{rate:.0f}" for name, rate in measured.items()}


def matrix_cell(cell: Cell, comparison: Comparison | None, metric: str, total: int) -> str:
    """ours / published of one algorithm on one task."""
    if not cell.has(metric):
        return "–" if cell.seeds else "failed" if cell.runs["state"].str.startswith("failed").any() else "unfinished"
    theirs, verdict = "–", ""
    ours = number(cell.final(metric).mean()) + (f" at {count(cell.total)}" if cell.total != total else "")
    if comparison and comparison.difference:
        theirs, verdict = number(comparison.row.mean), comparison.difference.verdict
    elif comparison:
        theirs = f"({number(comparison.row.mean)})"
    if comparison and comparison.ours is not None and comparison.row.step < (1 - SAME_STEP) * cell.total:
        ours += f"; {number(comparison.ours.mean())}"
        theirs += f" at {count(comparison.row.step)}"
    text = f"{ours} / {theirs}"
    text = {"higher": f"**{text}**", "lower": f"▾ {text}"}.get(verdict, text)
    return f"<sub>{text}</sub>" if len(cell.seeds) < FEW_SEEDS else text


def matrix(found: list[Cell], published: list[Published], measured: dict[str, str]) -> str:
    """Algorithms by tasks, ours / published, and what the signs mean; steps/s as `measured`, else of whole runs."""
    best = {(cell.name, cell.env_id): cell for cell in longest(found)}
    tasks = sorted({task for _, task in best}, key=lambda task: ("Fetch" in task, task))
    totals = {task: max(cell.total for cell in best.values() if cell.env_id == task) for task in tasks}
    rated = {cell.env_id for cell in best.values() if cell.has("success")}
    metric = {task: "success" if task in rated else "return" for task in tasks}
    speeds = measured or {name: f"{value:.0f}" for name, value in plots.steps_per_second(longest(found)).items()}
    tested, rows = [], []
    shown = {c.name for c in best.values() if c.name == c.algorithm or not c.runs["stale"].all()}  # no settings of old
    for name in [name for name in plots.colours(found) if name in shown]:
        row = [name]
        for task in tasks:
            if not (cell := best.get((name, task))):
                row.append("")
                continue
            claims = select(published, "headline", cell, metric[task])
            comparison = reference(cell, published, metric[task]) or (compare(cell, claims[0]) if claims else None)
            row.append(matrix_cell(cell, comparison, metric[task], totals[task]))
            if comparison and comparison.difference and not comparison.difference.untested:
                tested.append(comparison.difference.verdict)
        rows.append([*row, speeds.get(name, "")])
    header = [f"{task}<br>{count(totals[task])}{', success' * (task in rated)}" for task in tasks]
    runs = pd.concat([cell.runs for cell in found])
    separable = len(tested) - tested.count("not separable")
    legend = (
        "Mean over seeds of the last evaluation / published reference, at the steps on top; where the reference is of "
        "earlier steps, both at those steps behind the semicolon. "
        f"**Bold**: separably higher, ▾: separably lower (Welch's test at 95 %). Small: fewer than {FEW_SEEDS} seeds. "
        "In parentheses: not judged, being of another version of the task, other settings, more or unstated steps. "
        f"{separable} of {len(tested)} tested differences are separable; one in twenty would be by chance. steps/s: "
        + ("as in speed.md, on one thread, without evaluations." if measured else "of whole runs, with evaluations.")
    )
    if stale := runs["stale"].sum():
        legend += f" {stale} of {len(runs)} runs are of earlier code."
    return table(["algorithm", *header, "steps/s"], rows) + f"\n<sub>{legend}</sub>\n"


def result_rows(found: list[Cell], published: list[Published]) -> tuple[pd.DataFrame, str]:
    """A row of texts per cell and metric with all that is known of it, without empty columns; and the notes."""
    rows, notes = [], {}
    for cell in found:
        start = {"task": cell.env_id, "algorithm": cell.name, "steps": count(cell.total), "seeds": seeds_text(cell)}
        rows += [start] * (not cell.seeds)
        for metric in filter(cell.has, METRICS):
            values, comparison = cell.final(metric), reference(cell, published, metric)
            iqm = bootstrap(values[:, None], lambda x: np.array([AGGREGATES["IQM"](x)]))
            claims = [x for kind in ("headline", "single") for x in select(published, kind, cell, metric)]
            row = start | {"of": METRICS[metric], MEAN: interval_text(values)}
            row["IQM [95 % bootstrap]"] = "" if iqm is None else number(AGGREGATES["IQM"](values), iqm.ravel())
            row["best over training"] = best_text(cell, metric, published)
            row["claims"] = "; ".join(published_text(x, cell.total) for x in claims)
            if comparison:
                names = [notes.setdefault(note, f"n{len(notes) + 1}") for note in comparison.notes]
                row["reference"] = published_text(comparison.row, cell.total)
                row |= {VERDICT: comparison.verdict, "notes": ", ".join(names)}
            rows.append(row)
    texts = pd.DataFrame(rows).fillna("")
    return texts.loc[:, (texts != "").any()], "".join(f"\n{name}: {note}\n" for note, name in notes.items())


def points(found: list[Cell], published: list[Published]) -> str:
    """Ours beside every published figure at its own step: points of curves, and figures for the same version."""
    rows = []
    for cell, kind, metric in itertools.product(longest(found), ("reference", "v5"), METRICS):
        for made in [compare(cell, row) for row in select(published, kind, cell, metric)]:
            if made.ours is not None:
                verdict = made.verdict if kind == "reference" else f"few seeds, not judged. {made.row.caveat}".strip()
                theirs = published_text(made.row, made.row.step)
                rows.append([cell.env_id, cell.name, METRICS[metric], count(made.row.step), interval_text(made.ours),
                             theirs, verdict])  # fmt: skip
    header = ["task", "algorithm", "of", "step", "ours [95 % t interval]", "published", "verdict: difference"]
    return table(header, rows)


def across_tasks(found: list[Cell], published: list[Published]) -> tuple[str, dict[str, np.ndarray]]:
    """Aggregates of normalised scores, and the scores themselves; ("", {}) if there is nothing to aggregate."""
    limits = {task: anchors(task, published) for task in {cell.env_id for cell in found}}
    tasks, matrices = normalised(longest(found), {k: (x[0].mean, x[1].mean) for k, x in limits.items() if x})
    levels = []
    for task in tasks:
        zero, one = limits[task]
        levels.append(
            f"{task} {number(zero.mean)} and {number(one.mean)} ({one.algorithm}, {one.env_id}, {one.source})"
        )
    rows = []
    for name, scores in matrices.items():
        estimates = zip(*np.vstack(aggregates(scores)), strict=True)
        texts = [f"{x:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low < high else "") for x, low, high in estimates]
        rows.append([name, len(scores), *texts])
    text = (
        f"Final returns on {', '.join(tasks)}, scaled so that 0 is a policy of random actions and 1 the best published "
        f"reference of any algorithm at 1M steps: {'; '.join(levels)}. Mean with its t interval; IQM and optimality "
        f"gap (what runs lack to 1; lower is better) with bootstrap intervals from {LEAST_BOOTSTRAP} seeds on.\n\n"
    )
    return (text + table(["algorithm", "seeds", *AGGREGATES], rows) if rows else ""), matrices


def troubles(found: list[Cell], tuning: int) -> str:
    """Runs that do not count, with what their error says, and how many are for tuning; "" if nothing."""
    rows = [[cell.env_id, cell.name, run.seed, run.state, run.error]
            for cell in found for run in cell.runs.itertuples() if run.state != "done"]  # fmt: skip
    text = f"\n{tuning} runs on seeds from {FIRST_TUNING_SEED} on, which are for tuning: --tuning-seeds shows them.\n"
    return table(["task", "algorithm", "seed", "state", "error"], rows) + text * bool(tuning)


def compared(a: str, b: str, found: list[Cell]) -> str:
    """Two algorithms at the same tasks and steps: on the way and at the end of the shorter runs.

    Raises InputError if one of them, or a task that they share, is missing.
    """
    names, finished = sorted({cell.name for cell in found}), []
    for name in (a, b):
        known = [full for full in names if name in (full, full.partition(" (")[0])]  # "myalgo (mine)" is myalgo, too
        if len(known) != 1 and name not in known:
            raise InputError(f"--compare {name} is not in the results: choose from {', '.join(names)}")
        full = name if name in known else known[0]
        finished.append([cell for cell in found if cell.name == full and cell.seeds])
    pairs = [(x, y) for x, y in itertools.product(*finished) if x.env_id == y.env_id]
    pairs.sort(key=lambda pair: (pair[0].total == pair[1].total, min(pair[0].total, pair[1].total)))
    rows = []
    for task, (x, y) in sorted({x.env_id: (x, y) for x, y in pairs}.items()):  # the longest, if possible equally long
        end = min(x.total, y.total)
        steps = [*(step for step in (100_000, 300_000, 500_000) if step < 0.9 * end), end]
        for metric, step in itertools.product(METRICS, steps):
            left, right = x.at(step, metric), y.at(step, metric)
            if left is not None and right is not None:
                sd = right.std(ddof=1) if len(right) > 1 else None
                difference = str(welch(left, right.mean(), sd, len(right)))
                rows.append([task, METRICS[metric], count(step), interval_text(left), interval_text(right), difference])
    if not rows:
        raise InputError(f"--compare {a} {b}: on no task have both finished runs that were evaluated at the same steps")
    return table(["task", "of", "step", a, b, f"{a} - {b} [95 % interval]"], rows)


def score_table(found: list[Cell]) -> pd.DataFrame:
    """scores.csv: one row per cell and metric; `best` is the highest mean over seeds of all evaluations."""
    rows = []
    for cell, metric in itertools.product(found, METRICS):
        if cell.has(metric):
            values, means = pd.Series(cell.final(metric)), cell.curve(metric).mean(axis=1)
            low, high = t_interval(values.mean(), values.std(), len(values)) or (None, None)
            last_ten = cell.evaluations.groupby("seed").tail(10).groupby("seed")[metric].mean().mean()
            rows.append({"source": cell.source, "algorithm": cell.name, "env_id": cell.env_id, "steps": cell.total,
                         "metric": metric, "seeds": len(values), "mean": values.mean(), "low": low, "high": high,
                         "median": values.median(), "last_ten": last_ten, "best": means.max(),
                         "best_step": means.idxmax()})  # fmt: skip
    return pd.DataFrame(rows)


TITLES = {"matrix": "Ours / published", "compare": "Compared", "results": "Results",
          "points": "At the steps of published figures", "across-tasks": "Across tasks",
          "troubles": "Runs that do not count"}  # fmt: skip


@dataclass
class Options:
    """Which results to compare, and where to write the report."""

    results: tuple[Path, ...]
    """Run folders, folders of them, folders with results.csv, csv files. Of copies of a run, the last named that has
    ended counts."""
    compare: tuple[str, str] | None = None
    """Two algorithms, by their names in the tables, to set beside each other at the same tasks and steps."""
    output: Path | None = None
    """Folder for report.md, scores.csv and the pictures; default the first of --results that is a folder, else the
    current one (with --tuning-seeds: tuning/ in it)."""
    into: tuple[Path, ...] = ()
    """Files whose text between `<!-- report:SECTION -->` and `<!-- /report -->` is renewed, in place of report.md."""
    tuning_seeds: bool = False
    """Show the seeds that are used for tuning (11 and up) instead of those that report."""
    export: Path | None = None
    """Merge all finished and failed runs into results.csv and runs.csv of this folder, in place of earlier copies of
    the same runs, keep a policy of each cell in its policies/, and do nothing else."""


def keep_policies(found: list[Cell], folder: Path) -> None:
    """Copy config.json and policy.pt of one run per cell of ours to folder/NAME/ENV_ID.

    Of the seeds whose run folder is at hand, or whose copy is there already, it is the one that ended nearest the
    median of all seeds.
    """
    for cell in longest([cell for cell in found if cell.source == OURS and cell.seeds]):
        kept = folder / cell.name / cell.env_id
        at_hand = {read_json(kept / "config.json").get("args", {}).get("seed"): kept}
        at_hand |= {run.seed: Path(run.folder) for run in cell.runs.itertuples() if run.folder}
        scores = pd.Series(cell.final("return"), cell.seeds)
        candidates = [seed for seed in cell.seeds if (at_hand.get(seed, Path()) / "policy.pt").exists()]
        seed = (scores - scores.median()).abs()[candidates].idxmin() if candidates else None
        if seed is not None and at_hand[seed] != kept:
            kept.mkdir(parents=True, exist_ok=True)
            for name in ("config.json", "policy.pt"):
                shutil.copy(at_hand[seed] / name, kept)


def merge(options: Options) -> None:
    """--export."""
    earlier = [options.export] if (options.export / "results.csv").exists() else []
    evaluations, runs = read([*earlier, *options.results])
    kept = runs[runs["state"].str.match("done|failed")]
    found = cells(evaluations, kept)
    shown = kept["run"].isin([run for cell in found for run in cell.runs["run"]])
    kept = kept[shown | ~kept["stale"] | is_tuning(kept)]  # without earlier code's where there are as many of today's
    export(evaluations[evaluations["run"].isin(kept["run"])], kept, options.export)
    keep_policies(found, options.export / "policies")
    left = f"{len(runs) - len(kept)} unfinished ones left out"
    print(f"{options.export} now holds {len(kept)} runs, {kept['stale'].sum()} of them of earlier code; {left}")


def put_into(path: Path, made: dict[str, str]) -> str:
    """A file's text with its generated parts renewed. Raises InputError for a file without markers."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read --into {path} ({error}): name a text file with markers") from error
    pattern = re.compile(r"(<!-- report:([\w-]+) -->\n).*?(<!-- /report -->)", re.DOTALL)
    names = {name for _, name, _ in pattern.findall(text)}
    if not names or names - TITLES.keys():
        wanted = "<!-- report:NAME --> and <!-- /report -->, each on a line of its own; NAME: " + ", ".join(TITLES)
        raise InputError(f"--into {path} has no markers, or unknown ones: add {wanted}")
    return pattern.sub(lambda match: f"{match[1]}\n{made.get(match[2]) or 'Nothing.'}\n{match[3]}", text)


def report(options: Options) -> None:
    """Write what is asked for and print the summary. Raises InputError."""
    evaluations, runs = read(options.results)
    found, published = cells(evaluations, runs, options.tuning_seeds), load_published()
    if not found:
        remedy = f"no runs on seeds {FIRST_TUNING_SEED} and up" if options.tuning_seeds else "only runs for tuning"
        raise InputError(f"{remedy}: {'leave out' if options.tuning_seeds else 'add'} --tuning-seeds")
    for path in options.into:
        put_into(path, {})  # before anything is written
    made = {"compare": compared(*options.compare, found)} if options.compare else {}
    folder = next((path for path in options.results if path.is_dir()), Path())
    output = options.output or (folder / "tuning" if options.tuning_seeds else folder)
    output.mkdir(parents=True, exist_ok=True)
    (rows, notes), (across, matrices) = result_rows(found, published), across_tasks(found, published)
    colour = plots.colours(found)
    tuning = 0 if options.tuning_seeds else is_tuning(runs).sum()
    made["matrix"] = matrix(found, published, measured_speeds(folder / "speed.csv"))
    made |= {"results": table(rows, rows.to_numpy()) + notes, "points": points(found, published)}
    made |= {"across-tasks": across, "troubles": troubles(found, tuning)}
    pictures = []
    if any(cell.seeds for cell in found):
        pictures.append(plots.draw_curves(output / "curves.png", longest(found), published))
    if speeds := plots.steps_per_second(longest(found)):
        pictures.append(plots.draw_speed(output / "speed.png", speeds, colour))
    if matrices:
        pictures.append(plots.draw_aggregates(output / "aggregates.png", matrices, colour))
        pictures.append(plots.draw_profiles(output / "profiles.png", matrices, colour))
    write_atomically(output / "scores.csv", score_table(found).to_csv(index=False, float_format="%.6g"))
    for path in options.into:
        write_atomically(path, put_into(path, made))
    if not options.into:
        parts = [f"## {TITLES[name]}\n\n{made[name]}" for name in TITLES if made.get(name)]
        parts += [f"![{path.stem}]({path.name})\n" for path in pictures]
        write_atomically(output / "report.md", "# Report\n\n" + "\n".join(parts))
    summary = rows[rows.columns.intersection(["task", "algorithm", "of", "steps", "seeds", MEAN, "reference", VERDICT])]
    shown, tasks = Table(*summary, show_lines=True, padding=(0, 0)), read(options.results[:1])[1]["env_id"]
    for row in summary[summary["task"].isin(tasks)].to_numpy():  # of the results named first; the report has all
        shown.add_row(*(text.replace("[", "\\[") for text in row))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(shown)
    console.print(made.get("compare", ""), markup=False)
    print(*options.into or [output / "report.md"], output / "scores.csv", *pictures, sep="\n")


def main() -> int:
    """Command line; exit code 2 for what the user can put right."""
    options = tyro.cli(Options, description=__doc__)
    try:
        merge(options) if options.export else report(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write {error.filename or options.output} ({error.strerror}): free it", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
