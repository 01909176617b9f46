"""benchmarks/speed.py: bad input, the arithmetic of its table, and one real measurement. Speeds are not tested."""

import re
import subprocess
import sys

import pytest
import speed


def test_bad_input_is_one_line(monkeypatch):
    monkeypatch.setattr(speed.torch.cuda, "is_available", lambda: False)
    for settings, message in (
        ({"algorithms": ("dqn",)}, "--algorithms dqn is unknown"), ({"repeats": 0}, "--repeats 0 is out of range"),
        ({"seconds": -1.0}, "--seconds -1.0 is out of"), ({"output": "/no/such/folder/a"}, "--output /no/such/folder"),
        ({"device": "cuda"}, "--device cuda was not found: use cpu"),
    ):  # fmt: skip
        with pytest.raises(speed.InputError, match=message):
            speed.main(speed.Args(**settings))


def test_sides_alternate_and_ratios_are_of_neighbouring_measurements(monkeypatch):
    rates = {"ours": [200.0, 400.0, 300.0], "sb3": [400.0, 100.0, 300.0], "sb3 with 1 env": [100.0, 100.0, 50.0]}
    left, measured = {side: iter(x) for side, x in rates.items()}, []

    def measure(function, algorithm, args, *num_envs):
        measured.append({(): "ours", (None,): "sb3", (1,): "sb3 with 1 env"}[num_envs])
        rate = next(left[measured[-1]])
        return rate if num_envs else (rate, {"physics": len(measured)})

    monkeypatch.setattr(speed, "fresh", measure)
    found, parts = speed.compare("td3", speed.Args(repeats=3), speed.PEERS)
    assert measured == [*rates] * 3
    assert found == rates and parts.to_dict() == {"physics": 4}, "the median of 1, 4, 7"
    texts = ["300 (200, 400, 300)", "300 (400, 100, 300)", "100 (100, 100, 50)"]
    assert speed.cells(rates) == ["**1.00**", "**4.00**", *texts], "the medians of 1/2, 4, 1 and of 2, 4, 6"
    assert speed.cells({"ours": [7.0]}) == ["-", "-", "7 (7)", "-", "-"]


@pytest.mark.parametrize("algorithm", speed.WARM_UP)
def test_peers_take_our_settings(algorithm):
    pytest.importorskip("sb3_contrib", reason="not installed: pip install -r requirements-extra.txt")
    from peers import build

    speed.script(algorithm).make_env(speed.task(algorithm)).close()  # registers the Fetch tasks
    name, settings = speed.peer_settings(algorithm, 2)
    model = build(f"sb3-{name}", lambda: speed.gym.make(speed.task(algorithm)), settings, "cpu")
    assert model.n_envs == 2 and (model.get_vec_normalize_env() is not None) == (algorithm in speed.ON_POLICY)
    if algorithm in ("ppo", "trpo", "a2c"):
        args = speed.script(algorithm).Args()
        assert model.n_steps * 2 == args.num_steps * args.num_envs


def test_gradients_lose_digits_where_medium_multiplies_in_bfloat16():
    highest, high, medium = speed.gradient_errors("ppo")["loss"]
    assert max(highest, high) < 1e-5
    assert medium < 0.05 and (medium > 1e-4) == speed.bfloat16().endswith("bfloat16")


def test_a_measurement_from_the_command_line(tmp_path):
    command = ["benchmarks/speed.py", "--algorithms", "a2c", "--repeats", "1", "--seconds", "0.2"]
    command += ["--output", str(tmp_path / "speed")]
    result = subprocess.run([sys.executable, *command], cwd=speed.ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "speed.md").read_text() == result.stdout and (tmp_path / "speed-peers.png").stat().st_size
    assert f"`python {' '.join(command)}`" in result.stdout and "each measurement of 0.2 s" in result.stdout
    rate = re.search(r"^\| a2c \| HalfCheetah-v5 \|[^|]+\|[^|]+\| (\d+) \(\1\) \|", result.stdout, re.MULTILINE)
    written = re.search(
        r"^a2c,HalfCheetah-v5,highest,ours,0,([\d.]+)$", (tmp_path / "speed.csv").read_text(), re.MULTILINE
    )
    assert rate and float(written[1]) == pytest.approx(int(rate[1]), abs=0.5)
    parts = re.search(r"^\| a2c \|((?: -?\d+ \|){6})$", result.stdout, re.MULTILINE)
    assert parts and float(parts[1].split("|")[0]) > 0  # physics
