"""What the experiments share: the command line, the import of the algorithm files, the picture and the csv.

Importing this module puts algorithms/ on the import path: `from common import setup, save` comes before `import ppo`.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import scipy.stats
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "algorithms"))
matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)  # Okabe and Ito: colour-blind safe
plt.rcParams.update(
    {"axes.prop_cycle": plt.cycler(color=COLOURS), "axes.grid": True, "grid.alpha": 0.3, "font.size": 9}
)


@dataclass
class Args:
    """Settings of an experiment."""

    seed: int = 1
    """First seed (>= 0)."""
    seeds: int = 5
    """How many seeds from there on (>= 2): the intervals are over them."""
    out: Path = Path("runs/experiments")
    """Folder for the picture and the csv."""
    quick: bool = False
    """A version of a few seconds, to see that it runs; its numbers mean little."""


def fail(message: str) -> None:
    """End with exit code 2, the command line's code for bad input."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def setup(doc: str) -> Args:
    """The settings from the command line, whose --help shows doc; with bad ones the program ends with exit code 2."""
    args = tyro.cli(Args, description=doc)
    if args.seed < 0:
        fail(f"--seed {args.seed} is negative: use 0 or more")
    if args.seeds < 2:
        fail(f"--seeds {args.seeds} leaves no interval: use 2 or more")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"--out {args.out} cannot be made ({error.strerror}): name a folder")
    torch.set_num_threads(1)
    return args


def save(args: Args, name: str, rows: list[dict[str, Any]], figure: plt.Figure) -> None:
    """Write rows as NAME.csv and the figure as NAME.png, each complete or not at all, and name them."""
    for suffix, write in (
        ("csv", lambda path: pd.DataFrame(rows).to_csv(path, index=False, float_format="%.6g")),
        ("png", lambda path: figure.savefig(path, dpi=100, facecolor="white", metadata={"Software": None})),
    ):
        part = args.out / f".{name}.{os.getpid()}.{suffix}"
        try:
            write(part)
            part.replace(args.out / f"{name}.{suffix}")
        finally:
            part.unlink(missing_ok=True)
        print(args.out / f"{name}.{suffix}")


def tell(*sentences: str) -> None:
    """Print what the picture shows."""
    print(textwrap.fill(" ".join(sentences), 100))


def interval(x: Sequence[float]) -> tuple[float, float, float]:
    """Mean of x and its 95 % confidence interval (Student's t, for x of independent seeds)."""
    mean = float(np.mean(x))
    half = float(scipy.stats.t.ppf(0.975, len(x) - 1) * scipy.stats.sem(x))
    return mean, mean - half, mean + half


def in_parallel(function: Callable, tasks: Sequence[tuple]) -> list:
    """function(*task) for each of the tasks, in their order, on all cores: one process each, with one thread."""
    workers = min(len(tasks), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        return list(pool.map(function, *zip(*tasks, strict=True)))
