"""What a newcomer gets wrong, and what a rule may write: nothing fails from the inside, nothing is silently wrong."""

import math
import random
import warnings

import numpy as np
import pytest
import torch
from reference import distance, randomised

import mpgraph as mg
from mpgraph.agents import schedules
from mpgraph.architectures import mlp
from mpgraph.cli import main
from mpgraph.interpreter import interpreter
from mpgraph.protocols import Backprop, DirectFeedbackAlignment, SymmetricAlignment
from mpgraph.protocols.backprop import Weight

NAN = math.nan


def program(network=None, rule=None, **options):
    return mg.compile(network or mlp([4, 3, 2]), rule or Backprop(), **options)


def drawn(activation="tanh", **options):
    network = mg.Network()
    network.input("x", 4), network.unit("h", 3, activation), network.unit("y", 2)
    network.connect("x", "h"), network.connect("h", "y"), network.loss("y", options.get("loss", "l2"))
    return network


class Mean(mg.Loss):
    def apply(self, z, t):
        return ((z - t) ** 2).mean()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z: z > 0, "unit 'h'.*must return torch.float32.*got torch.bool.*z.dtype"),
        (lambda z: z.sum(), r"unit 'h'.*got torch.float32 \(\)"),
        (lambda z: None, "unit 'h'.*got NoneType"),
        (lambda z: torch.linalg.inv(z[:, :2]), "unit 'h'.*failed on a batch"),
        (torch.relu_, "unit 'h'.*in place"),
    ],
)
def test_functions_are_tried_before_anything_runs(function, message):
    with pytest.raises(mg.NetworkError, match=message):
        program(drawn(function))


def test_classes_and_losses_are_refused():
    with pytest.raises(mg.NetworkError, match=r"the class Tanh; pass an instance, Tanh\(\)"):
        drawn(torch.nn.Tanh)
    with pytest.raises(mg.NetworkError, match="loss 'loss'.*one number for each example"):
        program(drawn(loss=Mean()))


@pytest.mark.parametrize(
    "function",
    [lambda z: torch.relu(z - 5), lambda z: torch.softmax(z, -1) * 3, torch.nn.PReLU(), mg.Softplus(2.0)],
)
def test_differentiable_functions_are_not_called_flat(function):
    over = "node" if "softmax" in getattr(getattr(function, "__code__", None), "co_names", ()) else "agent"
    kind = function if isinstance(function, mg.Activation) else mg.Function(function, over=over)
    with warnings.catch_warnings():
        warnings.simplefilter("error", mg.FlatUnitWarning)
        compiled = program(drawn(kind), Backprop(lr=0.1))
    state, x = compiled.init(), torch.randn(6, 4) * 20
    after, _ = compiled.step(state, x, torch.ones(6, 2))
    w = state["x->h"]["w"].clone().requires_grad_()
    y = kind.apply(x @ w.T) @ state["h->y"]["w"].T
    (0.5 * ((y - 1) ** 2).sum() / 6).backward()
    torch.testing.assert_close(after["x->h"]["w"], (w - 0.1 * w.grad).detach(), rtol=1e-4, atol=1e-5)


def test_a_flat_function_of_the_population_is_named():
    with pytest.warns(mg.FlatUnitWarning, match="'h'.*x->h"):
        program(drawn("winner_take_all"))


def test_a_compiled_rule_is_sealed():
    rule = Backprop(lr=0.1)
    rule.optimizer.lr = 0.2  # still free
    program(rule=rule)
    with pytest.raises(mg.ProtocolError, match=r"SGD.lr = 0.0.*mg.learnable\(0.0\)"):
        rule.optimizer.lr = 0.0


class Keep(Backprop):
    keep: float = mg.option(0.5)
    rate: mg.Number = mg.option(0.5)
    word: str = mg.option("a")


def test_only_what_takes_a_tensor_is_advised_to_be_learnable():
    rule = Keep()
    program(rule=rule)
    for owner, name, value in ((rule, "rate", 0.2), (rule, "lr", 0.2)):
        with pytest.raises(mg.ProtocolError, match=rf"{name} = 0.2: .*compile it, or .*{name}=mg.learnable\(0.2\)$"):
            setattr(owner, name, value)
    for owner, name, value in ((rule, "keep", 0.2), (rule, "word", "b"), (rule.optimizer, "nesterov", True)):
        with pytest.raises(mg.ProtocolError, match=r"Make a new rule and compile it$"):
            setattr(owner, name, value)
    with pytest.raises(
        mg.ProtocolError, match=r"Keep: keep=.* a finite number; .* as keep: mg.Number = option\(...\)$"
    ):
        Keep(keep=mg.learnable(0.5))
    with pytest.raises(mg.ProtocolError, match=r"keep=.* write keep.item\(\) of it$"):
        Keep(keep=torch.tensor(0.5))


