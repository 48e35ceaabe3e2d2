"""Tokens, attention, sequences and functions of whole examples, read from torch; the oracle is autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refuses
from test_from_torch import LR, Net, made
from torch import nn
from torch.nn import functional as F

import mpgraph as mg
from mpgraph.convert import torch_functions, torch_layers
from mpgraph.protocols import Backprop, FeedbackAlignment

TOKENS = (3, 4)


def learns(module, x, loss="l2"):
    """Prediction, loss and one step of backprop are those of autograd and SGD; returns the program."""
    symbols = not x.is_floating_point()
    program = mg.compile(
        mg.Network.from_torch(module, tuple(x.shape[1:]), loss=loss), Backprop(LR), dtype=torch.float64
    )
    z = module(x.clone())
    generator = torch.Generator().manual_seed(2)
    if loss == "l2":
        y = torch.randn(z.shape, generator=generator, dtype=torch.float64)
        value = 0.5 * (z - y).square().flatten(1).sum(1).mean()
    else:
        y = torch.randint(0, z.shape[1], (len(z),), generator=generator)
        value = F.cross_entropy(z, y)
    wanted = torch.autograd.grad(value, list(module.parameters()), allow_unused=True)
    state = program.init()
    after, out = program.step(state, x.double() if symbols else x, y)
    torch.testing.assert_close(out.prediction, z.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out.loss, value.detach(), rtol=1e-10, atol=1e-10)
    learned = program.to_torch(after)
    for (name, old), gradient, new in zip(module.named_parameters(), wanted, learned.parameters(), strict=True):
        step = old if gradient is None else old - LR * gradient
        torch.testing.assert_close(new, step, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
    return program


def numbers(*shape, seed=1):
    return torch.randn(4, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- tokens and attention ---------------------------------------------------------------------------------


class Mixer(nn.Module):
    """A block of an MLP-mixer."""

    def __init__(self, tokens, features):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(features), nn.LayerNorm(features)
        self.tokens = nn.Sequential(nn.Linear(tokens, 5), nn.GELU(), nn.Linear(5, tokens))
        self.channels = nn.Sequential(nn.Linear(features, 6), nn.GELU(), nn.Linear(6, features))

    def forward(self, x):
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Attention(nn.Module):
    """Attention as people write it, with a mask that is a buffer and weights of its own."""

    def __init__(self, features, heads, causal=False):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Parameter(torch.randn(3 * features, features))
        self.shift = nn.Parameter(torch.randn(3 * features))
        self.out = nn.Linear(features, features, bias=False)
        self.register_buffer("mask", torch.ones(3, 3).triu(1).bool())

    def forward(self, x):
        size = x.shape[-1] // self.heads
        q, k, v = F.linear(x, self.qkv, self.shift).chunk(3, dim=-1)
        q, k, v = (t.view(x.shape[0], x.shape[1], self.heads, size).permute(0, 2, 1, 3) for t in (q, k, v))
        scores = torch.matmul(q, k.mT) / size**0.5
        if self.causal:
            scores = scores.masked_fill(self.mask, float("-inf"))
        x = torch.einsum("bhij,bhjd->bhid", scores.softmax(dim=-1), v)
        return self.out(x.transpose(1, 2).reshape(x.shape[0], -1, self.heads * size))


class Patches(nn.Module):
    """A small vision transformer, with positions of its own and a gain."""

    def __init__(self):
        super().__init__()
        self.patch, self.position = nn.Conv2d(1, 4, 4, 4), nn.Parameter(torch.randn(1, 4, 4))
        layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True, norm_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(4), enable_nested_tensor=False)
        self.gain, self.head = nn.Parameter(torch.ones(4)), nn.Linear(4, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.encoder(x).mean(1) * self.gain)


def crossed(**options):
    """Two tokens attend to three, which say something else than what they are found by."""

    def forward(self, x):
        return self.attention(x[:, :2], x, x.flip(1))[0].flatten(1)

    return Net(forward, attention=nn.MultiheadAttention(4, 2, batch_first=True, **options))


def masked():
    def forward(self, x):
        return self.attention(x, x, x, attn_mask=self.attention.mask)[0].flatten(1)

    net = Net(forward, attention=nn.MultiheadAttention(4, 1, batch_first=True))
    net.attention.register_buffer("mask", torch.ones(3, 3).triu(1).bool())
    return net


def fused():
    """By the function of torch, and by weights that several tokens and layers share."""

    def forward(self, x):
        q, k, v = self.q(x), self.q(x.tanh()), x
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).flatten(1)

    return Net(forward, q=nn.Linear(4, 4))


def gated():
    """Parts that are multiplied, divided and broadcast."""

    def forward(self, x):
        a, b = self.one(x).split([2, 3], dim=2)
        gate, value = torch.stack([a, a * self.scale], dim=1).unbind(1)
        mean = (value * gate.sigmoid()).mean(dim=(1, 2), keepdim=True)
        return torch.cat([value - mean, b / (1 + b * b), torch.add(b, x[:, :, :3], alpha=2)], dim=-1)[:, -1]

    net = Net(forward, one=nn.Linear(4, 5))
    net.scale = nn.Parameter(torch.tensor([[0.5], [2.0], [1.0]]))
    return net


MODULES = {
    "tokens": lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5, bias=False), nn.Linear(5, 2)),
    "mixer": lambda: nn.Sequential(Mixer(3, 4), Mixer(3, 4), nn.Flatten()),
    "attention": lambda: nn.Sequential(Attention(4, 2), nn.PReLU(3), Attention(4, 1, causal=True), nn.Flatten()),
    "encoder": lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True),
    "crossed": crossed,
    "crossed, other sizes": lambda: Net(
        lambda self, x: self.attention(self.q(x), x, x)[0],
        q=nn.Linear(4, 2),
        attention=nn.MultiheadAttention(2, 1, kdim=4, vdim=4, bias=False, batch_first=True),
    ),
    "masked": masked,
    "fused": fused,
    "gated": gated,
}


@pytest.mark.parametrize("name", MODULES)
def test_tokens_learn_as_by_autograd(name):
    learns(made(MODULES[name]), numbers(*TOKENS))


def test_a_small_vision_transformer():
    """Also under a rule that sends its errors through other weights: every matrix changes."""
    module = made(Patches)
    program = learns(module, numbers(1, 8, 8), "cross_entropy")
    assert {"patch", "position", "encoder_layers_0_self_attn_in_proj"} <= set(program.graph.network.units)
    other = mg.compile(program.graph.network, FeedbackAlignment(LR), dtype=torch.float64)
    after, _ = other.step(other.init(), numbers(1, 8, 8), torch.tensor([0, 1, 2, 0]))
    for (name, new), old in zip(other.to_torch(after).named_parameters(), module.parameters(), strict=True):
        assert new.ndim < 2 or not torch.equal(new, old), name


@st.composite
def blocks(draw):
    """Layers that act on tokens, on features, or on both, in any order."""
    tokens, features, layers = 3, 4, []
    for _ in range(draw(st.integers(1, 3))):
        turned = Net(lambda s, x: s.f(x.mT).mT, f=nn.Linear(tokens, tokens, bias=draw(st.booleans())))
        gate = Net(lambda s, x: (lambda ab: ab[0] * ab[1].sigmoid())(s.f(x).chunk(2, -1)), f=nn.Linear(features, 6))
        heads = draw(st.sampled_from([1, features]))
        attends = nn.MultiheadAttention(features, heads, bias=draw(st.booleans()), batch_first=True)
        layers.append(
            draw(
                st.sampled_from(
                    [turned, gate, Net(lambda s, x: x + s.a(x, x, x)[0], a=attends), nn.LayerNorm(features),
                     nn.Softmax(draw(st.sampled_from([1, 2, -1]))), nn.PReLU(), nn.Conv1d(3, 3, 3, padding=1)]
                )
            )
        )  # fmt: skip
        features = 3 if layers[-1] is gate else features
    return nn.Sequential(*layers, nn.Linear(features, 2))


@settings(max_examples=8)
@given(blocks())
def test_random_blocks_learn_as_by_autograd(module):
    learns(made(lambda: module), numbers(*TOKENS))


# -- convolutions, symbols --------------------------------------------------------------------------------


def test_convolutions_of_one_and_three_dimensions_and_transposed_ones():
    line = nn.Sequential(
        nn.Conv1d(2, 4, 3, padding="same", groups=2), nn.PReLU(4), nn.MaxPool1d(2), nn.GroupNorm(2, 4),
        nn.ConvTranspose1d(4, 2, 3, 2, output_padding=1), nn.PReLU(), nn.AdaptiveAvgPool1d(3),
    )  # fmt: skip
    learns(made(lambda: line), numbers(2, 6))
    cube = nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.ConvTranspose3d(2, 1, (1, 2, 2)))
    learns(made(lambda: cube), numbers(1, 2, 3, 3))
    image = nn.Sequential(
        nn.Conv2d(1, 2, 3, 2), nn.ConvTranspose2d(2, 4, 3, 2, 1, dilation=2, groups=2), nn.AdaptiveAvgPool2d(3)
    )
    learns(made(lambda: image), numbers(1, 7, 7))


class Text(nn.Module):
    """Symbols to a class, by an LSTM or by what stands where; the readout's weights may be those of the symbols."""

    def __init__(self, recurrent=None, tied=False):
        super().__init__()
        self.symbols, self.recurrent = nn.Embedding(7, 4, padding_idx=0), recurrent
        self.read = nn.Linear(4, 7)
        if tied:
            self.symbols = nn.Embedding(7, 4)
            self.read.weight = self.symbols.weight

    def forward(self, x):
        x = self.symbols(x)
        return self.read(self.recurrent(x)[0][:, -1] if self.recurrent else x.mean(1))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("recurrent", [None, nn.LSTM(4, 4, batch_first=True)])
