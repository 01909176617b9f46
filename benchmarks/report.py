"""Tables and pictures of a benchmark: our results beside the published ones.

    python benchmarks/report.py --results DIR --suite NAME [--readme README.md]

reads the run folders DIR/NAME/ALGORITHM/ENV_ID/SEED/ and benchmarks/published.csv, and writes report.md and pictures to
DIR/NAME. A seed's score is its mean return over the episodes of its last evaluation, at total_timesteps. The same runs
always give the same bytes.
"""

from __future__ import annotations

import itertools
import shlex
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import plots
import tyro
from plots import MILESTONES, NEAR_STEP
from published import (
    Comparison,
    Published,
    anchors,
    can_compare,
    compare,
    load_published,
    number,
    select,
    split_env_id,
)
from records import SAME_STEP, InputError, Run, count, load_runs, write_atomically
from rich.console import Console
from rich.table import Table
from scores import (
    AGGREGATES,
    RESAMPLES,
    Interval,
    Result,
    aggregates,
    estimate_at,
    improvement,
    nearest,
    normalised,
    summarise,
)
from suites import REMARKS, SUITES, TRIALS, TUNING

# ======================================================================================================================
# 1 Cells
# ======================================================================================================================

SUMMARY = [
    "task", "algorithm", "steps", "seeds", "ours: mean [95 % CI]", "ours: median [95 % CI]", "ours: IQM [95 % CI]",
    "published reference", "published headline", "difference", "verdict",
]  # fmt: skip
EXPLANATION = f"""\
Ours: a seed's score is its mean return over the episodes of its last evaluation with the deterministic policy, at the
given step; mean, median and interquartile mean (IQM) over the seeds that finished. CI: 95 % stratified bootstrap
({RESAMPLES} resamples, rliable); over few seeds it is too narrow, and over two or three it is the range of the seeds.
Reference: of the figures found that were evaluated at that step (or in the ten evaluations before: see the notes),
with 8 seeds or more (HER: 1), the one with the highest mean, ± its standard deviation over seeds; its source may
differ from step to step. Headline: the best published claim, often a maximum over training. Difference: our mean
minus the reference. Verdict: we are above or below when our CI lies wholly above or below the 95 % interval of the
reference's mean (Student's t; without a published deviation the mean itself), else within. (roughly), (caveat): the
versions differ; (protocol): the protocols do; the notes below the table say how. Stale: the algorithm's part of the
script (comments and shared blocks aside) or the suite's settings have changed since the result was made."""


def with_interval(value: float, bounds: Interval | None) -> str:
    """A score and its interval: "9512 [9107, 9843]"."""
    return number(value) + (f" [{number(bounds[0])}, {number(bounds[1])}]" if bounds else "")


def published_text(row: Published | None, ours: int | None, protocol: bool = True) -> str:
    """A published figure with its step (where it is not ours), version, seeds and source; on request its protocol."""
    if row is None:
        return "-"
    step = f" at {count(row.env_steps)}"
    if ours is not None and nearest([row.env_steps], ours, SAME_STEP) is not None:
        step = ""
    details = f"{row.env_version}, {row.seeds or 'unknown'} seed{'' if row.seeds == '1' else 's'}, {row.source}"
    if protocol:
        details += f": {textwrap.shorten(row.protocol, 60, placeholder=' …')}"
    mean = number(row.mean)
    if "|" in row.spread:
        mean = with_interval(row.mean, row.interval)
    elif row.spread:
        mean += f" ± {number(float(row.spread))}"
    return f"{'success ' * (row.metric == 'success_rate')}{mean}{step} ({details})"


def seeds_text(result: Result) -> str:
    """How many seeds count, and what became of the others: "2 of 3 seeds; seed 2 failed: exit 1"."""
    troubles = [f"seed {run.seed} {trouble}" for run in result.runs if (trouble := run.trouble(result.total))]
    runs, scored = len(result.runs), len(result.scored)
    counted = f"{scored} of {runs} seeds" if troubles else f"{runs} seed{'' if runs == 1 else 's'}"
    stale = [run.seed for run in result.scored if run.stale]
    return "; ".join([counted, *troubles, *([f"stale: seed {', '.join(stale)}"] if stale else [])])