@pytest.mark.parametrize("value", ["a", None, True, NAN, math.inf, 1j, [[1], [1, 2]], [True], torch.tensor([NAN])])
def test_only_numbers_are_learnable(value):
    with pytest.raises(mg.ProtocolError, match=r"mg.learnable: value=.* must be a finite number"):
        mg.learnable(value)


@pytest.mark.parametrize("value", [3, 0.5, [1, 2], torch.tensor([1, 2]), torch.tensor(2.0, dtype=torch.float64)])
def test_what_is_learnable_is_a_copy_of_the_default_dtype(value):
    made = mg.learnable(value)
    assert (made.dtype, made.requires_grad) == (torch.get_default_dtype(), True)
    torch.testing.assert_close(made.detach(), torch.as_tensor(value).to(made.dtype))
    assert not isinstance(value, torch.Tensor) or made.data_ptr() != value.data_ptr()


def test_the_network_may_be_drawn_on_after_compiling():
    network = drawn()
    compiled = program(network)
    network.unit("z", 2), network.connect("h", "z"), network.loss("z", "l2")
    assert compiled.predict(compiled.init(), torch.ones(1, 4)).shape == (1, 2)


def test_states_of_another_precision_or_origin(tmp_path):
    double, single = program(dtype=torch.float64), program()
    double.save(double.init(), tmp_path / "f")
    x, y = torch.ones(2, 4), torch.zeros(2, dtype=torch.long)
    with pytest.raises(mg.StateError, match="float64.*compiled for torch.float32"):
        single.step(single.load(tmp_path / "f"), x, y)
    with pytest.raises(mg.StateError, match="no tensor 'step' at node 'program'"):
        single.step({n: c for n, c in single.init().items() if n != "program"}, x, y)
    with pytest.raises(mg.FileError, match="cannot save a tuple"):
        single.save(single.step(single.init(), x, y), tmp_path / "g")
    (tmp_path / "file").write_text("")
    with pytest.raises(mg.FileError, match="cannot write"):
        single.save(single.init(), tmp_path / "file" / "state")


def test_an_output_of_one_unit_has_no_classes():
    compiled = program(mlp([4, 1], loss="sigmoid_cross_entropy"))
    with pytest.raises(mg.InputError, match=r"one unit has no classes.*\(batch, 1\)"):
        compiled.step(compiled.init(), torch.ones(2, 4), torch.zeros(2, dtype=torch.long))


class Lern(Backprop):
    passes = ("forward", "backward", "lern")


class Up(Backprop):
    passes = ("up",)


class Pots(Weight):
    aggregate = {"pots": "mean"}  # noqa: RUF012


class Two(Weight):
    def __init__(self, a, b):
        super().__init__()


class Named(Weight):
    def __init__(self, *, b):
        super().__init__()


class Hasty(Weight):
    def __init__(self):
        self.gain = 1.0


class Hastier(Weight):
    def __init__(self):
        self.gain = mg.learnable(1.0)


class HastyOptimizer(mg.SGD):
    def __init__(self):
        self.lr = 0.1


class HastyRule(Backprop):
    def __init__(self):
        self.gain = 1.0


class Late(Backprop):
    def __init__(self):
        super().__init__()
        self.passes = "forward"


