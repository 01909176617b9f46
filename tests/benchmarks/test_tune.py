"""Tuning: the search space, the score, pruning, kills, confirmation on fresh seeds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import run
from records import InputError
from test_run import STEPS, wait_for

optuna = pytest.importorskip("optuna", reason="optuna is not installed: pip install -r requirements-extra.txt")
import tune  # noqa: E402


def args(folder: Path, **settings) -> tune.Args:
    """A study of the gain of steps.py, which its return, seed + gain, should make as large as possible."""
    space = {"range": ("gain=1:100",), "seeds": (11, 12), "trials": 2, "total_timesteps": 300, "eval_every": 100}
    return tune.Args(
        **{"algorithm": STEPS, "tasks": ("Task-v0",), "results": str(folder), "jobs": 2} | space | settings
    )


def study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=STEPS, storage=f"sqlite:///{folder}/study.db")


def states(folder: Path) -> list[str]:
    return [trial.state.name for trial in study(folder).trials]


def test_ranges_and_choices_are_a_search_space_and_its_settings_flags(tmp_path):
    plan = args(tmp_path, range=("lr=1e-5:1e-3:log", "steps=5:64", "anneal-lr=true,false", "envs=8,16"))
    space, d = tune.distributions(plan), optuna.distributions
    assert space == {
        "lr": d.FloatDistribution(1e-5, 1e-3, log=True), "steps": d.IntDistribution(5, 64),
        "anneal-lr": d.CategoricalDistribution(["true", "false"]), "envs": d.CategoricalDistribution(["8", "16"]),
    }  # fmt: skip
    settings = {"lr": 0.000123456, "steps": 7, "anneal-lr": "false", "envs": "8"}
    assert tune.flags_of(settings) == {"lr": "0.0001235", "steps": "7", "no-anneal-lr": "", "envs": "8"}
    assert tune.flags_of({"anneal-lr": "true"}) == {"anneal-lr": ""}


def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path):
    for settings, message in (
        ({"seeds": (10, 11)}, "--seeds 10 11: seeds 1 to 10 are for results, use 11 and up"),
        ({"seeds": ()}, "--seeds"),
        ({"range": ()}, "nothing to tune"), ({"range": ("gain=1",)}, "--range gain=1: "), ({"trials": 0}, "--trials 0"),
        ({"range": ("delay",)}, "--range delay: "), ({"range": ("gain=1:2:lin",)}, "may only be log"),
        ({"tasks": ("A-v0=x",)}, "write Hopper-v5=1200"), ({"tasks": ("A-v0=0",)}, "--tasks A-v0=0: "),
        ({"tasks": ("A-v0", "B-v0=2")}, "--tasks A-v0 B-v0=2: several need a scale each"),
        ({"algorithm": "dqn"}, "--algorithms dqn is unknown"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=re.escape(message)) as raised:
            tune.main(args(tmp_path / "out", **settings))
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="unrecognized arguments: --nonsense 5"):
        tune.main(args(tmp_path, range=("nonsense=5:5",)))
    assert states(tmp_path) == ["FAIL"]


def test_scores_are_means_of_the_latest_evaluations_over_their_scales_run_after_run(tmp_path):
    plan = args(tmp_path, tasks=("A-v0=10", "B-v0=100"))
    jobs = tune.jobs_of(plan, {"gain": 5}, (11, 12))
    assert [str(job) for job in jobs] == [
        f"steps-gain=5 {task} seed {seed}" for seed in (11, 12) for task in ("A-v0", "B-v0")
    ]
    logs = ((0, 1), (100, 20), (300, 40), (300, 60)), ((0, 1), (100, 700)), ((300, 9),), ()
    for job, rows in zip(jobs, logs, strict=True):
        job.folder.mkdir(parents=True)
        (job.folder / "config.json").write_text('{"args": {"total_timesteps": 300}}')
        text = "".join(f"{step},0,{value},9\n" for step, value in rows)
        (job.folder / "eval.csv").write_text(f"step,episode,return,length\n{text}")
    # A seed 11: 20/10, then (40 + 60)/2/10 = 5; B seed 11: (5 + 700/100)/2 = 6, not ended, so that seed 12 must wait
    assert list(tune.evaluations(jobs, {"A-v0": 10, "B-v0": 100})) == [2.0, 5.0, 6.0]


def test_a_killed_study_goes_on_with_the_same_trial_and_confirms_the_best_on_fresh_seeds(tmp_path, capsys):
    plan = args(tmp_path, range=("gain=1:100", "crash-at=900,800"), flags="--delay 1")
    words = ["--algorithm", STEPS, "--tasks", "Task-v0", "--range", "gain=1:100", "--range", "crash-at=900,800"]
    words += ["--results", str(tmp_path), "--total-timesteps", "3e2", "--eval-every", "100", "--jobs", "2"]
    command = [sys.executable, tune.__file__, *words, "--flags=--delay 1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for(lambda: len(list(tmp_path.glob("*/Task-v0/*/checkpoint.pt"))) == 2)
    process.kill()
    process.wait()
    assert states(tmp_path) == ["RUNNING"]
    tune.main(plan)
    first, again, second = study(tmp_path).trials
    assert states(tmp_path) == ["FAIL", "COMPLETE", "COMPLETE"] and first.params == again.params
    config = next(tmp_path.glob(f"steps-gain={again.params['gain']},*/Task-v0/11/config.json")).read_text()
    assert config.count('"start"') == 2, "the killed run went on"
    assert again.value == 11.5 + again.params["gain"], "mean over seeds 11 and 12"
    best = max(again, second, key=lambda trial: trial.value).params["gain"]
    text = (tmp_path / "best.txt").read_text()
    assert f"best of 2 trials: gain={best},crash-at=" in text and f"score {11.5 + best:.4g} on seeds 11, 12" in text
    assert re.search(rf"seed +13 +14\n.*\nTask-v0 +best +{13 + best}.0 +{14 + best}.0\n +defaults +13.0 +14.0\n", text)
    assert f"'gain': '{best}'" in text and "reason='tuned on seeds 11, 12 with benchmarks/tune.py'" in text
    entry = eval(text.splitlines()[-1], {"Experiment": run.Experiment})
    assert entry.label == "steps-tuned" and entry.script == Path(STEPS)
    assert text in capsys.readouterr().out and "no worse" not in text
    plan.total_timesteps = 400
    with pytest.raises(InputError, match=r"holds a study with .*'total_timesteps': '300'"):
        tune.main(plan)


def test_defaults_that_are_no_worse_on_fresh_seeds_are_told(tmp_path):
    tune.main(args(tmp_path, range=("gain=-9:-1",), trials=1, total_timesteps=100))
    assert "\nthe defaults are no worse there: keep them" in (tmp_path / "best.txt").read_text()


def test_a_trial_below_the_others_is_pruned_early_and_one_that_fails_does_not_end_the_study(tmp_path, monkeypatch):
    gains = iter((90, 80, 5, 70))
    ask = optuna.Study.ask

    def fixed(self, space):
        self.enqueue_trial({"gain": next(gains), "stop-at": 200 if len(self.trials) == 3 else 9999})
        return ask(self, space)

    monkeypatch.setattr(optuna.Study, "ask", fixed)
    plan = args(tmp_path, trials=4, startup_trials=2, range=("gain=1:100", "stop-at=1:9999"), flags="--delay 0.25")
    plan.total_timesteps = 2000
    tune.main(plan)
    assert states(tmp_path) == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    (pruned,) = tmp_path.glob("steps-gain=5,*/Task-v0/11")
    assert 1000 <= run.reached(pruned) < 2000, "not before half of the first run, and not at its end"
    (failed,) = tmp_path.glob("steps-gain=70,*/Task-v0/11/harness/status.json")
    assert "ended before its last evaluation" in failed.read_text()
