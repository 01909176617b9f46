"""The command line: bad input becomes one line that helps, --evaluate needs nothing else, files run from anywhere."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import (
    AGENTS,
    ALGORITHMS,
    FIXED_ROLLOUTS,
    HAS_REPLAY,
    contents,
    flags,
    load,
    of_shared_blocks,
    rows,
    run_script,
    settings,
    start_script,
    train,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A complete run of every algorithm; tests must not change it."""
    folder = tmp_path_factory.mktemp("finished")
    return {algorithm: train(algorithm, run_dir=str(folder / algorithm)) for algorithm in ALGORITHMS}


def assert_one_line(code: int, out: str, err: str, *parts: str) -> None:
    """Exit code 2, nothing printed but one line on stderr that starts with "error:" and holds all parts."""
    assert code == 2, (out, err)
    assert out == ""
    assert re.fullmatch(r"error: .+\n", err), err
    assert "Traceback" not in err
    for part in parts:
        assert part in err


# ---- bad input -------------------------------------------------------------------------------------------------------

# words of the command line -> what the message must hold: the value and a remedy
BAD_INPUT = [
    ("--env-id Nonesuch-v0", "Nonesuch", "pprint_registry"),
    ("--env-id Hopper-v99", "v99", "v5"),
    ("--env-id Hopper-v2", "--env-id Hopper-v2: ", "; `gymnasium.pprint_registry()` lists what there is"),
    ("--env-id not:an:id!", "not:an:id!", "install it or run from the folder"),
    ("--env-id no-version-or-space!", "no-version-or-space!", "pprint_registry"),
    ("--env-id no_such_module:Hopper-v5", "no_such_module", "install it or run from the folder"),
    ("--env-id contract_envs:Image-v0", "(8, 8, 3)", "FlattenObservation"),
    ("--env-id FrozenLake-v1", "Discrete(16)", "FlattenObservation"),
    ("--seed -1", "--seed -1", "at least 0"),
    ("--total-timesteps 0", "--total-timesteps 0", "at least 1"),
    ("--total-timesteps -5", "--total-timesteps -5", "at least 1"),
    ("--num-envs 0", "--num-envs 0", "at least 1"),
    ("--num-envs -2", "--num-envs -2", "at least 1"),
    ("--num-envs 3", "--total-timesteps 256", "--num-envs 3", "use 258"),
    ("--learning-rate -0.1", "--learning-rate -0.1", "at least 0"),
    ("--learning-rate nan", "--learning-rate nan", "at least 0"),
    ("--learning-rate inf", "--learning-rate inf", "at least 0"),
    ("--gamma 1.5", "--gamma 1.5", "0 to 1"),
    ("--gamma -0.1", "--gamma -0.1", "0 to 1"),
    ("--gamma nan", "--gamma nan", "0 to 1"),
    ("--gamma high", "--gamma", "'high'", "--help"),
    ("--threads 0", "--threads 0", "at least 1"),
    ("--eval-every 0", "--eval-every 0", "at least 1"),
    ("--eval-episodes 0", "--eval-episodes 0", "at least 1"),
    ("--checkpoint-every 0", "--checkpoint-every 0", "at least 1"),
    ("--log-every 0", "--log-every 0", "at least 1"),
    ("--total-timesteps 1e6", "--total-timesteps", "'1e6' is no whole number", "1000000", "--help"),
    ("--device tpu", "'tpu'", "cuda", "--help"),
    ("--no-such-flag 3", "--no-such-flag", "--help"),
    ("stray", "stray", "--help"),
    ("--env-id", "--env-id", "--help"),
    ("--resume nowhere", "nowhere", "name the folder of a run"),
    ("--evaluate nowhere", "nowhere", "name the folder of a run"),
    ("--resume a --evaluate b", "--resume", "--evaluate", "use one"),
]
BAD_FOR = {
    **{name: [("--env-id CartPole-v1", "Discrete(2)", "ppo.py")] for name in HAS_REPLAY},
}
for name in HAS_REPLAY:
    BAD_FOR[name] = [
        *BAD_FOR.get(name, []),
        ("--batch-size 3000", "--batch-size 3000", "--buffer-size 2000", "lower the batch"),
        ("--batch-size 0", "--batch-size 0", "at least 1"),
        ("--buffer-size -1", "--buffer-size -1", "at least 1"),
        ("--learning-starts 256", "--learning-starts 256", "--total-timesteps 256", "raise the second"),
        ("--learning-starts 0", "--learning-starts 0", "at least 1"),
        ("--num-envs 2048 --total-timesteps 2048", "--num-envs 2048", "--buffer-size 2000", "enlarge"),
    ]
