"""Run a benchmark: algorithms times tasks times seeds, each run a process of one thread, here or on a Ray cluster.

    python benchmarks/run.py --suite on-policy --algorithms ppo a2c --jobs 2
    python benchmarks/run.py --algorithms ppo --tasks Hopper-v5 my_module:MyEnv-v0 --seeds 3 --total-timesteps 300000
    python benchmarks/run.py --algorithms ppo --tasks Hopper-v5 --variant "clip0.1=--clip-coef 0.1" --results runs/clip
    python benchmarks/run.py --script path/to/my_algo.py --algorithms ppo --tasks Hopper-v5 --results runs/mine
    python benchmarks/run.py --results runs/mine --status

Run folders are RESULTS/LABEL/ENV_ID/SEED, the label being ALGORITHM or ALGORITHM-VARIANT; harness/ in them holds
status.json and what the script printed. However it ended, the same command continues: finished runs are left alone,
runs with a config.json resumed, others begun, failed ones tried again, --attempts times in all. The runs end with the
harness, be it by Ctrl-C, --time-budget or (on Linux) kill -9. The exit code is 0 if no run failed, 1 if one did, 2 for
what the user can put right, 130 if interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro
from executors import Local, Ray
from filelock import FileLock, Timeout
from records import InputError, code_sha256, last_words, read, read_json, write_atomically
from suites import ALGORITHMS, PEERS, ROOT, SUITES, Experiment
from tqdm import tqdm

RESERVED = {"env-id", "seed", "total-timesteps", "run-dir", "resume", "evaluate"}
PEERS_TAKE = {"device", "threads", "eval-every", "eval-episodes", "checkpoint-every", "log-every"}
"""Flags that are for peers, too: how a run is executed and measured; all else of theirs is RL Zoo's."""


