"""What the experiments share: the command line, the import of the algorithm files, and the files that they write.

Importing this module puts algorithms/ on the import path: `from common import setup, save` comes before `import ppo`.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
import pandas as pd
import scipy.stats
import torch
import tyro
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "algorithms"))
matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe and Ito's
STYLE = {"axes.prop_cycle": plt.cycler(color=COLOURS), "axes.grid": True, "grid.alpha": 0.3, "font.size": 9}


@dataclass
class Args:
    """Settings of an experiment."""

    seed: int = 1
    """First seed (>= 0)."""
    seeds: int = 5
    """How many seeds from there on (>= 2): the intervals are over them."""
    out: Path = Path("runs/experiments")
    """Folder for the picture, the csv, and a text with what the picture shows."""
    quick: bool = False
    """A version of a few seconds, to see that it runs; its numbers mean little."""


def fail(message: str) -> None:
    """End with exit code 2, the command line's code for bad input."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def setup(doc: str, seeds: int = 5) -> Args:
    """The settings from the command line, whose --help shows doc; with bad ones the program ends with exit code 2."""
    args = tyro.cli(Args, description=doc, default=Args(seeds=seeds))
    if args.seed < 0:
        fail(f"--seed {args.seed} is negative: use 0 or more")
    if args.seeds < 2:
        fail(f"--seeds {args.seeds} leaves no interval: use 2 or more")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"--out {args.out} cannot be made ({error.strerror}): name a folder")
    torch.set_num_threads(1)
    plt.rcParams.update(STYLE)
    length = "some seconds" if args.quick else "up to three minutes on two cores"
    print(
        f"seeds {args.seed} to {args.seed + args.seeds - 1}, {length}; what comes is written to {args.out}", flush=True
    )
    return args


def picture(figure: plt.Figure) -> Image.Image:
    """The figure in 256 colours, a third of the file; an octree keeps the colours of thin lines, a median cut not."""
    file = io.BytesIO()
    figure.savefig(file, dpi=100, facecolor="white")
    return Image.open(file).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


def save(
    args: Args, name: str, rows: list[dict[str, Any]] | pd.DataFrame, figure: plt.Figure, says: Sequence[str]
) -> None:
    """Write rows as NAME.csv, the figure as NAME.png and what it shows as NAME.txt, each complete or not at all.

    Prints the files' names, and the sentences.
    """
    for suffix, write in (
        ("csv", lambda path: pd.DataFrame(rows).to_csv(path, index=False, float_format="%.6g")),
        ("png", lambda path: picture(figure).save(path, optimize=True)),
        ("txt", lambda path: path.write_text(" ".join(says) + "\n", encoding="utf-8")),
    ):
        part = args.out / f".{name}.{os.getpid()}.{suffix}"
        try:
            write(part)
            part.replace(args.out / f"{name}.{suffix}")
        finally:
            part.unlink(missing_ok=True)
        print(args.out / f"{name}.{suffix}")
    print(textwrap.fill(" ".join(says), 100))


def interval(x: Sequence[float]) -> tuple[float, float, float]:
    """Mean of x and its 95 % confidence interval (Student's t, for x of independent seeds)."""
    mean = float(np.mean(x))
    half = float(scipy.stats.t.ppf(0.975, len(x) - 1) * scipy.stats.sem(x))
    return mean, mean - half, mean + half


def panels(title: str, columns: int, height: float = 3.6) -> tuple[plt.Figure, Any]:
    """A figure of 830 pixels with panels side by side: (figure, axis) or (figure, axes)."""
    figure, axes = plt.subplots(1, columns, figsize=(8.3, height), layout="constrained")
    figure.suptitle(f"{title}, mean and 95 % interval")
    return figure, axes


