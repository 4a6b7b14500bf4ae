"""The contract of noise: where it is on, what it depends on, and what it leaves alone."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

from ranks import gradient
from trainwell import InputError
from trainwell.freezing import freeze
from trainwell.regularize import Dropout, StochasticDepth, keyed, sampling
from trainwell.regularize.noise import noise_layers


class Net(nn.Sequential):
    """A small network with noise of ours and of torch's, and with batch norm."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Dropout(0.3, maps=True), nn.ReLU(), Dropout(0.4), nn.Flatten(),
            nn.Linear(4 * 36, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2),
        )  # fmt: skip


def ours(x=(3, 8, 8)):
    return nn.Sequential(Dropout(0.3, maps=True), nn.Conv2d(3, 4, 3), Dropout(0.4))


@pytest.fixture
def x():
    return torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def noisy(model, x, *where, rows=None):
    with keyed(model, *where, rows=rows):
        return model(x)


# ---------------------------------------------------------------------- sampling in evaluation


@pytest.mark.parametrize("training", [True, False])
def test_sampling_changes_no_buffer_and_leaves_everything_as_it_was(training, x):
    model = Net().train(training)
    model[1].eval()  # a part that is frozen
    for _ in range(3):
        model(x)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    with torch.no_grad(), sampling(model):
        first, second = model(x), model(x)
        assert not model[1].training
        assert not model[7].training
    assert not torch.equal(first, second)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    model.eval()
    assert torch.equal(model(x), model(x))


def test_batch_norm_is_never_sampled(x):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    with sampling(model):
        assert torch.equal(model(x), model(x))
        torch.testing.assert_close(model(x)[:1], model(x[:1]))  # not a function of the batch


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU])
def test_torchs_own_noise_is_sampled(kind, x):
    model = nn.Sequential(kind()).eval()
    assert torch.equal(model(x), model(x))
    with sampling(model):
        assert not torch.equal(model(x), model(x))
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    "layer", [nn.LSTM(8, 4, num_layers=2, dropout=0.5), nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5)]
)
def test_the_dropout_within_torchs_larger_layers_is_sampled(layer):
    x, model = torch.randn(5, 3, 8), layer.eval()

    def out():
        result = model(x)
        return result[0] if isinstance(result, tuple) else result

    with torch.no_grad():
        assert torch.equal(out(), out())
        with sampling(model):
            assert not torch.equal(out(), out())
        assert torch.equal(out(), out())


def _named(name):
    """A layer of somebody else's that skips rows in training, as torchvision's and timm's do."""

    def forward(self, x):
        return nn.functional.dropout(x, 0.5, self.training)

    return type(name, (nn.Module,), {"forward": forward})()


@pytest.mark.parametrize("name", ["StochasticDepth", "DropPath"])
def test_the_layers_of_others_that_skip_branches_are_sampled_by_their_names_unless_frozen(name, x):
    model = nn.Sequential(_named(name), nn.BatchNorm2d(3)).eval()
    with sampling(model):
        assert not model[1].training
        assert not torch.equal(model(x), model(x))
    assert not model[0].training
    freeze(model[0])
    with sampling(model):
        assert not model[0].training
        assert torch.equal(model(x), model(x))


def test_what_is_noise_is_what_draws():
    noisy = [
        Dropout(0.1), StochasticDepth(0.1), nn.Dropout(0.1), nn.Dropout3d(0.1), nn.AlphaDropout(0.1), nn.RReLU(),
        nn.LSTM(2, 2, 2, dropout=0.1), nn.MultiheadAttention(2, 1, dropout=0.1), nn.FractionalMaxPool2d(2, 3),
        _named("DropPath"),
    ]  # fmt: skip
    quiet = [
        Dropout(0), StochasticDepth(0.0), nn.Dropout(0.0), nn.GRU(2, 2), nn.MultiheadAttention(2, 1),
        nn.BatchNorm2d(2), nn.MaxPool2d(2), _named("Path"),
    ]  # fmt: skip
    model = nn.ModuleList([*noisy, *quiet])
    assert noise_layers(model) == noisy
    freeze(model[0])
    freeze(model[2])
    assert noise_layers(model) == [noisy[1], *noisy[3:]]


def test_an_exception_within_sampling_leaves_nothing_behind(x):
    model = Net()
    with pytest.raises(KeyError), sampling(model), sampling(model):
        raise KeyError
    assert all(module.training for module in model.modules())
    assert not model[2]._sampling


# ---------------------------------------------------------------------- a function of the place


def test_without_a_key_it_follows_torchs_generator(x):
    model = ours()
    torch.manual_seed(3)
    first, second = model(x), model(x)
    torch.manual_seed(3)
    assert torch.equal(model(x), first)
    assert torch.equal(model(x), second)
    assert not torch.equal(first, second)