def derived(**body):
    return type("Rule", (Backprop,), body)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Lern, "no agent has a lern_update"),
        (Up, "Up.predict_passes: unknown pass 'forward': allowed are up"),
        (lambda: Backprop(weight=Pots()), "unknown role 'pots'.*did you mean 'post'"),
        (lambda: Backprop(hidden=mg.UnitAgent()), "unknown type of node 'hidden'"),
        (lambda: Backprop(learning_rate=0.1), "learning_rate=0.1 is neither one of its arguments"),
        (lambda: Backprop(surrogate="step"), "surrogate='step' has zero derivative"),
        (lambda: Backprop(optimizer=mg.SGD), r"optimizer=.* must be an mg.Optimizer, or None; write SGD\(\)"),
        (lambda: Backprop(optimizers=[mg.SGD(0.1)]), r"Backprop: optimizers=\[SGD.* must be a dictionary"),
        (lambda: Backprop(optimizers={"b": 3}), r"Backprop: optimizers\['b'\]=3 must be an mg.Optimizer"),
        (lambda: Backprop(lr="0.1"), "Backprop: lr='0.1' must be a finite number of at least 0, or a torch.Tensor"),
        (lambda: Backprop(lr=-1), "Backprop: lr=-1 must be"),
        (lambda: Backprop(surrogate=3), "Backprop: surrogate=3 must be a string, or an mg.Activation, or a function"),
        (lambda: Backprop(keys=Weight()), "'keys' cannot be a type of node"),
        (lambda: derived(agents=[Weight]), "Rule.agents=.* must be a dictionary of agents by type of node"),
        (lambda: derived(agents={Weight: Weight}), "Rule.agents: .* cannot be a type of node"),
        (lambda: derived(agents={"weight": Two})(), r"Rule.agents\['weight'\]: Two needs a, b, but .* the rule only"),
        (lambda: derived(agents={"weight": Named})(), r"Rule.agents\['weight'\]: Named needs b"),
        (lambda: derived(agents={"weight": Hasty})(), r"Hasty.__init__ must begin with super\(\).__init__\(\)"),
        (lambda: Backprop(weight=Hasty()), r"Hasty.__init__ must begin with super\(\)"),
        (lambda: Backprop(weight=Hastier()), r"Hastier.__init__ must begin with super\(\)"),
        (lambda: Backprop(optimizer=HastyOptimizer()), r"HastyOptimizer.__init__ must begin with super\(\)"),
        (lambda: HastyRule(), r"HastyRule.__init__ must call super\(\)"),
        (lambda: {"*": HastyRule()}, r"HastyRule.__init__ must begin with super\(\)"),
        *(
            (lambda name=name: derived(**{name: mg.option(3)}), f"Rule: option '{name}' has the name of a method")
            for name in ("agent", "agents", "passes", "name", "train", "record", "training")
        ),
        (lambda: derived(passes="forward")(), r"Rule: passes='forward' must be .*write \('forward',\)"),
        (lambda: derived(passes=())(), "Rule: passes=.* must name at least one pass"),
        (lambda: derived(passes=("forward", 3))(), r"Rule: passes\[1\]=3 must be a string"),
        (lambda: derived(predict_passes="forward")(), r"Rule: predict_passes='forward' .*write \('forward',\)"),
        (lambda: derived(predict_passes=())(), "Rule: predict_passes=.* must name at least one pass"),
        (lambda: derived(phases=("forward",))(), "Rule: phases=.* must be a dictionary of schedules by name"),
        (lambda: derived(phases={"a": "forward"})(), r"Rule: phases\['a'\]='forward' must be"),
        (lambda: mg.Regions({"*": Backprop()}, passes="forward"), "Regions: passes='forward' must be"),
        (lambda: Late(), "Late: passes='forward' must be"),
    ],
)
def test_misspelt_rules(make, message):
    with pytest.raises(mg.ProtocolError, match=message):
        program(rule=make())
    with pytest.raises(mg.NetworkError, match="unknown activation 'tahn'.*did you mean 'tanh'"):
        Backprop(surrogate="tahn")


@pytest.mark.parametrize("name", ["self", "torch", "x", "state", "print", "for"])
def test_any_name_of_a_node_can_be_generated_code(name):
    network = mg.Network()
    network.input(name, 3), network.unit("lambda", 2), network.connect(name, "lambda"), network.loss("lambda", "l2")
    compiled = program(network)
    state, _ = compiled.step(compiled.init(), torch.ones(1, 3), torch.ones(1, 2))
    assert f"{name}->lambda" in state


@pytest.mark.parametrize("name", ["h.bias", "y.target", "h@1", "zero"])
def test_names_of_the_engines_own_nodes_are_reserved(name):
    with pytest.raises(mg.NetworkError):
        mg.Network().input(name, 3)


