"""The command line: bad input becomes a message that helps, --evaluate needs little, files run from anywhere."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

import contract_envs
import numpy as np
import pytest
import torch

from conftest import (  # isort: skip
    AGENTS, ALGORITHMS, FIXED_ROLLOUTS, HAS_REPLAY, ROOT, contents, flags, load, logs, of_shared_blocks, rows,
    run_script, settings, start_script, train, variant,
)  # fmt: skip


def assert_one_line(code: int, out: str, err: str, *parts: str) -> None:
    """Exit code 2, nothing printed but one line on stderr that starts with "error:" and holds all parts."""
    assert (code, out) == (2, "") and re.fullmatch(r"error: .+\n", err), (code, out, err)
    assert all(part in err for part in parts), (err, parts)


# ---- bad input -------------------------------------------------------------------------------------------------------

BAD_INPUT = [  # words of the command line -> what the message must hold: the value and a remedy
    ("--env-id Nonesuch-v0", "Nonesuch", "pprint_registry"),
    ("--env-id Hopper-v99", "v99", "v5"),
    ("--env-id Hopper-v2", "--env-id Hopper-v2: ", "pprint_registry"),
    ("--env-id not:an:id!", "not:an:id!", "current folder"),
    ("--env-id no_such_module:Hopper-v5", "no_such_module", "current folder"),
    ("--env-id contract_envs:Nonesuch-v0", "Nonesuch", "pprint_registry"),
    *((f"--env-id contract_envs:{name}", "NoSuchClass", "pprint_registry") for name in ("Lacking-v0", "Lacking")),
    *((f"--env-id {name}", f"--env-id {name}: ", "pprint_registry") for name in (":Hopper-v5", ".envs:Hopper-v5")),
    ("--env-id contract_envs:Image-v0", "(8, 8, 3)", "FlattenObservation"),
    ("--env-id FrozenLake-v1", "Discrete(16)", "FlattenObservation"),
    *((f"--{flag} 0", f"--{flag} 0", "at least 1") for flag in
      ("total-timesteps", "num-envs", "threads", "eval-every", "eval-episodes", "checkpoint-every", "log-every")),
    *((words, words, "at least 0") for words in
      ("--seed -1", "--learning-rate -0.1", "--learning-rate nan", "--learning-rate inf")),
    ("--gamma 1.5", "--gamma 1.5", "0 to 1"),
    ("--gamma nan", "--gamma nan", "0 to 1"),
    ("--resume nowhere", "nowhere", "name a run's folder"),
    ("--evaluate nowhere", "nowhere", "name a run's folder"),
    ("--resume a --evaluate b", "--resume", "--evaluate", "use one"),
    *((f"{flag}=", flag, "empty") for flag in ("--run-dir", "--resume", "--evaluate")),  # an unset shell variable
]  # fmt: skip
OWN = {name: [("--gamma -0.1", "--gamma -0.1", "0 to 1")] for name in ALGORITHMS}
for name in HAS_REPLAY:
    OWN[name] += [
        ("--env-id CartPole-v1", "Discrete(2)", "ppo.py"),
        ("--batch-size 3000", "--buffer-size 2000", "enlarge"),
        ("--batch-size 0", "--batch-size 0", "at least 1"),
        ("--buffer-size -1", "--buffer-size -1", "at least 1"),
        ("--learning-starts 256", "--learning-starts 256", "--total-timesteps", "change one"),
        ("--num-envs 2048 --total-timesteps 4096", "--buffer-size 2000", "enlarge"),
    ]
for name in FIXED_ROLLOUTS:
    OWN[name] += [("--num-steps 0", "--num-steps 0", "at least 1"), ("--gae-lambda 1.01", "--gae-lambda", "0 to 1")]
OWN["ppo"] += [("--num-minibatches 33", "33", "--num-steps"), ("--target-kl nan", "--target-kl nan", "at least 0")]
OWN["reinforce"] += [("--env-id contract_envs:Endless-v0", "Endless-v0", "max_episode_steps")]
OWN["reinforce"] += [("--num-envs 1 --baseline mean", "mean", "--num-envs"), ("--gamma 1", "--no-bootstrap")]
OWN["sac"] += [(f"--alpha {x}", f"--alpha {x} ", "auto") for x in ("-0.1", "nan", "inf", "warm")]
OWN["her_ddpg"] += [
    ("--env-id tiny_envs:Match-v0", "Match-v0", "environment of goals", "compute_reward", "use ddpg.py"),
    ("--env-id tiny_envs:SingleGoal-v0", "SingleGoal-v0", "environment of goals", "one number per row"),
    ("--buffer-size 10000000000000", "--buffer-size 10000000000000", "main memory", "lower it"),
    ("--clip-target --gamma 1", "--gamma 1", "returns without a bound"),
]
if not torch.cuda.is_available():
    OWN["td3"] += [("--device cuda", "--device cuda", "cpu")]
CASES = [(a, case) for a in ALGORITHMS for case in OWN[a] + (BAD_INPUT if a in ("ppo", "td3") else [])]


@pytest.mark.parametrize("algorithm, case", CASES, ids=lambda x: x if isinstance(x, str) else x[0])
def test_bad_input_is_one_line_and_writes_nothing(algorithm: str, case, command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, *parts = case  # the cheap settings first, so that the bad value replaces a good one
    assert_one_line(*command_line(algorithm, *flags(algorithm), *words.split()), *parts)
    assert list(tmp_path.iterdir()) == []


def test_ranges_hold_where_another_algorithms_file_is_imported_too(monkeypatch):
    """On Python 3.10 Annotated[float, Range(0, 1)] of two files is one object, which holds the first file's Range."""
    td3, hint = load("td3"), Annotated[float, load("sac").Range(0, 1)]
    monkeypatch.setattr(td3, "get_type_hints", lambda *_, **__: {"gamma": hint})
    with pytest.raises(td3.UserError, match=r"--gamma 1\.5 is out of range: use 0 to 1"):
        td3.prepare(settings("td3", gamma=1.5))


