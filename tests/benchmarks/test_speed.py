"""benchmarks/speed.py: bad input, the arithmetic of its table, and one real measurement. Speeds are not tested."""

import re
import subprocess
import sys

import pytest
import speed


def test_bad_input_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(speed, "fresh", lambda function: False)
    for settings, message in (
        ({"algorithms": ("dqn",)}, "--algorithms dqn is not one of"), ({"repeats": 0}, "--repeats 0 is out of range"),
        ({"seconds": -1.0}, "--seconds -1.0 is out of"), ({"output": "/no/such/folder/a"}, "--output /no/such/folder"),
        ({"device": "cuda"}, "--device cuda was not found: use cpu"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            speed.check(speed.Args(**settings))
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.startswith(f"error: {message}") and error.count("\n") == 1


def test_sides_alternate_and_ratios_are_of_neighbouring_measurements(monkeypatch):
    rates = {
        speed.ours: [200.0, 400.0, 300.0],
        speed.sb3: [100.0, 100.0, 50.0],
        speed.sb3_8_envs: [400.0, 100.0, 300.0],
    }
    measured = []

    def measure(function, algorithm, steps, device):
        measured.append((function.__name__, steps))
        return rates[function].pop(0)

    monkeypatch.setattr(speed, "fresh", measure)
    monkeypatch.setattr(speed, "GUESS", {"td3": (150, 100)})
    cells, own = speed.compare("td3", speed.Args(repeats=3, seconds=2), peer=True)
    assert measured == [("ours", 300), ("sb3", 200), ("sb3_8_envs", 200)] * 3 and own == [200.0, 400.0, 300.0]
    assert cells == [
        "td3", "HalfCheetah-v5", "300 (200, 400, 300)", "100 (100, 100, 50)", "300 (400, 100, 300)",
        "4.00", "1.00",  # the medians of 2, 4, 6 and of 1/2, 4, 1
    ]  # fmt: skip
    rates[speed.ours] = [7.0]
    cells, _ = speed.compare("td3", speed.Args(repeats=1), peer=False)
    assert cells[2:] == ["7 (7)", "-", "-", "-", "-"]


def test_operations_of_a_td3_update_by_hand():
    """2 per multiply-add; a layer's gradients cost once more for its weights and once more for its input."""
    hidden = 256 * 256
    actor, actor_1 = 17 * 256 + hidden + 256 * 6, 17 * 256
    critic, critic_1 = 23 * 256 + hidden + 256, 23 * 256
    targets = actor + 2 * critic  # mu'(s'), Q1'(s', a'), Q2'(s', a')
    critics = 2 * critic + 2 * (2 * critic - critic_1)  # Q1(s, a), Q2(s, a) and their gradients
    policy = actor + critic + critic + (2 * actor - actor_1)  # mu(s), Q1(s, mu(s)), dQ1/da, dmu/dtheta
    # 256 transitions; the actor every other time
    assert speed.td3_update_flops() == 2 * 256 * (targets + critics + policy / 2)


def test_a_measurement_from_the_command_line(tmp_path):
    command = ["benchmarks/speed.py", "--algorithms", "a2c", "--repeats", "1", "--seconds", "0.2"]
    command += ["--output", str(tmp_path / "speed.md")]
    result = subprocess.run([sys.executable, *command], cwd=speed.ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "speed.md").read_text() == result.stdout
    assert f"`python {' '.join(command)}`" in result.stdout and "each measurement of 0.2 s" in result.stdout
    rate = re.search(r"^\| a2c \| HalfCheetah-v5 \| (\d+) \(\1\) \|", result.stdout, re.MULTILINE)
    assert rate and int(rate[1]) > 0