def summary_row(result: Result, comparison: Comparison, protocol: bool = True) -> list[str]:
    """The cells of SUMMARY for one result."""
    cells: dict[str, list[str]] = {"mean": [], "median": [], "iqm": []}
    for metric, ours in result.estimates.items():
        name = "success " if metric == "success_rate" else ""
        for statistic, texts in cells.items():
            texts.append(name + with_interval(getattr(ours, statistic), getattr(ours, f"{statistic}_interval")))
        cells["mean"][-1] += " (1 seed, no interval)" * (ours.mean_interval is None)
    difference = comparison.difference
    return [
        result.env_id,
        result.label,
        count(result.total),
        seeds_text(result),
        *("; ".join(texts) or "-" for texts in cells.values()),
        published_text(comparison.reference, result.total, protocol),
        published_text(comparison.headline, result.total, protocol),
        "-" if difference is None else f"{'+' * (difference >= 0)}{number(difference)}",
        comparison.verdict,
    ]


def milestone_rows(results: list[Result], published: list[Published]) -> list[list[str]]:
    """Per result: task, algorithm, then for each milestone "ours vs published", "" beyond the run's length."""
    rows = []
    for result in results:
        metric = plots.metric_of(result.env_id, results)
        references = [row for row in select(published, "reference", result) if row.metric == metric]
        row = [result.env_id, result.label]
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
                incomparable = "" if can_compare(result.env_id, reference) else ", not comparable"
                theirs = f"{number(reference.mean)} ({where}, {reference.source}{incomparable})"
            success = "success " * (metric == "success_rate")
            cell = with_interval(ours.mean, ours.mean_interval) + " (1 seed)" * (ours.seeds == 1) if ours else "-"
            row.append(f"{success}{cell} vs {theirs}")
        rows.append(row)
    return rows


def provenance_row(run: Run, total: int | None) -> list[str]:
    """What produced one run folder."""
    versions = run.status.get("versions") or run.session.get("versions") or {}
    script = run.status.get("script_sha256") or run.session.get("script_sha256") or "?"
    platform = ", ".join(filter(None, [run.session.get("platform"), run.session.get("device")]))
    return [
        run.env_id,
        run.label,
        run.seed,
        (run.trouble(total) or "done") + (f", stale: {run.stale}" if run.stale else ""),
        count(run.reached),
        "?" if run.seconds is None else f"{run.seconds / 60:.1f} min",
        ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) or "?",
        script[:8],
        run.status.get("hardware") or platform or "?",
        "; then ".join(shlex.join(map(str, command)) for command in run.commands) or "?",
    ]


# ======================================================================================================================
# 2 Tables
# ======================================================================================================================


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


def coverage(suite: str, results: list[Result]) -> str:
    """How much of the suite has been run, and what has not; "" if all has."""
    planned = {(e.label, e.env_id) for e in SUITES.get(suite, [])}
    missing = planned - {(result.label, result.env_id) for result in results if result.scored}
    if not missing:
        return ""
    labels = {env_id: {label for label, task in planned if task == env_id} for _, env_id in planned}
    whole = sorted(env_id for env_id in labels if all((label, env_id) in missing for label in labels[env_id]))
    parts = [f"nothing on {', '.join(whole)}"] * bool(whole)
    for label in sorted({label for label, _ in missing}, key=plots.rank):
        tasks = sorted(env_id for name, env_id in missing if name == label and env_id not in whole)
        parts += [f"no {label} on {', '.join(tasks)}"] * bool(tasks)
    return f"{len(planned) - len(missing)} of the suite's {len(planned)} rows have been finished: {'; '.join(parts)}."