def test_what_python_passes_is_checked_and_1e6_is_a_whole_number(algorithm):
    module = load(algorithm)
    args = module.prepare(settings(algorithm, total_timesteps=512.0))
    assert args.total_timesteps == 512 and isinstance(args.total_timesteps, int)
    with pytest.raises(module.UserError, match=r"--num-envs 1\.5 is no whole number"):
        module.prepare(settings(algorithm, num_envs=1.5))
    for name, hint in module.get_type_hints(module.Args).items():
        if "Literal" in str(hint):
            with pytest.raises(module.UserError, match=f"--{name.replace('_', '-')} mistyped is unknown: choose from "):
                module.prepare(settings(algorithm, **{name: "mistyped"}))


def test_numbers_as_people_write_them(tmp_path, monkeypatch):
    module, got = load("td3"), []
    words = "--total-timesteps 2e6 --buffer-size=1.5e+5 --learning-rate 1e-3 --seed 3 --run-dir e1"
    monkeypatch.setattr(sys, "argv", ["td3.py", *words.split()])
    module.main(module.Args, module.TD3, got.append)
    want = {"total_timesteps": 2_000_000, "buffer_size": 150_000, "learning_rate": 1e-3, "seed": 3, "run_dir": "e1"}
    assert got == [module.Args(**want)]


# ---- run folders that do not fit -------------------------------------------------------------------------------------


@of_shared_blocks
def test_folders_that_cannot_be_used(algorithm: str, command_line, tmp_path, monkeypatch):
    """A file, one below it, a folder with what a run has written, one that must not be made."""
    (tmp_path / "file").write_text("mine")
    files = ("config.json", "policy.pt", "eval.csv", "train.csv")
    for left in files:
        (tmp_path / left).mkdir()
        (tmp_path / left / left).write_text("precious")
    before = contents(tmp_path)

    def refused(name: str, *parts: str) -> None:
        result = command_line(algorithm, *flags(algorithm, run_dir=tmp_path / name))
        assert_one_line(*result, str(tmp_path / name), "choose another --run-dir", *parts)

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    for name in ("file", "file/run"):
        refused(name)
    for left in files:
        refused(left, "--resume")
    monkeypatch.setattr(Path, "mkdir", forbidden)  # root may write everywhere
    refused("run", "Permission denied")
    assert contents(tmp_path) == before


@of_shared_blocks
@pytest.mark.parametrize("words", ["--env-id Hopper-v5", "--gamma 0.5", "--seed 7", "--num-envs 2", "--eval-every 999"])
def test_resume_with_other_settings(algorithm: str, words: str, finished, command_line):
    before = contents(finished(algorithm))
    assert_one_line(*command_line(algorithm, "--resume", finished(algorithm), *words.split()), words, "start a new run")
    assert contents(finished(algorithm)) == before


