"""Train an agent of Stable-Baselines3 or sb3-contrib as ours are trained, evaluated and recorded.

    python benchmarks/peers.py --algorithm sb3-ppo --env-id Hopper-v5 --seed 1
    python benchmarks/run.py --suite peers

Same environments, same evaluation (deterministic policy, the same start seeds, observation statistics as they are after
so many steps and not changed by it) and the same run folder, but for policy.pt. The settings are those of RL Baselines3
Zoo for the task's earlier version (SETTINGS); whatever it does not name is the library's default. A resumed run begins
new episodes, as ours do, but is not byte for byte the uninterrupted one. Needs `pip install -r requirements-extra.txt`.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import pickle
import sys
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import tyro
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "algorithms"))
from ppo import (  # noqa: E402, I001
    RunFailed, UserError, VectorEnvs, evaluate, make_env, new_folder, read, refuse_changes, seeds, summary,
    write_atomically,
)  # fmt: skip

try:
    import sb3_contrib
    import stable_baselines3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
except ImportError:
    print("error: Stable-Baselines3 is missing: pip install -r requirements-extra.txt", file=sys.stderr)
    sys.exit(2)

NOISE = {
    "learning_starts": 10_000, "learning_rate": 1e-3, "batch_size": 256, "train_freq": 1, "gradient_steps": 1,
    "policy_kwargs": {"net_arch": [400, 300]}, "noise": 0.1,
}  # fmt: skip
WIDE = {
    "policy_kwargs": {
        "log_std_init": -2, "ortho_init": False, "activation_fn": torch.nn.ReLU,
        "net_arch": {"pi": [256, 256], "vf": [256, 256]},
    }
}  # fmt: skip
SWIMMER = {"Swimmer": {"gamma": 0.9999}}


def tuned(*values: float) -> dict[str, float]:
    """PPO's settings for a task, in this order."""
    names = ("n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "learning_rate", "clip_range", "ent_coef",
             "vf_coef", "max_grad_norm")  # fmt: skip
    return dict(zip(names, values, strict=True))


SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    # algorithm -> task, or "all" for every task, to which a task's own are added
    "sb3-a2c": {"all": {"normalize": True}, **SWIMMER},
    "sb3-ddpg": {"all": NOISE, **SWIMMER},
    "sb3-td3": {"all": NOISE, **SWIMMER},
    "sb3-sac": {"all": {"learning_starts": 10_000}, **SWIMMER},
    "sb3-trpo": {
        "all": {
            "normalize": True, "num_envs": 2, "n_steps": 1024, "batch_size": 128, "gamma": 0.99, "gae_lambda": 0.95,
            "sub_sampling_factor": 1, "cg_max_steps": 25, "cg_damping": 0.1, "n_critic_updates": 20,
            "learning_rate": 1e-3,
        },
        "HalfCheetah": {"target_kl": 0.04},
        **SWIMMER,
    },
    "sb3-ppo": {
        "all": {"normalize": True},
        "HalfCheetah": tuned(512, 64, 20, 0.98, 0.92, 2.0633e-05, 0.1, 0.000401762, 0.58096, 0.8) | WIDE,
        "Hopper": tuned(512, 32, 5, 0.999, 0.99, 9.80828e-05, 0.2, 0.00229519, 0.835671, 0.7) | WIDE,
        "Walker2d": tuned(512, 32, 20, 0.99, 0.95, 5.05041e-05, 0.1, 0.000585045, 0.871923, 1),
        "Humanoid": tuned(512, 256, 5, 0.95, 0.9, 3.56987e-05, 0.3, 0.00238306, 0.431892, 2) | WIDE,
        "InvertedDoublePendulum": tuned(128, 512, 10, 0.98, 0.8, 0.000155454, 0.4, 1.05057e-06, 0.695929, 0.5),
        "InvertedPendulum": tuned(32, 64, 5, 0.999, 0.9, 0.000222425, 0.4, 1.37976e-07, 0.19816, 0.3),
        "Reacher": tuned(512, 32, 5, 0.9, 1.0, 0.000104019, 0.3, 7.52585e-08, 0.950368, 0.9),
        "Swimmer": {"num_envs": 4, "n_steps": 1024, "batch_size": 256, "gamma": 0.9999, "learning_rate": 6e-4,
                    "gae_lambda": 0.98},
    },
}  # fmt: skip
"""Keyword arguments of the library's classes; normalize: VecNormalize of observations and rewards; noise: of actions.

Source: DLR-RM/rl-baselines3-zoo, commit 22e3ff2, hyperparams/{a2c,ddpg,ppo,sac,td3,trpo}.yml, sections "Mujoco Envs"
and "10 mujoco envs"; where they are given for v3 or v4 of a task they are taken for v5."""