def test_with_a_key_nothing_else_matters(x):
    model = ours()
    first = noisy(model, x, 0, 7)
    torch.manual_seed(99)
    assert torch.equal(noisy(model, x, 0, 7), first)
    state = torch.get_rng_state()
    noisy(model, x, 0, 7)
    assert torch.equal(torch.get_rng_state(), state)  # and nothing is drawn from it
    for other in [(0, 8), (1, 7), (7, 0)]:
        assert not torch.equal(noisy(model, x, *other), first)


def test_layers_have_noise_of_their_own():
    model = nn.ModuleDict({"a": Dropout(0.5), "b": Dropout(0.5)})
    with keyed(model, 0):
        masks = [model[name](torch.ones(50, 50)) for name in ("a", "b")]
    assert 0.4 < (masks[0] == masks[1]).float().mean() < 0.6


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_what_is_wrapped_around_a_model_changes_nothing(wrap, x):
    model = ours()
    assert torch.equal(noisy(wrap(model), x, 0, 7), noisy(model, x, 0, 7))


@pytest.mark.parametrize("sizes", [[12], [6, 6], [5, 4, 3], [1] * 12])
def test_pieces_of_a_batch_have_the_rows_of_the_whole(sizes, x):
    model, pieces, start = ours(), [], 0
    for size in sizes:
        pieces.append(noisy(model, x[start : start + size], 0, 7, rows=range(start, start + size)))
        start += size
    torch.testing.assert_close(torch.cat(pieces), noisy(model, x, 0, 7))


def test_rows_may_be_any_and_a_sample_may_have_several():
    layer, x = Dropout(0.5), torch.ones(6, 40)
    whole = noisy(layer, x, 0)
    assert torch.equal(noisy(layer, x[:3], 0, rows=torch.tensor([5, 0, 3])), whole[[5, 0, 3]])
    assert torch.equal(noisy(layer, x[:4], 0, rows=range(1, 3)), whole[2:6])  # two rows a sample
    assert torch.equal(noisy(layer, x[:4], 0, rows=torch.tensor([2, 0])), whole[[4, 5, 0, 1]])
    with pytest.raises(InputError, match="5 rows where 3 samples"):
        noisy(layer, torch.ones(5, 4), 0, rows=range(3))


def test_the_layout_in_memory_changes_nothing(x):
    layer, other = Dropout(0.5), x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(noisy(layer, other, 0), noisy(layer, x, 0))
    assert noisy(layer, other, 0).stride() == other.stride() != x.stride()


def test_a_forward_pass_that_is_done_again_has_the_same_noise(x):
    model = ours()
    gradients = []
    for again in (False, True):
        model.zero_grad()
        with keyed(model, 0, 7):
            y = checkpoint(model, x, use_reentrant=False) if again else model(x)
            (y**2).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_a_compiled_model_is_compiled_once_for_all_steps(x):
    torch.compiler.reset()
    counter, model = CompileCounter(), ours()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for step in range(4):
        torch.testing.assert_close(noisy(compiled, x, 0, step), noisy(model, x, 0, step))
        compiled(x)  # and without a key
    assert counter.frame_count == 2


def test_nothing_is_saved_and_copies_work(x):
    model = ours()
    assert set(model.state_dict()) == {"1.weight", "1.bias"}
    twin = copy.deepcopy(model)
    assert torch.equal(noisy(twin, x, 5), noisy(model, x, 5))


@pytest.mark.parametrize("layer", [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)])
def test_dropout_within_attention_is_sampled_where_torch_has_a_fast_path(layer):
    x = torch.randn(3, 5, 8)
    layer.eval()
    with torch.no_grad():
        plain = layer(x)
        with sampling(layer):
            assert not torch.equal(layer(x), layer(x))
        assert torch.equal(layer(x), plain)
    assert torch.backends.mha.get_fastpath_enabled()


def test_two_processes_have_the_gradient_of_one(tmp_path):
    context = torch.multiprocessing.get_context("forkserver")  # a fork of this process, which has threads, could hang
    found = []
    for ranks in (1, 2):
        said, meeting = context.Queue(), tmp_path / f"meeting-{ranks}"
        processes = [context.Process(target=gradient, args=(meeting, rank, ranks, said)) for rank in range(ranks)]
        for process in processes:
            process.start()
        found += [said.get(timeout=120) for _ in processes]
        for process in processes:
            process.join(timeout=60)
            assert process.exitcode == 0
    whole, *halves = found
    for half in halves:
        for mine, theirs in zip(half, whole, strict=True):
            torch.testing.assert_close(torch.tensor(mine), torch.tensor(theirs))