def test_run_of_another_algorithm(algorithm: str, finished, command_line):
    other = "sac" if algorithm == "td3" else "td3"
    before = contents(finished(other))
    for flag in ("--resume", "--evaluate"):
        assert_one_line(*command_line(algorithm, flag, finished(other)), str(finished(other)), f"use {other}.py")
    assert contents(finished(other)) == before


CONFIGS = (b"", b'{"algorithm": "td3", "args"', b"[1, 2]", b'{"algorithm": "td3"}', b"\xff")
DAMAGES = [(flag, "config.json", text) for flag in ("--resume", "--evaluate") for text in CONFIGS]
DAMAGES += [("--resume", "checkpoint.pt", keep) for keep in (0.0, 0.5, 0.99)]  # how much of it is left
DAMAGES += [("--evaluate", "policy.pt", keep) for keep in (0.0, 0.5, 0.99, None)]  # None: the file is gone


@pytest.mark.parametrize("flag, name, left", DAMAGES)
def test_damaged_files(flag: str, name: str, left, finished, command_line, tmp_path):
    path = shutil.copytree(finished("td3"), tmp_path / "run") / name
    if left is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)] if isinstance(left, float) else left)
    before = contents(path.parent)
    assert_one_line(*command_line("td3", flag, path.parent), str(path))
    assert contents(path.parent) == before


# ---- --evaluate ------------------------------------------------------------------------------------------------------


def test_evaluate_needs_config_and_policy_only(algorithm: str, finished, command_line, monkeypatch, tmp_path):
    """Exactly the last evaluation of the run again; then more episodes than environments, and other start states."""
    module, folder, episodes = load(algorithm), finished(algorithm), []
    original = module.evaluate
    monkeypatch.setattr(module, "evaluate", lambda *a: episodes.append(original(*a)) or episodes[-1])
    for name in ("config.json", "policy.pt"):
        shutil.copy(folder / name, tmp_path)
    before, table = contents(tmp_path), rows(folder / "eval.csv")
    last = [row for row in table if row["step"] == table[-1]["step"]]
    code, out, err = command_line(algorithm, "--evaluate", tmp_path)
    assert (code, err) == (0, "") and "Success-v0" in out and f"step {last[0]['step']}" in out and "6 episodes" in out
    assert [{name: str(x) for name, x in episode.items()} for episode in episodes[0]] == [
        {name: x for name, x in row.items() if name not in ("step", "episode")} for row in last
    ]
    for name in ("return", "success"):
        mean = np.mean([float(row[name]) for row in last])
        assert re.search(rf"{name} (mean )?{mean:.2f}\b", out), (name, mean, out)
    assert command_line(algorithm, "--evaluate", tmp_path, "--eval-episodes", 12)[0] == 0
    assert len(episodes[1]) == 12 and episodes[1][:6] == episodes[0]
    assert command_line(algorithm, "--evaluate", tmp_path, "--seed", 5)[0] == 0
    assert episodes[2] != episodes[0] and contents(tmp_path) == before
    assert_one_line(*command_line(algorithm, "--evaluate", tmp_path, "--gamma", 0.5), "--gamma", "keep that")


@of_shared_blocks
def test_video_and_screen(algorithm: str, command_line, tmp_path, monkeypatch):
    """The film of a finished training and of an evaluation; --render shows all evaluated episodes; a fake screen."""
    pytest.importorskip("moviepy")
    folder, shown = tmp_path / "run", contract_envs.Screen.shown
    words = flags(algorithm, env_id="contract_envs:Screen-v0", run_dir=folder, capture_video=True, total_timesteps=128)
    for count, more in [(1, words), (1, ["--evaluate", folder]), (3, ["--evaluate", folder, "--capture-video"])]:
        time.sleep(1)  # which is in a film's name
        code, out, err = command_line(algorithm, *more)  # two episodes: two more films
        films = list((folder / "videos").glob("*.mp4"))
        assert code == 0 and "no video" not in out and len(films) == count, (out, err, films)
    assert all(film.stat().st_size > 1000 and film.read_bytes()[4:8] == b"ftyp" for film in films)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    words = ["--evaluate", folder, "--render", "--eval-episodes", 2]
    assert len(re.findall("^no video: .*screen", command_line(algorithm, *words)[1], re.MULTILINE)) == 1
    monkeypatch.setenv("DISPLAY", ":0")
    shown.clear()
    assert "no video" not in command_line(algorithm, *words)[1]
    assert set(shown) == {"human"} and len(shown) >= 2 * 3, "the steps of two episodes"