def test_embeddings(recurrent, tied):
    torch.manual_seed(0)
    module, x = Text(recurrent, tied).double(), torch.randint(0, 7, (4, 3), generator=torch.Generator().manual_seed(3))
    program = learns(module, x, "cross_entropy")
    assert program.predict(program.init(), x.double() + 0.5).isnan().all()  # no symbol


# -- ticks ------------------------------------------------------------------------------------------------

RECURRENT = {
    "rnn": (nn.RNN, {}),
    "rnn of relu": (nn.RNN, {"nonlinearity": "relu", "num_layers": 2, "bias": False}),
    "gru": (nn.GRU, {"num_layers": 2}),
    "gru without bias": (nn.GRU, {"bias": False}),
    "lstm": (nn.LSTM, {"num_layers": 2}),
    "lstm without bias": (nn.LSTM, {"bias": False}),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_are_ticks(name):
    """With layers at every tick before and after, and the output of the last tick, or the last hidden state."""
    kind, options = RECURRENT[name]

    def forward(self, x):
        said, states = self.recurrent(torch.relu(self.before(x)))
        states = states[0] if isinstance(self.recurrent, nn.LSTM) else states
        return self.after(torch.tanh(said)[:, -1] * states[-1])

    layers = {"before": nn.Linear(4, 3), "recurrent": kind(3, 4, batch_first=True, **options), "after": nn.Linear(4, 3)}
    program = learns(made(lambda: Net(forward, **layers)), numbers(*TOKENS))
    assert program.graph.network.ticks == TOKENS[0]


# -- functions and layers without weights -----------------------------------------------------------------

FIXED = torch.tensor([1.0, -2.0, 0.5, 1.0])
FUNCTIONS = {  # of (batch, 3, 4)
    "adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(x, 3),
    "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(x, 2),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x.unsqueeze(1), 2),
    "amax": lambda x: x.amax(1),
    "amin": lambda x: torch.amin(x, -1),
    "avg_pool1d": lambda x: F.avg_pool1d(x, 2),
    "bmm": lambda x: torch.bmm(x, x.mT),
    "chunk": lambda x: x.chunk(2, 2)[1],
    "cumsum": lambda x: x.cumsum(1),
    "einsum": lambda x: torch.einsum("bij,bkj->bik", x, x),
    "expand": lambda x: x[:, :1].expand(-1, 2, 4),
    "flip": lambda x: x.flip(1, 2),
    "glu": lambda x: F.glu(x, 2),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2),
    "log_softmax": lambda x: x.log_softmax(1),
    "logsumexp": lambda x: x.logsumexp(2),
    "masked_fill": None,  # in Attention
    "matmul": lambda x: x @ x.mT @ x,
    "max_pool1d": lambda x: F.max_pool1d(x, 2),
    "maximum": lambda x: torch.maximum(x, x.flip(1)),
    "minimum": lambda x: torch.minimum(x, x.flip(2)),
    "movedim": lambda x: x.movedim(1, 2),
    "narrow": lambda x: x.narrow(2, 1, 2),
    "normalize": lambda x: F.normalize(x, dim=2),
    "pad": lambda x: F.pad(x, (1, 2)),
    "permute": lambda x: x.permute(0, 2, 1),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x.unsqueeze(3).reshape(-1, 4, 3, 1), 2),
    "prod": lambda x: x.prod(1),
    "roll": lambda x: x.roll(1, 2),
    "scaled_dot_product_attention": None,  # in fused
    "select": lambda x: x.select(1, 0),
    "split": lambda x: x.split(3, 2)[0],
    "stack": lambda x: torch.stack([x, x.flip(1)], -1),
    "std": lambda x: x.std(2),
    "sum": lambda x: x.sum((1, 2), keepdim=True),
    "swapaxes": lambda x: x.swapaxes(1, 2),
    "tensor_split": lambda x: x.tensor_split(3, 2)[2],
    "tile": lambda x: x.tile(2),
    "transpose": lambda x: torch.transpose(x, -1, -2),
    "tril": lambda x: x.tril(),
    "triu": lambda x: torch.triu(x, 1),
    "unbind": None,  # in gated
    "var": lambda x: x.var(1),
    "where": lambda x: x,  # below, as it needs a buffer
}
LAYERS = [  # of (batch, 3, 4), or of images if that fails
    nn.AdaptiveMaxPool1d(3), nn.AvgPool1d(2), nn.ConstantPad1d(1, 2.0), nn.GLU(2), nn.LogSoftmax(1), nn.Softmax(1),
    nn.ReflectionPad1d(1), nn.ReplicationPad1d(2), nn.ZeroPad1d(1), nn.Upsample(scale_factor=2),
]  # fmt: skip
IMAGES = [
    nn.AdaptiveMaxPool2d(2), nn.ConstantPad2d(1, 2.0), nn.PixelShuffle(1), nn.ReflectionPad2d(1),
    nn.ReplicationPad2d(1), nn.ZeroPad2d((1, 0, 2, 0)), nn.AdaptiveAvgPool2d(3),
]  # fmt: skip
CUBES = [nn.AdaptiveAvgPool3d(2), nn.AvgPool3d(2), nn.MaxPool3d((1, 2, 2))]


