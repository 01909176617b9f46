"""benchmarks/records.py: run folders, whole and broken, csv files, staleness, export."""

import json

import pandas as pd
import pytest
import records
from fake_runs import cells_of, finals, make_csv, make_run

COLUMNS = ["source", "algorithm", "env_id", "seed", "run", "step", "return"]
TD3 = records.ROOT / "algorithms" / "td3.py"
SEED = "    seed: Annotated[int, Range(0)] = 1\n"


def test_an_evaluation_is_the_mean_of_its_episodes_and_a_row_cut_short_is_left_out(tmp_path):
    folder = make_run(tmp_path, evaluations={0: [(99.0, 0)], 1000: [(10.0, 1), (20.0, 0), (60.0, 0)]})
    with (folder / "eval.csv").open("a") as file:
        file.write("1500,2")
    evaluations, runs = records.read([tmp_path])
    last = evaluations.iloc[-1]
    assert (last["step"], last["return"], last["episodes"]) == (1000, 30, 3) and last["success"] == pytest.approx(1 / 3)
    assert runs["state"].tolist() == ["done"] and not runs["stale"].any()
    assert cells_of(folder)[0].final("return").tolist() == [30]  # a run folder itself may be named


def test_a_success_that_is_told_of_successful_episodes_only(tmp_path):
    folder = make_run(tmp_path, evaluations={1000: [(10.0, 1), (20.0, 1)]})
    table = (folder / "eval.csv").read_text().splitlines()
    (folder / "eval.csv").write_text(
        "\n".join([table[0], table[1], table[2].rpartition(",")[0] + ",", "1000,2,30.0,9"])
    )
    evaluations, _ = records.read([tmp_path])
    assert evaluations[["return", "success", "episodes"]].to_numpy().tolist() == [[15.0, 0.5, 2]]


def test_of_an_error_the_line_is_shown_that_names_the_mistake():
    box = """╭─ Unrecognized options ────────────╮
│ Unrecognized options: --x, 1      │
│ ───────────────────────────────── │
│ For full helptext, run a.py --help │
╰───────────────────────────────────╯
"""
    assert records.last_words(f"a warning\n{box}") == "Unrecognized options: --x, 1"
    assert records.last_words(box[40:]) == "Unrecognized options: --x, 1", "its top is cut off"
    assert (
        records.last_words(box.replace(": --x, 1     ", ":            │\n│ --x, 1")) == "Unrecognized options: --x, 1"
    )
    assert records.last_words(f"{box}killed by SIGKILL\n") == "killed by SIGKILL"
    assert records.last_words("Traceback\nValueError: no\n\n") == "ValueError: no" and records.last_words("") == ""


def test_failed_and_unfinished_runs_show_and_do_not_count(tmp_path):
    cut = {0: [1.0], 400: [2.0]}
    make_run(tmp_path, seed=1)
    make_run(tmp_path, seed=2, state="failed", exit_code=1, stderr_tail="X\nValueError: no | way\n\n", evaluations=cut)
    make_run(tmp_path, seed=3, state="running", evaluations=cut)
    make_run(tmp_path, seed=4, state="done", evaluations={0: [1.0], 990: [2.0]})  # eval.csv decides
    folder = make_run(tmp_path, seed=5, state="failed", exit_code=-9, total=1000)
    for name in ("config.json", "eval.csv"):
        (folder / name).unlink()  # it failed before it began
    make_run(tmp_path, seed=6, state="failed", exit_code=9)  # killed when all was written
    (cell,) = cells_of(tmp_path)
    states = "done, failed: exit 1, running at step 400, unfinished at step 990, failed: SIGKILL, done"
    assert ", ".join(cell.runs["state"]) == states
    assert cell.seeds == [1, 6] and cell.runs["error"].tolist()[1] == "ValueError: no | way"