@of_shared_blocks
@pytest.mark.parametrize("env_id", ["Countdown-v0", "Unrenderable-v0"])
@pytest.mark.parametrize("flag", ["capture_video", "render"])
def test_no_video_but_one_line(algorithm: str, env_id: str, flag: str, command_line, tmp_path, monkeypatch):
    """One environment knows no render mode, the other's renderer fails when it is used."""
    monkeypatch.setenv("DISPLAY", ":0")
    changes = {"env_id": f"contract_envs:{env_id}", "run_dir": tmp_path / "run", "total_timesteps": 128, flag: True}
    code, out, err = command_line(algorithm, *flags(algorithm, **changes))
    assert (code, err) == (0, "") and len(re.findall("^no video: ", out, re.MULTILINE)) == 1 and "done" in out
    code, out, _ = command_line(algorithm, "--evaluate", tmp_path / "run")
    assert code == 0 and "no video" not in out, "the run's own flag is not the evaluation's"


def test_an_episode_without_end_stops_with_the_remedy(command_line, tmp_path, monkeypatch):
    def almost(envs, seeds=None, reset=load("td3").VectorEnvs.reset):
        reset(envs, seeds)
        envs.lengths += 99_990  # of the 100,000 after which it gives up

    monkeypatch.setattr(load("td3").VectorEnvs, "reset", almost)
    words = flags("td3", env_id="contract_envs:Endless-v0", run_dir=tmp_path / "run", eval_episodes=1)
    code, _, err = command_line("td3", *words)
    assert code == 1 and err.count("\n") == 1 and "max_episode_steps" in err


# ---- where it runs ---------------------------------------------------------------------------------------------------


