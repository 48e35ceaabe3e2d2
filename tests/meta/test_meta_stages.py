"""Training in stages: statistics recorded, agents that learn alone, a saved rule gone on with."""

import json

import pytest
import torch

import mpgraph as mg
from mpgraph import cli
from mpgraph.architectures import mlp
from mpgraph.meta import Alone, Episode, Tasks, make_family
from mpgraph.meta import settings as files
from mpgraph.protocols import MPLP, Backprop
from mpgraph.protocols.mplp import imitation
from mpgraph.protocols.mplp.imitation import BOUND, GAIN, MANY, Numbers, example, kinds

TOML = """
[protocol]
name = "mplp"
share = "all"
memory = "synapse"
hidden = [6, 4]
floor = 0.05

[network]
hidden = [5]
activation = "sigmoid"

[family]
name = "minibatches"
data = "digits"
batch = 4
steps = 2
queries = 8
held_out = 200

[trainer]
tasks = 1
lr = 0.01
"""


def learners(rule):
    return {name: p.detach().clone() for name, p in rule.named_parameters() if name.startswith("learners")}


def test_alone_then_tuned_from_the_saved_rule(tmp_path, capsys):
    (tmp_path / "one.toml").write_text(TOML + '[statistics]\nalone = 500\n[estimator]\nname = "alone"\nexamples = 32\n')
    (tmp_path / "two.toml").write_text(TOML)
    one, two = tmp_path / "one", tmp_path / "two"
    with pytest.warns(UserWarning, match=r"outputs\.weight\.scale: the meta-loss does not depend on it"):
        assert cli.main(["meta-train", "--settings", f"{one}.toml", "--steps", "30", "--out", str(one), "--quiet"]) == 0
    rows = [json.loads(line) for line in (one / "log.jsonl").read_text().splitlines()]
    assert sum(row["loss"] for row in rows[-5:]) < 0.8 * sum(row["loss"] for row in rows[:5])
    common = ["--settings", f"{two}.toml", "--from", str(one / "rule"), "--quiet"]
    assert cli.main(["meta-train", *common, "--steps", "0", "--out", str(two)]) == 0
    first, second = mg.load_protocol(one / "rule"), mg.load_protocol(two / "rule")
    program = mg.compile(mlp([64, 5, 10], "sigmoid"), first), mg.compile(mlp([64, 5, 10], "sigmoid"), second)
    state = program[0].init(batch_size=4)
    x, y = torch.randn(4, 64), torch.arange(4)
    after = [p.step(state, x, y)[0]["x->h1"]["w"] for p in program]
    assert torch.equal(*after)
    assert second.record["settings"]["protocol"] == {"from": str(one / "rule")}
    assert "--from" in second.record["command"]


def test_statistics_are_recorded_from_tasks_and_are_the_same_every_time(tmp_path):
    (tmp_path / "s.toml").write_text(TOML + "[statistics]\nrounds = 2\nshare = 0.5\n")
    given = files.complete(files.read(tmp_path / "s.toml"))
    family = files.family_of(given["family"])
    rules = [files.episode_of(given, family).program.protocol for _ in range(2)]
    shifts = [rule.standardisers["weight"].shift for rule in rules]
    assert torch.equal(*shifts)
    assert bool(shifts[0].any())
    with pytest.raises(mg.InputError, match="rules that record what they read"):
        files.record_statistics(Backprop(), mlp([4, 2]), family, {}, 0)
    with pytest.raises(mg.InputError, match="unknown setting 'runds'"):
        files.record_statistics(rules[0], mlp([4, 2]), family, {"runds": 2}, 0)


def test_statistics_are_recorded_from_tasks_of_numbers_too():
    family = make_family("sinusoids", steps=2)  # drawn in float64, while networks are of float32
    rule = MPLP(k=2, n=1, hidden=(4, 3))
    files.record_statistics(rule, mlp([1, 3, 1], "relu", "l2"), family, {"rounds": 1}, 0)
    assert bool(rule.standardisers["x->h1"].shift.any())


def test_a_rule_to_go_on_with_is_whole(tmp_path):
    with pytest.raises(mg.InputError, match="leave out k"):
        files.protocol_of({"from": str(tmp_path), "k": 3})


def test_alone_needs_a_rule_that_knows_its_agents(tmp_path):
    family = make_family("minibatches", data="digits", batch=4, queries=8, held_out=200)
    episode = Episode(mg.compile(mlp([64, 10]), Backprop(lr=mg.learnable(0.1))))
    with pytest.raises(mg.InputError, match="does not say what its agents would do alone"):
        Alone(4).estimate(episode, episode.parameters(), Tasks(family), torch.Generator())


