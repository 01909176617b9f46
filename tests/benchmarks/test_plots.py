"""benchmarks/plots.py: what the pictures show."""

import matplotlib.pyplot as plt
import numpy as np
import plots
import pytest
import records
import scores
from fake_runs import make_run, published_row
from suites import SUITES


@pytest.fixture
def figures(monkeypatch):
    """The figures that a drawing function would have written, by file name."""
    drawn = {}
    monkeypatch.setattr(plots, "save", lambda figure, path, title: drawn.setdefault(path.name, figure))
    yield drawn
    plt.close("all")


@pytest.fixture
def results(tmp_path):
    """td3 with two seeds and sac with one on Hopper, td3 on Swimmer; 300 000 steps."""
    for algorithm, env_id, seed, final in (
        ("td3", "Hopper-v5", 1, 100.0), ("td3", "Hopper-v5", 2, 300.0), ("sac", "Hopper-v5", 1, 50.0),
        ("td3", "Swimmer-v5", 1, 10.0),
    ):  # fmt: skip
        evaluations = {0: [0.0], 100_000: [final / 2], 300_000: [final]}
        folder = make_run(tmp_path / "s", algorithm, env_id, seed, 300_000, evaluations, hardware="2 cores")
        (folder / "metrics.csv").write_text("step,seconds\n150000,600\n300000,1200\n")
    return scores.summarise(records.load_runs(tmp_path, "s"))


def panel(figure, title):
    (axes,) = [axes for axes in figure.axes if axes.get_title() == title]
    return axes


def test_curves_show_the_mean_its_band_and_the_published_level(figures, results, tmp_path):
    rows = [published_row(400.0, task="Hopper", env_version="v3", env_steps=300_000)]
    plots.draw_curves(tmp_path / "curves.png", results, rows)
    axes = panel(figures["curves.png"], "Hopper-v5")
    sac, td3, level = axes.lines
    np.testing.assert_array_equal(td3.get_xydata(), [[0, 0], [100_000, 100], [300_000, 200]])
    np.testing.assert_array_equal(sac.get_ydata(), [0, 25, 50])
    assert len(axes.collections) == 1  # one seed has no band
    assert axes.collections[0].get_datalim(axes.transData).intervaly == pytest.approx([0, 300])
    assert list(level.get_ydata()) == [400, 400] and axes.get_ylim()[1] >= 400 and level.get_linestyle() == "--"
    assert [text.get_text() for text in axes.texts] == ["td3 400.0 (v3, 300k)"]
    assert axes.get_xlabel() == "environment steps" and axes.get_ylabel() == "return of the deterministic policy"
    assert td3.get_color() == plots.colour("td3") != sac.get_color()
    assert [text.get_text() for text in figures["curves.png"].legends[0].get_texts()] == ["td3", "sac"]
    assert len(panel(figures["curves.png"], "Swimmer-v5").lines) == 1


def test_levels_of_other_environment_versions_that_cannot_be_compared_are_left_out(figures, tmp_path):
    make_run(tmp_path / "s", env_id="Ant-v5")
    rows = [published_row(5000.0, task="Ant", env_version="v3")]
    plots.draw_curves(tmp_path / "curves.png", scores.summarise(records.load_runs(tmp_path, "s")), rows)
    axes = panel(figures["curves.png"], "Ant-v5")
    assert len(axes.lines) == 1 and not axes.texts


def test_labels_of_published_levels_do_not_overlap_and_lines_tell_whether_steps_agree(tmp_path):
    make_run(tmp_path / "s", total=1000)
    (result,) = scores.summarise(records.load_runs(tmp_path, "s"))
    _, axes = plt.subplots()
    axes.set_ylim(0, 100)
    rows = [
        published_row(mean, env_steps=steps) for mean, steps in ((50.0, 1000), (50.5, 500), (98.0, 500), (99.0, 500))
    ]
    plots.draw_references(axes, [(result, row) for row in rows])
    assert [text.xyann[1] for text in axes.texts] == pytest.approx([50, 57.5, 92.5, 100])
    assert [line.get_linestyle() for line in axes.lines] == ["--", ":", ":", ":"]
    plt.close("all")