@dataclass
class Args:
    """What to run, and where."""

    suite: str | None = None
    """A plan of benchmarks/suites.py; --algorithms and --tasks then choose from it."""
    algorithms: tuple[str, ...] = ()
    """Scripts of algorithms/ (without .py), or another library's: sb3-ppo and the like, see benchmarks/peers.py."""
    script: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Path of an own script with the command line of those in algorithms/; its file name is its label. Repeatable."""
    tasks: tuple[str, ...] = ()
    """Gymnasium ids; `my_module:MyEnv-v0` is looked for in the current folder too."""
    seeds: tuple[str, ...] = ()
    """One number says how many (1, 2, ...), several are the seeds themselves, 11-14 is a range; default the suite's,
    or 1."""
    total_timesteps: int | None = None
    """Environment steps of each run (>= 1); default the suite's, or 1000000."""
    variant: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=FLAGS, as in "clip0.1=--clip-coef 0.1": every algorithm but the peers (sb3-...) once more, with these flags.
    Repeatable."""
    flags: str = ""
    """Flags of all runs, as in --flags="--eval-every 5000" (with the equals sign); of them peers (sb3-...) take device,
    threads, eval-every, eval-episodes, checkpoint-every and log-every."""
    results: str | None = None
    """Folder of the run folders; default runs/SUITE, or runs/own."""
    jobs: int | None = None
    """Runs at a time (>= 1); default one per core, here or of the cluster."""
    attempts: int = 3
    """How often a run may fail before repeating the command leaves it alone (>= 1), and on a cluster how many machines
    one command may lose on a run."""
    time_budget: float | None = None
    """Hours (>= 0.001) after which all runs are stopped."""
    executor: Literal["local", "ray"] = "local"
    """Processes of this machine, or tasks of a Ray cluster (pip install -r requirements-extra.txt)."""
    address: str | None = None
    """Address of the Ray cluster; default one of this machine only."""
    cpus: float = 1
    """CPUs of a run on the cluster (>= 0.001)."""
    gpus: float = 0
    """GPUs, or a share of one, of a run on the cluster (>= 0)."""
    dry_run: bool = False
    """Print the commands and stop."""
    status: bool = False
    """Show every run in --results and stop."""
    pause: bool = False
    """Stop the processes of the benchmark that runs in --results, until --resume (Linux, macOS); on a cluster only
    begin no further ones. The pause counts in the seconds of metrics.csv, but not in those of status.json."""
    resume: bool = False
    """Let a paused benchmark go on."""


# ======================================================================================================================
# 1 Runs
# ======================================================================================================================


@dataclass
class Job:
    """One planned run and what is known of it. Raises InputError if its folder is that of a run with other settings."""

    experiment: Experiment
    seed: int
    results: Path

    def __post_init__(self) -> None:
        e, script = self.experiment, self.experiment.script
        self.folder = self.results / e.label / e.env_id.replace(":", "-").replace("/", "-") / str(self.seed)
        known, begun = read_json(self.folder / "harness" / "status.json"), (self.folder / "config.json").exists()
        plan = {"flags": e.flags, "total_timesteps": e.total_timesteps}
        if (made := {name: known.get(name, "unknown") for name in plan}) != plan:
            if begun:
                raise InputError(f"{self.folder} is a run with {made}, not {plan}: choose other --results")
            known = {}
        if known.get("state") == "running":  # its harness was killed
            known["seconds"] = float((last_row(self.folder / "metrics.csv") or [0, 0])[1])
        known["state"] = self.judge(known.get("state") == "failed")
        code, commit = version_of(script, script.stat().st_mtime_ns)
        if not begun:
            known |= {"code_sha256": code, "commit": commit}
        elif known["state"] != "done" and known["code_sha256"] != code:
            known |= {"code_sha256": "changed while the run was made", "commit": None}
        nothing = {"seconds": 0.0, "failures": 0, "exit_code": None, "stderr_tail": "", "hardware": "unknown"}
        self.status = plan | nothing | known | {"label": e.label, "env_id": e.env_id, "reason": e.reason}
        """Content of harness/status.json; `failures` counts the starts that failed."""

    def __str__(self) -> str:
        return f"{self.experiment.label} {self.experiment.env_id} seed {self.seed}"

    def words(self) -> list[str]:
        """Flags of the script, without the run folder."""
        e = self.experiment
        flags = {"algorithm": e.algorithm} if e.algorithm in PEERS else {}
        flags |= {"env-id": e.env_id, "seed": self.seed, "total-timesteps": e.total_timesteps} | e.flags
        return [word for flag, value in flags.items() for word in (f"--{flag}", *str(value).split())]

    def command(self) -> list[str]:
        """The command line: resume what was begun, otherwise begin. The script checks that the settings still fit."""
        where = "--resume" if (self.folder / "config.json").exists() else "--run-dir"
        return ["python", os.path.relpath(self.experiment.script), *self.words(), where, str(self.folder)]

    def write(self, **changes: Any) -> None:
        """Change the status, in status.json too."""
        self.status |= changes
        (self.folder / "harness").mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "harness" / "status.json", json.dumps(self.status, indent=2) + "\n")

    def judge(self, failed: bool) -> str:
        """The state of the run while no process makes it, whose last start failed or did not."""
        if is_done(self.folder):
            return "done"
        return "failed" if failed else "stopped" if (self.folder / "config.json").exists() else "waiting"

    def make(self, executor: Local) -> None:
        """Make the run, in the calling thread, and record how it ended."""
        began = executor.clock()
        self.write(state="running")
        tqdm.write(f"{self}: running")
        code, machine = executor.run(self)
        state, tail, failures = self.judge(code is not None), "", self.status["failures"]
        if state == "failed":
            failures, tail = failures + 1, (self.folder / "harness" / "stderr.log").read_text(errors="replace")[-2000:]
            if code <= 0:
                tail += f"killed by {signal.Signals(-code).name}\n" if code else "ended before its last evaluation\n"
        device = read_json(self.folder / "config.json").get("args", {}).get("device", "unknown")
        hardware, seconds = f"{machine}, device {device}", round(self.status["seconds"] + executor.clock() - began, 3)
        self.write(state=state, exit_code=code, stderr_tail=tail, seconds=seconds, hardware=hardware, failures=failures)
        why = f": {last_words(tail)}" if state == "failed" else ""
        tqdm.write(f"{self}: {state} at step {reached(self.folder)} ({seconds:.0f} s){why}")


def last_row(path: Path) -> list[str]:
    """Values of the last complete row of a csv file that may be growing; [] if there is none."""
    if not path.exists():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")[:-1]
    values = lines[-1].strip().split(",") if lines else []
    return values if values and values[0].isdigit() else []


def is_done(folder: Path) -> bool:
    """Whether the last evaluation of a run is at its end; it may lie beyond, as environments step together."""
    total = read_json(folder / "config.json").get("args", {}).get("total_timesteps")
    return total is not None and int((last_row(folder / "eval.csv") or [-1])[0]) >= total


def reached(folder: Path) -> int:
    """Steps that a run has logged."""
    return max(int((last_row(folder / f"{log}.csv") or [0])[0]) for log in ("metrics", "eval"))


@functools.cache
def version_of(script: Path, modified: int) -> tuple[str, str | None]:
    """Hash of a script's code, and its Git commit: None if it is in no repository, or changed since.

    It is looked up once per time of modification. Raises InputError if it is no Python.
    """

    def git(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(script.parent), *words], capture_output=True, text=True)

    changes = git("status", "--porcelain", "--ignored", "--", script.name)
    committed = changes.returncode == 0 and changes.stdout == ""
    try:
        return code_sha256(script), git("rev-parse", "HEAD").stdout.strip() if committed else None
    except (SyntaxError, ValueError) as error:
        raise InputError(f"--script {script} is not valid Python ({error}): correct it") from error


# ======================================================================================================================
# 2 Plan
# ======================================================================================================================


def plan(args: Args) -> list[Job]:
    """All runs, seed by seed, so that a plan cut short has whole seeds. Raises InputError."""
    require_at_least(args, total_timesteps=1, jobs=1, attempts=1, time_budget=0.001, cpus=0.001, gpus=0)
    chosen, made, common = experiments(args), [], parse_flags(args.flags)
    if (wrong := sorted(common.keys() - PEERS_TAKE)) and all(e.algorithm in PEERS for e in chosen):
        raise InputError(f"--flags: peers do not take --{wrong[0]}: use only {', '.join(sorted(PEERS_TAKE))}")
    for entry in ("", *args.variant):
        name, _, text = entry.partition("=")
        if (entry and not (name and text)) or "/" in name:
            raise InputError(f"--variant {entry}: write NAME=FLAGS, as in clip0.1=--clip-coef 0.1")
        for e in chosen:
            peer = e.algorithm in PEERS
            if entry and peer:
                continue  # it has RL Zoo's settings alone
            taken = {k: v for k, v in common.items() if k in PEERS_TAKE or not peer}
            flags = e.flags | taken | parse_flags(text)
            steps, variant = args.total_timesteps or e.total_timesteps, "-".join(filter(None, (e.variant, name)))
            made.append(replace(e, total_timesteps=steps, flags=flags, variant=variant))
    for where, times in Counter((e.label, e.env_id) for e in made).items():
        if times > 1:
            raise InputError(f"{' on '.join(where)} is in the plan twice: rename the script or the variant")
    asked = parse_seeds(args.seeds)
    seeds = asked or range(1, max(e.seeds for e in made) + 1)
    return [Job(e, seed, results_folder(args)) for seed in seeds for e in made if asked or seed <= e.seeds]


def require_at_least(args: Any, **least: float) -> None:
    """Raise InputError if a setting is less than given here."""
    for name, low in least.items():
        if (value := getattr(args, name)) is not None and value < low:
            raise InputError(f"--{name.replace('_', '-')} {value} is out of range: use at least {low}")


def require_known(flag: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise InputError if one of the names is unknown."""
    for name in names:
        if name not in known:
            raise InputError(f"--{flag} {name} is unknown: choose from {', '.join(sorted(known))}")