def whole(function):
    return Net(lambda self, x: function(self.f(x)), f=nn.Linear(4, 4))


@pytest.mark.parametrize("name", [name for name, function in FUNCTIONS.items() if function])
def test_functions_of_whole_examples(name):
    function = FUNCTIONS[name]
    net = whole(function)
    if name == "where":
        net = Net(lambda self, x: torch.where(self.fixed, self.f(x), x), f=nn.Linear(4, 4))
        net.register_buffer("fixed", FIXED > 0)
    learns(made(lambda: net), numbers(*TOKENS))


def test_layers_without_weights():
    for layer in LAYERS:
        learns(made(lambda layer=layer: nn.Sequential(nn.Linear(4, 4), layer)), numbers(*TOKENS))
    for layer, shape in [(layer, (1, 4, 4)) for layer in IMAGES] + [(layer, (1, 2, 4, 4)) for layer in CUBES]:
        learns(made(lambda layer=layer: nn.Sequential(nn.Linear(4, 4), layer)), numbers(*shape))


def test_every_function_of_the_table_is_tested():
    assert set(FUNCTIONS) == set(torch_functions.WHOLE)
    tested = {type(layer) for layer in (*LAYERS, *IMAGES, *CUBES)}
    assert set(torch_layers.WHOLE) <= tested | {nn.MaxPool1d, nn.AdaptiveAvgPool1d}  # those above