RULES = {
    "equal": lambda s: (s.x == 0) * s.e + (s.x != 0) * s.x,
    "operators": lambda s: abs(s.x) % 0.7 + (+s.e) // 0.3,
    "logic": lambda s: torch.where((s.x > 0) & ~(s.e > 0) | (s.w > 0.5), s.x, -s.e),
    "casts": lambda s: (s.x > 0).float() * s.e.double(),
    "numbers": lambda s: s.e * torch.where(s.x > 0, 1, 0) + torch.where(s.x > 0, 1.0, -1.0),
    "method": lambda s: s.e.where(s.x > 0, s.x * 0.0),
    "tensor bound": lambda s: torch.clamp(s.e, min=torch.tensor(-0.1, dtype=torch.float64)) * s.x,
    "unbind": lambda s: torch.unbind(torch.stack([s.e * 2.0, s.x]))[0] * s.x,
    "scalar condition": lambda s: torch.where(s.x > 0, torch.stack([s.e, s.x]), torch.stack([s.x, s.x])).sum(),
}


@pytest.mark.parametrize("name", RULES)
def test_ordinary_torch_on_local_values(name):
    class Free(Weight):
        def learn_update(self, s):
            return s.descend(w=RULES[name](s))

    compiled = program(rule=Backprop(weight=Free()), dtype=torch.float64)
    state = randomised(compiled.init(), torch.Generator().manual_seed(0))
    x = torch.randn(3, 4, dtype=torch.float64)
    x[0, 0] = 0.0
    t = torch.eye(2, dtype=torch.float64)[torch.tensor([0, 1, 1])]
    after, _ = compiled.step(state, x, t)
    assert distance(after, interpreter.step(compiled, state, {"x": x}, {"y": t})[0]) < 1e-10


def test_random_numbers_of_torch_are_refused_with_a_hint():
    class Noisy(Weight):
        def learn_update(self, s):
            return s.descend(w=torch.rand_like(s.x))

    with pytest.raises(mg.ProtocolError, match=r"s.normal\(\)"):
        program(rule=Backprop(weight=Noisy()))


GENERATORS = {
    "torch": lambda: torch.rand(()),
    "numpy": lambda: np.random.randn(),  # noqa: NPY002
    "python": random.random,
}


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("method", ["forward_message", "backward_message", "learn_update"])
def test_random_numbers_of_every_global_generator_are_refused(generator, method):
    class Noisy(Weight):
        def forward_message(self, s):
            return s.w * s.x * self.number("forward_message")

        def backward_message(self, s):
            return s.w * s.e * self.number("backward_message")

        def learn_update(self, s):
            return s.descend(w=s.examples(s.e * s.x) * self.number("learn_update"))

        def number(self, name):
            return GENERATORS[generator]() if name == method else 1.0

    text = rf"node 'x->h1', pass '{method.split('_')[0]}': Noisy\.{method} samples random numbers.* s\.normal\(\)"
    if method == "backward_message":  # no message goes back to inputs
        text = text.replace("x->h1", "h1->y")
    with pytest.raises(mg.ProtocolError, match=text):
        program(rule=Backprop(weight=Noisy()))


def test_agents_may_sample_when_they_are_made():
    class Sampled(Weight):
        def __init__(self):
            super().__init__()
            self.gain = float(torch.rand(())) + random.random() + float(np.random.rand())  # noqa: NPY002

        def learn_update(self, s):
            return s.descend(w=self.gain * s.examples(s.e * s.x))

    class ByNode(Backprop):
        def agent(self, node):
            return Sampled() if node.type == "weight" else super().agent(node)

    program(rule=ByNode())


def test_explain_names_a_sum_over_both_ends():
    class Odd(Weight):
        def learn_update(self, s):
            return s.set(w=s.w - 0.1 * torch.tanh(s.e + s.x))

    assert "sum materialised" in program(rule=Backprop(weight=Odd())).explain(4)


class Half(mg.Connection):
    """Forgets an axis of its post end."""

    def check(self, pre, post):
        return None

    def build(self, pre, post):
        from mpgraph.network.connections import Endpoints

        own = pre[0].fresh()
        return Endpoints((own,), {pre[0]: own}, {})

    def fans(self, pre, post):
        return 1, 1


def test_a_connection_that_forgets_an_axis_is_named():
    network = mg.Network()
    network.input("x", 4), network.unit("y", 3), network.loss("y", "l2"), network.connect("x", "y", Half())
    with pytest.raises(mg.NetworkError, match=r"'x->y': half.build.*'y' \(3,\) at its post end"):
        program(network)


class Remembering(mg.UnitAgent):
    memory = mg.carry()

    def forward_update(self, s, pre):
        s = super().forward_update(s, pre + s.memory)
        return s.set(memory=s.y)