def experiments(args: Args) -> list[Experiment]:
    """The chosen experiments of a suite; without one every named algorithm and script on every named task."""
    if args.suite:
        require_known("suite", [args.suite], SUITES)
        members = SUITES[args.suite]
        require_known("algorithms", args.algorithms, {e.label for e in members})
        require_known("tasks", args.tasks, {e.env_id for e in members})
        chosen = [e for e in members if not args.algorithms or e.label in args.algorithms]
        chosen = [e for e in chosen if not args.tasks or e.env_id in args.tasks]
        if args.script or not chosen:
            raise InputError(f"suite {args.suite} has no such runs: choose others, or leave --suite out")
        return chosen
    if not args.tasks or not (args.algorithms or args.script):
        raise InputError(f"no plan: name --algorithms or --script, and --tasks; or a --suite of {', '.join(SUITES)}")
    require_known("algorithms", args.algorithms, ALGORITHMS + PEERS)
    for path in map(Path, args.script):
        if not path.is_file() or path.suffix != ".py":
            raise InputError(f"--script {path} is no Python file: name one that ends in .py")
        if path.stem in ALGORITHMS + PEERS and path.resolve() != ROOT / "algorithms" / path.name:
            raise InputError(f"--script {path} would be taken for ours: rename it")
    return [Experiment(name, task, 1_000_000) for name in args.algorithms + args.script for task in args.tasks]