# -- errors -----------------------------------------------------------------------------------------------


def sequence(call, kind=nn.LSTM, **options):
    return Net(call, r=kind(4, 4, **{"batch_first": True, **options}), f=nn.Linear(4, 4))


def last(self, x):
    return self.r(x)[0][:, -1]


REFUSED = {
    "softmax twice": (nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Softmax(1)), ["softmax", "leave it out"]),
    "all ticks": (sequence(lambda s, x: s.r(x)[0]), ["every time step", "out[:, -1]"]),
    "across ticks": (sequence(lambda s, x: s.f(s.r(x)[0].mean(1))), ["mean()", "tick by tick"]),
    "norm across ticks": (
        Net(lambda s, x: s.r(s.n(x))[0][:, -1], n=nn.LayerNorm(TOKENS), r=nn.GRU(4, 4, batch_first=True)),
        ["n (nn.LayerNorm)", "tick by tick"],
    ),
    "first tick": (sequence(lambda s, x: s.r(x)[0][:, 0]), ["getitem()", "tick by tick"]),
    "one and all": (sequence(lambda s, x: (x[:, -1].unsqueeze(1) + s.r(x)[0])[:, -1]), ["add()", "every time step"]),
    "both ways": (sequence(last, bidirectional=True), ["r (nn.LSTM)", "bidirectional", "forward only"]),
    "batch second": (sequence(last, nn.GRU, batch_first=False), ["r (nn.GRU)", "batch_first=True"]),
    "projected": (sequence(lambda s, x: s.r(x)[0][:, -1], proj_size=2), ["r (nn.LSTM)", "proj_size"]),
    "initial": (sequence(lambda s, x: s.r(x, s.f(x[:, -1]).unsqueeze(0))[0][:, -1], nn.GRU), ["initial state"]),
    "tuple": (sequence(lambda s, x: s.r(x)), ["tuple", "one tensor"]),
    "attention second": (
        Net(lambda s, x: s.a(x, x, x)[0], a=nn.MultiheadAttention(4, 2)),
        ["a (nn.MultiheadAttention)", "batch_first=True"],
    ),
    "extra key": (
        Net(lambda s, x: s.a(x, x, x)[0], a=nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True)),
        ["add_bias_kv"],
    ),
    "other sizes and bias": (
        Net(lambda s, x: s.a(x, x, x)[0], a=nn.MultiheadAttention(4, 2, kdim=4, vdim=3, batch_first=True)),
        ["kdim and vdim", "bias=False"],
    ),
    "mixed batch": (Net(lambda s, x: s.f(x).softmax(0), f=nn.Linear(4, 4)), ["softmax", "mixes the examples"]),
    "moved batch": (Net(lambda s, x: s.f(x).transpose(0, 1), f=nn.Linear(4, 4)), ["transpose()", "batch"]),
    "no function": (Net(lambda s, x: s.f(x).cummax(1)[0], f=nn.Linear(4, 4)), ["cummax()", "not supported", "cumsum"]),
    "no layer": (nn.Sequential(nn.Bilinear(4, 4, 2)), ["0 (nn.Bilinear)", "MultiheadAttention"]),
    "attribute": (Net(lambda s, x: s.f(x).data, f=nn.Linear(4, 4)), ["getattr()", "'data'", "transpose"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    module, words = REFUSED[case]
    with refuses(mg.NetworkError, *words):
        mg.Network.from_torch(module, TOKENS, loss="cross_entropy" if case == "softmax twice" else "l2")


def test_refused_embeddings():
    with refuses(mg.NetworkError, "0 (nn.Embedding)", "max_norm"):
        mg.Network.from_torch(nn.Sequential(nn.Embedding(5, 2, max_norm=1.0)), 3)
    spoiled = nn.Embedding(5, 2, padding_idx=1)
    nn.init.ones_(spoiled.weight)
    with refuses(mg.NetworkError, "0 (nn.Embedding)", "padding_idx=1", "zero"):
        mg.Network.from_torch(nn.Sequential(spoiled), 3)


def test_parameters_that_are_used_directly():
    class Divided(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return x / self.scale

    with refuses(mg.NetworkError, "truediv()", "parameter directly", "buffer"):
        mg.Network.from_torch(Divided(), TOKENS)