for name in FIXED_ROLLOUTS:
    BAD_FOR[name] = [
        ("--num-steps 0", "--num-steps 0", "at least 1"),
        ("--gae-lambda 1.01", "--gae-lambda 1.01", "0 to 1"),
    ]
BAD_FOR["ppo"] += [
    ("--num-minibatches 33", "--num-minibatches 33", "32 steps", "--num-steps"),
    ("--target-kl nan", "--target-kl nan", "at least 0"),
]


@pytest.mark.parametrize(
    "algorithm, case",
    [(a, case) for a in ALGORITHMS for case in BAD_INPUT + BAD_FOR.get(a, [])],
    ids=lambda x: x if isinstance(x, str) else x[0],
)
def test_bad_input_is_one_line_and_writes_nothing(algorithm: str, case, command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, *parts = case
    # the cheap settings first, so that the bad value replaces a good one
    assert_one_line(*command_line(algorithm, *flags(algorithm), *words.split()), *parts)
    assert list(tmp_path.iterdir()) == []


@of_shared_blocks
@pytest.mark.parametrize("flag", ["--run-dir", "--resume", "--evaluate"])
def test_empty_folder_name(algorithm: str, flag: str, command_line, tmp_path, monkeypatch):
    """As an unset shell variable gives: it must not start a new run of the default length."""
    monkeypatch.chdir(tmp_path)
    assert_one_line(*command_line(algorithm, flag, ""), flag, "name a folder")
    assert list(tmp_path.iterdir()) == []


def test_huge_seed_is_a_seed(algorithm: str, tmp_path):
    folder = train(algorithm, seed=10**20, run_dir=str(tmp_path / "run"), env_id="contract_envs:Countdown-v0")
    assert (folder / "checkpoint.pt").exists()


def test_device_that_is_not_present(algorithm: str, command_line, tmp_path):
    device = "mps" if torch.cuda.is_available() else "cuda"
    if torch.backends.mps.is_available() and torch.cuda.is_available():
        pytest.skip("every device is present")
    words = [*flags(algorithm, run_dir=tmp_path / "run"), "--device", device]
    assert_one_line(*command_line(algorithm, *words), f"--device {device}", "cpu")
    assert not (tmp_path / "run").exists()


@of_shared_blocks
def test_folder_below_a_file(algorithm: str, command_line, tmp_path):
    (tmp_path / "file").write_text("mine")
    result = command_line(algorithm, *flags(algorithm, run_dir=tmp_path / "file" / "run"))
    assert_one_line(*result, str(tmp_path / "file" / "run"), "choose another --run-dir")
    assert contents(tmp_path) == {"file": b"mine"}


@of_shared_blocks
def test_folder_without_permission_to_write(algorithm: str, command_line, tmp_path, monkeypatch):
    """root may write everywhere, so the answer of the operating system is replaced, not the permission."""
    monkeypatch.setattr(load(algorithm).os, "access", lambda path, mode: False)
    (tmp_path / "run").mkdir()
    result = command_line(algorithm, *flags(algorithm, run_dir=tmp_path / "run"))
    assert_one_line(*result, str(tmp_path / "run"), "Permission denied", "choose another --run-dir")
    assert contents(tmp_path) == {}


@of_shared_blocks
@pytest.mark.parametrize("log_too", [False, True], ids=["stderr elsewhere", "stderr on the full disk"])
def test_full_disk(algorithm: str, log_too: bool, capsys, monkeypatch):
    module = load(algorithm)

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "argv", [algorithm])
    if log_too:
        monkeypatch.setattr(sys.stderr, "write", no_space)
    with pytest.raises(SystemExit) as stopped:
        module.main(module.Args, getattr(module, AGENTS[algorithm]), no_space)
    assert stopped.value.code == os.EX_IOERR, "by which benchmarks/run.py knows it"
    if not log_too:
        assert_one_line(2, *capsys.readouterr(), "the disk is full", "--resume")