def parse_flags(text: str) -> dict[str, str]:
    """ "--a 1 --b" as {"a": "1", "b": ""}. Raises InputError."""
    before, *parts = f" {text}".split(" --")
    if before.strip():
        raise InputError(f"flags {text}: begin with the name of a setting, as in --clip-coef 0.1")
    pairs = [re.split(r"[=\s]+", f"{part} ", maxsplit=1) for part in parts]
    flags = {name.replace("_", "-"): value.strip() for name, value in pairs}
    if wrong := flags.keys() & RESERVED:
        raise InputError(f"flags {text}: --{wrong.pop()} is set by the plan; leave it out")
    return flags


def parse_seeds(words: tuple[str, ...]) -> list[int]:
    """("3",) is [1, 2, 3], ("5", "7") is [5, 7], ("11-13",) is [11, 12, 13]. Raises InputError."""
    seeds: dict[int, None] = {}
    for word in words:
        bounds = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
        if not bounds:
            raise InputError(f"--seeds {word} is not a seed: write 3 (how many), 1 2 5 (which) or 11-14 (a range)")
        first, last = int(bounds[1]), int(bounds[2] or bounds[1])
        seeds |= dict.fromkeys(range(1, first + 1) if words == (bounds[1],) else range(first, last + 1))
    if words and not seeds:
        raise InputError(f"--seeds {' '.join(words)} names none: use at least 1")
    return list(seeds)


# ======================================================================================================================
# 3 Running
# ======================================================================================================================


def results_folder(args: Args) -> Path:
    """Where the run folders lie."""
    return Path(args.results or f"runs/{args.suite or 'own'}")


@contextlib.contextmanager
def claim(results: Path) -> Iterator[None]:
    """Claim a results folder for the body of a `with`. Raises InputError if another benchmark has it."""
    try:
        results.mkdir(parents=True, exist_ok=True)
        lock = FileLock(results / ".harness.lock").acquire(timeout=1)  # --status takes it for a moment
    except Timeout as error:
        raise InputError(f"{results} is in use by another benchmark: wait for it, or choose other --results") from error
    except OSError as error:
        raise InputError(f"cannot write --results {results} ({error.strerror}): choose another") from error
    with lock:
        yield


