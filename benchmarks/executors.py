"""Where the runs of a benchmark are made: processes of this machine, or tasks of a Ray cluster."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from suites import ROOT
from tqdm import tqdm

# Becomes the program that its arguments name, and is killed by the kernel when the thread that started it ends.
LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):  # otherwise it has ended already
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class InputError(Exception):
    """What was asked for cannot be done: one line with what, value and remedy."""


def launch(words: list[str], logs: Path, cwd: Path | None = None) -> subprocess.Popen:
    """Start `python WORDS` with one thread and its output in logs/; on Linux it ends with the calling thread.

    It has a session of its own, so that Ctrl-C reaches only the harness.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with open(logs / "output.log", "a") as out, open(logs / "stderr.log", "w") as err:
        return subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(os.getpid()), *words],
            stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True, cwd=cwd,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip


def hardware() -> str:
    """Processor and number of cores."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        return f"{name}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


class Local:
    """Runs as processes of this machine."""

    pause_note = "the runs are stopped where they are"

    def __init__(self) -> None:
        self.processes: set[subprocess.Popen] = set()
        self.lock = threading.Lock()  # a process is either started before a stop or a pause, or not at all
        self.stopped, self.paused_at, self.pauses = False, None, 0.0

    def slots(self) -> int:
        """Runs at a time, unless the user says how many."""
        return os.cpu_count() or 1

    def clock(self) -> float:
        """Seconds, without those of pauses."""
        return (self.paused_at or time.monotonic()) - self.pauses

    def run(self, job: Any) -> int | None:
        """Make the run, in the calling thread; returns its exit code, None if it was not begun or was stopped."""
        with self.lock:
            if self.stopped:
                return None
            process = launch(job.command()[1:], job.folder / "harness")
            self.processes.add(process)
            if self.paused_at:
                process.send_signal(signal.SIGSTOP)
        code = process.wait()
        with self.lock:
            self.processes.remove(process)
            return None if self.stopped else code

    def pause(self, wanted: bool) -> None:
        """Stop the processes where they are, or let them go on."""
        with self.lock:
            for process in self.processes:
                process.send_signal(signal.SIGSTOP if wanted else signal.SIGCONT)
            self.note_pause(wanted)

    def note_pause(self, wanted: bool) -> None:
        """Stop the clock, or let it go on."""
        if wanted:
            self.paused_at = time.monotonic()
        elif self.paused_at:
            self.pauses += time.monotonic() - self.paused_at
            self.paused_at = None

    def stop(self) -> None:
        """End all runs, at once: their last checkpoint is what they go on from."""
        with self.lock:
            self.stopped = True
            for process in self.processes:
                process.kill()

    def close(self) -> None:
        """Give back what was claimed."""


class Ray(Local):
    """Runs as tasks of a Ray cluster, whose machines need the packages of requirements.txt and share no disk.

    Scripts and the modules of the current folder travel with the tasks. Each sends what changes in its run folder; one
    whose machine is lost is started on another, from the last checkpoint that arrived, `attempts` times at most.
    """

    pause_note = "no further runs begin; those on the cluster go on"

    def __init__(self, address: str | None, cpus: float, gpus: float, attempts: int, scripts: list[Path]) -> None:
        super().__init__()
        if importlib.util.find_spec("ray") is None:
            raise InputError("--executor ray needs Ray: pip install -r requirements-extra.txt")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self.ray, self.attempts, self.share = ray, attempts, {"num_cpus": cpus, "num_gpus": gpus}
        self.code = tempfile.TemporaryDirectory(prefix="gradus-code-")
        for script in {*ROOT.glob("algorithms/*.py"), *ROOT.glob("benchmarks/*.py"), *scripts}:
            copy = Path(self.code.name, self.place(script))
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(script, copy)
        for module in Path.cwd().glob("*.py"):  # own environments
            shutil.copy(module, self.code.name)
        try:
            ray.init(address, runtime_env={"working_dir": self.code.name}, log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"--address {address}: {' '.join(str(error).split())}") from error
        for name, wanted in (("CPU", cpus), ("GPU", gpus)):
            if wanted > (there := ray.cluster_resources().get(name, 0)):
                raise InputError(
                    f"--{name.lower()}s {wanted:g}: the cluster has {there:g}; ask for less, or add machines"
                )
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the cluster has no such module
        self.task = ray.remote(max_retries=0, num_returns="streaming", **self.share)(train_on_cluster)

    @staticmethod
    def place(script: Path) -> str:
        """Where a script lies among the code that travels with the tasks."""
        script = script.resolve()
        return str(script.relative_to(ROOT)) if script.is_relative_to(ROOT) else f"scripts/{script.name}"

    def slots(self) -> int:
        there = self.ray.cluster_resources()
        shares = (there.get("CPU", 0), self.share["num_cpus"]), (there.get("GPU", 0), self.share["num_gpus"])
        return max(1, min(int(amount / share) for amount, share in shares if share))

    def run(self, job: Any) -> int | None:
        script, problem = self.place(job.experiment.script), ""
        for attempt in range(self.attempts):
            task = self.task.remote(script, job.words(), f"runs/{job.experiment.label}", changes(job.folder, {}))
            try:
                for result in self.results(task):
                    if isinstance(result, dict):
                        write_files(job.folder, result)
                    else:
                        code, job.status["hardware"] = result
                        return code
                return None
            except self.ray.exceptions.RayTaskError as error:  # a fault that another machine would have, too
                problem = str(error)
                break
            except self.ray.exceptions.RayError as error:
                problem = f"lost {attempt + 1} machines, the last by {type(error).__name__}: {error}"
                tqdm.write(f"{job}: its machine was lost ({type(error).__name__}); another goes on")
        (job.folder / "harness").mkdir(parents=True, exist_ok=True)
        (job.folder / "harness" / "stderr.log").write_text(problem)
        return 1

    def results(self, task: Any) -> Iterator[Any]:
        """What a task yields, as it comes; ends early, and the task with it, when the harness stops."""
        while not self.stopped:
            if self.ray.wait([task], timeout=1)[0]:
                try:
                    yield self.ray.get(next(task))
                except StopIteration:
                    return
        self.ray.cancel(task)

    def pause(self, wanted: bool) -> None:
        self.note_pause(wanted)

    def close(self) -> None:
        self.ray.shutdown()
        self.code.cleanup()


def train_on_cluster(
    script: str, words: list[str], name: str, files: dict[str, bytes], seconds: float = 5
) -> Iterator[dict[str, bytes] | tuple[int, str]]:
    """Task of the cluster: go on with the run of `files` (path in the run folder -> content), or begin one.

    Yields the files that change, every so many seconds the logs, and all of them when there is a new checkpoint and at
    the end; at last the exit code and the hardware.
    """
    with tempfile.TemporaryDirectory(prefix="gradus-run-") as home:
        for part in os.listdir():  # the working directory that came with the task
            os.symlink(os.path.abspath(part), os.path.join(home, part))
        folder, seen = Path(home, name), {}
        write_files(folder, files)
        where = "--resume" if (folder / "config.json").exists() else "--run-dir"
        process = launch([script, *words, where, name], folder / "harness", Path(home))
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)
                if process.poll() is None and (changed := changes(folder, seen, logs_only=True)):
                    yield changed
            yield changes(folder, seen)
            yield process.returncode, hardware()
        finally:
            process.kill()
            process.wait()


def changes(folder: Path, seen: dict[str, tuple[int, int]], logs_only: bool = False) -> dict[str, bytes]:
    """Content of a run folder's files that are not as in `seen` (path -> time and size), which is brought up to date.

    With `logs_only`, others than csv and json files only if there is a new checkpoint. The checkpoint is read first:
    the logs, which only grow, must not be shorter than it says.
    """
    found, checkpoint = {}, folder / "checkpoint.pt"
    paths = [path for path in sorted(folder.rglob("*"), key=lambda p: (p != checkpoint, p)) if path.is_file()]
    for path in paths:
        name, stat = str(path.relative_to(folder)), path.stat()
        ignored = path.name in (".lock", "status.json") or path.suffix == ".tmp"
        light = path.suffix in (".csv", ".json") or path == checkpoint or "checkpoint.pt" in found
        if not ignored and (light or not logs_only) and seen.get(name) != (stat.st_mtime_ns, stat.st_size):
            seen[name], found[name] = (stat.st_mtime_ns, stat.st_size), path.read_bytes()
    return found


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write files of a run folder, each whole or not at all, and the checkpoint last."""
    for name in sorted(files, key=lambda name: (name == "checkpoint.pt", name)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(files[name])
        os.replace(temporary, path)
