"""Rules x networks x tasks x seeds: the search, the statistics, cells in any order, and figures."""

import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from refusals import refuses

import mpgraph as mg
from mpgraph import cli, data, experiments
from mpgraph.architectures import mlp, recurrent
from mpgraph.data.synthetic import series_of
from mpgraph.experiments import Run, plots, results, tasks
from mpgraph.experiments.cells import Plan, cells_of, run_cells
from mpgraph.experiments.contrasts import needed, paired
from mpgraph.experiments.tuning import halton, searched, space_of
from mpgraph.protocols import Backprop, EProp

SHORT = ("--seeds", "2", "--epochs", "1", "--limit", "64", "--quiet")


def compared(*arguments, capsys):
    """What a comparison prints as JSON."""
    status = cli.main(["compare", *SHORT, *arguments, "--json"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return json.loads(captured.out)


# -- tasks ------------------------------------------------------------------------------------------------------


def test_xor_is_the_sign_of_a_product():
    found = data.load("xor", seed=3, standardise=False)
    assert torch.equal(found.train_y, (found.train_x[:, 0] * found.train_x[:, 1] > 0).long())
    assert not torch.equal(found.train_x, data.load("xor", seed=4, standardise=False).train_x)


def test_the_cue_of_a_sequence_stands_at_its_first_tick_only():
    found = data.load("delayed_cue", standardise=False)
    assert torch.equal(found.train_x[:, 0].argmax(-1), found.train_y)
    assert not found.train_x[:, 1:, :2].any()
    assert not found.train_x[:, 0, 2].any()


def test_a_rule_whose_step_is_a_tick_is_scored_at_the_last_tick_of_a_sequence():
    found = data.load("delayed_cue", standardise=False)
    x, y = found.test_x[:6], found.test_y[:6]
    program = mg.compile(recurrent([x.shape[-1], 4, found.classes], ticks=x.shape[1]), EProp())
    state = program.init(seed=0, batch_size=3)
    every = torch.cat([program.predict(state, part, memories="fresh") for part in x.split(3)])
    assert every.shape == (6, x.shape[1], found.classes)
    assert experiments.accuracy(program, state, x, y) == float((every[:, -1].argmax(-1) == y).double().mean())


def test_the_series_of_mackey_and_glass():
    with_finer_steps = series_of(1.2, 120, substeps=80)
    np.testing.assert_allclose(series_of(1.2, 120, substeps=20), with_finer_steps, atol=1e-4)
    # Before the delay is over x(t - 17) is 0: x decays freely.
    np.testing.assert_allclose(with_finer_steps[:18], 1.2 * np.exp(-0.1 * np.arange(18)), rtol=1e-6)
    # Then x(t - 17) is 1.2 exp(-0.1 (t - 17)), and dx/dt is known: one unit of time by the trapezoidal rule.
    fine = np.linspace(17.0, 18.0, 2001)
    past = 1.2 * np.exp(-0.1 * (fine - 17.0))
    drive = 0.2 * past / (1.0 + past**10) * np.exp(0.1 * (fine - 18.0))
    there = 1.2 * np.exp(-1.8) + float(torch.trapezoid(torch.from_numpy(drive), torch.from_numpy(fine)))
    np.testing.assert_allclose(with_finer_steps[18], there, rtol=1e-4)
    found = data.load("mackey_glass", standardise=False)
    assert torch.equal(found.train_x[6:, 2], found.train_x[:-6, 3])  # x(t - 6), six examples later
    spread = found.train_y.std(0)
    torch.testing.assert_close(spread, torch.ones(1))
    shifted = (found.train_x[6:, 3] - found.train_x[6:, 3].mean()) / found.train_x[6:, 3].std()
    there = found.train_y[:-6, 0]
    torch.testing.assert_close(shifted, (there - there.mean()) / there.std(), atol=1e-4, rtol=0.0)


def test_targets_that_are_numbers_are_checked():
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    assert data.Dataset("numbers", x, y, x, y, 0).to(torch.float64).train_y.dtype == torch.float64
    for bad, words in ((y[:, 0], "(examples, outputs)"), (y.long(), "(examples, outputs)"), (y * math.nan, "NaN")):
        with refuses(mg.InputError, "numbers", words):
            data.Dataset("numbers", x, bad, x, y, 0)


def test_validation_data_is_a_part_of_the_training_set():
    whole = data.Dataset(
        "toy", torch.arange(20.0)[:, None], torch.arange(20) % 2, torch.zeros(3, 1), torch.ones(3).long(), 2
    )
    for share, held in ((0.2, 4), (0.001, 1), (0.999, 19)):
        part = whole.validation(share, seed=1)
        assert len(part.test_x) == held
        assert sorted(torch.cat([part.train_x, part.test_x]).flatten().tolist()) == list(range(20))
        assert torch.equal(part.test_y, part.test_x.flatten().long() % 2)
    assert torch.equal(whole.validation(0.5, 2).test_x, whole.validation(0.5, 2).test_x)
    for share in (0.0, 1.0, "a"):
        with refuses(mg.InputError, "share="):
            whole.validation(share, 0)


def test_the_error_is_the_share_of_variance_that_predictions_miss():
    program = mg.compile(mlp([2, 2], loss="l2"), Backprop())
    state = program.init()
    state["x->y"]["w"], state["y.bias"]["w"] = torch.eye(2), torch.zeros(2)
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    assert experiments.error(program, state, x, x) == 0.0
    state["x->y"]["w"], state["y.bias"]["w"] = torch.zeros(2, 2), x.mean(0)
    assert experiments.error(program, state, x, x) == pytest.approx(1.0)
    y = x + torch.tensor([1.0, 0.0])
    state["x->y"]["w"], state["y.bias"]["w"] = torch.eye(2), torch.zeros(2)
    assert experiments.error(program, state, x, y) == pytest.approx(50 / float(((y - y.mean(0)) ** 2).sum()), rel=1e-5)
    with refuses(mg.InputError, "all targets are the same"):
        experiments.error(program, state, x, torch.ones(50, 2))


# -- statistics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10), (-0.5, 34)])
def test_pairs_needed_are_those_of_power_tables(effect, pairs):
    """Two-sided paired t-test, 5 %, power 80 %: the numbers of G*Power (Faul et al., 2007)."""
    assert needed(effect) == pairs


def test_a_contrast_is_paired_by_seed():
    def run(protocol, seed, score, numbers=False):
        scores = {"test_accuracy": None, "test_error": score} if numbers else {"test_accuracy": score}
        return Run(protocol=protocol, task="toy", network="", seed=seed, seconds=1.0, epochs=1, batch=1, **scores)

    ours, theirs = [0.9, 0.7, 0.8], [0.8, 0.5, 0.75]
    for numbers, sign in ((False, 1.0), (True, -1.0)):
        runs = [run("a", i, s, numbers) for i, s in enumerate(ours)] + [
            run("b", i, s, numbers) for i, s in enumerate(theirs)
        ]
        runs += [run("a", 7, 0.1, numbers), run("readout_only", 0, 0.3, numbers)]  # a seed that only one has, the floor
        (row,) = experiments.contrasts(runs, "b")
        differences = [sign * (one - two) for one, two in zip(ours, theirs, strict=True)]
        assert (row["protocol"], row["against"], row["pairs"]) == ("a", "b", 3)
        assert row["difference"] == pytest.approx(statistics.fmean(differences))
        assert row["standard_error"] == pytest.approx(statistics.stdev(differences) / 3**0.5)
        assert row["effect_size"] == pytest.approx(statistics.fmean(differences) / statistics.stdev(differences))


def test_what_cannot_be_known_is_left_out():
    assert paired([0.5]) == {"pairs": 1, "difference": 0.5, "standard_error": None, "effect_size": None, "needed": None}
    same = paired([0.5, 0.5])
    assert (same["standard_error"], same["effect_size"], same["needed"]) == (0.0, None, None)
    assert paired([0.5, math.inf])["standard_error"] is None


# -- the search -------------------------------------------------------------------------------------------------


def test_a_grid_is_even_in_the_logarithm_and_has_both_ends():
    space = space_of("lr=0.01..1", 5)
    values = [one["lr"] for one in space.candidates()]
    np.testing.assert_allclose(values, [0.01, 0.01**0.75, 0.1, 0.01**0.25, 1.0], rtol=1e-3)
    assert [one["decay"] for one in space_of("decay=0..2", 3).candidates()] == [0.0, 1.0, 2.0]
    assert [one["k"] for one in space_of("k=1|tanh|None", 8).candidates()] == [1, "tanh", None]
    assert space_of("lr=0.01..1", 1).candidates() == [{"lr": 0.1}]


def test_several_dimensions_are_filled_by_the_sequence_of_halton():
    assert [halton(i, 2) for i in range(1, 6)] == [1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8]
    np.testing.assert_allclose([halton(i, 3) for i in range(1, 5)], [1 / 3, 2 / 3, 1 / 9, 4 / 9])
    found = space_of("a=0..1,b=x|y", 4).candidates()
    assert [one["a"] for one in found] == [0.5, 0.25, 0.75, 0.125]
    assert [one["b"] for one in found] == ["x", "y", "x", "x"]


def test_the_best_trial_that_did_not_diverge_is_chosen():
    results = {0.01: (0.5, False), 0.1: (0.9, True), 1.0: (0.7, False)}
    found = searched(space_of("lr=0.01..1", 3), lambda arguments: results[arguments["lr"]])
    assert (found["chosen"], found["at_edge"]) == ({"lr": 1.0}, ["lr"])
    assert [one["validation"] for one in found["trials"]] == [0.5, 0.9, 0.7]
    lost = searched(space_of("lr=0.01..1", 3), lambda arguments: (math.nan, True))
    assert lost["trials"][0]["validation"] is None


@pytest.mark.parametrize("text", ["lr", "lr=", "lr=1..0.1", "lr=a..b", "=1..2", "lr=1..nan", "", "lr=1..2,lr=3..4"])
def test_what_is_no_space_is_refused(text, capsys):
    with refuses(mg.InputError, "--tune"):
        space_of(text, 3)


def test_a_search_is_part_of_the_result_and_never_sees_the_test_set(monkeypatch):
    plan = Plan(epochs=8, limit=64, lr=0.1, space=space_of("lr=1e-6..0.5", 2))
    cells = cells_of(plan, ["digits"], ["mlp"], ["backprop", "backprop(lr=0.2)"], [0])
    searched_one, given = runs = run_cells(plan, cells, progress=False)
    assert [one["arguments"] for one in searched_one.tuning["trials"]] == [{"lr": 1e-6}, {"lr": 0.5}]
    assert searched_one.tuning["chosen"] == {"lr": 0.5}  # the other one moves nothing
    assert searched_one.tuning["space"] == "lr=1e-6..0.5"
    assert searched_one.arguments == "Backprop(lr=0.5)"
    assert searched_one.tuning["validation_examples"] == 13  # a fifth of 64
    assert given.tuning["trials"] == []
    assert given.arguments == "Backprop(lr=0.2)"
    original = data.Dataset.validation

    def shuffled(self, *arguments):  # other test labels, the same choice
        return original(replace(self, test_y=self.test_y.flip(0)), *arguments)

    monkeypatch.setattr(data.Dataset, "validation", shuffled)
    assert [run.tuning for run in run_cells(plan, cells, progress=False)] == [run.tuning for run in runs]


def test_a_dimension_that_no_rule_takes_is_refused(capsys):
    assert cli.main(["compare", *SHORT, "--tune", "rl=0.1..1"]) == 2
    assert "none of the rules takes rl" in capsys.readouterr().err


# -- cells ------------------------------------------------------------------------------------------------------


def test_networks_by_name_fit_the_task(capsys, tmp_path):
    (tmp_path / "nets.py").write_text(
        "import mpgraph as mg\n\n\ndef two(inputs, outputs, loss):\n    n = mg.Network()\n    n.input('x', inputs)\n"
        "    n.unit('y', outputs)\n    n.connect('x', 'y')\n    n.loss('y', loss)\n    return n\n"
    )
    own = f"{tmp_path / 'nets.py'}:two"
    names = f"mlp,mlp(hidden=(8, 8)),convnet(kernel=3, channels=(2,), hidden=(8,)),recurrent,{own}"
    rows = compared("--networks", names, "--protocols", "backprop", capsys=capsys)["summary"]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    assert networks == [
        "64-32-10 tanh",
        "64-8-8-10 tanh",
        "convnet(kernel=3, channels=(2,), hidden=(8,))",
        "recurrent",
        own,
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--networks", "mpl"], ["unknown architecture 'mpl'", "did you mean 'mlp'"]),
        (["--networks", "mlp(hiden=(3,))"], ["unknown argument of mlp 'hiden'"]),
        (["--networks", "convnet", "--tasks", "xor"], ["xor", "does not fit the input 'x'", "(1, 28, 28)"]),
        (["--networks", "autoencoder"], ["digits", "needs 10 outputs", "'y' has 64"]),
        (["--against", "oja"], ["--against 'oja'", "backprop"]),
        (["--tasks", ","], ["--tasks names none"]),
    ],
)
def test_networks_that_do_not_fit_are_refused(arguments, words, capsys):
    assert cli.main(["compare", *SHORT, *arguments]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error


def test_numbers_are_compared_by_their_error(capsys):
    found = compared("--tasks", "teacher,mackey_glass", "--protocols", "backprop", capsys=capsys)
    for row in found["summary"]:
        assert row["test_accuracy"] is None
        assert 0.0 < row["test_error"] < 2.0
    assert cli.main(["compare", *SHORT, "--task", "teacher"]) == 0
    assert "test error" in capsys.readouterr().out


def test_processes_and_cells_in_any_order_give_the_same():
    def without_times(runs):
        return [replace(run, seconds=0, times=[]) for run in runs]

    plan = Plan(epochs=1, limit=64, lr=0.1)
    cells = cells_of(plan, ["xor", "teacher"], ["mlp"], ["readout_only", "backprop"], [0, 1])
    alone = run_cells(plan, cells, progress=False)
    written = []
    several = run_cells(plan, cells, jobs=2, on_run=written.append, progress=False)
    assert without_times(several) == without_times(alone)
    assert [len(runs) for runs in written] == list(range(1, len(cells) + 1))  # each cell is written at once
    backwards = run_cells(plan, cells[::-1], done=several[3:5], progress=False)  # as after an interrupt
    assert without_times(backwards) == without_times(alone[::-1])
    assert several[3] in backwards  # seconds included: not run again


def test_a_file_of_settings_is_the_flags_and_what_is_typed_wins(tmp_path, capsys):
    path = tmp_path / "settings.toml"
    path.write_text(
        'tasks = ["xor"]\nprotocols = ["backprop", "feedback_alignment"]\nraw = true\n[tune]\nlr = "0.1..1"\n'
    )
    found = compared("--settings", str(path), "--trials", "2", "--protocols", "backprop", capsys=capsys)
    assert {row["task"] for row in found["summary"]} == {"xor"}
    assert {row["protocol"] for row in found["summary"]} == {"readout_only", "backprop"}
    assert found["settings"]["tune"] == {"space": "lr=0.1..1", "trials": 2}
    assert found["settings"]["standardised"] is False
    for text, words in (
        ("epoch = 3", "did you mean 'epochs'"), ("epochs = [[1]]", "epochs must be"), ("raw = 1", "true or false"),
        ("epochs = ", "is not TOML"), ("epochs = 0", "'0' is not a positive integer"),
    ):  # fmt: skip
        path.write_text(text)
        assert cli.main(["compare", "--settings", str(path), "--quiet"]) == 2
        assert words in capsys.readouterr().err
    assert cli.main(["compare", "--settings", str(tmp_path / "none.toml"), "--quiet"]) == 2
    assert "none.toml" in capsys.readouterr().err


# -- figures ----------------------------------------------------------------------------------------------------


def runs_of(finals, seeds=3):
    return [
        Run(name, "toy", "4-3-2", seed, score + 0.01 * seed, 1.0, 2, 4, curve=[score / 2, score + 0.01 * seed],
            steps=[5, 10], times=[0.5, 1.0])
        for name, score in finals.items() for seed in range(seeds)
    ]  # fmt: skip


def test_lines_carry_their_names_and_nothing_has_a_legend(tmp_path):
    runs = runs_of({"readout_only": 0.8, "backprop": 0.9, "my.py:Own": 0.7})
    figure = plots._figure(plots.PANELS.values(), [runs])
    for axes in figure.axes:
        assert axes.get_legend() is None
    left = figure.axes[0]
    assert {text.get_text() for text in left.texts} == {"readout only", "backprop", "Own"}
    assert left.lines[0].get_xdata().tolist() == [5, 10]
    assert figure.axes[1].lines[0].get_xdata().tolist() == [0.5, 1.0]
    gains = {label.get_text(): i for i, label in enumerate(figure.axes[2].get_yticklabels())}
    assert list(gains) == ["Own", "backprop"]  # the worst below
    plots.curves(runs, tmp_path / "a.svg", "toy"), plots.curves(runs, tmp_path / "b.svg", "toy")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_one_bad_rule_does_not_squash_the_others():
    finals = {"a": 0.95, "b": 0.94, "c": 0.93, "bad": 0.1}
    axes = plots._figure([plots.PANELS["steps"]], [runs_of(finals)]).axes[0]
    low, high = axes.get_ylim()
    assert 80.0 < low < 93.0 < high
    assert "bad (11.0 %)" in {text.get_text() for text in axes.texts}
    assert plots.limits([(0.1, 0.1, 0.1), (0.2, 0.2, 0.2), (9.0, 9.0, 9.0)], 0.25, less=True)[1] < 1.0
    assert plots.limits([(math.nan,) * 3], 20.0) == (0.0, 1.0)


def test_names_at_ends_keep_apart_and_move_little():
    assert plots.spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert plots.spread([0.5, 0.5, 0.9], 0.1) == pytest.approx([0.45, 0.55, 0.9])
    assert plots.spread([0.2, 1.0, 1.0], 0.1) == pytest.approx([0.2, 0.9, 1.0])  # none leaves the axes
    assert plots.spread([0.5, 0.5, 0.5, 0.52], 0.1) == pytest.approx([0.355, 0.455, 0.555, 0.655])


def test_names_are_readable_and_stay_different():
    given = ["feedback_alignment", "runs/a.py:Own(lr=0.1)", "blur:runs/x/rule", "a.py:One", "b.py:One"]
    assert list(plots.readable(given).values()) == [
        "feedback alignment", "Own(lr=0.1)", "blur: rule", "a.py:One", "b.py:One",
    ]  # fmt: skip


# -- several outputs --------------------------------------------------------------------------------------------


def test_several_outputs_are_each_scored_by_what_they_say():
    """Beside the definition of both scores, on what the trained program predicts."""
    network = mlp([64, 6, 10], heads={"image": (64, "l2")})
    found = tasks.fitted(data.load("digits_redrawn").head(64), network)
    program, scores = mg.compile(network, Backprop(lr=0.05)), []
    state, curve, _ = experiments.train(program, found, epochs=2, by_output=scores)
    said, pixels = program.predict(state, found.test_x), found.others["image"].test
    assert torch.equal(pixels, data.load("digits", standardise=False).test_x.flatten(1))
    right = float((said["y"].argmax(1) == found.test_y).double().mean())
    missed = float(((said["image"] - pixels) ** 2).sum() / ((pixels - pixels.mean(0)) ** 2).sum())
    assert scores[-1] == pytest.approx({"y": right, "image": missed})
    assert curve == [row["y"] for row in scores]  # the first output of classes, wherever it stands
    assert experiments.accuracy(program, state, found.test_x, found.test_y, output="y") == pytest.approx(right)
    with refuses(mg.InputError, "output=None", "'y', 'image'"):
        experiments.accuracy(program, state, found.test_x, found.test_y)
    with refuses(mg.InputError, "targets for 'image' and one more output", "the outputs 'y'"):
        tasks.fitted(found, mlp([64, 6, 10]))


def test_each_output_has_its_rows_and_its_part_of_the_report(tmp_path, capsys):
    arguments = ["--seeds", "1", "--task", "digits_redrawn", "--protocols", "backprop"]
    status = cli.main(["compare", *SHORT, *arguments, "--out", str(tmp_path)])
    assert status == 0
    printed = capsys.readouterr().out
    assert printed.index("output y") < printed.index("test accuracy") < printed.index("output image")
    content, runs = results.read_all(tmp_path / "results.json")
    for run in runs:
        assert run.network == "64-32-10+64 tanh"
        assert (run.test_accuracy, run.curve) == tuple(run.outputs["y"].values())
        assert run.outputs["image"]["test_error"] == run.outputs["image"]["curve"][-1]
    rows = {(row["protocol"], row["output"]): row for row in experiments.summary(runs)}
    errors = {name: [run.outputs["image"]["test_error"] for run in runs if run.protocol == name]
              for name in ("readout_only", "backprop")}  # fmt: skip
    row = rows["backprop", "image"]
    assert row["test_error"] == pytest.approx(statistics.fmean(errors["backprop"]))
    gain = statistics.fmean(errors["readout_only"]) - statistics.fmean(errors["backprop"])
    assert row["above_readout"] == pytest.approx(gain)
    assert content["contrasts"] == []  # one rule has nothing to be held against
    text = (tmp_path / "report.html").read_text()
    for words in ("digits_redrawn: 64-32-10+64 tanh, output y", "tanh, output image", "test error"):
        assert words in text
    assert text.count("The network 64-32-10+64 tanh.") == 1


def test_targets_of_further_outputs_are_checked():
    x, y, more = torch.randn(6, 3), torch.arange(6) % 2, torch.randn(6, 2)
    whole = data.Dataset("two", x, y, x, y, 2, others={"z": data.Targets(more, more, 0)})
    part = whole.validation(0.5, 0)
    for row, numbers in zip(part.test_x, part.others["z"].test, strict=True):
        assert torch.equal(numbers, more[(x == row).all(1)][0])
    (given, told), *_ = whole.head(4).batches(4, torch.Generator().manual_seed(0))
    for row, label, numbers in zip(given, told["y"], told["z"], strict=True):
        (at,) = (x == row).all(1).nonzero().flatten()
        assert at < 4
        assert label == y[at]
        assert torch.equal(numbers, more[at])
    for others, words in (
        ({"y": data.Targets(more, more, 0)}, "outputs than 'y'"),
        ({"z": data.Targets(more[:5], more, 0)}, "others['z'].train 5 labels"),
        ({"z": more}, "others['z']="),
        ({"z": data.Targets(y, y, 1)}, "1 classes allow 0 to 0"),
    ):
        with refuses(mg.InputError, "two", words):
            data.Dataset("two", x, y, x, y, 2, others=others)


# -- beside the gradient ----------------------------------------------------------------------------------------


def test_angles_over_training_are_in_results_figures_and_report(tmp_path, capsys):
    rules = "backprop(lr=0.25),feedback_alignment,vsml"
    status = cli.main(["compare", *SHORT, "--seeds", "1", "--task", "xor", "--networks", "mlp(hidden=(4,))", "--angles",
                       "--protocols", rules, "--out", str(tmp_path)])  # fmt: skip
    assert status == 0, capsys.readouterr().err
    _, runs = results.read_all(tmp_path / "results.json")
    found = {run.protocol: run for run in runs if run.seed == 0}
    plain = found["backprop(lr=0.25)"].alignment
    assert plain["epochs"] == [0, 1]  # before the first epoch too
    assert max(plain["angles"]["all"]) < 0.1  # gradient descent goes down the gradient
    assert plain["ratios"]["x->h1"] == pytest.approx([0.25, 0.25], rel=1e-4)
    assert found["feedback_alignment"].alignment["angles"]["x->h1"][0] > 1.0
    assert found["feedback_alignment"].alignment["angles"]["h1->y"][0] < 0.1  # its readout is that of backprop
    assert "unknown" in found["vsml"].alignment
    assert found["backprop(lr=0.25)"].silent == {"h1": 0.0}  # tanh is nowhere exactly zero
    assert found["vsml"].silent == {}  # its units send vectors
    assert {"alignment.png", "alignment.svg", "curves.png"} <= {path.name for path in tmp_path.iterdir()}
    text = (tmp_path / "report.html").read_text()
    for words in ("Angles at the last epoch", "vsml: updates and gradient were not compared", "Silent activities",
                  "synaptic operations"):  # fmt: skip
        assert words in text
    figure = plots.alignment(runs, "toy")
    assert [text.get_text() for text in figure.axes[0].texts] == ["backprop(lr=0.25)", "feedback alignment"]
    assert figure.axes[0].lines[0].get_xdata().tolist() == [0, 1]


# -- cells that fail --------------------------------------------------------------------------------------------

FAILING = """
import multiprocessing, os
from mpgraph.protocols import Backprop

class Ends(Backprop):
    def check(self, graph):
        if multiprocessing.parent_process() is not None:
            os._exit(3)
"""


def test_a_cell_whose_process_ends_takes_no_other_with_it(tmp_path):
    (tmp_path / "ends.py").write_text(FAILING)
    own, plan, lost = f"{tmp_path / 'ends.py'}:Ends", Plan(epochs=1, limit=64), {}
    cells = cells_of(plan, ["xor"], ["mlp"], [own, "backprop", "feedback_alignment"], [0])

    def note(cell, error):
        lost[cell.protocol] = str(error)

    runs = run_cells(plan, cells, jobs=2, on_refused=note, progress=False)
    assert {run.protocol for run in runs} == {"backprop", "feedback_alignment"}
    assert list(lost) == [own]
    assert "its process ended" in lost[own]
