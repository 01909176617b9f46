"""One animated picture (WebP) of trained policies side by side, each in its task.

    python benchmarks/film.py --policies benchmarks/results/policies/ppo/HalfCheetah-v5 runs/Ant-v5/sac/RUN

Needs OpenGL without a screen: libosmesa6 (the default), or libegl1 and MUJOCO_GL=egl.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image, ImageDraw
from records import COMMITTED, ROOT, InputError, read_json
from run import fail, require_at_least

FRAMES_PER_SECOND = 20  # as many as HalfCheetah and Ant take steps


@dataclass
class Options:
    """What to film."""

    policies: tuple[Path, ...]
    """Run folders, or folders with config.json and policy.pt."""
    output: Path = COMMITTED / "policies.webp"
    """The picture, a .webp file."""
    seconds: float = 5.0
    """Length (>= 0.05); a task that ends earlier starts again."""
    size: int = 200
    """Height and width of a task's picture, in pixels (>= 64)."""


def frames(folder: Path, seconds: float, size: int) -> list[np.ndarray]:
    """Frames [size, size, 3] of a policy in its task, at the speed of the simulated time, with both names on them.

    Raises InputError if the folder holds no policy for a MuJoCo task, or nothing can be drawn.
    """
    name = read_json(folder / "config.json").get("algorithm", "")
    if not (ROOT / "algorithms" / f"{name}.py").exists() or not (folder / "policy.pt").exists():
        raise InputError(f"{folder} has no config.json of an algorithm here, or no policy.pt: name a run folder")
    script = importlib.import_module(name)
    try:
        agent, env, _ = script.load_policy(folder, getattr(script, name.upper()), script.Args)
    except script.UserError as error:
        raise InputError(str(error)) from error
    if not hasattr(env.unwrapped, "dt"):
        raise InputError(f"{folder} is of {env.spec.id}, which is no MuJoCo task: name others")
    cameras = [env.unwrapped.model.camera(k).name for k in range(env.unwrapped.model.ncam)]
    follow = {"camera_name": "track"} if "track" in cameras else {}  # what runs would leave the picture
    env = script.make_env(env.spec.id, evaluation=True, render_mode="rgb_array", height=size, width=size, **follow)
    made, (s, _) = [], env.reset(seed=1)
    try:
        env.render()
    except Exception as error:  # whatever a renderer may lack
        raise InputError(f"cannot draw ({error}): install libosmesa6, or libegl1 and set MUJOCO_GL=egl") from error
    for t in range(round(seconds / env.unwrapped.dt)):
        if round(t * env.unwrapped.dt * FRAMES_PER_SECOND, 6) >= len(made):
            picture = Image.fromarray(env.render())
            draw = ImageDraw.Draw(picture)
            draw.rectangle((0, 0, size, 16), fill="black")
            draw.text((4, 2), f"{env.spec.id}, {name}", fill="white")
            made.append(np.asarray(picture))
        a = agent.act(torch.as_tensor(s, dtype=torch.float32).unsqueeze(0))[0].numpy()
        s, _, terminal, truncated, _ = env.step(a)
        if terminal or truncated:
            s, _ = env.reset()
    return made


def main(options: Options) -> None:
    """Film the policies and write the picture. Raises InputError."""
    require_at_least(options, seconds=1 / FRAMES_PER_SECOND, size=64)
    if not options.policies:
        raise InputError("no --policies: name at least one run folder")
    if options.output.suffix != ".webp" or not os.access(options.output.parent, os.W_OK):
        raise InputError(f"--output {options.output} cannot be written: name a .webp file in a folder that is there")
    importlib.import_module("torch._dynamo")  # before mujoco: after OSMesa's LLVM that of Triton ends the process
    os.environ.setdefault("MUJOCO_GL", "osmesa")  # read when mujoco is imported
    sys.path.append(str(ROOT / "algorithms"))
    films = [frames(folder, options.seconds, options.size) for folder in options.policies]
    pictures = [Image.fromarray(np.hstack(row)) for row in zip(*films, strict=False)]  # one may be a frame longer
    timing = {"duration": 1000 // FRAMES_PER_SECOND, "loop": 0}
    pictures[0].save(options.output, save_all=True, append_images=pictures[1:], quality=60, method=4, **timing)
    print(f"{options.output}: {len(pictures)} frames, {options.output.stat().st_size / 2**20:.1f} MB")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except InputError as error:
        fail(str(error))