def curve(axis: plt.Axes, rows: pd.DataFrame, x: str, y: str, label: str, **line: Any) -> None:
    """Draw the mean of column y over the seeds against column x, with its 95 % interval; the legend tells n."""
    at, stats = zip(*((value, interval(group)) for value, group in rows.groupby(x)[y]), strict=True)
    mean, low, high = np.transpose(stats)
    (drawn,) = axis.plot(at, mean, label=f"{label} (n = {rows['seed'].nunique()})", **line)
    axis.fill_between(at, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)


def interact(env: gym.Env, policy: Callable, seed: int, to_env: Callable = lambda a: a) -> Iterator[tuple]:
    """Transitions without end, a row [1, ...] each: s, a, r, s2, terminal, done. The environment is given to_env(a)."""
    s, _ = env.reset(seed=seed)
    while True:
        a = policy(torch.as_tensor(s, dtype=torch.float32).unsqueeze(0))
        s2, r, terminal, truncated, _ = env.step(to_env(a)[0].numpy())
        rows = (np.asarray(x, dtype=np.float32)[None] for x in (r, s2, terminal, terminal or truncated))
        yield torch.as_tensor(s, dtype=torch.float32).unsqueeze(0), a, *map(torch.from_numpy, rows)
        s = env.reset()[0] if terminal or truncated else s2


def off_policy(agent: Any, memory: Any, env: gym.Env, seed: int, steps: int, start: int, batch: int) -> Iterator[tuple]:
    """Train with one update per step, random actions before step `start`; yields (step, info) after each."""

    def policy(s: torch.Tensor) -> torch.Tensor:
        return agent.explore(s) if memory.size >= start else agent.explore_uniformly(1)

    for step, (s, a, r, s2, terminal, _) in zip(range(1, steps + 1), interact(env, policy, seed), strict=False):
        memory.add(s, a, r, s2, terminal)
        if memory.size >= start:
            yield step, agent.update(*memory.sample(batch))


def episodes(agent: Any, env: gym.Env, seed: int, n: int) -> list[tuple[torch.Tensor, np.ndarray, bool]]:
    """n episodes of the deterministic policy: states s [t, obs], rewards r [t], and whether a time limit cut it."""
    made, s, r = [], [], []
    for s_t, _, r_t, _, terminal, done in interact(env, agent.act, seed):
        s.append(s_t)
        r.append(r_t.item())
        if done:
            made.append((torch.cat(s), np.array(r), not terminal))
            s, r = [], []
        if len(made) == n:
            return made


def estimated_and_true(agent: Any, critic: Callable, env: gym.Env, gamma: float, seed: int, n: int) -> dict[str, float]:
    """Means of Q(s, mu(s)) and of the true discounted return over the states of n episodes with mu.

    Where a time limit cuts an episode, the states so near it that more than 1 % of a constant reward's return is
    missing do not count.
    """
    estimated, true, missing = [], [], int(np.ceil(np.log(0.01) / np.log(gamma)))
    for s, r, cut in episodes(agent, env, seed, n):
        g = np.zeros(len(r) + 1)
        for t in reversed(range(len(r))):
            g[t] = r[t] + gamma * g[t + 1]  # the true return   [BIAS.1]
        counted = slice(max(len(r) - missing, 0) if cut else len(r))
        with torch.no_grad():
            estimated.extend(critic(s, agent.act(s)).tolist()[counted])  # Q(s, mu(s))   [BIAS.1]
        true.extend(g[:-1][counted])
    return {"estimated": float(np.mean(estimated)), "true": float(np.mean(true))}


def in_parallel(function: Callable, calls: Sequence[tuple]) -> list:
    """What function(*call) returns for each of the calls, in their order, on all cores with one thread each."""
    workers = min(len(calls), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        return list(pool.map(function, *zip(*calls, strict=True)))


def measure(function: Callable, args: Args, *tasks: tuple) -> pd.DataFrame:
    """The rows that function(seed, *task) returns, for every seed and task."""
    calls = [(seed, *task) for seed in range(args.seed, args.seed + args.seeds) for task in tasks]
    return pd.DataFrame([row for rows in in_parallel(function, calls) for row in rows])
