"""Search good settings of an algorithm with Optuna; what it finds is confirmed on seeds that the search has not seen.

    python benchmarks/tune.py --algorithm a2c --tasks Hopper-v5=1200 Swimmer-v5=40 --range learning-rate=1e-4:1e-2:log \
--range num-steps=5:64:log --choice num-envs=8,16 --choice anneal-lr=true,false --seeds 11 12 --trials 30

A trial is a run per task and seed; its score is the mean of their last evaluations, each over its task's scale. The
first trial is the script's defaults. A trial is pruned (Optuna's median rule) when the mean of its evaluations so far,
run after run in the order of seeds and tasks, is below that of most trials at the same point. Trials are numbered in
RESULTS/study.db, which any Optuna program reads; the same command goes on after a kill, with the same runs, and more
--trials continue a study. The run folders are those of run.py, so that --status and report.py work on them. In the end
the best settings and the defaults are run on as many fresh seeds, the next ones, and RESULTS/best.txt says how both did
and holds the entries for suites.py. Seeds 1 to 10 are for results and refused. Needs pip install -r
requirements-extra.txt.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import run
import tyro
from executors import InputError, Local
from records import write_atomically
from tqdm import tqdm

try:
    import optuna
except ImportError:
    run.fail("Optuna is missing: pip install -r requirements-extra.txt")

FIRST_TUNING_SEED = 11
FINISHED = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)


@dataclass
class Args:
    """What to tune, and how."""

    algorithm: str
    """A script of algorithms/, without .py, or the path of an own one."""
    tasks: tuple[str, ...]
    """TASK, or TASK=SCALE if there are several: returns are divided by it (the return of a good agent, say)."""
    range: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """SETTING=LOW:HIGH or SETTING=LOW:HIGH:log; whole numbers if both bounds are. Repeatable."""
    choice: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """SETTING=A,B,C; true and false for a switch. Repeatable."""
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
    sampler_seed: int = 0
    """Seed of Optuna's sampler (>= 0)."""


def distributions(args: Args) -> dict[str, optuna.distributions.BaseDistribution]:
    """The search space, by setting. Raises InputError."""
    space: dict[str, optuna.distributions.BaseDistribution] = {}
    for entry in args.range:
        name, _, text = entry.partition("=")
        low, high, *scale = text.split(":") if text.count(":") in (1, 2) else ("", "")
        try:
            kind, number = optuna.distributions.IntDistribution, int
            if not (low.isdigit() and high.isdigit()):
                kind, number = optuna.distributions.FloatDistribution, float
            if scale not in ([], ["log"]):
                raise ValueError("the third part may only be log")
            space[name] = kind(number(low), number(high), log=bool(scale))
        except ValueError as error:
            raise InputError(f"--range {entry}: {error}; write learning-rate=1e-5:1e-3:log") from error
    for entry in args.choice:
        name, _, text = entry.partition("=")
        if not name or "," not in text:
            raise InputError(f"--choice {entry}: write num-envs=8,16")
        space[name] = optuna.distributions.CategoricalDistribution(text.split(","))
    if not space:
        raise InputError("nothing to tune: name a --range or a --choice")
    return space


def flags_of(params: dict[str, object]) -> str:
    """Settings as flags of the script; numbers to four digits."""
    words = []
    for name, value in params.items():
        switch = {"true": f"--{name}", "false": f"--no-{name}"}.get(str(value))
        words.append(switch or f"--{name} {f'{value:.4g}' if isinstance(value, float) else value}")
    return " ".join(words)


def name_of(params: dict[str, object]) -> str:
    """Settings as the name of a variant, "" for none."""
    return ",".join(f"{name}={f'{x:.4g}' if isinstance(x, float) else x}" for name, x in params.items())


def parse_tasks(words: tuple[str, ...]) -> dict[str, float]:
    """Task -> scale of its returns. Raises InputError."""
    try:
        scales = {task: float(scale) if scale else 1.0 for task, _, scale in (word.partition("=") for word in words)}
    except ValueError as error:
        raise InputError(f"--tasks: {error}; write Hopper-v5=1200") from error
    if len(words) > 1 and not all("=" in word for word in words):
        raise InputError("--tasks: several tasks need a scale each, as in Hopper-v5=1200 Swimmer-v5=40")
    if any(scale <= 0 for scale in scales.values()):
        raise InputError("--tasks: a scale must be more than 0")
    return scales


def jobs_of(args: Args, params: dict[str, object], seeds: tuple[int, ...]) -> list[run.Job]:
    """The runs of a setting, seed by seed; without params, of the defaults. Raises InputError."""
    script = args.algorithm.endswith(".py")
    plan = run.Args(
        algorithms=() if script else (args.algorithm,), script=(args.algorithm,) if script else (),
        tasks=tuple(parse_tasks(args.tasks)),
    )  # fmt: skip
    flags = run.parse_flags(f"--eval-every {args.eval_every} {args.flags} {flags_of(params)}")
    changes = {"flags": flags, "total_timesteps": args.total_timesteps, "variant": name_of(params)}
    made = [replace(e, reason="tuning" if params else "", **changes) for e in run.own(plan)]
    return run.jobs_of([(e, seed) for seed in seeds for e in made], Path(args.results))


