"""Peers: their settings, their run folder, our evaluation of them, their resume."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import suites
import torch

pytest.importorskip("stable_baselines3", reason="not installed: pip install -r requirements-extra.txt")
pytest.importorskip("sb3_contrib", reason="not installed: pip install -r requirements-extra.txt")
import peers
import ppo


def args(folder: Path, algorithm: str = "sb3-a2c", **settings) -> peers.Args:
    defaults = {"env_id": "InvertedPendulum-v5", "total_timesteps": 300, "eval_every": 100, "eval_episodes": 3}
    return peers.Args(
        algorithm, run_dir=str(folder), **defaults | {"log_every": 100, "checkpoint_every": 100} | settings
    )


def read(folder: Path, log: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"{log}.csv")


def test_every_peer_has_settings_that_its_library_takes(tmp_path):
    assert tuple(sorted(peers.SETTINGS)) == suites.PEERS
    for algorithm, table in peers.SETTINGS.items():
        for task in [*table.keys() - {"all"}, "Ant"]:
            chosen = peers.settings_for(algorithm, f"{task}-v5")
            peer = peers.Peer(args(tmp_path, algorithm, env_id=f"{task}-v5"))
            for name in ("gamma", "learning_rate", "n_steps", "batch_size"):
                assert getattr(peer.model, name, None) == chosen.get(name, getattr(peer.model, name, None)), algorithm
            assert peer.model.n_envs == chosen.get("num_envs", 1)
            assert (peer.statistics is not None) == chosen.get("normalize", False)
            if peer.statistics:
                assert peer.statistics.gamma == peer.model.gamma, "rewards are scaled with the discount of the task"
    assert peers.settings_for("sb3-td3", "my_module:Swimmer-v9")["gamma"] == 0.9999
    assert peers.settings_for("sb3-ppo", "HalfCheetah-v5")["n_epochs"] == 20
    assert "n_epochs" not in peers.settings_for("sb3-ppo", "Ant-v5"), "a tuned task does not leak into another"


@pytest.mark.parametrize("algorithm", suites.PEERS)
def test_a_run_folder_is_like_ours(tmp_path, algorithm, monkeypatch):
    monkeypatch.setitem(peers.SETTINGS["sb3-trpo"]["all"], "n_steps", 128)
    monkeypatch.setitem(peers.SETTINGS["sb3-ppo"]["InvertedPendulum"], "batch_size", 32)
    folder = peers.train(args(tmp_path / "run", algorithm))
    config, evaluations = json.loads((folder / "config.json").read_text()), read(folder, "eval")
    assert config["source"] == ("sb3-contrib" if algorithm == "sb3-trpo" else "stable-baselines3")
    assert config["algorithm"] == algorithm and config["args"]["total_timesteps"] == 300
    assert config["versions"]["stable_baselines3"] and config["args"]["device"] == "cpu"
    assert list(evaluations.columns) == ["step", "episode", "return", "length"]
    steps = evaluations["step"].unique()
    assert steps[0] == 0 and 300 <= steps[-1] < 600 and len(evaluations) == 3 * len(steps)
    assert read(folder, "metrics")["step"].iloc[-1] == steps[-1]
    train = read(folder, "train")
    assert len(train) > 3 and (train["return"] == train["length"] - 1).all(), "reward 1 but for the fall"


def test_evaluation_is_ours_deterministic_and_leaves_the_statistics_alone(tmp_path):
    folder = peers.train(args(tmp_path / "run", env_id="Pendulum-v1"))
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    peer = peers.Peer(args(tmp_path, env_id="Pendulum-v1"))
    peers.Rest(peer).load_state_dict(saved["memory"])
    before = peer.statistics.obs_rms.mean.copy()
    assert not np.allclose(before, 0), "it has seen observations"
    episodes = ppo.evaluate(peer, ppo.VectorEnvs("Pendulum-v1", 3, evaluation=True), 1, 3, "cpu")
    last = read(folder, "eval").query("step == 300")
    assert [episode["return"] for episode in episodes] == pytest.approx(last["return"].tolist())
    assert np.array_equal(peer.statistics.obs_rms.mean, before)
    # the same by hand: one episode from our first start seed, without the library's wrappers
    env = gym.make("Pendulum-v1")
    s, total, done = env.reset(seed=peers.seeds(1, 2, n=1)[0])[0], 0.0, False
    std = np.sqrt(peer.statistics.obs_rms.var + 1e-8)
    while not done:
        normal = torch.as_tensor(np.clip((s - before) / std, -10, 10), dtype=torch.float32)
        mean = peer.model.policy.get_distribution(normal[None]).distribution.mean
        s, r, terminal, truncated, _ = env.step(mean.detach().numpy()[0].clip(-2, 2))
        total, done = total + float(r), terminal or truncated
    assert total == pytest.approx(last["return"].iloc[0], rel=1e-3)


@pytest.mark.parametrize("algorithm", ["sb3-a2c", "sb3-sac"])
def test_a_resumed_run_goes_on_from_its_checkpoint(tmp_path, algorithm):
    folder = peers.train(args(tmp_path / "run", algorithm))
    rows = read(folder, "eval")
    with open(folder / "eval.csv", "a") as file:
        file.write("400,0,1,1\n")  # after the checkpoint, and then it was killed
    peers.train(replace(args(tmp_path / "run", algorithm, total_timesteps=500), resume=str(folder), run_dir=None))
    after = read(folder, "eval")
    assert after[after["step"] <= 300].equals(rows) and after["step"].unique().tolist() == [0, 100, 200, 300, 400, 500]
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    peer = peers.Peer(args(tmp_path, algorithm))
    peers.Rest(peer).load_state_dict(saved["memory"])
    model = peer.model
    assert model.num_timesteps == 500
    assert algorithm == "sb3-a2c" or model.replay_buffer.size() == 500, "the memory went on, too"
    policy = torch.load(folder / "policy.pt", weights_only=True)["policy"]
    assert policy.keys() == peer.state_dict().keys() == saved["agent"].keys()
    assert all(torch.equal(policy[name], x) for name, x in peer.state_dict().items())
    assert all(name.startswith("policy.") for name in policy), "evaluations need not write the memory"


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    folder, other = peers.train(args(tmp_path / "run", total_timesteps=100)), tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"algorithm": "td3", "args": {"policy_delay": 2}}')
    for words, message in (
        (["--run-dir", str(folder)], "holds a run already"),
        (["--resume", str(folder), "--seed", "5"], "--seed 5 differs"),
        (["--resume", str(folder), "--run-dir", "new"], "--resume and --run-dir exclude each other"),
        (["--resume", str(other)], f"{other} is a run of td3"),
        (["--algorithm", "sb3-sac", "--env-id", "CartPole-v1"], "--algorithm sb3-sac on --env-id CartPole-v1: "),
        (["--env-id", "None-v0"], "None"), (["--eval-every", "0"], "--eval-every 0 is out of range"),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["peers.py", "--algorithm", "sb3-a2c", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            peers.main()
        errors = capsys.readouterr().err.strip().splitlines()
        assert end.value.code == 2 and errors[-1].startswith("error: ") and message in errors[-1], errors
    words = [peers.__file__, "--algorithm", "sb3-a2c", "--env-id", "None-v0"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith("error: "), done.stderr
    assert not (tmp_path / "runs").exists()