@of_shared_blocks
@pytest.mark.parametrize("words, encoding", [("--env-id Nonesuch-v0", "utf-8"), ("--gamma x", "ascii")])
def test_bad_input_to_the_script_itself(algorithm: str, words: str, encoding: str, tmp_path):
    result = run_script(algorithm, *words.split(), cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert_one_line(result.returncode, result.stdout, result.stderr, *words.split()[1:])
    assert list(tmp_path.iterdir()) == []


# ---- run folders that do not fit -------------------------------------------------------------------------------------


def test_existing_run_is_never_overwritten(algorithm: str, finished, command_line):
    before = contents(finished[algorithm])
    result = command_line(algorithm, *flags(algorithm, run_dir=finished[algorithm], seed=2))
    assert_one_line(*result, str(finished[algorithm]), "--resume")
    assert contents(finished[algorithm]) == before


@of_shared_blocks
@pytest.mark.parametrize("left", ["config.json", "checkpoint.pt", "eval.csv", "train.csv", "metrics.csv"])
def test_any_file_of_a_run_makes_it_one(algorithm: str, left: str, command_line, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / left).write_text("precious")
    assert_one_line(*command_line(algorithm, *flags(algorithm, run_dir=tmp_path / "run")), "--resume")
    assert contents(tmp_path) == {f"run/{left}": b"precious"}


@pytest.mark.parametrize(
    "words, parts",
    [
        ("--env-id Hopper-v5", ("--env-id Hopper-v5", "Reacher-v5", "leave it out")),
        ("--gamma 0.5", ("--gamma 0.5", "0.9", "leave it out")),
        ("--seed 7", ("--seed 7", "differs", "leave it out")),
        ("--num-envs 2", ("--num-envs 2", "leave it out")),
        ("--eval-every 999", ("--eval-every 999", "128", "leave it out")),
        ("", ("complete at step 256", "raise --total-timesteps")),
        ("--total-timesteps 128", ("complete at step 256", "raise --total-timesteps")),
    ],
)
def test_resume_that_does_not_fit(algorithm: str, words: str, parts, finished, command_line, tmp_path):
    folder = shutil.copytree(finished[algorithm], tmp_path / "run")
    assert_one_line(*command_line(algorithm, "--resume", folder, *words.split()), *parts)
    assert contents(folder) == contents(finished[algorithm])


@pytest.mark.parametrize("flag", ["--resume", "--evaluate"])
def test_run_of_another_algorithm(algorithm: str, flag: str, finished, command_line):
    other = next(name for name in ALGORITHMS if name != algorithm)
    before = contents(finished[other])
    assert_one_line(*command_line(algorithm, flag, finished[other]), str(finished[other]), f"use {other}.py")
    assert contents(finished[other]) == before


@of_shared_blocks
@pytest.mark.parametrize("flag", ["--resume", "--evaluate"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_truncated_checkpoint(algorithm: str, flag: str, keep: float, finished, command_line, tmp_path):
    shutil.copytree(finished[algorithm], tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[: int(keep * checkpoint.stat().st_size)])
    before = contents(tmp_path)
    assert_one_line(*command_line(algorithm, flag, tmp_path / "run"), str(checkpoint), "damaged", "restore a copy")
    assert contents(tmp_path) == before


@of_shared_blocks
@pytest.mark.parametrize("flag", ["--resume", "--evaluate"])
@pytest.mark.parametrize("text", ["", '{"algorithm": "td3", "args"', "[1, 2]", '{"algorithm": "td3"}', "\udcff"])
def test_corrupt_config(algorithm: str, flag: str, text: str, finished, command_line, tmp_path):
    shutil.copytree(finished[algorithm], tmp_path / "run")
    (tmp_path / "run" / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    before = contents(tmp_path)
    result = command_line(algorithm, flag, tmp_path / "run")
    assert_one_line(*result, str(tmp_path / "run"), "config.json", "name the folder of a run")
    assert contents(tmp_path) == before


def test_evaluate_before_the_first_checkpoint(algorithm: str, finished, command_line, tmp_path):
    shutil.copytree(finished[algorithm], tmp_path / "run")
    (tmp_path / "run" / "checkpoint.pt").unlink()
    assert_one_line(*command_line(algorithm, "--evaluate", tmp_path / "run"), "no checkpoint.pt", str(tmp_path))


# ---- --evaluate ------------------------------------------------------------------------------------------------------


def printed(out: str) -> dict[str, float]:
    """The statistics that --evaluate prints."""
    return {name: float(value) for name, value in re.findall(r"(mean|std|min|max) (-?[\d.]+)", out)}


def test_evaluate_repeats_the_last_evaluation(algorithm: str, finished, command_line, monkeypatch, tmp_path):
    """Exactly: the returns themselves are compared, before they are rounded and printed."""
    folder, module = finished[algorithm], load(algorithm)
    before, episodes, original = contents(folder), [], module.evaluate
    monkeypatch.setattr(module, "evaluate", lambda *a: episodes.append(original(*a)) or episodes[-1])
    monkeypatch.chdir(tmp_path)
    first = command_line(algorithm, "--evaluate", folder)
    assert first[0] == 0 and first == command_line(algorithm, "--evaluate", folder)
    last = [row for row in rows(folder / "eval.csv") if row["step"] == "256"]
    assert [(repr(e.ret), str(e.length)) for e in episodes[0]] == [(row["return"], row["length"]) for row in last]
    r = np.array([float(row["return"]) for row in last])
    assert printed(first[1]) == {
        "mean": round(r.mean(), 2), "std": round(r.std(), 2), "min": round(r.min(), 2), "max": round(r.max(), 2),
    }  # fmt: skip
    assert "Reacher-v5" in first[1] and "step 256" in first[1] and "2 episodes" in first[1]
    assert contents(folder) == before and list(tmp_path.iterdir()) == []


def test_evaluate_more_episodes_and_other_seeds(algorithm: str, finished, command_line):
    folder = finished[algorithm]
    own = printed(command_line(algorithm, "--evaluate", folder)[1])
    code, out, _ = command_line(algorithm, "--evaluate", folder, "--eval-episodes", 12)
    assert code == 0 and "12 episodes" in out, "more episodes than environments"
    assert printed(out)["max"] >= own["max"] and printed(out)["min"] <= own["min"], "the first two are the same"
    assert printed(command_line(algorithm, "--evaluate", folder, "--seed", 5)[1]) != own


def test_evaluate_needs_the_saved_policy_whole(algorithm: str, command_line, finished, tmp_path):
    """Every tensor that an action depends on is in the checkpoint: whatever an agent was initialised with is gone."""
    module = load(algorithm)
    checkpoint = torch.load(finished[algorithm] / "checkpoint.pt", weights_only=True)
    args = settings(algorithm, device="cpu")
    envs = module.VectorEnvs(args.env_id, 3, 0)
    actions = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        agent = getattr(module, AGENTS[algorithm])(envs.observation_space, envs.action_space, args)
        agent.load_state_dict(checkpoint["agent"])
        actions.append(agent.act(torch.from_numpy(envs.obs)))
    assert torch.equal(*actions)
    if "obs_stats.mean" in checkpoint["agent"]:  # the normaliser is part of the policy
        assert checkpoint["agent"]["obs_stats.count"] == 256 or algorithm in ("reinforce", "her_ddpg")
        agent.obs_stats.mean += 1
        assert not torch.equal(agent.act(torch.from_numpy(envs.obs)), actions[0])


def test_success_rate(algorithm: str, command_line, tmp_path):
    folder = train(algorithm, env_id="contract_envs:Success-v0", run_dir=str(tmp_path / "run"), eval_episodes=8)
    last = [row for row in rows(folder / "eval.csv") if row["step"] == "256"]
    rate = sum(int(row["success"]) for row in last) / 8
    assert 0 < rate < 1
    assert f"success rate {rate:.2f}\n" in command_line(algorithm, "--evaluate", folder)[1]


@of_shared_blocks
def test_video_or_one_line(algorithm: str, finished, tmp_path):
    """Where OpenGL works there is a film, elsewhere one line says why not; the evaluation is printed in both cases."""
    shutil.copytree(finished[algorithm], tmp_path / "run")
    result = run_script(algorithm, "--evaluate", "run", "--capture-video", "--eval-episodes", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert set(printed(result.stdout)) == {"mean", "std", "min", "max"}
    films = list((tmp_path / "run" / "videos").glob("*.mp4"))
    said = [line for line in result.stdout.splitlines() if line.startswith("no video: ")]
    assert (len(films), len(said)) in [(1, 0), (0, 1)]
    assert "Traceback" not in result.stderr
    for film in films:
        assert film.stat().st_size > 1000 and film.read_bytes()[4:8] == b"ftyp"


@of_shared_blocks
@pytest.mark.parametrize("env_id", ["Countdown-v0", "Unrenderable-v0"])
def test_no_video_without_a_renderer(algorithm: str, env_id: str, finished, command_line, monkeypatch, tmp_path):
    """Neither environment can be rendered: one knows no render mode, the other's renderer fails when it is used."""
    words = flags(algorithm, env_id=f"contract_envs:{env_id}", run_dir=tmp_path / "run", capture_video=True)
    code, out, err = command_line(algorithm, *words)
    assert code == 0, err
    assert len(re.findall(r"^no video: .+ \(MuJoCo's .+\)$", out, re.MULTILINE)) == 1
    assert "done: " in out and not list(tmp_path.rglob("*.mp4"))
    code, out, err = command_line(algorithm, "--evaluate", tmp_path / "run")
    assert code == 0 and "no video" not in out, "the run's own --capture-video is not the evaluation's"


@of_shared_blocks
def test_an_episode_without_end_stops_with_the_remedy(algorithm: str, command_line, tmp_path):
    words = flags(algorithm, env_id="contract_envs:Endless-v0", run_dir=tmp_path / "run", eval_episodes=1)
    code, _, err = command_line(algorithm, *words)
    assert code == 1 and err.count("\n") == 1 and "max_episode_steps" in err


# ---- where it runs ---------------------------------------------------------------------------------------------------

MY_MODULE = """
import gymnasium as gym, numpy as np
class MyEnv(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}
    def step(self, action):
        return np.zeros(2, np.float32), -float(abs(action[0])), True, False, {}
class MyGoalEnv(MyEnv):
    observation_space = gym.spaces.Dict({name: MyEnv.observation_space for name in ("achieved_goal", "desired_goal")})
    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        return {"achieved_goal": 0 * obs, "desired_goal": obs}, info
    def step(self, action):
        obs, *rest = super().step(action)
        return {"achieved_goal": obs, "desired_goal": obs}, *rest
    def compute_reward(self, achieved, desired, info):
        return -np.abs(achieved - desired).mean(-1)
gym.register("MyEnv-v0", MyEnv)
gym.register("MyGoalEnv-v0", MyGoalEnv, max_episode_steps=1)
"""


def test_the_file_alone_runs_in_another_project(algorithm: str, tmp_path):
    """Copied into an empty folder beside an own module with an environment, with the default run folder; then
    --evaluate, both without anything of this repository on the path."""
    script = shutil.copy(Path(load(algorithm).__file__), tmp_path)
    (tmp_path / "my_module.py").write_text(MY_MODULE)
    env_id = f"My{'Goal' if algorithm == 'her_ddpg' else ''}Env-v0"
    words = flags(algorithm, env_id=f"my_module:{env_id}", total_timesteps=128)
    result = run_script(algorithm, *words, cwd=tmp_path, script=script, PYTHONPATH="")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    (folder,) = (tmp_path / "runs" / f"my_module-{env_id}" / algorithm).iterdir()
    assert re.fullmatch(r"1-\d{8}-\d{6}", folder.name)
    assert len(rows(folder / "train.csv")) == 128
    assert json.loads((folder / "config.json").read_text())["history"][0]["git_commit"] is None
    result = run_script(algorithm, "--evaluate", folder, cwd=tmp_path, script=script, PYTHONPATH="")
    assert result.returncode == 0 and f"my_module:{env_id}, step 128, 2 episodes" in result.stdout


@of_shared_blocks
def test_a_renamed_copy_is_evaluated_and_resumed(algorithm: str, tmp_path):
    script = shutil.copy(Path(load(algorithm).__file__), tmp_path / "my_variant.py")
    words = flags(algorithm, env_id="Pendulum-v1", total_timesteps=128, run_dir="a")
    assert run_script(algorithm, *words, cwd=tmp_path, script=script).returncode == 0
    for words in (["--evaluate", "a"], ["--resume", "a", "--total-timesteps", "256"]):
        result = run_script(algorithm, *words, cwd=tmp_path, script=script)
        assert result.returncode == 0, result.stderr


def test_the_policy_is_used_as_readme_says(algorithm: str, tmp_path):
    """The snippet of README.md, for each algorithm, gives the action of the saved policy."""
    text = (Path(__file__).parent.parent / "README.md").read_text()
    (snippet,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "RUN_DIR" in block)
    folder = train(algorithm, env_id="Pendulum-v1", total_timesteps=128, run_dir=tmp_path / "run", capture_video=False)
    snippet = snippet.replace("from td3", f"from {algorithm}").replace("TD3", AGENTS[algorithm])
    space: dict = {}
    exec(snippet.replace("RUN_DIR", str(folder)), space)
    assert space["action"].shape == (1,) and abs(space["action"][0]) <= 2


def test_help_documents_every_flag(algorithm: str, tmp_path):
    result = run_script(algorithm, "--help", cwd=tmp_path, COLUMNS="200")
    assert result.returncode == 0 and result.stderr == ""
    assert load(algorithm).__doc__.splitlines()[0] in result.stdout
    module, text = load(algorithm), result.stdout
    for name in [*module.Args.__dataclass_fields__, *module.RunArgs.__dataclass_fields__]:
        if name != "run":
            flag = f"--{name.replace('_', '-')}"
            entry = re.search(rf"^│ {flag}[ ,](.*?)(?=^│ --|^╰)", text, re.DOTALL | re.MULTILINE)
            assert entry, f"{flag} is not in --help"
            words = re.sub(r"[│\s]+", " ", entry[1])
            assert len(re.findall(r"[a-z]{2,}", words.split("(default")[0])) >= 3, f"{flag} is not documented: {words}"
            assert "(default: " in words


@of_shared_blocks
def test_weights_and_biases_offline(algorithm: str, tmp_path):
    pytest.importorskip("wandb")
    words = flags(algorithm, env_id="contract_envs:Countdown-v0", run_dir="run", track=True, total_timesteps=128)
    result = run_script(algorithm, *words, cwd=tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
    assert result.returncode == 0, result.stderr
    (offline,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    (log,) = offline.glob("run-*.wandb")
    data = log.read_bytes()
    agent = getattr(load(algorithm), AGENTS[algorithm])
    for name in ("eval/return", "train/return", *(f"metrics/{name}" for name in agent.metrics)):
        assert name.encode() in data, f"{name} is not logged"


@of_shared_blocks
def test_weights_and_biases_without_a_key(algorithm: str, command_line, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "api", SimpleNamespace(api_key=None))
    words = flags(algorithm, run_dir=tmp_path / "run", track=True)
    assert_one_line(*command_line(algorithm, *words), "--track", "WANDB_MODE=offline")
    assert not (tmp_path / "run").exists()


@of_shared_blocks
def test_two_processes_cannot_train_in_one_folder(algorithm: str, tmp_path, command_line):
    words = flags(algorithm, total_timesteps=256 * 10**5, run_dir=tmp_path / "run", env_id="Pendulum-v1")
    process = start_script(algorithm, *words, cwd=tmp_path)
    try:
        assert "step 0/" in process.stdout.readline()
        config = (tmp_path / "run" / "config.json").read_bytes()
        result = command_line(algorithm, "--resume", tmp_path / "run")
        assert_one_line(*result, str(tmp_path / "run"), "another process", "wait for it or stop it")
        assert process.poll() is None and (tmp_path / "run" / "config.json").read_bytes() == config
    finally:
        process.kill()
        process.communicate()