def test_settings_are_what_differs_from_the_defaults_but_for_machinery(tmp_path):
    default = records.script_of("td3").defaults
    args = {"gamma": 0.5, "policy_delay": default["policy_delay"], "eval_every": 7, "device": "cuda"}
    make_run(tmp_path / "ours", args=args, flags={"gamma": "0.5", "eval-every": "7"})
    flags = {"no-her": "", "clip-coef": "0.1", "mode": "x", "eval-every": "5"}
    make_run(tmp_path / "theirs", "unknown", flags=flags, label="unknown-b")
    settings = [json.loads(text) for text in records.read([tmp_path])[1]["settings"]]
    assert settings == [{"gamma": 0.5}, {"clip_coef": 0.1, "her": False, "mode": "x"}]


def test_a_csv_of_another_program(tmp_path):
    last = [("dqn", "My-v0", 7, 500, 2), ("dqn", "My-v0", 7, 1000, 3)]
    path = make_csv(tmp_path / "mine.csv", ("dqn", "My-v0", 8, 0, 1), *last)
    evaluations, runs = records.read([path])
    assert set(evaluations["source"]) == {"mine"} and evaluations["success"].isna().all()
    assert runs["state"].tolist() == ["done", "ended at step 0"] and runs["seed"].tolist() == [7, 8]
    assert runs["total_timesteps"].tolist() == [1000, 1000] and not runs["stale"].any()
    wrong = make_csv(tmp_path / "wrong.csv", *last, ("dqn", "My-v0", "x", 0, 1))
    (tmp_path / "short.csv").write_text(path.read_text().replace("return", "score"))
    for name in ("empty.csv", "empty/note"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for path, message in (
        (wrong, r"wrong\.csv, line 4: seed is 'x', not a number"), (tmp_path / "short.csv", "no column return"),
        (tmp_path / "empty.csv", r"cannot read .*empty"), (tmp_path / "empty", "neither run folders nor results.csv"),
    ):  # fmt: skip
        with pytest.raises(records.InputError, match=message):
            records.read([path])


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("\nimport", "\n\n# a comment\nimport", True), ('"""', '"""Another docstring. ', True),
        (SEED, SEED + '    "help"\n', True), (SEED, SEED.replace("1", "2"), False),
        ("class Run", "class Machinery", False),  # section 5 counts as well
    ],
)  # fmt: skip
def test_only_code_counts_for_the_hash(tmp_path, old, new, same):
    assert old in TD3.read_text()
    (tmp_path / "td3.py").write_text(TD3.read_text().replace(old, new, 1))
    assert (records.code_sha256(tmp_path / "td3.py") == records.code_sha256(TD3)) == same


def test_what_is_read_together_may_lack_different_things(tmp_path, recwarn):
    """A run started by hand, which has no status.json, one by the harness, and a csv without runs.csv."""
    (make_run(tmp_path / "runs") / "harness" / "status.json").unlink()
    make_run(tmp_path / "runs", seed=2)
    rows = make_csv(tmp_path / "mine.csv", ("dqn", "HalfCheetah-v5", 1, 0, 0), ("dqn", "HalfCheetah-v5", 1, 1000, 9))
    _, runs = records.read([tmp_path / "runs", rows])
    assert set(runs["state"]) == {"done"} and runs["seconds"].count() == 1
    assert not list(recwarn), "pandas warns of columns without a type"


def test_the_hash_is_the_same_for_every_version_of_python(tmp_path):
    (tmp_path / "f.py").write_text("def f(x: int = 1) -> int:\n    return -x or None\n")
    wanted = "e1d0abb36ad1d4d9602857ed1f6e9c5ffaebe98d5fe8c29bda4f833305d2adc6"
    assert records.code_sha256(tmp_path / "f.py") == wanted