@dataclass
class Args:
    """Settings of a run; those of the algorithm itself are SETTINGS in this file."""

    algorithm: Literal["sb3-a2c", "sb3-ddpg", "sb3-ppo", "sb3-sac", "sb3-td3", "sb3-trpo"] = "sb3-ppo"
    """Which algorithm of Stable-Baselines3 (TRPO: of sb3-contrib)."""
    env_id: str = "HalfCheetah-v5"
    """Gymnasium environment; `my_module:MyEnv-v0` imports my_module (looked up in the current folder too) first."""
    seed: int = 1
    """Seed of everything random (>= 0)."""
    total_timesteps: int = 1_000_000
    """Environment steps of the whole run (>= 1); the library finishes the rollout in which they fall."""
    device: str = "auto"
    """Where the networks live: auto (cuda where there is one), cpu or cuda."""
    threads: int = 1
    """CPU threads of PyTorch (>= 1)."""
    run_dir: str | None = None
    """Run folder; default runs/ENV_ID/ALGORITHM/SEED-CHANGES-TIME. An existing run is never overwritten."""
    eval_every: int = 20_000
    """Environment steps between evaluations (>= 1); the first is at step 0, the last at the end."""
    eval_episodes: int = 10
    """Episodes of an evaluation (>= 1)."""
    checkpoint_every: int = 100_000
    """Environment steps between checkpoints (>= 1)."""
    log_every: int = 1_000
    """Environment steps between rows of metrics.csv (>= 1)."""
    resume: str | None = None
    """Run folder to continue with its own settings; only device, threads and total-timesteps may change."""


def settings_for(algorithm: str, env_id: str) -> dict[str, Any]:
    """The published settings of an algorithm for a task, whatever the task's version."""
    task, table = env_id.rpartition(":")[2].rpartition("-v")[0], SETTINGS[algorithm]
    return table["all"] | table.get(task, {})


class Peer:
    """A model of Stable-Baselines3 with the interface that our `evaluate` asks of an agent."""

    def __init__(self, args: Args, saved: dict[str, Any] | None = None):
        """Build the model for `args`, as it was when `saved` (see `state`) was made, if given."""
        chosen = copy.deepcopy(settings_for(args.algorithm, args.env_id))
        name = args.algorithm.removeprefix("sb3-").upper()
        model = getattr(sb3_contrib if name == "TRPO" else stable_baselines3, name)
        envs = DummyVecEnv([lambda: Monitor(make_env(args.env_id))] * chosen.pop("num_envs", 1))
        self.statistics, seed = None, seeds(args.seed, 4, saved["step"] if saved else 0, n=1)[0] % 2**31
        if chosen.pop("normalize", False):
            self.statistics = VecNormalize(envs, gamma=chosen.get("gamma", 0.99))  # 0.99: the library's default
            if saved:
                self.statistics = pickle.loads(saved["statistics"])
                self.statistics.set_venv(envs)
            envs = self.statistics
        if saved:
            self.model = model.load(io.BytesIO(saved["model"]), envs, args.device)
            self.model.set_random_seed(seed)
            self.model.replay_buffer = pickle.loads(saved["memory"])
            return
        if noise := chosen.pop("noise", None):
            size = envs.action_space.shape
            chosen["action_noise"] = NormalActionNoise(np.zeros(size), np.full(size, noise))
        self.model = model("MlpPolicy", envs, seed=seed, device=args.device, **chosen)

    def state(self) -> dict[str, bytes]:
        """Everything that training goes on from, but the environments."""
        model = io.BytesIO()
        self.model.save(model)
        memory = pickle.dumps(getattr(self.model, "replay_buffer", None))
        return {"model": model.getvalue(), "statistics": pickle.dumps(self.statistics), "memory": memory}

    def act(self, s: torch.Tensor) -> torch.Tensor:
        """The deterministic policy in environment units; s is [n, obs] as the environments give it."""
        s = self.statistics.normalize_obs(s.numpy()) if self.statistics else s.numpy()
        return torch.from_numpy(self.model.predict(s, deterministic=True)[0])

    def eval(self) -> None:
        """Nothing to do: predicting changes neither statistics nor networks."""

    train = eval


