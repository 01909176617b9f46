"""benchmarks/speed.py: bad input. Speeds themselves are measured, not tested."""

import pytest
import speed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithms": ("dqn",)}, "--algorithms dqn is not one of reinforce"),
        ({"repeats": 0}, "--repeats 0 is out of range: use at least 1"),
        ({"seconds": -1.0}, "--seconds -1.0 is out of range: use more than 0"),
        ({"output": "/no/such/folder/speed.md"}, "--output /no/such/folder/speed.md cannot be written"),
    ],
)
def test_bad_input_is_one_line(settings, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        speed.check(speed.Args(**settings))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith(f"error: {message}") and error.count("\n") == 1
