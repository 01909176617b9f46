"""Run a benchmark suite: every experiment of the suite times every seed, each a process of one thread.

    python benchmarks/run.py --suite quick --seeds 2 --jobs 2
    python benchmarks/run.py --suite mujoco --algorithms ppo --seeds 3 --dry-run
    python benchmarks/run.py --suite mujoco --seeds 3 --status

Started again, it continues: finished runs are skipped, partial ones resumed from their last checkpoint, failed ones
tried again. Ctrl-C and the end of --time-budget stop the runs. A result whose script or settings have changed since is
stale: it is kept, and made again once its folder is removed. Results lie in OUTPUT/SUITE/ALGORITHM/ENV_ID/SEED: the
script's run folder, and in its subfolder harness/

    status.json               state (running, done, failed, stopped), exit code, stderr's end, command, duration, hashes
    output.log, stderr.log    what the script printed
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from records import COMMITTED, algorithm_sha256, read_json, staleness, status_path, write_atomically
from rich.console import Console
from rich.live import Live
from rich.table import Table
from suites import SUITES, Experiment
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
IDENTITY = ("flags", "reason", "algorithm_sha256", "begun_for")
COLOURS = {"done": "green", "failed": "bold red", "stopped": "yellow", "running": "cyan", "waiting": "dim"}


@dataclass
class Args:
    """Which runs to make."""

    suite: str = "quick"
    """Name of a suite in benchmarks/suites.py."""
    algorithms: tuple[str, ...] = ()
    """Only these algorithms (or variants, by their label) of the suite; default all."""
    tasks: tuple[str, ...] = ()
    """Only these environments of the suite; default all."""
    seeds: int = 1
    """Number of seeds per experiment (>= 1)."""
    first_seed: int = 1
    """The first seed; the others follow it (>= 0)."""
    jobs: int = os.cpu_count() or 1
    """Runs at a time (>= 1); default one per core."""
    output: str = "runs"
    """Folder of the results."""
    time_budget: float | None = None
    """Hours (> 0) after which all runs are stopped; the same command continues from their last checkpoints."""
    dry_run: bool = False
    """Print the plan and stop."""
    status: bool = False
    """Show what is done, running, stopped, failed, stale and waiting, and the time left, and stop."""


@dataclass
class Job:
    """One planned run and what is known of it."""

    experiment: Experiment
    seed: int
    folder: Path
    state: str = "waiting"
    """waiting, running, done, failed or stopped."""
    process: subprocess.Popen | None = None
    started: float = 0.0
    """When its process started, on the clock of time.time()."""
    exit_code: int | None = None
    earlier: float = 0.0
    """Seconds that earlier starts of the run took."""
    identity: dict[str, Any] = field(default_factory=dict)
    """What decides the result, as it was when the run was first started: algorithm's hash, settings, reason, steps."""
    left: dict[str, Any] = field(default_factory=dict)
    """Content of status.json before the run was started, with the number of a process that another harness started."""
    told_to_stop: bool = False
    """Whether the harness has asked the process to stop."""

    def command(self) -> list[str]:
        """The command line: resume what was begun, otherwise begin. The script checks that the settings still fit."""
        e = self.experiment
        where = "--resume" if (self.folder / "config.json").exists() else "--run-dir"
        flags = {"env-id": e.env_id, "seed": self.seed, "total-timesteps": e.total_timesteps, **e.flags}
        words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value)) if word]
        return ["python", os.path.relpath(self.script), *words, where, str(self.folder)]

    @property
    def harness(self) -> Path:
        """Folder of what the harness itself writes."""
        return self.folder / "harness"

    @property
    def script(self) -> Path:
        """The algorithm's file."""
        return ROOT / "algorithms" / f"{self.experiment.algorithm}.py"

    def is_done(self) -> bool:
        """Whether the run folder is complete: status.json says so, or the last checkpoint follows the last evaluation.

        A run may have outlived the harness that started it, which then could not write its status.
        """
        status, wanted = read_json(status_path(self.folder)), self.experiment.total_timesteps
        if status.get("state") in ("done", "failed"):
            return status["state"] == "done" and status.get("total_timesteps", 0) >= wanted
        evaluations, checkpoint = self.folder / "eval.csv", self.folder / "checkpoint.pt"
        last = last_rows(evaluations, 1)  # may lie beyond: environments step together, and REINFORCE finishes its batch
        reached = int(last[0][0]) if last and last[0][0].isdigit() else 0
        if reached < wanted or not checkpoint.exists() or self.is_busy():
            return False
        return checkpoint.stat().st_mtime_ns >= evaluations.stat().st_mtime_ns  # the last save follows the evaluation

    def record_done(self) -> None:
        """Mark a complete run as done, in status.json too if its harness could not."""
        self.state = "done"
        status = read_json(status_path(self.folder))
        if status.get("state") != "done":
            self.exit_code, self.earlier = 0, status.get("seconds", 0.0)
            self.identity = {name: status.get(name) for name in IDENTITY}
            self.write_status(status.get("command", self.command()))

    def is_busy(self) -> bool:
        """Whether a process is training in the folder; while it does, the script holds its lock, filelock's flock."""
        if not (self.folder / ".lock").exists():
            return False
        descriptor = os.open(self.folder / ".lock", os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def start(self) -> None:
        """Start the process, in a session of its own so that Ctrl-C reaches it only through `stop`."""
        self.left = read_json(status_path(self.folder))
        earlier = self.left if (self.folder / "config.json").exists() else {}
        self.earlier = earlier.get("seconds", 0.0)
        e, today = self.experiment, algorithm_sha256(self.script)
        begun_for = e.total_timesteps
        self.identity = {"flags": e.flags, "reason": e.reason, "algorithm_sha256": today, "begun_for": begun_for}
        if "flags" in earlier:
            self.identity = {name: earlier.get(name) for name in IDENTITY}
            if earlier.get("algorithm_sha256") != today:
                self.identity["algorithm_sha256"] = "changed while the run was made"
        self.state, self.started = "running", time.time()
        command = self.command()
        self.write_status(command)
        with open(self.harness / "output.log", "a") as out, open(self.harness / "stderr.log", "w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            )
        self.write_status(command)  # now with the number of the process

    def stop_survivor(self) -> bool:
        """End the process that an earlier harness left in the folder; False if it is not known."""
        pid = str(read_json(status_path(self.folder)).get("pid"))
        try:
            shown = subprocess.run(["ps", "-ww", "-p", pid, "-o", "args="], capture_output=True, text=True)
        except FileNotFoundError:  # a container without ps
            return False
        if not shown.stdout.rstrip().endswith(f" {self.folder}"):  # the number has gone to another process
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGTERM)
        return True

    def poll(self) -> bool:
        """True once the process has ended; then the outcome is in status.json."""
        self.exit_code = self.process.poll()
        if self.exit_code is None:
            return False
        if self.exit_code and (self.is_busy() or "another process trains there" in self.error_text()):
            # a process of an earlier harness was still starting in the folder, or --status was just looking into it
            self.state = "waiting"
            self.write(self.left)
            return True
        self.state = "done" if self.exit_code == 0 else "stopped" if self.told_to_stop else "failed"
        self.write_status(["python", *self.process.args[1:]])
        return True

    def stop(self) -> None:
        """End the process; the run goes on from its last checkpoint when it is started again."""
        if self.process.poll() is None:
            self.told_to_stop = True
            self.process.send_signal(signal.SIGTERM)

    def write_status(self, command: list[str]) -> None:
        """Write status.json from what is known of the run."""
        config = read_json(self.folder / "config.json")
        spent = time.time() - self.started if self.started and self.state != "running" else 0.0
        status = {
            "state": self.state,
            "exit_code": self.exit_code,
            "stderr_tail": self.error_text() if self.state != "running" else "",
            "total_timesteps": self.experiment.total_timesteps,
            "command": command,
            "seconds": round(max(self.earlier + spent, self.progress()[1]), 1),
            "versions": config.get("versions", {"python": platform.python_version()}),
            "script_sha256": config.get("script_sha256"),
            **self.identity,
            "hardware": f"{hardware()}, device {config.get('args', {}).get('device', 'unknown')}",
        }
        if self.state == "running" and self.process:
            status["pid"] = self.process.pid
        self.write(status)

    def write(self, status: dict[str, Any]) -> None:
        """status.json, whole or not at all; the script itself accepts no folder with json files of others."""
        self.harness.mkdir(parents=True, exist_ok=True)
        write_atomically(self.harness / "status.json", json.dumps(status, indent=2) + "\n")

    def error_text(self) -> str:
        """The end of what the script last wrote to stderr."""
        log = self.harness / "stderr.log"
        return log.read_text(errors="replace")[-2000:] if log.exists() else ""

    def inspect(self) -> None:
        """Set the state from what is in the folder, for `--status`: a run without a process is not running."""
        recorded = read_json(status_path(self.folder))
        self.exit_code = recorded.get("exit_code")
        begun = (self.folder / "config.json").exists()
        self.state = (
            "done" if self.is_done() else "running" if self.is_busy()
            else "failed" if recorded.get("state") == "failed" else "stopped" if begun else "waiting"
        )  # fmt: skip

    def stale(self) -> str | None:
        """Why a finished result is not what today's script and settings would give; None if it is."""
        e, recorded = self.experiment, read_json(status_path(self.folder))
        return staleness(recorded, e.algorithm, [e]) if self.state == "done" else None

    def progress(self) -> tuple[int, float, str]:
        """Steps so far, seconds they took, and the mean return of the last evaluation, from the run's own files."""
        rows = last_rows(self.folder / "metrics.csv", 1)
        step, seconds = (int(rows[0][0]), float(rows[0][1])) if rows and rows[0][0].isdigit() else (0, 0.0)
        evaluations = [row for row in last_rows(self.folder / "eval.csv", 10) if row[0].isdigit()]
        same = [float(row[2]) for row in evaluations if row[0] == evaluations[-1][0]]
        return step, seconds, f"{sum(same) / len(same):.1f}" if same else "-"


def last_rows(path: Path, n: int) -> list[list[str]]:
    """The last n complete rows of a csv file that may be growing; [] if there is none."""
    if not path.exists():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")[:-1]
    return list(csv.reader(lines[-n:]))


def hardware() -> str:
    """Processor and number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (FileNotFoundError, StopIteration):
        processor = platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} cores"


def plan(args: Args) -> list[Job]:
    """All runs of the suite, seed by seed, so that a plan cut short has whole seeds. Exits with 2 on bad input."""
    if args.suite not in SUITES:
        fail(f"--suite {args.suite} does not exist: choose one of {', '.join(SUITES)}")
    for flag, chosen, known in (
        ("algorithms", args.algorithms, {e.label for e in SUITES[args.suite]}),
        ("tasks", args.tasks, {e.env_id for e in SUITES[args.suite]}),
    ):
        for name in chosen:
            if name not in known:
                fail(f"--{flag} {name} is not in suite {args.suite}: choose from {', '.join(sorted(known))}")
    for name in ("seeds", "jobs"):
        if getattr(args, name) < 1:
            fail(f"--{name} {getattr(args, name)} is out of range: use at least 1")
    if args.first_seed < 0:
        fail(f"--first-seed {args.first_seed} is out of range: use at least 0")
    if args.time_budget is not None and not args.time_budget > 0:
        fail(f"--time-budget {args.time_budget} is out of range: use more than 0 hours")
    experiments = [
        e for e in SUITES[args.suite]
        if (not args.algorithms or e.label in args.algorithms) and (not args.tasks or e.env_id in args.tasks)
    ]  # fmt: skip
    folder = Path(args.output) / args.suite
    return [
        Job(e, seed, folder / e.label / e.env_id / str(seed))
        for seed in range(args.first_seed, args.first_seed + args.seeds)
        for e in experiments
    ]


def fail(message: str) -> None:
    """One line on stderr, exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def table(jobs: list[Job], title: str) -> Table:
    """The plan with the state of every run."""
    t = Table(title=title, title_justify="left")
    for column in ("algorithm", "task", "seed", "state", "step", "steps/s", "evaluation"):
        t.add_column(column, justify="right" if column in ("seed", "step", "steps/s", "evaluation") else "left")
    for job in jobs:
        step, seconds, evaluation = job.progress()
        state = job.state if job.state != "failed" else f"failed (exit {job.exit_code}), see {job.harness}/stderr.log"
        if stale := job.stale():
            state += f", stale: {stale}"
        t.add_row(
            job.experiment.label, job.experiment.env_id, str(job.seed), f"[{COLOURS[job.state]}]{state}",
            f"{step / 1000:.0f}k / {job.experiment.total_timesteps / 1000:.0f}k",
            f"{step / seconds:.0f}" if job.state == "running" and seconds else "", evaluation,
        )  # fmt: skip
    return t


def summary(jobs: list[Job], parallel: int) -> str:
    """How many runs are in which state, and the time left with so many at a time."""
    states = [job.state for job in jobs]
    counts = [f"{states.count(state)} {state}" for state in COLOURS if state in states]
    if stale := sum(job.stale() is not None for job in jobs):
        counts.append(f"{stale} of the done ones stale")
    return f"{len(jobs)} runs: {', '.join(counts)}; {time_left(jobs, parallel)}"


def time_left(jobs: list[Job], parallel: int) -> str:
    """Estimate for the runs that are not done, from the mean seconds per step of their algorithm's runs so far.

    Of an algorithm without any, the runs in benchmarks/results count.
    """
    spent: dict[str, list[float]] = {}
    for job in jobs:
        step, seconds, _ = job.progress()
        if step:
            spent.setdefault(job.experiment.label, []).append(seconds / step)
    for label in {job.experiment.label for job in jobs} - spent.keys():
        kept = [read_json(path) for path in sorted(COMMITTED.glob(f"*/{label}/*/*/status.json"))]
        if kept:
            spent[label] = [status["seconds"] / status["total_timesteps"] for status in kept]
    left, unknown = 0.0, set()
    for job in jobs:
        label = job.experiment.label
        if job.state != "done":
            steps = job.experiment.total_timesteps - job.progress()[0]
            left += steps * sum(spent[label]) / len(spent[label]) if label in spent else 0.0
            unknown |= {label} - spent.keys()
    unfinished = sum(job.state != "done" for job in jobs)
    if not unfinished:
        return "nothing left to do"
    text = f"about {tqdm.format_interval(left / max(1, min(parallel, unfinished)))} left, {parallel} at a time"
    if not spent:
        return "time left not known yet"
    return text + (f", and {', '.join(sorted(unknown))}, whose speed is not known yet" if unknown else "")


def lock(folder: Path) -> int:
    """Claim the suite's folder for this process until it ends. Exits with 2 if another harness has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(f"{folder} is in use by another benchmark: wait for it, or choose another --output")
    return descriptor


def execute(jobs: list[Job], parallel: int, console: Console, hours: float | None = None) -> str:
    """Run all waiting jobs, `parallel` at a time; returns why it stopped early, "" if it did not.

    An interruption (SIGINT, SIGTERM, SIGHUP) or the end of `hours` ends the runs. A folder in which a process is still
    training, started by a harness that died, is waited for, and that process is ended like the others. Raises OSError,
    when the runs have ended, if a status cannot be written or a run found the disk full.
    """
    reasons: list[str] = []
    shown = 0.0  # when the table was last drawn
    deadline = time.monotonic() + hours * 3600 if hours else float("inf")
    for job in jobs:
        if job.state == "done":
            job.record_done()
    waiting, running = [job for job in jobs if job.state == "waiting"], []
    survivors: list[Job] = []  # those of `waiting` that a process of a harness that died is training

    def interrupt(*_: Any) -> None:
        reasons.append("interrupted")
        for job in running:
            job.stop()
        for job in survivors:
            job.told_to_stop = job.stop_survivor()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it on purpose
            signal.signal(number, interrupt)
    try:
        with Live(table(jobs, summary(jobs, parallel)), console=console, refresh_per_second=2) as live:
            while running or any(job.told_to_stop for job in survivors) or (waiting and not reasons):
                if time.monotonic() > deadline and not reasons:
                    reasons.append("the time budget is used up")
                for job in [job for job in waiting if job.is_done()]:
                    waiting.remove(job)
                    job.record_done()
                known, survivors = survivors, [job for job in waiting if job.is_busy()]
                for job in waiting:
                    job.state = "running" if job in survivors else "waiting"
                    if job in survivors and job not in known:
                        console.print(f"{job.folder} is still trained by a process of an earlier start: waiting for it")
                startable = [job for job in waiting if job not in survivors]
                while startable and len(running) + len(survivors) < parallel and not reasons:
                    job = startable.pop(0)
                    waiting.remove(job)
                    running.append(job)
                    job.start()
                    announce(console, job)
                for job in running if reasons else []:
                    if not job.told_to_stop:  # it was just being started, or time is up
                        job.stop()
                for job in survivors if reasons else []:
                    if not job.told_to_stop:
                        job.told_to_stop = job.stop_survivor()
                for job in [job for job in running if job.poll()]:
                    running.remove(job)
                    waiting += [job] if job.state == "waiting" else []
                    announce(console, job)
                    if job.state == "failed" and os.strerror(errno.ENOSPC) in job.error_text():
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(job.folder))
                if time.monotonic() > shown + 2 or not running:
                    live.update(table(jobs, summary(jobs, parallel)))
                    shown = time.monotonic()
                time.sleep(0.5)
    except OSError:
        begun = [job for job in running if job.process]
        for job in begun:
            job.stop()
        for job in begun:
            job.process.wait()
        raise
    return reasons[0] if reasons else ""


def announce(console: Console, job: Job) -> None:
    """Where there is no terminal for the live table: a line when a run starts and ends."""
    if not console.is_terminal:
        e, seconds = job.experiment, time.time() - job.started
        console.print(f"{e.label} {e.env_id} seed {job.seed}: {job.state} ({seconds:.0f} s)")


def main(args: Args) -> int:
    """Plan, run, summarise; returns the exit code."""
    jobs, console = plan(args), Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)  # into a file or pipe, where no terminal limits the table
    if args.status:
        for job in jobs:
            job.inspect()
        console.print(table(jobs, summary(jobs, args.jobs)))
        return 0
    for job in jobs:
        job.state = "done" if job.is_done() else "waiting"
    if args.dry_run:
        for job in jobs:
            print(f"{'skip (done)' if job.state == 'done' else ' '.join(job.command())}  # {job.folder}")
        print(f"# {summary(jobs, args.jobs)}")
        return 0
    suite_folder = Path(args.output) / args.suite
    try:
        suite_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"cannot write --output {args.output} ({error.strerror}): choose another")
    claim = lock(suite_folder)
    try:
        stopped = execute(jobs, args.jobs, console, args.time_budget)
    except OSError as error:
        where = error.filename or suite_folder  # a failed write has no name
        fail(f"{error.strerror}: {where}; put it right, and the same command continues")
    console.print()
    os.close(claim)
    for job in jobs:
        if job.state == "failed":
            e = job.experiment
            tail = read_json(status_path(job.folder))["stderr_tail"].strip().splitlines()[-3:]
            console.print(f"[bold red]failed[/]: {e.label} {e.env_id} seed {job.seed}, exit {job.exit_code}")
            console.print("\n".join(tail), markup=False, style="red")
    if stopped:
        left = [str(job.folder) for job in jobs if job.state == "running"]
        others = f", but for {', '.join(left)}, still trained by an earlier start" if left else ""
        console.print(f"stopped: {stopped}{others}; the same command continues, each run from its last checkpoint")
        if stopped == "interrupted":
            return 130
    return 1 if any(job.state == "failed" for job in jobs) else 0


if __name__ == "__main__":
    chosen = tyro.cli(Args, description=__doc__)
    if chosen.dry_run or chosen.status:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` may close the pipe
    sys.exit(main(chosen))
