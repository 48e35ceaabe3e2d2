"""The bench: profiles by their definition, a suite at a tiny budget, and a page made from the results alone."""

import json
import math

import pytest
from refusals import refuses

import mpgraph as mg
from mpgraph import cli
from mpgraph.architectures import mlp
from mpgraph.experiments import TASKS, Run, bench, profiles, results
from mpgraph.protocols import Backprop


def run_of(protocol, task, accuracy, seed=0, **changed):
    return Run(protocol, task, "net", seed, accuracy, 1.0, 1, 4, curve=[accuracy], steps=[10], **changed)


def test_a_profile_counts_problems_within_a_factor_of_the_best():
    errors = {"a": (0.1, 0.2, 0.3), "b": (0.2, 0.1, 0.3), "c": (0.4, 0.1, None)}
    runs = [
        run_of(name, f"task{i}", 1.0 - error)
        for name, row in errors.items() for i, error in enumerate(row) if error is not None
    ]  # fmt: skip
    runs.append(run_of("readout_only", "task0", 0.99))  # the floor is no competitor
    found = profiles.ratios(runs)
    assert found["a"] == pytest.approx([1.0, 2.0, 1.0])
    assert found["b"] == pytest.approx([2.0, 1.0, 1.0])
    assert found["c"] == pytest.approx([4.0, 1.0, math.inf])
    assert [profiles.share(found["c"], factor) for factor in (1.0, 2.0, 4.0, 100.0)] == [1 / 3, 1 / 3, 2 / 3, 2 / 3]


def test_what_diverged_on_a_seed_has_not_solved_the_problem():
    runs = [
        run_of("a", "t", 0.9),
        run_of("a", "t", 0.9, 1, diverged=True),
        run_of("b", "t", 0.5),
        run_of("b", "t", 0.5, 1),
    ]
    assert profiles.ratios(runs) == {"a": [math.inf], "b": [1.0]}
    perfect = [run_of("a", "t", 1.0), run_of("b", "t", 0.999)]
    assert [profiles.ratios(perfect)[name][0] for name in "ab"] == pytest.approx([1.0, 1.0])


def test_a_rule_without_a_score_comes_last_and_shows_none():
    runs = [run_of("a", "digits", math.nan, diverged=True), run_of("b", "digits", 0.5), run_of("c", "digits", 0.7)]
    table = bench._problem_table(results.summary(runs), runs)
    assert [line.split("`")[1] for line in table[2:]] == ["c", "b", "a"]
    assert "nan" not in "".join(table)


def test_many_rules_have_a_line_of_dots_each_the_best_first(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(profiles, "save", lambda figure, path: drawn.append(figure))
    found = {f"rule_{i}": [1.0 + i, 2.0 + i, math.inf] for i in reversed(range(profiles.CURVES + 1))}
    profiles.draw(found, tmp_path / "p.png")
    (axes,) = drawn[0].axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [f"rule {i}" for i in range(profiles.CURVES + 1)]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in dots] == [[1.0 + i, 2.0 + i] for i in range(profiles.CURVES + 1)]
    assert [text.get_text() for text in axes.texts] == ["1 beyond"] * len(found)


def test_every_problem_of_the_suite_fits_its_task():
    plan = bench.Plan()
    for task, network in bench.SUITE:
        assert task in TASKS
        plan.network(bench.Cell(task, network, "readout_only", 0))