def test_wallclock_is_in_minutes(figures, results, tmp_path):
    plots.draw_wallclock(tmp_path / "wallclock.png", results)
    axes = panel(figures["wallclock.png"], "Hopper-v5")
    np.testing.assert_allclose(axes.lines[1].get_xdata(), [0, 400 / 60, 20])
    assert "minutes" in axes.get_xlabel()


def test_wallclock_is_logarithmic_where_some_runs_take_ten_times_as_long(figures, results, tmp_path):
    plots.draw_wallclock(tmp_path / "linear.png", results)
    assert panel(figures["linear.png"], "Hopper-v5").get_xscale() == "linear"
    (tmp_path / "s/sac/Hopper-v5/1/metrics.csv").write_text("step,seconds\n150000,60\n300000,110\n")
    plots.draw_wallclock(tmp_path / "log.png", scores.summarise(records.load_runs(tmp_path, "s")))
    axes = panel(figures["log.png"], "Hopper-v5")
    assert axes.get_xscale() == "log" and "logarithmic" in axes.get_xlabel()
    assert panel(figures["log.png"], "Swimmer-v5").get_xscale() == "linear"


def test_milestones_show_ours_and_the_published(figures, results, tmp_path):
    rows = [published_row(400.0, task="Hopper", env_version="v3", env_steps=295_000)]
    assert plots.draw_milestones(tmp_path / "milestones.png", results, rows)
    axes = panel(figures["milestones.png"], "Hopper-v5")
    hollow = [line for line in axes.lines if line.get_marker() == "D"]
    assert [line.get_ydata()[0] for line in hollow] == [400]
    ours = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert sorted(ours) == [25, 50, 100, 200]  # at 100k and 300k
    assert [text.get_text() for text in axes.get_xticklabels()] == ["100k", "300k", "500k", "1M"]
    make_run(tmp_path / "short")
    short = scores.summarise(records.load_runs(tmp_path, "short"))
    assert not plots.draw_milestones(tmp_path / "none.png", short, rows)


def test_aggregates_show_every_algorithm_and_its_profile(figures, tmp_path):
    matrices = {"td3": np.array([[0.0, 1.0], [0.5, 1.5]]), "sac": np.array([[0.2, 0.2], [0.4, 0.4]])}
    plots.draw_aggregates(tmp_path / "aggregates.png", ["Hopper-v5", "Swimmer-v5"], matrices)
    *bars, profiles = figures["aggregates.png"].axes
    assert [axes.get_title() for axes in bars] == list(scores.AGGREGATES)
    assert [text.get_text() for text in bars[0].get_yticklabels()] == ["td3", "sac"]
    assert bars[2].lines[0].get_xdata()[0] == pytest.approx(0.75) and bars[2].lines[1].get_xdata()[0] == pytest.approx(
        0.3
    )
    td3 = profiles.lines[0]
    assert td3.get_ydata()[0] == 0.75  # of the scores 0, 0.5, 1, 1.5, three are above 0
    assert len(profiles.collections) == 2


def test_the_algorithms_and_variants_of_a_suite_differ_in_colour():
    for name, members in SUITES.items():
        labels = {e.label for e in members}
        assert len({plots.colour(label) for label in labels}) == len(labels), name


@pytest.mark.parametrize("width", [5.4, 16])
def test_titles_fit_their_pictures(tmp_path, width):
    figure = plt.figure(figsize=(width, 4))
    plots.save(figure, tmp_path / "picture.png", "Mean over seeds with its interval " * 4)
    box = figure._suptitle.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.get_window_extent().x1


def test_every_picture_is_written_as_png(results, tmp_path):
    plots.draw_curves(tmp_path / "curves.png", results, [])
    plots.draw_wallclock(tmp_path / "wallclock.png", results)
    plots.draw_milestones(tmp_path / "milestones.png", results, [])
    plots.draw_aggregates(tmp_path / "aggregates.png", ["a", "b"], {"td3": np.eye(2)})
    for name in ("curves", "wallclock", "milestones", "aggregates"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not plt.get_fignums()