class Given(Numbers):
    """The numbers of a network, in the order in which an agent asks for them."""

    def __init__(self, message, *drawn):
        self.first, self.drawn, self.k, self.reach = message, list(drawn), 1, 1.0

    def message(self, unit=False):
        return self.first

    def normal(self, low, high, columns=1):
        return self.drawn.pop(0)

    def weights(self, low, high):
        return self.drawn.pop(0)

    def uniform(self, columns=1):
        return torch.zeros(1, 1)


def test_messages_that_agents_imitate_are_the_gradient():
    """Through a network by the equations of single agents, against autograd."""
    torch.manual_seed(0)
    w, b, t = 1e-5 * torch.randn(int(MANY), 3), torch.randn(int(MANY)), torch.tensor([4])  # so that tanh(x) is near x
    a = torch.randn(1, 3, requires_grad=True)
    z = torch.sigmoid(a) @ w.T + b
    z.retain_grad()
    torch.nn.functional.cross_entropy(z, t).backward()
    graph = mg.compile(mlp([2, 3, int(MANY)], "sigmoid"), MPLP(share="all", hidden=(4, 3))).graph
    assert set(kinds(graph)) == {"h1", "h1.bias", "loss.link", "loss", "x->h1", "h1->y"}
    e, zeros = z.grad.T, torch.zeros(int(MANY), 1)  # a row for each output
    sent = [example("weight", graph.nodes["h1->y"], Given(e, w[:, i : i + 1], zeros)).message for i in range(3)]
    mean = torch.stack([m.mean() for m in sent])[:, None]  # what units receive
    made = example("unit", graph.nodes["h1"], Given(mean, a.detach().T)).message
    torch.testing.assert_close(made, GAIN * a.grad.T, rtol=3e-6, atol=0.0)
    far = example("unit", graph.nodes["h1"], Given(mean + 10.0, a.detach().T)).message
    torch.testing.assert_close(far, torch.full_like(far, BOUND))
    assert torch.equal(example("bias", graph.nodes["h1.bias"], Given(e, zeros, zeros)).message, e)


def test_the_loss_that_agents_imitate_sends_the_gradient():
    graph = mg.compile(mlp([2, 3, 5], "sigmoid"), MPLP(share="all", hidden=(4, 3))).graph
    values, message, _ = example("loss", graph.nodes["loss"], Numbers(torch.Generator().manual_seed(0), 50, 4))
    loss, p, t, log = values
    torch.testing.assert_close(loss, -t * log)
    torch.testing.assert_close(message, p - t)  # d/dz of the cross-entropy of a softmax


class Table(torch.nn.Module):
    """What a learner would be that does exactly as the table in imitation.py says; inputs are not standardized here."""

    def __init__(self, key):
        super().__init__()
        self.key = key

    def forward(self, c, v):
        first, sent, m = c[:, :1], torch.zeros_like(c[:, -4:]), v[:, :1]
        if self.key == "bias":  # reads the four numbers of m, b, z
            first, sent[:, :1] = -torch.tanh(m + v[:, 4:5] + v[:, 5:]), m
        elif self.key == "weight":  # m, w, x
            move = m * torch.tanh(imitation.SHARP * v[:, 5:])
            first, sent[:, :1] = imitation.KEPT * first - (1 - imitation.KEPT) * move, m * torch.tanh(MANY * v[:, 4:5])
        elif self.key == "loss":  # its number, p, t, log p; the clock is remembered as it is sent
            clock = imitation.FALL * c[:, -3] + (1 - imitation.FALL) * imitation.TOP
            sent[:, 0], sent[:, 1] = v[:, 1] - v[:, 2], clock
        else:  # the link: m, of which the second number is the clock, and what is nothing to it
            sent[:, 0] = v[:, 0] * (1 - (1 - imitation.LAST) * v[:, 1] / imitation.TOP)
        idle = torch.zeros_like(c[:, 1:-4])
        return torch.cat([first if self.key in ("bias", "weight") else 0.0 * first, idle, sent], 1)