def test_a_tiny_bench_is_added_to_and_its_page_holds_all_of_it(tmp_path, capsys):
    page, own = tmp_path / "bench.md", tmp_path / "own.py"
    own.write_text(
        "import mpgraph as mg\n"
        "from mpgraph.protocols import Backprop\n"
        "class Picky(Backprop):\n"
        "    def check(self, agents):\n"
        "        raise mg.ProtocolError('Picky: not on this network')\n"
    )
    common = ["bench", "--budget", "tiny", "--tasks", "xor", "--out", str(tmp_path), "--page", str(page), "--quiet"]
    assert cli.main([*common, "--protocols", f"backprop,{own}:Picky"]) == 0
    assert cli.main([*common, "--protocols", "feedback_alignment", "--resume"]) == 0
    content = json.loads((tmp_path / "results.json").read_text())
    assert {run["protocol"] for run in content["runs"]} == {"readout_only", "backprop", "feedback_alignment"}
    assert {len(run["tuning"]["trials"]) for run in content["runs"]} == {1}
    assert [row["protocol"] for row in content["refused"]] == [f"{own}:Picky"]
    text = page.read_text()
    for words in ("`backprop`", "`feedback_alignment`", "`readout_only`", "## xor: 2-16-2 tanh", "Picky` on xor"):
        assert words in text
    assert "mpgraph bench --budget tiny --tasks xor" in text
    assert str(tmp_path / "results.json") not in text
    assert (tmp_path / "bench_profile.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main([*common[:4], "teacher", *common[5:], "--resume"]) == 2
    assert "none of them is in the suite" in capsys.readouterr().err


def test_any_failure_is_a_row_and_the_others_go_on(tmp_path, monkeypatch):
    """A fault that is no refusal, of a rule while it is compiled and of another while it runs."""
    from mpgraph.experiments import cells

    real = cells.run_cell

    def faulty(plan, cell, *arguments):
        if cell.protocol == "feedback_alignment":
            raise ZeroDivisionError("by nought")
        return real(plan, cell, *arguments)

    def unready(self, agents):
        raise AssertionError

    monkeypatch.setattr(cells, "run_cell", faulty)
    monkeypatch.setattr("mpgraph.protocols.KolenPollack.check", unready)
    page = tmp_path / "page.md"
    rules = "backprop,feedback_alignment,kolen_pollack"
    common = ["bench", "--budget", "tiny", "--tasks", "xor", "--quiet", "--page", str(page)]
    assert cli.main([*common, "--protocols", rules, "--out", str(tmp_path / "ours")]) == 0
    content = json.loads((tmp_path / "ours" / "results.json").read_text())
    assert {run["protocol"] for run in content["runs"]} == {"readout_only", "backprop"}
    assert {row["protocol"]: row["reason"] for row in content["refused"]} == {
        "kolen_pollack": "failed with AssertionError: without a message",
        "feedback_alignment": "seed 0: failed with ZeroDivisionError: by nought",
    }
    assert "`feedback_alignment` on xor, 2-16-2 tanh: seed 0: failed with ZeroDivisionError" in page.read_text()
    # Another file's runs join them, and no run is repeated.
    monkeypatch.setattr(cells, "run_cell", lambda *_: pytest.fail("it was there"))
    added = ["--add", str(tmp_path / "ours" / "results.json"), "--out", str(tmp_path / "theirs")]
    assert cli.main([*common, "--protocols", "backprop", *added]) == 0
    joined = json.loads((tmp_path / "theirs" / "results.json").read_text())
    assert joined["runs"] == content["runs"]
    assert joined["refused"] == content["refused"]
    assert [(row["file"], row["runs"]) for row in joined["added"]] == [("results.json", 2)]
    assert "With 2 runs of another file" in page.read_text()


def test_a_training_that_moves_more_bytes_than_the_budget_allows_is_not_begun(tmp_path, monkeypatch):
    program = mg.compile(mlp([64, 32, 10], "tanh"), Backprop(lr=0.1))
    moved = 2 * program.cost(32).bytes  # of two steps: 64 examples, once
    for most, names in ((moved, {"readout_only", "backprop"}), (moved - 1, {"readout_only"})):
        monkeypatch.setitem(bench.BUDGETS, "tiny", bench.Budget(1, 1, 1, limit=64, problems=1, moved=most))
        out = tmp_path / str(most)
        assert not cli.main(["bench", "--budget", "tiny", "--protocols", "backprop", "--out", str(out), "--quiet"])
        content = json.loads((out / "results.json").read_text())
        assert {run["protocol"] for run in content["runs"]} == names
        assert [row["protocol"] for row in content["refused"]] == ["backprop"] * (most < moved)
    assert "GB, as program.cost() counts" in content["refused"][0]["reason"]


def test_a_problem_without_its_files_is_a_row_also_where_bytes_are_counted(tmp_path, monkeypatch):
    monkeypatch.setitem(bench.BUDGETS, "tiny", bench.Budget(1, 1, 1, limit=64, moved=1e12))
    words = ["--tasks", "xor,fashion_mnist", "--protocols", "backprop", "--data", str(tmp_path), "--quiet"]
    assert not cli.main(["bench", "--budget", "tiny", *words, "--out", str(tmp_path)])
    content = json.loads((tmp_path / "results.json").read_text())
    assert {run["task"] for run in content["runs"]} == {"xor"}
    assert {row["task"] for row in content["refused"]} == {"fashion_mnist"}
    assert all(str(tmp_path) in row["reason"] for row in content["refused"])


def test_rules_that_cannot_be_compared_by_name_are_listed():
    rules, refused = bench._rules(None)
    assert set(rules) | {name for _, _, name in refused} == {"readout_only", *mg.list_protocols()}
    assert all("protocol.save" in reason for reason in refused.values())


def test_a_bench_needs_a_place_and_rules():
    options = cli._parser().parse_args(["bench"])
    with refuses(mg.InputError, "--out DIR"):
        options.run(options)
    with refuses(mg.InputError, "--protocols"):
        bench._rules([])