def test_results_of_other_code_are_stale_unless_shown_to_be_the_same(tmp_path):
    make_run(tmp_path, seed=1)
    make_run(tmp_path, seed=2, code_sha256="of other code")
    make_run(tmp_path, "unknown", seed=3, code_sha256="of a script that is not in algorithms/")
    folder = make_run(tmp_path, seed=4, code_sha256=None)  # by hand: the hash of the whole file is known
    runs = records.read([tmp_path])[1].set_index("seed")
    assert runs["stale"].to_dict() == {1: False, 2: True, 3: False, 4: True}
    config = json.loads((folder / "config.json").read_text()) | {"script_sha256": records.script_of("td3").file}
    (folder / "config.json").write_text(json.dumps(config))
    assert not records.read([folder])[1]["stale"].any()
    runs.loc[2, "same_as"] = f"0123abc:other 4567def:{records.code_sha256(TD3)}"
    assert not records.is_stale(runs.loc[2])
    records.export(*records.read([tmp_path]), tmp_path / "kept")
    table = pd.read_csv(tmp_path / "kept" / "runs.csv").astype({"same_as": object}).set_index("seed", drop=False)
    table.loc[2, "same_as"] = f"0123abc:{records.code_sha256(TD3)}"
    table.to_csv(tmp_path / "kept" / "runs.csv", index=False)
    again = records.read([tmp_path / "kept", tmp_path / "td3"])[1].set_index("seed")
    assert again.loc[2, "folder"] and not again.loc[2, "stale"], "what is noted of a code holds for a copy without it"


def test_export_merges_and_later_results_replace_earlier_ones(tmp_path):
    finals(tmp_path / "first", 100.0, 110.0)
    make_run(tmp_path / "first", seed=9, state="failed", exit_code=1, evaluations={0: [1.0]})
    make_run(tmp_path / "second", seed=2, evaluations={0: [0.0], 1000: [500.0]})
    make_run(tmp_path / "second", seed=1, state="stopped", evaluations={0: [7.0]})  # replaces no finished one
    make_run(tmp_path / "second", seed=2, total=2000, label="td3-long", evaluations={0: [0.0], 2000: [7.0]})
    first, second = (records.read([tmp_path / name]) for name in ("first", "second"))
    records.export(*first, tmp_path / "kept")
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["results.csv", "runs.csv"]
    for frames in (first, records.read([tmp_path / "kept"])):
        assert frames[1]["state"].tolist() == ["done", "done", "failed: exit 1"]
    pd.testing.assert_frame_equal(first[0], records.read([tmp_path / "kept"])[0], check_dtype=False)
    evaluations, runs = records.read([tmp_path / "kept", tmp_path / "second"])
    assert len(runs) == 4 and len(second[1]) == 3
    last = evaluations[evaluations["algorithm"] == "td3"].groupby("seed")["return"].last()
    assert last.to_dict() == {1: 100, 2: 500, 9: 1}


def test_a_change_that_alters_nothing_is_noted_and_another_refused(tmp_path, monkeypatch):
    script = tmp_path / "algorithms" / "td3.py"
    script.parent.mkdir()

    def commit(text):
        script.write_text(text + "class Args: pass\n")
        for words in (["add", "."], ["-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x"]):
            records.git(*words)

    toy = """import pathlib, time
pathlib.Path("run").mkdir()
for name in ("eval", "train", "metrics"):
    pathlib.Path(f"run/{name}.csv").write_text(f"step,seconds,return\\n1,{time.time()},{VALUE}\\n")
"""
    monkeypatch.setattr(records, "ROOT", tmp_path)
    records.script_of.cache_clear()
    records.git("init", "-q")
    commit(toy.replace("VALUE", "1 + 1"))
    code = records.code_sha256(script)
    rows = [["gradus", "td3", "Hopper-v5", seed, f"run{seed}", seed, 7.0] for seed in (1, 2)]
    pd.DataFrame(rows, columns=COLUMNS).to_csv(tmp_path / "results.csv", index=False)
    runs = pd.DataFrame(rows, columns=COLUMNS).assign(total_timesteps=1, code_sha256=[code, "of other code"])
    runs.reindex(columns=records.RUN_COLUMNS).to_csv(tmp_path / "runs.csv", index=False)
    commit(toy.replace("VALUE", "2"))
    change = {"algorithm": "td3", "before": "HEAD~1", "results": tmp_path}
    assert records.note_same(**change) == 1
    assert records.note_same(**change) == 0  # it is noted already
    assert records.read([tmp_path])[1]["stale"].tolist() == [False, True]
    commit(toy.replace("VALUE", "3"))
    records.script_of.cache_clear()
    with pytest.raises(records.InputError, match="write different files"):
        records.note_same(**change)
    assert records.read([tmp_path])[1]["stale"].tolist() == [True, True]
    records.script_of.cache_clear()