def render_summary(suite: str, results: list[Result], published: list[Published], brief: bool = False) -> str:
    """The summary table; under it what is missing and how the versions and protocols that are compared differ.

    A `brief` one has neither medians and interquartile means nor protocols; that of a trial no verdicts.
    """
    comparisons = [compare(result, published) for result in results]
    left_out = ("ours: median", "ours: IQM") * brief + ("difference", "verdict") * (suite in TRIALS)
    kept = [i for i, name in enumerate(SUMMARY) if not name.startswith(left_out)]
    rows = [summary_row(*pair, protocol=not brief) for pair in zip(results, comparisons, strict=True)]
    text = markdown_table([SUMMARY[i] for i in kept], [[row[i] for i in kept] for row in rows])
    if missing := coverage(suite, results):
        text += f"\n{missing}\n"
    notes = {comparison.note for comparison in comparisons if comparison.note}
    references = [comparison.reference for comparison in comparisons if comparison.reference]
    for key in {(row.source, row.caveat) for row in references if row.caveat}:
        algorithms = {row.algorithm for row in references if (row.source, row.caveat) == key}
        notes.add(f"{key[0]}, {', '.join(sorted(algorithms))}: {key[1]}")
    return text + "".join(["\nNotes:\n\n", *(f"- {note}\n" for note in sorted(notes))] if notes else [])


def levels_of(limits: dict[str, tuple[Published, Published]]) -> dict[str, tuple[float, float]]:
    """The returns of the figures that count as 0 and 1."""
    return {task: (zero.mean, one.mean) for task, (zero, one) in limits.items()}


def render_aggregates(results: list[Result], published: list[Published]) -> str:
    """Scores across tasks: aggregates and probabilities of improvement, or that there is nothing to aggregate."""
    limits = anchors({result.env_id for result in results}, published)
    tasks, matrices = normalised(results, levels_of(limits))
    if not matrices:
        return "## Across tasks\n\nNo algorithm has two seeds on each of two tasks with a comparable reference.\n"
    levels = "; ".join(
        f"{task} {number(zero.mean)} and {number(one.mean)} ({one.algorithm}, {one.env_version}, {one.source})"
        for task, (zero, one) in ((task, limits[task]) for task in tasks)
    )
    seeds = ", ".join(f"{label} {len(matrix)}" for label, matrix in matrices.items())
    left_out = [f"{r.label} on {r.env_id}" for r in results if r.label not in matrices or r.env_id not in tasks]
    rows = []
    for label, matrix in matrices.items():
        points, bounds = aggregates(matrix)
        cells = [f"{point:.3f} [{low:.3f}, {high:.3f}]" for point, low, high in zip(points, *bounds, strict=True)]
        rows.append([label, *cells])
    pairs = []
    for x, y in itertools.combinations(matrices, 2):
        chance, (low, high) = improvement(matrices[x], matrices[y])
        pairs.append([x, y, f"{chance:.2f} [{low:.2f}, {high:.2f}]"])
    return "\n".join(
        [
            "## Across tasks\n",
            "Final returns, scaled so that 0 is a policy of random actions and 1 the best published reference of any "
            f"algorithm at 1M steps: {levels}. How those versions and protocols differ from ours is said above. Seeds: "
            f"{seeds}. Median and mean are over tasks of the mean over seeds; the optimality gap is what runs lack to "
            "1 on average (lower is better). Intervals as above; one without width means that on every task the runs "
            "are in the same order, or tied, whatever seeds are drawn. Left out for want of a comparable reference, a "
            "second seed or a task that the others have: "
            f"{', '.join(left_out) or 'nothing'}.\n",
            markdown_table(["algorithm", *AGGREGATES], rows),
            "Probability of improvement: that a run of X scores higher than one of Y on the same task, over tasks.\n",
            markdown_table(["X", "Y", "P(X > Y) [95 % CI]"], pairs),
            "![Aggregates and performance profiles](aggregates.png)\n",
        ]
    )


