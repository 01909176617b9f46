"""Search good settings of an algorithm with Optuna; what it finds is confirmed on seeds that the search has not seen.

    python benchmarks/tune.py --algorithm a2c --tasks Hopper-v5=1200 Swimmer-v5=40 --range learning-rate=1e-4:1e-2:log \
--range num-steps=5:64:log --range num-envs=8,16 --range anneal-lr=true,false --seeds 11 12 --trials 30

A trial is a run per task and seed; its score is the mean of their last evaluations, each over its task's scale. After
every evaluation, run after run in the order of seeds and tasks, the mean so far goes to Optuna, whose median rule may
prune the trial. The study is RESULTS/study.db, which any Optuna program reads; the same command goes on after a kill,
with the same runs, and more --trials continue it. The run folders are those of run.py, so that its --status and
report.py work on them. In the end the best settings and the script's defaults are run on as many fresh seeds, the next
ones; RESULTS/best.txt says how both did and holds the entries for suites.py. Seeds 1 to 10 are for results and refused.
Needs pip install -r requirements-extra.txt.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import run
import tyro
from executors import Local
from records import FIRST_TUNING_SEED, InputError, last_words, read_run_folder, write_atomically
from tqdm import tqdm

try:
    import optuna
except ImportError:
    run.fail("Optuna is missing: pip install -r requirements-extra.txt")

Space = dict[str, optuna.distributions.BaseDistribution]
FINISHED = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)


@dataclass
class Args:
    """What to tune, and how."""

    algorithm: str
    """A script of algorithms/, without .py, or the path of an own one."""
    tasks: tuple[str, ...]
    """TASK, or TASK=SCALE if there are several: returns are divided by it (the return of a good agent, say)."""
    range: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """SETTING=LOW:HIGH or SETTING=LOW:HIGH:log, whole numbers if both bounds are; or values as in SETTING=A,B,C, true
    and false for a switch. Repeatable."""
    seeds: tuple[int, ...] = (11, 12)
    """Seeds of a trial (>= 11)."""
    trials: int = 20
    """Trials of the study, earlier ones included (>= 1)."""
    total_timesteps: int = 1_000_000
    """Environment steps of a run (>= 1)."""
    eval_every: int = 50_000
    """Environment steps between evaluations, after each of which a trial may be pruned (>= 1)."""
    flags: str = ""
    """Flags of all runs, as in --flags="--no-compile" (with the equals sign)."""
    results: str = "runs/tune"
    """Folder of the study and its run folders."""
    jobs: int | None = None
    """Runs at a time (>= 1); default one per core."""
    startup_trials: int = 5
    """Trials that are not pruned, and drawn at random (>= 1)."""


def distributions(args: Args) -> Space:
    """The search space, by setting. Raises InputError."""
    space: Space = {}
    for entry in args.range:
        name, _, text = entry.partition("=")
        try:
            if "," in text:
                space[name] = optuna.distributions.CategoricalDistribution(text.split(","))
                continue
            low, high, *scale = text.split(":")
            if scale not in ([], ["log"]):
                raise ValueError("the third part may only be log")
            number, kind = float, optuna.distributions.FloatDistribution
            if low.isdigit() and high.isdigit():
                number, kind = int, optuna.distributions.IntDistribution
            space[name] = kind(number(low), number(high), log=scale == ["log"])
        except ValueError as error:
            raise InputError(f"--range {entry}: {error}; write learning-rate=1e-5:1e-3:log or num-envs=8,16") from error
    if not space:
        raise InputError("nothing to tune: name a --range")
    return space


def flags_of(params: dict[str, object]) -> dict[str, str]:
    """Settings as flags of the script, as in Experiment.flags; numbers to four digits."""
    flags = {}
    for name, value in params.items():
        switch = {"true": name, "false": f"no-{name}"}.get(str(value))
        flags[switch or name] = "" if switch else f"{value:.4g}" if isinstance(value, float) else str(value)
    return flags


def scales_of(args: Args) -> dict[str, float]:
    """Task -> scale of its returns. Raises InputError."""
    try:
        scales = {task: float(scale or 1) for task, _, scale in (word.partition("=") for word in args.tasks)}
    except ValueError as error:
        raise InputError(f"--tasks: {error}; write Hopper-v5=1200") from error
    if not all(scale > 0 for scale in scales.values()) or (len(scales) > 1 and not all("=" in x for x in args.tasks)):
        told = " ".join(args.tasks)
        raise InputError(f"--tasks {told}: several need a scale each, above 0, as in Hopper-v5=1200 Swimmer-v5=40")
    return scales


def jobs_of(args: Args, params: dict[str, object], seeds: tuple[int, ...]) -> list[run.Job]:
    """The runs of a setting, seed by seed; without params, of the defaults. Raises InputError."""
    kind, flags = "script" if args.algorithm.endswith(".py") else "algorithms", flags_of(params)
    changes = {
        "flags": run.parse_flags(f"--eval-every {args.eval_every} {args.flags}") | flags,
        "total_timesteps": args.total_timesteps, "reason": "tuning" if params else "",
        "variant": ",".join(f"{name}={value}" if value else name for name, value in flags.items()),
    }  # fmt: skip
    made = run.experiments(run.Args(tasks=tuple(scales_of(args)), **{kind: (args.algorithm,)}))
    return [run.Job(replace(e, **changes), seed, Path(args.results)) for seed in seeds for e in made]


def make(args: Args, jobs: list[run.Job], watch: Callable[[], str] = lambda: "") -> str:
    """Make those of the runs that are not done, until `watch` says why not. Raises KeyboardInterrupt, InputError."""
    todo, executor = [job for job in jobs if job.status["state"] != "done"], Local()
    reason = run.execute(todo, executor, args.jobs or executor.slots, Path(args.results), watch=watch)
    if reason == "interrupted":
        raise KeyboardInterrupt
    return reason


def evaluations(jobs: list[run.Job], scales: dict[str, float]) -> Iterator[float]:
    """Score after each evaluation of one run after the other: the mean of every run's latest one, over its scale.

    Ends at the first evaluation that has not been made. Those at step 0, before training, do not count.
    """
    finals: list[float] = []
    for job in jobs:
        done = run.is_done(job.folder)  # before reading: it may end meanwhile
        rows = read_run_folder(job.folder)[0].query("step > 0")
        scaled = (rows["return"] / scales[job.experiment.env_id]).tolist()
        yield from (float(np.mean([*finals, value])) for value in scaled)
        if not done:
            return
        finals.append(scaled[-1])


def make_trial(args: Args, study: optuna.Study, space: Space) -> None:
    """One more trial of the study. Raises InputError if the script refuses the settings, KeyboardInterrupt."""
    trial = study.ask(space)
    jobs, scores = jobs_of(args, trial.params, args.seeds), []

    def pruned() -> str:
        for step, score in enumerate(evaluations(jobs, scales_of(args))):
            if step >= len(scores):
                scores.append(score)
                trial.report(score, step)
        return "pruned" if trial.should_prune() else ""

    outcome = make(args, jobs, pruned)
    failed = [job for job in jobs if job.status["state"] == "failed"]
    if any(job.status["exit_code"] == 2 for job in failed):
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise InputError(f"{failed[0]}: {last_words(failed[0].status['stderr_tail'])}")
    if outcome or failed:  # it fails when a number becomes NaN, say: nothing that good settings do
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        outcome = outcome or "failed"
    else:
        pruned()
        study.tell(trial, scores[-1])
        outcome = f"score {scores[-1]:.4g}"
    tqdm.write(f"trial {trial.number}: {outcome} with {jobs[0].experiment.variant}")


def confirm(args: Args, study: optuna.Study) -> str:
    """Run the best settings and the defaults on fresh seeds; returns what to say of them."""
    fresh = tuple(range(max(args.seeds) + 1, max(args.seeds) + 1 + len(args.seeds)))
    best, count = study.best_trial, len(study.get_trials(states=FINISHED))
    tuned, defaults = jobs_of(args, best.params, fresh), jobs_of(args, {}, fresh)
    make(args, tuned + defaults)
    seeds = ", ".join(map(str, args.seeds))
    score = f"best of {count} trials: {tuned[0].experiment.variant}, score {best.value:.4g} on seeds {seeds}"
    last = [
        read_run_folder(job.folder)[0].tail(1).assign(settings=name)
        for name, jobs in (("best", tuned), ("defaults", defaults))
        for job in jobs
    ]
    returns = pd.concat(last).pivot(index=["env_id", "settings"], columns="seed", values="return")
    table = returns.to_string(float_format="%.1f")
    scaled = returns.mean(axis=1).unstack().div(pd.Series(scales_of(args)), axis=0).mean()
    if scaled.get("best", np.nan) <= scaled.get("defaults", np.nan):  # nan: none of these came to an evaluation
        table += "\nthe defaults are no worse there: keep them, or try more seeds"
    reason = f"tuned on seeds {seeds} with benchmarks/tune.py"
    entries = dict.fromkeys(repr(replace(job.experiment, reason=reason, variant="tuned")) for job in tuned)
    return "\n".join([score, "returns on fresh seeds:", table, "for suites.py:", *entries])


def main(args: Args) -> None:
    """Search, confirm, report. Raises InputError, KeyboardInterrupt."""
    run.require_at_least(args, trials=1, total_timesteps=1, eval_every=1, startup_trials=1, jobs=1)
    if min(args.seeds, default=0) < FIRST_TUNING_SEED:
        raise InputError(f"--seeds {' '.join(map(str, args.seeds))}: seeds 1 to 10 are for results, use 11 and up")
    space, results = distributions(args), Path(args.results)
    jobs_of(args, {}, args.seeds)  # before anything is created
    with run.claim(results):
        states = optuna.trial.TrialState
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=f"sqlite:///{results / 'study.db'}", study_name=args.algorithm, load_if_exists=True,
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(args.startup_trials, args.total_timesteps // args.eval_every // 2),
        )  # fmt: skip
        plan = {name: str(getattr(args, name)) for name in ("tasks", "seeds", "total_timesteps", "eval_every", "flags")}
        if (before := study.user_attrs.get("plan", plan)) != plan:  # scores of different plans cannot be compared
            raise InputError(f"{results} holds a study with {before}, not {plan}: choose other --results")
        study.set_user_attr("plan", plan)
        # a seed of its own for every start: drawing goes on instead of beginning again
        study.sampler = optuna.samplers.TPESampler(n_startup_trials=args.startup_trials, seed=len(study.trials))
        for trial in study.get_trials(states=(states.RUNNING,)):  # when this program was killed
            study.tell(trial.number, state=states.FAIL)
            study.enqueue_trial(trial.params)
        while len(study.get_trials(states=FINISHED)) < args.trials:
            make_trial(args, study, space)
        if not study.get_trials(states=(states.COMPLETE,)):
            raise InputError(f"no trial of {args.trials} came to its end: see the run folders in {results}")
        text = confirm(args, study)
        write_atomically(results / "best.txt", text + "\n")
        print(text)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, args=run.words(), description=__doc__))
    except InputError as error:
        run.fail(str(error))
    except KeyboardInterrupt:
        print("stopped; the same command goes on")
        sys.exit(130)