def execute(
    jobs: list[Job], executor: Local, parallel: int, results: Path, hours: float | None = None,
    watch: Callable[[], str] = lambda: "",
) -> str:  # fmt: skip
    """Make these runs, `parallel` at a time; returns why it stopped early, "" if it did not.

    An interruption (SIGINT, SIGTERM, SIGHUP), the end of `hours` or a text returned by `watch`, called every second,
    ends all runs. Raises InputError, when the runs have ended, if something cannot be written.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP on purpose
            signal.signal(number, signal.default_int_handler)
    deadline = time.monotonic() + (hours or math.inf) * 3600
    pool, pause, reason = ThreadPoolExecutor(parallel), results / ".pause", ""
    try:
        pause.unlink(missing_ok=True)
        for job in jobs:
            job.write()
        total = sum(job.experiment.total_timesteps for job in jobs)
        with tqdm(total=total, initial=steps_of(jobs), unit=" steps", unit_scale=True, disable=None) as bar:
            running = {pool.submit(job.make, executor) for job in jobs}
            while running and not reason:
                ended, running = wait(running, timeout=1, return_when=FIRST_EXCEPTION)
                for future in ended:
                    future.result()
                if ended:
                    tqdm.write(f"{len(jobs) - len(running)} of {len(jobs)} runs have ended")
                bar.update(steps_of(jobs) - bar.n)
                bar.set_postfix_str(", ".join(str(job) for job in jobs if job.status["state"] == "running"))
                if pause.exists() != bool(executor.paused_at):
                    executor.pause(not executor.paused_at)
                if running:
                    reason = "the time budget is used up" if time.monotonic() > deadline else watch()
    except KeyboardInterrupt:
        reason = "interrupted"
    except OSError as error:
        where = error.filename or results  # a failed write has no name
        raise InputError(f"{error.strerror}: {where}; put it right, and the same command continues") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        executor.stop()
        pool.shutdown()
        pause.unlink(missing_ok=True)
    return reason


def steps_of(jobs: list[Job]) -> int:
    """Environment steps made so far, over all runs."""
    return sum(min(reached(job.folder), job.experiment.total_timesteps) for job in jobs)


def ask_to_pause(results: Path, wanted: bool) -> None:
    """Pause the benchmark of a results folder, or let it go on. Raises InputError if there is none."""
    if not in_use(results):
        raise InputError(f"no benchmark is running in {results}: correct --results")
    if wanted:
        (results / ".pause").touch()
        print("within a second or two the runs stop where they are (on a cluster: none begins); --resume goes on")
    else:
        (results / ".pause").unlink(missing_ok=True)
        print("it goes on")


def in_use(results: Path) -> bool:
    """Whether a benchmark is running in a results folder."""
    try:
        with claim(results) if results.is_dir() else contextlib.nullcontext():
            return False
    except InputError:
        return True


def overview(results: Path) -> str:
    """The state of every run in a results folder. Raises InputError if there is none."""
    evaluations, runs = read([results])
    if not in_use(results):
        runs["state"] = runs["state"].str.replace("running", "stopped")
    runs["state"] = runs["state"].str.partition(" at step ")[0]
    runs["step"] = [reached(Path(folder)) for folder in runs["folder"]]
    runs["evaluation"] = runs["run"].map(evaluations.groupby("run")["return"].last())
    columns = ["algorithm", "env_id", "seed", "state", "step", "total_timesteps", "evaluation", "error"]
    return f"{told(runs['state'])}\n" + runs[columns].to_string(index=False, float_format="%.1f", na_rep="-")


def told(states: Iterable[str]) -> str:
    """How many runs are in which state, the word that the texts begin with."""
    counts = Counter(re.match(r"\w+", state)[0] for state in states)
    return f"{sum(counts.values())} runs: {', '.join(f'{n} {state}' for state, n in counts.items())}"


def words() -> list[str]:
    """The command line's words; 1e6 is a whole number here, too, as in the scripts."""
    return [re.sub(r"^\d+\.?\d*[eE]\+?\d+$", lambda m: f"{float(m[0]):.15g}", word) for word in sys.argv[1:]]


def fail(message: str) -> None:
    """One line on stderr, exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def main(args: Args) -> int:
    """Plan, run, summarise; returns the exit code. Raises InputError."""
    results = results_folder(args)
    if args.pause or args.resume:
        ask_to_pause(results, args.pause)
        return 0
    if args.status:
        print(overview(results))
        return 0
    jobs = plan(args)
    if args.dry_run:
        for job in jobs:
            done = job.status["state"] == "done"
            print(f"{'skip (done)' if done else shlex.join(job.command())}  # {job.folder}")
        return 0
    scripts = [job.experiment.script for job in jobs]
    executor = Local() if args.executor == "local" else Ray(args.address, args.cpus, args.gpus, args.attempts, scripts)
    with claim(results):
        jobs = plan(args)  # again: until now another benchmark may have run here
        given_up = [job for job in jobs if job.status["state"] == "failed" and job.status["failures"] >= args.attempts]
        todo = [job for job in jobs if job.status["state"] != "done" and job not in given_up]
        stopped = execute(todo, executor, args.jobs or executor.slots, results, args.time_budget)
    for job in jobs:
        if job.status["state"] == "failed":
            left = "; left alone after so many failures" if job.status["failures"] >= args.attempts else ""
            print(f"{job}: failed{left}, see {job.folder}/harness\n    {last_words(job.status['stderr_tail'])}")
    states = [job.status["state"] for job in jobs]
    print(f"{told(states)}, in {results}")
    if stopped:
        print(f"stopped: {stopped}; the same command continues, each run from its last checkpoint")
    return 130 if stopped == "interrupted" else int("failed" in states)


if __name__ == "__main__":
    chosen = tyro.cli(Args, args=words(), description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    if chosen.dry_run or chosen.status:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` may close the pipe
    try:
        sys.exit(main(chosen))
    except InputError as error:
        fail(str(error))
    except KeyboardInterrupt:  # before the runs, or after
        sys.exit(130)