def test_the_file_alone_runs_in_another_project(tmp_path):
    """Copied and renamed, beside an own module, with the default run folder; nothing of this repository on the path.

    --total-timesteps 250 with 8 environments runs to 256. The compiler is missing: a line says so.
    """
    script = shutil.copy(ROOT / "algorithms" / "td3.py", tmp_path / "my_variant.py")
    shutil.copy(contract_envs.__file__, tmp_path / "my_module.py")
    changes = {"env_id": "my_module:Countdown-v0", "total_timesteps": 250, "num_envs": 8, "compile": True, "gamma": 0.5}
    lacks = {"CXX": "/nonexistent", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": ""}
    result = run_script("td3", *flags("td3", **changes), cwd=tmp_path, script=script, **lacks)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    if not torch.cuda.is_available():
        assert len(re.findall("^not compiling .*", result.stdout, re.MULTILINE)) == 1, result.stdout
    (folder,) = (tmp_path / "runs" / "my_module-Countdown-v0" / "td3").iterdir()
    assert re.fullmatch(r"1-\S*gamma=0.5\S*-\d{8}-\d{6}-\d{6}", folder.name)
    assert rows(folder / "eval.csv")[-1]["step"] == rows(folder / "metrics.csv")[-1]["step"] == "256"
    result = run_script("td3", "--evaluate", folder, cwd=tmp_path, script=script, **lacks)
    assert result.returncode == 0 and "my_module:Countdown-v0, step 256, 2 episodes" in result.stdout


def test_nothing_extra_is_printed(tmp_path):
    """Neither the notice of gymnasium-robotics nor Gymnasium's warning of an outdated task."""
    cheap = "total_timesteps=2, learning_starts=1, num_envs=1, eval_episodes=1, compile=False"
    code = f"import td3\nfor x in ('gymnasium_robotics:FetchReach-v4', 'Hopper-v4'): td3.train(td3.Args(x, {cheap}))"
    environ = os.environ | {"PYTHONPATH": str(ROOT / "algorithms")}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert re.fullmatch(r"(\S+: from step 0 on\n(note: .*\n)?(step .*\n)+done.*\n){2}", result.stdout), result.stdout


@of_shared_blocks
def test_notebooks(algorithm: str, tmp_path, monkeypatch):
    """Without __file__, in another thread, a cell run twice at once; names of default folders show what was changed."""
    monkeypatch.chdir(tmp_path)
    notebook = variant(algorithm, "notebook", file=False)
    args = notebook.Args(**vars(settings(algorithm, env_id="contract_envs:Countdown-v0", learning_rate=0.125)))
    folders = [notebook.train(args), notebook.train(args)]
    thread = threading.Thread(target=lambda: folders.append(notebook.train(args)))
    thread.start()
    thread.join()
    assert len(set(folders)) == 3 and all("learning_rate=0.125" in folder.name for folder in folders)
    assert logs(folders[0]) == logs(folders[1]) == logs(folders[2])
    agents = [torch.load(folder / "policy.pt", weights_only=True)["policy"] for folder in folders]
    assert all(torch.equal(agents[0][name], agents[2][name]) for name in agents[0])
    assert json.loads((folders[0] / "config.json").read_text())["script_sha256"] is None


@of_shared_blocks
def test_another_vector_of_environments_by_changing_one_word(algorithm: str, tmp_path):
    module = variant(algorithm, "parallel", ("gym.vector.SyncVectorEnv(", "gym.vector.AsyncVectorEnv("))
    changes = {"env_id": "contract_envs:Success-v0", "num_envs": 4}
    whole = train(algorithm, **changes, run_dir=tmp_path / "sync")
    args = module.Args(**vars(settings(algorithm, **changes, run_dir=tmp_path / "async")))
    assert logs(module.train(args)) == logs(whole)


def test_the_policy_is_used_as_readme_says(algorithm: str, finished):
    """The snippet of README.md, for each algorithm, gives the action of the saved policy."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (snippet,) = [block for block in blocks if "load_policy" in block]
    (folder,) = re.findall(r'load_policy\("(.+?)"', snippet)
    assert (ROOT / "algorithms" / folder / "policy.pt").is_file(), "it is one of ours"
    snippet = snippet.replace("from ppo", f"from {algorithm}").replace("PPO", AGENTS[algorithm])
    space: dict = {}
    exec(snippet.replace(folder, str(finished(algorithm))), space)
    assert space["a"].shape == space["env"].action_space.shape and space["env"].action_space.contains(space["a"])
    s = torch.as_tensor(space["env"].reset(seed=1)[0], dtype=torch.float32).unsqueeze(0)
    saved = torch.load(finished(algorithm) / "checkpoint.pt", weights_only=True)["agent"]
    assert not space["agent"].training
    space["agent"].load_state_dict(saved)
    np.testing.assert_array_equal(space["agent"].act(s)[0].numpy(), space["a"])


def test_help_is_of_the_algorithm(algorithm: str, command_line):
    code, text, err = command_line(algorithm, "--help")
    assert (code, err) == (0, "") and load(algorithm).__doc__.splitlines()[0] in text and "--total-timesteps" in text


def test_weights_and_biases(command_line, tmp_path, monkeypatch):
    """All that TensorBoard gets, under an id that stays when a run is resumed; a line where it is not installed."""
    pytest.importorskip("wandb")
    words = flags("td3", env_id="contract_envs:Success-v0", run_dir="run", track=True)
    for more in (words, ["--resume", "run", "--total-timesteps", "384"]):
        result = run_script("td3", *more, cwd=tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
        assert result.returncode == 0, result.stderr
    runs = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert len(runs) == 2 and all(run.name.endswith(config["id"]) for run in runs)
    for data in (next(run.glob("run-*.wandb")).read_bytes() for run in runs):
        for name in ("eval/return", "eval/success", "train/return", *(f"metrics/{x}" for x in load("td3").TD3.metrics)):
            assert name.encode() in data, f"{name} is not logged"
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    result = command_line("td3", *flags("td3", run_dir=tmp_path / "other", track=True))
    assert_one_line(*result, "--track", "pip install wandb")
    assert not (tmp_path / "other").exists()


def test_two_processes_cannot_train_in_one_folder(tmp_path, command_line):
    words = flags("td3", total_timesteps=10**7, run_dir=tmp_path / "run", env_id="contract_envs:Countdown-v0")
    process = start_script("td3", *words, cwd=tmp_path)
    try:
        assert any("step 0/" in line for line in itertools.islice(process.stdout, 5))
        config = (tmp_path / "run" / "config.json").read_bytes()
        assert_one_line(*command_line("td3", "--resume", tmp_path / "run"), str(tmp_path / "run"), "another process")
        assert process.poll() is None and (tmp_path / "run" / "config.json").read_bytes() == config
    finally:
        process.kill()
        process.communicate()


@of_shared_blocks
def test_a_policy_alone_is_not_overwritten_by_resume(algorithm: str, finished, command_line, tmp_path):
    for name in ("config.json", "policy.pt"):
        shutil.copy(finished(algorithm) / name, tmp_path)
    before = contents(tmp_path)
    code, _, err = command_line(algorithm, "--resume", tmp_path)
    assert code == 2 and "no checkpoint.pt to go on from" in err
    assert contents(tmp_path) == before
