"""Train an agent of Stable-Baselines3 or sb3-contrib as ours are trained, evaluated and recorded.

    python benchmarks/peers.py --algorithm sb3-ppo --env-id Hopper-v5 --seed 1
    python benchmarks/run.py --suite peers

Same environments, same evaluation (deterministic policy, the same start seeds, observation statistics as they are after
so many steps and not changed by it) and the same run folder, whose policy.pt holds the parameters of the library's
policy. The settings are those of RL Baselines3 Zoo for the task's earlier version (SETTINGS); whatever it does not name
is the library's default. A resumed run begins new episodes, as ours do, but is not byte for byte the uninterrupted one.
Needs `pip install -r requirements-extra.txt`.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "algorithms"))
from ppo import Range, Run, RunFailed, UserError, make_env, prepare, read, seeds, write_atomically  # noqa: E402

try:
    import sb3_contrib
    import stable_baselines3
    from stable_baselines3.common.base_class import BaseAlgorithm
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
"""Keyword arguments of the library's classes; num_envs; normalize: VecNormalize of observations and rewards; noise: of
actions.

Source: DLR-RM/rl-baselines3-zoo, commit 22e3ff2, hyperparams/{a2c,ddpg,ppo,sac,td3,trpo}.yml, sections "Mujoco Envs"
and "10 mujoco envs"; where they are given for v3 or v4 of a task they are taken for v5."""


@dataclass
class Args:
    """Settings of a run; those of the algorithm itself are SETTINGS in this file."""

    algorithm: Literal["sb3-a2c", "sb3-ddpg", "sb3-ppo", "sb3-sac", "sb3-td3", "sb3-trpo"] = "sb3-ppo"
    """Which algorithm of Stable-Baselines3 (TRPO: of sb3-contrib)."""
    env_id: str = "HalfCheetah-v5"
    """Gymnasium environment; `my_module:MyEnv-v0` imports my_module (looked up in the current folder too) first."""
    seed: Annotated[int, Range(0)] = 1
    """Seed of everything random (>= 0)."""
    total_timesteps: Annotated[int, Range(1)] = 1_000_000
    """Environment steps of the whole run (>= 1); the library finishes the rollout in which they fall."""
    device: str = "auto"
    """Where the networks live: auto (cuda where there is one), cpu or cuda."""
    threads: Annotated[int, Range(1)] = 1
    """CPU threads of PyTorch (>= 1)."""
    run_dir: str | None = None
    """Run folder; default runs/ENV_ID/ALGORITHM/SEED-CHANGES-TIME. An existing run is never overwritten."""
    eval_every: Annotated[int, Range(1)] = 20_000
    """Environment steps between evaluations (>= 1); the first is at step 0, the last at the end."""
    eval_episodes: Annotated[int, Range(1)] = 10
    """Episodes of an evaluation (>= 1)."""
    checkpoint_every: Annotated[int, Range(1)] = 100_000
    """Environment steps between checkpoints (>= 1)."""
    log_every: Annotated[int, Range(1)] = 1_000
    """Environment steps between rows of metrics.csv (>= 1)."""
    resume: str | None = None
    """Run folder to continue with its own settings; only total-timesteps, device, threads, checkpoint-every and
    log-every may change."""

    # what else our `Run` and `prepare` ask for: not settings of a peer
    num_envs, compile, matmul_precision, track, capture_video, render = 1, False, "highest", False, False, False
    evaluate = None

    def check(self) -> None:
        """Nothing but the ranges is to be checked."""


def settings_for(algorithm: str, env_id: str) -> dict[str, Any]:
    """The published settings of an algorithm for a task, whatever the task's version."""
    task, table = env_id.rpartition(":")[2].rpartition("-v")[0], SETTINGS[algorithm]
    return table["all"] | table.get(task, {})


def build(algorithm: str, make: Callable[[], gym.Env], settings: dict[str, Any], device: str) -> BaseAlgorithm:
    """A new model of the library on environments that `make` returns, with settings as in SETTINGS."""
    chosen, name = copy.deepcopy(settings), algorithm.removeprefix("sb3-").upper()
    envs = DummyVecEnv([lambda: Monitor(make())] * chosen.pop("num_envs", 1))
    if chosen.pop("normalize", False):
        envs = VecNormalize(envs, gamma=chosen.get("gamma", 0.99))  # 0.99: the library's default
    if noise := chosen.pop("noise", None):
        size = envs.action_space.shape
        chosen["action_noise"] = NormalActionNoise(np.zeros(size), np.full(size, noise))
    model = getattr(sb3_contrib if name == "TRPO" else stable_baselines3, name)
    return model(chosen.pop("policy", "MlpPolicy"), envs, device=device, **chosen)