def render_same_version(results: list[Result], published: list[Published]) -> str:
    """Our means beside what small repositories report for the same version of the task; "" if they have nothing."""
    rows = [
        [result.env_id, result.label, with_interval(ours.mean, ours.mean_interval) + " (1 seed)" * (ours.seeds == 1),
         published_text(row, result.total), row.caveat or "-"]
        for result in results for row in select(published, "v5", result)
        if split_env_id(result.env_id)[1] == row.env_version and (ours := result.estimates.get(row.metric))
        and nearest([row.env_steps], result.total, SAME_STEP) is not None
    ]  # fmt: skip
    if not rows:
        return ""
    header = ["task", "algorithm", "ours: mean [95 % CI]", "published", "differs from ours in"]
    return (
        "## The same version elsewhere\n\nFigures for this very version of a task, from small repositories with few "
        f"seeds: for orientation, without a verdict.\n\n{markdown_table(header, rows)}"
    )


def render_report(suite: str, results: list[Result], published: list[Published], pictures: list[str]) -> str:
    """The text of report.md; `pictures` are the names of those drawn."""
    seeds = sorted({run.seed for result in results for run in result.runs}, key=int)
    listed = f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(seeds)}"
    if suite in TRIALS:
        parts = [f"# Trial {suite}\n", f"{TRIALS[suite]} These are trials on {listed}, which are not reported.\n"]
    else:
        parts = [f"# Results of suite {suite}\n", f"{listed.capitalize()}. Settings were tuned on {TUNING}.\n"]
    parts += [EXPLANATION + "\n", render_summary(suite, results, published)]
    remarks = [
        f"- {result.label} on {result.env_id}: {REMARKS[suite, result.label, result.env_id]}\n"
        for result in results if (suite, result.label, result.env_id) in REMARKS
    ]  # fmt: skip
    if remarks:
        parts += ["## Remarks\n", "".join(remarks)]
    runs = [(run, result.total) for result in results for run in result.runs]
    if troubled := [(run, trouble) for run, total in runs if (trouble := run.trouble(total))]:
        header = ["task", "algorithm", "seed", "state", "last line of stderr"]
        rows = [[run.env_id, run.label, run.seed, trouble, run.last_error()] for run, trouble in troubled]
        parts += ["## Runs that do not count\n", markdown_table(header, rows)]
    parts.append(render_same_version(results, published))
    parts.append("## On the way\n")
    parts.append(
        "Mean return [95 % CI] (success rate where the task reports it) of the seeds above at their evaluation "
        "nearest to the step (within 2.5 %), against the published reference nearest to it (within 10 %; its own step "
        "is given where it differs by more than 2.5 %).\n"
    )
    header = ["task", "algorithm", *(count(step) for step in MILESTONES)]
    table = [row for row in milestone_rows(results, published) if any(row[2:])]
    kept = [k for k, name in enumerate(header) if k < 2 or any(row[k] for row in table)]
    parts.append(markdown_table([header[k] for k in kept], [[row[k] for k in kept] for row in table]))
    parts.append("## Curves\n")
    parts += [f"![{name}]({name}.png)\n" for name in pictures if name != "aggregates"]
    parts.append(render_aggregates(results, published))
    header = ["task", "algorithm", "seed", "state", "steps", "duration", "versions", "script", "hardware", "command"]
    rows = [provenance_row(run, total) for run, total in runs]
    parts += ["## Provenance\n", markdown_table(header, rows, folded=1)]
    header = ["algorithm", "task", "kind", "steps", "version", "mean", "spread", "seeds", "protocol", "source"]
    rows = [
        [row.algorithm, row.task, row.kind, str(row.env_steps), row.env_version, number(row.mean),
         f"{row.spread} ({row.spread_kind})" if row.spread else "-", row.seeds or "-", row.protocol,
         f"{row.source}: {row.source_location}"]
        for result in results for kind in ("reference", "headline", "v5") for row in select(published, kind, result)
    ]  # fmt: skip
    parts += ["## Published figures\n", markdown_table(header, rows)]
    return "\n".join(part for part in parts if part)