class Recorder(BaseCallback):
    """Writes the run folder, at the ends of rollouts (off-policy: of steps), as our `Run` does."""

    def __init__(self, args: Args, peer: Peer, folder: Path, before: int, seconds: float):
        super().__init__()
        self.args, self.peer, self.folder, self.before = args, peer, folder, before
        self.envs = VectorEnvs(args.env_id, min(args.eval_episodes, 10), evaluation=True)
        self.started, self.logged, self.episodes = time.perf_counter() - seconds, (before, time.perf_counter()), []

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if episode := info.get("episode"):
                self.episodes.append({"step": self.num_timesteps, "return": episode["r"], "length": episode["l"]})
        return True

    def _on_rollout_start(self) -> None:
        self.record(self.model.num_timesteps)

    def record(self, step: int, last: bool = False) -> None:
        """Log, evaluate and save what is due at this step."""
        before, self.before, args = self.before, step, self.args
        if last or step // args.log_every > before // args.log_every:
            self.write("train", self.episodes)
            (logged, then), now, self.episodes = self.logged, time.perf_counter(), []
            speed = (step - logged) / (now - then)
            self.write("metrics", [{"step": step, "seconds": now - self.started, "steps_per_second": speed}])
            self.logged = step, now
        if last or step == 0 or step // args.eval_every > before // args.eval_every:
            episodes = evaluate(self.peer, self.envs, args.seed, args.eval_episodes, "cpu")
            self.write("eval", [{"step": step, "episode": k} | episode for k, episode in enumerate(episodes)])
            print(f"step {step}/{args.total_timesteps}: {summary(episodes)}")
        if last or step // args.checkpoint_every > before // args.checkpoint_every:
            logs = {path.name: path.stat().st_size for path in self.folder.glob("*.csv")}
            saved = {"step": step, "seconds": time.perf_counter() - self.started, "logs": logs, **self.peer.state()}
            write_atomically(self.folder / "checkpoint.pt", lambda file: torch.save(saved, file))

    def write(self, log: str, rows: list[dict[str, Any]]) -> None:
        """Add rows, below a header if they are the first, to a csv file."""
        if rows:
            with open(self.folder / f"{log}.csv", "a", newline="") as file:
                pd.DataFrame(rows).to_csv(file, header=file.tell() == 0, index=False)


def train(args: Args) -> Path:
    """Train from scratch or from `args.resume`; returns the run folder. Raises UserError."""
    for name in ("seed", "total_timesteps", "threads", "eval_every", "eval_episodes", "checkpoint_every", "log_every"):
        if (value := getattr(args, name)) < (least := int(name != "seed")):
            raise UserError(f"--{name.replace('_', '-')} {value} is out of range: use at least {least}")
    torch.set_num_threads(args.threads)
    folder = Path(args.resume or args.run_dir or new_folder(args, args.algorithm))
    checkpoint = folder / "checkpoint.pt"
    if not args.resume and (folder / "config.json").exists():
        raise UserError(f"{folder} holds a run already: choose another --run-dir, or continue with --resume")
    saved = torch.load(checkpoint, weights_only=True) if args.resume and checkpoint.exists() else None
    try:
        peer = Peer(args, saved)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except OSError as error:  # a time-out, too
        reason = error.strerror or "another process trains there"
        raise UserError(f"cannot use {folder} ({reason}): choose another --run-dir") from error
    for log in ("eval", "train", "metrics"):  # rows written after the checkpoint are written again
        if (path := folder / f"{log}.csv").exists():
            os.truncate(path, saved["logs"].get(path.name, 0) if saved else 0)
    config = read(folder / "config.json") if args.resume else {"algorithm": args.algorithm, "id": f"{time.time_ns():x}"}
    packages = ("torch", "numpy", "gymnasium", "mujoco", "stable_baselines3", "sb3_contrib")
    config |= {
        "source": "sb3-contrib" if args.algorithm == "sb3-trpo" else "stable-baselines3",
        "args": asdict(replace(args, run_dir=str(folder), resume=None, device=str(peer.model.device))),
        "settings": {name: str(value) for name, value in settings_for(args.algorithm, args.env_id).items()},
        "script_sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in packages},
        "commands": [*config.get("commands", []), ["python", *sys.argv]],
    }
    write_atomically(folder / "config.json", lambda file: file.write(json.dumps(config, indent=2).encode()))
    step = saved["step"] if saved else 0
    recorder = Recorder(args, peer, folder, step, saved["seconds"] if saved else 0.0)
    if step < args.total_timesteps:
        peer.model.learn(args.total_timesteps - step, recorder, reset_num_timesteps=not saved)
        recorder.record(peer.model.num_timesteps, last=True)
    lock.release()
    return folder


def main() -> None:
    """Entry point of the command line."""
    sys.path.append(os.getcwd())  # for own environments
    try:
        args = tyro.cli(Args, description=__doc__)
        if args.resume and args.run_dir:
            raise UserError("--resume and --run-dir exclude each other: use one")
        if args.resume:
            saved = Args(**read(Path(args.resume, "config.json"))["args"])
            args = tyro.cli(Args, description=__doc__, default=saved)
            refuse_changes(saved, args, {"total_timesteps", "checkpoint_every"})
        print(f"everything is in {train(args)}")
    except (UserError, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