@pytest.mark.parametrize(
    ("key", "name"), [("bias", "h1.bias"), ("weight", "h1->y"), ("loss", "loss"), ("link", "loss.link")]
)
def test_an_agent_that_does_as_the_table_says_makes_no_error(key, name):
    graph = mg.compile(mlp([2, 3, 5], "sigmoid"), MPLP(share="all", hidden=(4, 3))).graph
    node, agent, draw = graph.nodes[name], graph.agents[name], Numbers(torch.Generator().manual_seed(0), 50, 4)
    given = example(key, node, draw)
    errors = [e for e in imitation.error(agent, node, given, draw) if e is not None]
    assert all(bool(e > 0.1) for e in errors[:-1])  # as it comes
    assert errors[-1] > 0  # of what should be zero
    agent.learner.gru = Table(key)
    made = [e for e in imitation.error(agent, node, given, draw) if e is not None]
    torch.testing.assert_close(made, [torch.zeros(())] * len(errors), rtol=0, atol=1e-9)


PRIOR = """
[protocol]
name = "mplp"
learner = "stateless"
share = "node"
hidden = [6, 4]

[statistics]
rounds = 1
share = 1.0

[network]
hidden = [4]
activation = "relu"
loss = "l2"
prior = "*.w"
pool = 1

[family]
name = "sinusoids"
fresh = true
steps = 2

[trainer]
tasks = 2
"""


@pytest.fixture
def learned_prior(tmp_path):
    """A prior that was trained with another rule on the same network."""
    command = ["meta-train", "--protocol", "backprop", "--family", "sinusoids", "--quiet", "--steps", "2"]
    command += ["--set", "protocol.learn={ lr = 0.01 }", "--set", "network.loss=l2", "--set", "network.hidden=[4]"]
    command += ["--set", "network.activation=relu", "--set", "network.prior=*.w", "--out", str(tmp_path / "maml")]
    assert cli.main(command) == 0
    return tmp_path / "maml" / "rule"


WIRES = ("x->h1", "h1.bias", "h1->y", "y.bias")


@pytest.mark.filterwarnings("ignore:meta-parameters without a usable gradient")
def test_a_prior_goes_on_from_that_of_another_rule(tmp_path, learned_prior, capsys):
    (tmp_path / "s.toml").write_text(PRIOR)
    begun = mg.compile(mlp([1, 4, 1], "relu", "l2"), Backprop(lr=0.1)).load(learned_prior)
    given = files.changed(files.read(tmp_path / "s.toml"), {"network.start": str(learned_prior)})
    trainer = files.trainer_of(given, steps=2)
    assert all(torch.equal(trainer.parameters[f"prior.{n}.w"], begun[n]["w"]) for n in WIRES)
    fresh = files.trainer_of(files.read(tmp_path / "s.toml"), steps=2)
    recorded = [t.episode.program.protocol.standardisers["h1->y"] for t in (trainer, fresh)]
    w = begun["h1->y"]["w"]
    assert recorded[0].shift[1] == pytest.approx(-float(w.mean()), rel=0.1)  # of the prior, not of N(0, 0.05)
    assert recorded[1].shift[1] != pytest.approx(-float(w.mean()), rel=0.1)
    trainer.run(2, tmp_path / "two")
    capsys.readouterr()
    for path in learned_prior.iterdir():
        path.unlink()  # what is evaluated has its own
    command = ["evaluate", str(tmp_path / "two" / "rule"), "--tasks", "2", "--baselines", "", "--json"]
    record = {**trainer.describe(), "settings": files.complete(given)}
    trainer.episode.save(trainer.rule(), tmp_path / "two" / "rule", record)
    assert cli.main(command) == 0
    found = json.loads(capsys.readouterr().out)["rules"]["rule"]["loss"][0]
    assert found == pytest.approx(float(trainer.evaluate(2)["loss"].mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"prior": ()}, "start is what the prior begins with; say which numbers"),
        ({"hidden": [5]}, r"is of another network: h1.bias.w has shape \(4,\), this one needs \(5,\)"),
        ({"hidden": [4, 4]}, "lacks h2.bias.w; it holds h1->y.w, h1.bias.w, "),
        ({"start": "nowhere"}, "there is no file nowhere"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(tmp_path, learned_prior, network, message):
    (tmp_path / "s.toml").write_text(PRIOR)
    changes = {"network.start": str(learned_prior), **{f"network.{key}": value for key, value in network.items()}}
    with pytest.raises(mg.MPGraphError, match=message):
        files.trainer_of(files.changed(files.read(tmp_path / "s.toml"), changes), steps=1)


def test_networks_of_a_pool_are_those_that_their_seeds_give():
    program = mg.compile(mlp([1, 4, 1], "relu", "l2"), Backprop(lr=mg.learnable(0.1)))
    batch = Tasks(make_family("sinusoids"), seed=0, count=5).batch()
    pooled = Episode(program, pool=2).begin(batch)
    assert torch.equal(pooled["x->h1"]["w"], program.init([seed % 2 for seed in batch.seeds])["x->h1"]["w"])