def terminal_table(suite: str, results: list[Result], published: list[Published]) -> Table:
    """The columns of the summary that fit a terminal of 80 characters; report.md has the others."""
    left_out = ("ours: IQM", "ours: median", "published headline", "difference") + ("verdict",) * (suite in TRIALS)
    kept = [i for i, name in enumerate(SUMMARY) if not name.startswith(left_out)]
    table = Table(
        *(SUMMARY[i] for i in kept),
        title=f"{'Trial' if suite in TRIALS else 'Results of suite'} {suite}",
        show_lines=True,
        padding=(0, 0),
    )
    for result in results:
        row = summary_row(result, compare(result, published), False)
        table.add_row(*(row[i].replace("[", "\\[") for i in kept))
    return table


# ======================================================================================================================
# 3 Files
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


@dataclass
class Options:
    """Compare the runs of benchmark suites with published results."""

    results: Path
    """Folder of the benchmark; it holds SUITE/ALGORITHM/ENV_ID/SEED/."""
    suite: str | None = None
    """Name of a suite, a folder in results; default all of them."""
    readme: Path | None = None
    """File in which to replace the text between `<!-- results:SUITE -->` and `<!-- /results -->` by the summary.
    Without --suite, of those suites that it has."""


def draw(folder: Path, results: list[Result], published: list[Published]) -> list[str]:
    """Write the pictures that the results allow; returns their names, without .png."""
    plots.draw_curves(folder / "curves.png", results, published)
    drawn = ["curves"]
    if plots.draw_milestones(folder / "milestones.png", results, published):
        drawn.append("milestones")
    if any(len(run.clock) for result in results for run in result.scored):
        plots.draw_wallclock(folder / "wallclock.png", results)
        drawn.append("wallclock")
    tasks, matrices = normalised(results, levels_of(anchors({result.env_id for result in results}, published)))
    if matrices:
        plots.draw_aggregates(folder / "aggregates.png", tasks, matrices)
        drawn.append("aggregates")
    return drawn


def report(options: Options, suite: str) -> None:
    """Write report.md and the pictures (and the README's table), print the summary. Raises InputError."""
    runs = load_runs(options.results, suite)
    wanted = options.readme and (options.suite or f"<!-- results:{suite} -->" in options.readme.read_text())
    parts = readme_parts(options.readme, suite) if wanted else None
    published, results = load_published(), summarise(runs)
    folder = options.results / suite
    try:
        pictures = draw(folder, results, published)
        write_atomically(folder / "report.md", render_report(suite, results, published, pictures))
        if parts:
            summary = render_summary(suite, results, published, brief=True)
            write_atomically(options.readme, f"\n\n{summary}\n".join(parts))
    except OSError as error:
        where = error.filename or folder  # a failed write has no name
        raise InputError(f"cannot write {where} ({error.strerror}): free it or copy the runs") from error
    Console(width=None if sys.stdout.isatty() else 160).print(terminal_table(suite, results, published))
    print(folder / "report.md", *(folder / f"{name}.png" for name in pictures), sep="\n")


def main() -> int:
    """Command line; exit code 2 for what the user can put right."""
    options = tyro.cli(Options, description=__doc__)
    try:
        found = sorted({path.relative_to(options.results).parts[0]
                        for pattern in ("status.json", "harness/status.json")
                        for path in options.results.glob(f"*/*/*/*/{pattern}")})  # fmt: skip
        suites = [options.suite] if options.suite else found
        if not suites:
            raise InputError(f"no suites in --results {options.results}: run one first or correct --results")
        if options.readme and not options.readme.is_file():
            raise InputError(f"cannot read --readme {options.readme}: name a text file with the markers")
        for suite in suites:
            report(options, suite)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