def evaluations(jobs: list[run.Job], scales: dict[str, float]) -> Iterator[float]:
    """Score after each evaluation of one run after the other: the mean of every run's latest one, over its scale.

    Ends at the first evaluation that has not been made. Those at step 0, before training, do not count.
    """
    finals: list[float] = []
    for job in jobs:
        path = job.folder / "eval.csv"
        rows = pd.read_csv(path, on_bad_lines="skip").dropna() if run.last_row(path) else pd.DataFrame({"step": []})
        returns = [rows["return"].mean() for step, rows in rows.groupby("step") if step > 0]
        scaled = [value / scales[job.experiment.env_id] for value in returns]
        yield from (float(np.mean([*finals, value])) for value in scaled)
        if not run.is_done(job.folder):
            return
        finals.append(scaled[-1])


def make_trial(args: Args, study: optuna.Study, space: dict[str, optuna.distributions.BaseDistribution]) -> str:
    """One more trial of the study; returns why it was interrupted, "" if it was not. Raises InputError."""
    trial = study.ask(space)
    jobs, scales, scores = jobs_of(args, trial.params, args.seeds), parse_tasks(args.tasks), []

    def pruned() -> str:
        for step, score in enumerate(evaluations(jobs, scales)):
            if step >= len(scores):
                scores.append(score)
                trial.report(score, step)
        return "pruned" if trial.should_prune() else ""

    todo = [job for job in jobs if job.status["state"] != "done"]
    reason = run.execute(todo, executor := Local(), args.jobs or executor.slots(), Path(args.results), watch=pruned)
    failed = [job for job in jobs if job.status["state"] == "failed"]
    if any(job.status["exit_code"] == 2 for job in failed):  # the script refuses the settings
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise InputError(f"{failed[0]}: {failed[0].status['stderr_tail'].strip().rpartition(chr(10))[2]}")
    if reason not in ("", "pruned"):
        return reason
    if reason or failed:  # as when a number became NaN: nothing that good settings do
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    else:
        pruned()
        study.tell(trial, scores[-1])
    outcome = "pruned" if reason else "failed" if failed else f"score {scores[-1]:.4g}"
    tqdm.write(f"trial {trial.number}: {outcome} with {flags_of(trial.params)}")
    return ""


def confirm(args: Args, study: optuna.Study) -> str:
    """Run the best settings and the defaults on fresh seeds; returns what to say of them."""
    fresh = tuple(range(max(args.seeds) + 1, max(args.seeds) + 1 + len(args.seeds)))
    best, results = study.best_trial, Path(args.results)
    tuned, defaults = jobs_of(args, best.params, fresh), jobs_of(args, {}, fresh)
    todo = [job for job in tuned + defaults if job.status["state"] != "done"]
    if reason := run.execute(todo, executor := Local(), args.jobs or executor.slots(), results):
        raise InputError(f"stopped ({reason}) while the best settings were confirmed; the same command goes on")
    seeds, unseen = (", ".join(map(str, x)) for x in (args.seeds, fresh))
    trials, settings = len(study.get_trials(states=FINISHED)), flags_of(best.params)
    lines = [f"best of {trials} trials: {settings}, score {best.value:.4g} on seeds {seeds}"]
    for task in parse_tasks(args.tasks):
        returns = {
            name: [run.last_evaluation(job.folder) for job in jobs if job.experiment.env_id == task]
            for name, jobs in (("best", tuned), ("defaults", defaults))
        }
        told = "; ".join(f"{name} {', '.join(values)}" for name, values in returns.items())
        lines.append(f"{task} on the fresh seeds {unseen}: {told}")
    entries = {job.experiment.env_id: job.experiment for job in tuned}.values()
    reason = f"tuned on seeds {seeds} with benchmarks/tune.py"
    return "\n".join([*lines, "for suites.py:", *(repr(replace(e, reason=reason, variant="tuned")) for e in entries)])


def main(args: Args) -> int:
    """Search, confirm, report; returns the exit code. Raises InputError."""
    for name in ("trials", "total_timesteps", "eval_every", "startup_trials"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)} is out of range: use at least 1")
    if not args.seeds or min(args.seeds) < FIRST_TUNING_SEED:
        raise InputError(f"--seeds {' '.join(map(str, args.seeds))}: seeds 1 to 10 are for results, use 11 and up")
    space, results = distributions(args), Path(args.results)
    jobs_of(args, {}, args.seeds)  # before anything is created
    lock, states = run.claim(results), optuna.trial.TrialState
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = f"sqlite:///{results / 'study.db'}"
    study = optuna.create_study(
        storage=storage, study_name=args.algorithm, direction="maximize", load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(args.startup_trials, args.total_timesteps // args.eval_every // 2),
    )  # fmt: skip
    study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=args.startup_trials, seed=args.sampler_seed + len(study.trials)
    )
    for trial in study.get_trials(states=(states.RUNNING,)):  # when this program was killed
        study.tell(trial.number, state=states.FAIL)
        study.enqueue_trial(trial.params)
    while len(study.get_trials(states=FINISHED)) < args.trials:
        if reason := make_trial(args, study, space):
            print(f"stopped: {reason}; the same command goes on")
            return 130
    if not study.get_trials(states=(states.COMPLETE,)):
        raise InputError(f"no trial of {args.trials} came to its end: see the run folders in {results}")
    text = confirm(args, study)
    write_atomically(results / "best.txt", text + "\n")
    print(text)
    lock.release()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Args, description=__doc__)))
    except InputError as error:
        run.fail(str(error))
