"""Where the runs of a benchmark are made: processes of this machine, or tasks of a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from records import InputError
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


def launch(words: list[str], logs: Path, cwd: str | None = None) -> subprocess.Popen:
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
    """Runs as processes of this machine; `slots` is how many at a time, unless the user says."""

    def __init__(self) -> None:
        self.slots = os.cpu_count() or 1
        self.processes: set[subprocess.Popen] = set()
        self.change = threading.Condition()  # a process is either started before a stop or a pause, or not at all
        self.stopped, self.paused_at, self.pauses = False, None, 0.0

    def clock(self) -> float:
        """Seconds, without those in which the runs stood still."""
        return (self.paused_at or time.monotonic()) - self.pauses

    def run(self, job: Any) -> tuple[int | None, str]:
        """Make the run, in the calling thread; returns (exit code or None if it was stopped, hardware)."""
        with self.change:
            self.change.wait_for(lambda: self.stopped or not self.paused_at)
            if self.stopped:
                return None, hardware()
            process = launch(job.command()[1:], job.folder / "harness")
            self.processes.add(process)
        code = process.wait()
        with self.change:
            self.processes.remove(process)
            return None if self.stopped else code, hardware()

    def pause(self, wanted: bool) -> None:
        """Stop the processes where they are, or let them go on."""
        with self.change:
            for process in self.processes:
                process.send_signal(signal.SIGSTOP if wanted else signal.SIGCONT)
            self.pauses += 0 if wanted else time.monotonic() - self.paused_at
            self.paused_at = time.monotonic() if wanted else None
            self.change.notify_all()

    def stop(self) -> None:
        """End all runs, at once: their last checkpoint is what they go on from."""
        with self.change:
            self.stopped = True
            for process in self.processes:
                process.kill()
            self.change.notify_all()


class Ray(Local):
    """Runs as tasks of a Ray cluster, whose machines need the packages of requirements.txt and share no disk.

    Scripts and the modules of the current folder travel with the tasks. Each sends the files of its run folder; one
    whose machine is lost is started on another, from the last checkpoint that arrived, `attempts` times at most. Raises
    InputError without Ray, without the cluster, or if a run needs more than the cluster has.
    """

    clock = staticmethod(time.monotonic)  # a pause does not reach the runs on the cluster

    def __init__(self, address: str | None, cpus: float, gpus: float, attempts: int, scripts: list[Path]) -> None:
        super().__init__()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise InputError("--executor ray needs Ray: pip install -r requirements-extra.txt") from error
        try:
            ray.init(address or "local", log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"--address {address}: {' '.join(str(error).split())}") from error
        there, wanted = ray.cluster_resources(), {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        for name, amount in wanted.items():
            if amount > there.get(name, 0):
                text = f"--{name.lower()}s {amount:g}: the cluster has {there.get(name, 0):g}"
                raise InputError(f"{text}; ask for less, or add some")
        self.slots = min(int(there[name] / amount + 1e-9) for name, amount in wanted.items())
        self.ray, self.attempts = ray, attempts
        code = {place(path): path.read_bytes() for path in {*ROOT.glob("algorithms/*.py"), *scripts}}
        self.code = ray.put(code | {path.name: path.read_bytes() for path in Path.cwd().glob("*.py")})
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the cluster has no such module
        task = ray.remote(max_retries=0, num_returns="streaming", num_cpus=cpus, num_gpus=gpus)
        self.task = task(train_on_cluster)

    def run(self, job: Any) -> tuple[int | None, str]:
        with self.change:
            self.change.wait_for(lambda: self.stopped or not self.paused_at)
        for attempt in range(self.attempts):
            task = self.task.remote(self.code, place(job.experiment.script), job.words(), files_of(job.folder, {}))
            try:
                while not self.stopped:
                    if self.ray.wait([task], timeout=1)[0]:
                        result = self.ray.get(next(task))
                        if not isinstance(result, dict):
                            return result
                        write_files(job.folder, result)
                self.ray.cancel(task)
                return None, "unknown"
            except self.ray.exceptions.RayTaskError as error:  # a fault that another machine would have, too
                problem = str(error)
                break
            except self.ray.exceptions.RayError as error:
                problem = f"lost {attempt + 1} machines, the last by {type(error).__name__}: {error}"
                tqdm.write(f"{job}: its machine was lost ({type(error).__name__}); another goes on")
        (job.folder / "harness" / "stderr.log").write_text(problem)
        return 1, "unknown"


def place(script: Path) -> str:
    """Where a script lies among the code that travels with the tasks."""
    return str(script.relative_to(ROOT)) if script.is_relative_to(ROOT) else f"scripts/{script.name}"


def train_on_cluster(
    code: dict[str, bytes], script: str, words: list[str], files: dict[str, bytes]
) -> Iterator[dict[str, bytes] | tuple[int, str]]:
    """Task of the cluster: go on with the run of `files` (path in the run folder -> content), or begin one.

    Yields the files that have changed, every five seconds and at the end; at last the exit code and the hardware.
    """
    with tempfile.TemporaryDirectory(prefix="gradus-run-") as home:
        folder, sent, running = Path(home, "run"), {}, True
        write_files(Path(home), code)
        write_files(folder, files)
        where = "--resume" if (folder / "config.json").exists() else "--run-dir"
        process = launch([script, *words, where, "run"], folder / "harness", home)
        try:
            while running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                running = process.poll() is None
                yield files_of(folder, sent)
            yield process.returncode, hardware()
        finally:
            process.kill()
            process.wait()


def files_of(folder: Path, sent: dict[Path, tuple[int, int]]) -> dict[str, bytes]:
    """Content of a run folder's files (path -> content) that have changed since they were noted in `sent`; notes them.

    Those being written are left out.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".tmp" or path.name in (".lock", "status.json") or not path.is_file():
            continue
        state = path.stat().st_mtime_ns, path.stat().st_size
        if sent.get(path) != state:
            files[str(path.relative_to(folder))], sent[path] = path.read_bytes(), state
    return files


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write files of a run folder, each whole or not at all; config.json last: with it there is a run to resume."""
    for name in sorted(files, key=lambda name: (name == "config.json", name)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(files[name])
        os.replace(temporary, path)