class Peer(nn.Module):
    """A model of Stable-Baselines3 as an agent of our `Run`: its policy's parameters; the rest is a `Rest`."""

    metrics, training_only = {}, ()

    def __init__(self, args: Args):
        super().__init__()
        settings = settings_for(args.algorithm, args.env_id)
        self.model = build(args.algorithm, lambda: make_env(args.env_id), settings, args.device)
        self.policy, self.statistics = self.model.policy, self.model.get_vec_normalize_env()

    def act(self, s: torch.Tensor) -> torch.Tensor:
        """The deterministic policy in environment units; s is [n, obs] as the environments give it."""
        s = s.cpu().numpy()
        s = self.statistics.normalize_obs(s) if self.statistics else s
        return torch.from_numpy(self.model.predict(s, deterministic=True)[0])


class Rest:
    """What else a peer's training goes on from, but for the environments: the memory of our `Run`, in checkpoints only.

    It holds the library's replay buffer, which is large from the start.
    """

    def __init__(self, peer: Peer):
        self.peer = peer

    def state_dict(self) -> dict[str, bytes]:
        """The model as the library saves it, and what it leaves out."""
        model, file, statistics = self.peer.model, io.BytesIO(), self.peer.statistics
        model.save(file)
        moments = statistics and (statistics.obs_rms, statistics.ret_rms)
        return {"model": file.getvalue(), "rest": pickle.dumps((moments, getattr(model, "replay_buffer", None)))}

    def load_state_dict(self, saved: dict[str, bytes]) -> None:
        """Make the peer's model the one that this is the state of."""
        old, statistics = self.peer.model, self.peer.statistics
        model = type(old).load(io.BytesIO(saved["model"]), old.get_env(), old.device)
        moments, model.replay_buffer = pickle.loads(saved["rest"])
        if statistics:
            statistics.obs_rms, statistics.ret_rms = moments
        self.peer.model, self.peer.policy = model, model.policy


class PeerRun(Run):
    """Our run folder of a peer's training."""

    def record(self, config: dict[str, Any]) -> None:
        """Write config.json, with source and settings of the peer."""
        config.pop("script_sha256", None)  # of this file, not of that of `Run`
        super().record(config)
        config |= {
            "source": "sb3-contrib" if self.args.algorithm == "sb3-trpo" else "stable-baselines3",
            "settings": {k: str(x) for k, x in settings_for(self.args.algorithm, self.args.env_id).items()},
            "script_sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        }
        config["versions"] |= {name: version(name) for name in ("stable_baselines3", "sb3_contrib")}
        write_atomically(self.folder / "config.json", lambda file: file.write(json.dumps(config, indent=2).encode()))

    def reach(self, step: int) -> None:
        """Log, evaluate and save what is due at this step."""
        before, self.envs.steps, every = self.envs.steps, step, self.args.checkpoint_every
        self.report({})
        if step // every > before // every or step >= self.total:
            self.tensorboard.flush()
            self.save()


class Recorder(BaseCallback):
    """Tells the run of episodes, and of the ends of rollouts (off-policy: of steps)."""

    def __init__(self, run: PeerRun):
        super().__init__()
        self.run = run

    def _on_step(self) -> bool:
        for k, info in enumerate(self.locals["infos"]):
            if episode := info.get("episode"):
                numbers = {"return": episode["r"], "length": episode["l"]}
                self.run.envs.finished.append((k, self.num_timesteps, numbers))
        return True

    def _on_rollout_start(self) -> None:
        self.run.reach(self.model.num_timesteps)


def train(args: Args) -> Path:
    """Train from scratch or from `args.resume`; returns the run folder. Raises UserError, RunFailed."""
    args = prepare(args)
    Peer.__name__ = args.algorithm  # by which the run folder knows an agent
    try:
        peer = Peer(args)
    except AssertionError as error:  # of the library: a space that the algorithm cannot handle
        raise UserError(f"--algorithm {args.algorithm} on --env-id {args.env_id}: {error}; use another") from error
    envs = SimpleNamespace(steps=0, finished=[], vector=peer.model.get_env())
    with PeerRun(args, peer, envs, Rest(peer)) as run:
        if not envs.steps:
            run.evaluate()
        if envs.steps < args.total_timesteps:
            peer.model.set_random_seed(seeds(args.seed, 4, envs.steps, n=1)[0] % 2**31)
            peer.model.learn(args.total_timesteps - envs.steps, Recorder(run), reset_num_timesteps=not envs.steps)
            run.reach(peer.model.num_timesteps)
    return run.folder


def main() -> None:
    """Entry point of the command line."""
    sys.path.append(os.getcwd())  # for own environments
    try:
        args = tyro.cli(Args, description=__doc__)
        if args.resume and args.run_dir:
            raise UserError("--resume and --run-dir exclude each other: use one")
        if args.resume:
            config = read(Path(args.resume, "config.json"))
            if config.get("algorithm") not in SETTINGS:
                raise UserError(f"{args.resume} is a run of {config.get('algorithm')}: use the script that made it")
            args = tyro.cli(Args, description=__doc__, default=Args(**config["args"]))
        train(args)
    except (UserError, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