def test_predict_with_a_memory_for_each_example():
    compiled = program(rule=Backprop(unit=Remembering()))
    state = compiled.init(batch_size=5)
    assert compiled.predict(state, torch.ones(5, 4)).shape == (5, 2)
    with pytest.raises(mg.StateError, match="each of 5 examples, but the batch has 2"):
        compiled.predict(state, torch.ones(2, 4), memories="state")


def test_lazily_compiled_variants_under_torch_compile():
    compiled = program()
    state, x, y = compiled.init(), torch.randn(1, 4), torch.zeros(1, dtype=torch.long)
    after, _ = torch.compile(compiled.step, fullgraph=True, backend="eager")(state, x, y)
    assert distance(after, compiled.step(state, x, y)[0]) < 1e-6
    predict = torch.compile(compiled.predict, fullgraph=True, backend="eager")
    assert (predict(state, x) - compiled.predict(state, x)).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"dtype": "float64"}, "dtype must be"),
        ({"dtype": torch.int64}, "dtype must be"),
    ],
)
def test_devices_and_dtypes(options, message):
    with pytest.raises(mg.InputError, match=message):
        program(**options)


@pytest.mark.parametrize(
    "arguments",
    [["--device", "foo"], ["--protocols", ","], ["--lr", "nan"], ["--out", "/proc/none"], ["--out", __file__]],
)
def test_the_command_line_ends_with_2_and_a_sentence(arguments, capsys):
    assert main(["compare", "--seeds", "1", "--epochs", "1", "--quiet", *arguments]) == 2
    assert capsys.readouterr().err.startswith("mpgraph: ")


def test_resuming_keeps_runs_of_other_rules(tmp_path, capsys):
    common = ["compare", "--seeds", "1", "--epochs", "1", "--quiet", "--out", str(tmp_path)]
    assert main([*common, "--protocols", "backprop,feedback_alignment"]) == 0
    assert main([*common, "--protocols", "backprop", "--resume"]) == 0
    capsys.readouterr()
    assert '"feedback_alignment"' in (tmp_path / "results.json").read_text()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: mg.SGD("a"), "SGD: lr='a' must be a finite number of at least 0"),
        (lambda: Backprop(lr=None), "lr=None must be a finite number"),
        (lambda: mg.SGD(-1), "lr=-1 must be a finite number of at least 0"),
        (lambda: mg.SGD(float("nan")), "lr=nan must be a finite number"),
        (lambda: mg.Adam(betas=0.9), "betas=0.9 must be a pair"),
        (lambda: mg.Adam(betas=(0.9,)), "must be a pair"),
        (lambda: schedules.Linear(0.0, 1.0, "5"), "Linear: steps='5' must be an integer of at least 1"),
        (lambda: schedules.Linear(0.0, 1.0, 5, delay=-3), "delay=-3"),
        (lambda: schedules.Cycle(0.0, float("nan"), 4), "Cycle: high=nan"),
        (
            lambda: mg.Regions({"h1->y": SymmetricAlignment(alternate=1), "*": SymmetricAlignment(alternate=3)}),
            "must take turns alike",
        ),
        (lambda: mg.compile(mlp([3, 4, 2], loss=None), DirectFeedbackAlignment()), "no loss to feed back from"),
    ],
)
def test_arguments_of_rules_and_their_parts(make, words):
    with pytest.raises(mg.ProtocolError, match=words):
        make()


@pytest.mark.parametrize(
    "given", [{"seed": "a"}, {"seed": None}, {"seed": 1.5}, {"batch_size": 0}, {"batch_size": "3"}]
)
def test_arguments_of_init(given):
    name = next(iter(given))
    with pytest.raises(mg.MPGraphError, match=rf"program\.init: {name}="):
        mg.compile(mlp([3, 4, 2]), Backprop()).init(**given)


def test_a_rule_without_phases_says_so():
    program = mg.compile(mlp([3, 4, 2]), Backprop())
    with pytest.raises(mg.InputError, match="Backprop has no phases"):
        program.step(program.init(), torch.randn(2, 3), torch.tensor([0, 1]), phase="align")


def test_direct_feedback_without_hidden_units_is_the_delta_rule():
    x, y = torch.randn(2, 3), torch.tensor([0, 1])
    one, two = (mg.compile(mlp([3, 2]), rule()) for rule in (DirectFeedbackAlignment, Backprop))
    state = two.init()
    torch.testing.assert_close(one.step(state, x, y)[0]["x->y"], two.step(state, x, y)[0]["x->y"])
