"""How flat a minimum is: the largest eigenvalues and the trace of the Hessian of the loss.

The Hessian itself, as large as the square of a model, is never there: differentiating twice gives its product with a
vector (Pearlmutter, *Fast exact multiplication by the Hessian*, Neural Computation 6, 1994). From products alone come
the largest eigenvalues (Lanczos, *An iteration method for the solution of the eigenvalue problem of linear differential
and integral operators*, 1950; ARPACK's) and the trace (Hutchinson, *A stochastic estimator of the trace of the
influence matrix for Laplacian smoothing splines*, 1989). Yao, Gholami, Keutzer and Mahoney, *PyHessian: neural networks
through the lens of the Hessian* (IEEE Big Data 2020), did so for networks.
"""

import contextlib
import inspect
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainwell import progress, random
from trainwell.errors import InputError, in_one_line, is_out_of_memory
from trainwell.regularize import evaluating
from trainwell.unchanged import generators_of, unchanged

Vector: TypeAlias = npt.NDArray[np.float64]
Product: TypeAlias = Callable[[Vector], Vector]
Gradient: TypeAlias = tuple[Tensor | None, ...]

_MOST_RESTARTS = 100


class Sharpness(NamedTuple):
    """How sharply the loss rises around a model's parameters; `print` it for readable lines.

    Attributes:
        eigenvalues: the largest of the Hessian, largest first, in units of the loss per squared unit of a parameter.
        trace: the estimate of the sum of all eigenvalues.
        trace_low: the lower end of its 95 % interval, which is about the random probes and not about the samples.
        trace_high: the upper end.
        samples: how many rows of data the loss is the mean of.
        parameters: how many numbers the Hessian is about.
    """

    eigenvalues: list[float]
    trace: float
    trace_low: float
    trace_high: float
    samples: int
    parameters: int

    def __str__(self) -> str:
        named = "largest eigenvalue" if len(self.eigenvalues) == 1 else f"{len(self.eigenvalues)} largest eigenvalues"
        return (
            f"{named}: {', '.join(f'{value:.4g}' for value in self.eigenvalues)}\n"
            f"trace: {self.trace:.4g} (95 % interval {self.trace_low:.4g} to {self.trace_high:.4g})\n"
            f"of the Hessian of the mean loss of {self.samples} samples, by {self.parameters} parameters"
        )


def sharpness(
    model: nn.Module,
    data: tuple[Tensor, Tensor] | Iterable[Any],
    *,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    k: int = 1,
    probes: int = 32,
    tolerance: float = 1e-4,
    seed: int = 0,
    parameters: Iterable[Tensor] | None = None,
    quiet: bool = False,
) -> Sharpness:
    """Measures how flat the loss is around a model: the Hessian's `k` largest eigenvalues, and its trace.

    Compare only runs of one architecture that were trained alike, or one function written in one way. In a ReLU network
    one layer times `a` and the next over `a` is the same function, and changes these figures at will; so does the scale
    of weights before batch norm. A minimum that they call sharp may generalize well (Dinh, Pascanu, Bengio and Bengio,
    *Sharp minima can generalize for deep nets*, ICML 2017).

    The Hessian is that of the mean loss over all rows, by the parameters that require a gradient, with the model in
    evaluation. The model, its gradients and modes and all random states are afterwards as they were. Eigenvalues are
    those of the largest value, not size: `-5` is not among them where `1` is. Of a model far from a minimum many are
    negative. The trace is the mean of `v @ H @ v` over probes `v` of random signs, with Student's interval; where one
    eigenvalue is nearly all of it, 32 probes hold it in 91 % of cases in place of 95.

    It takes `probes` products of the Hessian with a vector, and for the eigenvalues at least `max(20, 2 * k + 1)`, and
    20 more if `k` is above 1, to find equal ones. Each goes through all data and differentiates twice. ARPACK keeps
    `max(20, 2 * k + 1)` vectors of float64 in the machine's memory.

    Args:
        model: on any device, its parameters in float32 or float64.
        data: a pair of tensors, inputs and targets `(n, ...)`, or such pairs in anything that can be gone through again
            and is the same each time: a list, a `DataLoader`. Each pass begins with the same random state, so that a
            shuffled one will do.
        loss: a function of `model(inputs)` and targets that returns the mean over the batch. Batches count by their
            rows.
        k: how many eigenvalues, from 1 to the number of parameters.
        probes: how many random vectors the trace is estimated from, at least 2. The interval narrows with their root.
        tolerance: the error of an eigenvalue, as a fraction of it, or of the root mean square of all where that is
            more; above 0 and below 1. In float32 an error of about 1e-6 of the largest comes from rounding.
        seed: of the probes, and of the vector that the search for eigenvalues starts with.
        parameters: those to look at, such as `model.fc.parameters()`; all by default. What is frozen does not count.
        quiet: show no progress.

    Raises:
        InputError: something given cannot be used, the loss is not finite or cannot be differentiated twice, or the
            eigenvalues do not settle.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])  # with squared errors the Hessian is 2/n x^T x
    >>> print(sharpness(nn.Linear(2, 1, bias=False), (x, x.sum(1, keepdim=True)), loss=F.mse_loss))
    largest eigenvalue: 4
    trace: 5 (95 % interval 5 to 5)
    of the Hessian of the mean loss of 2 samples, by 2 parameters
    """
    chosen = _trainable(model, parameters)
    size = sum(parameter.numel() for parameter in chosen)
    _check(k, probes, tolerance, size)
    hessian = _Hessian(model, chosen, _batches(data), loss, seed, quiet)
    with torch.inference_mode(False), unchanged(model, loss), evaluating(model), _twice_differentiable(model):
        samples = hessian.look()
        forms = hessian.forms(probes)
        eigenvalues = hessian.largest(k, tolerance)
    trace, low, high = _interval(forms)
    return Sharpness(eigenvalues, trace, low, high, samples, size)


class _Hessian:
    """The Hessian of the mean loss over the data, by what it does to vectors."""

    def __init__(
        self, model: nn.Module, parameters: list[Tensor], batches: Iterable[Any], loss: Any, seed: int, quiet: bool
    ) -> None:
        self.model, self.parameters, self.batches, self.loss = model, parameters, batches, loss
        self.seed, self.quiet = seed, quiet
        self.sizes = [parameter.numel() for parameter in parameters]
        self.count = 0  # of batches
        self.seen: tuple[int, float] | None = None  # rows and mean loss of the first pass
        self.ticks: Iterator[int] = itertools.count()

    def look(self) -> int:
        """Goes through the data once, so that nothing long begins with what cannot be used; returns its rows."""
        with self._showing(operator.length_hint(self.batches), "looking at the data"):
            self._mean(self._counted)
        assert self.seen is not None
        return self.seen[0]

    def _counted(self, _: Tensor) -> Vector:
        self.count += 1
        next(self.ticks)
        return np.zeros(1)

    def forms(self, probes: int) -> Vector:
        """Returns `v @ H @ v` for each probe; all of them share a batch's first derivative."""

        def of_batch(loss: Tensor) -> Vector:
            gradient = self._gradient(loss)
            _refuse_once_differentiable(gradient)
            return np.array([vector @ self._times(gradient, vector) for vector in map(self._probe, range(probes))])

        with self._showing(probes * self.count, "estimating the trace"):
            return self._mean(of_batch)

    def largest(self, k: int, tolerance: float) -> list[float]:
        """Returns the `k` largest eigenvalues, largest first."""
        size, columns = sum(self.sizes), _columns(k)
        if size <= columns:  # ARPACK would take as many products
            with self._showing(size * self.count, "finding eigenvalues"):
                dense = np.stack([self._product(column) for column in np.eye(size)])
            values = np.linalg.eigvalsh((dense + dense.T) / 2)
        else:
            most = (columns + _MOST_RESTARTS * (columns - k)) * self.count
            with self._showing(most, "finding eigenvalues, of at most"):
                values = self._searched(k, tolerance)
        return [float(value) for value in np.sort(values)[: -k - 1 : -1]]

    def _searched(self, k: int, tolerance: float) -> Vector:
        # The root mean square of the eigenvalues, about; it is added to all of them, for ARPACK measures errors in
        # fractions of each: one that is 0 would never settle in float32.
        start = _start(sum(self.sizes), random.key(self.seed, "sharpness", "shift"))
        shift = float(np.linalg.norm(self._product(start)) / np.linalg.norm(start))
        if shift == 0:
            return np.zeros(k)

        def shifted(vector: Vector) -> Vector:
            return self._product(vector) + shift * vector

        return _largest(shifted, len(start), k, tolerance, self.seed) - shift

    def _product(self, vector: Vector) -> Vector:
        return self._mean(lambda loss: self._times(self._gradient(loss), vector))

    def _mean(self, what: Callable[[Tensor], Vector]) -> Vector:
        """Returns the mean over all rows of what is made of each batch's loss; every pass sees the same."""
        rows, loss, total = 0, 0.0, np.zeros(())
        with unchanged(*generators_of(self.batches)):
            random.seed_everything(self.seed, "sharpness")
            for batch in self.batches:
                count, value, made = self._of_batch(batch, what)
                rows, loss, total = rows + count, loss + count * value, total + count * made
        self._is_as_before(rows, loss / max(1, rows))
        mean: Vector = total / rows
        if not np.isfinite(mean).all():
            raise InputError("the second derivative of the loss is not finite, though the loss is: a root or a norm "
                             "of 0 in the model may be why")  # fmt: skip
        return mean

    def _of_batch(self, batch: Any, what: Callable[[Tensor], Vector]) -> tuple[int, float, Vector]:
        """Returns a batch's rows, its loss, and what is made of it; its derivatives are gone before the next one's."""
        inputs, targets = (part.to(self.parameters[0].device) for part in _pair(batch))
        loss = self.loss(self.model(inputs), targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise InputError("the loss must return a tensor with one number, the mean over the batch")
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(f"the loss is {value}: see whether inputs, targets and parameters are finite")
        return len(inputs), value, what(loss)

    def _is_as_before(self, rows: int, loss: float) -> None:
        """Refuses data that are others in each pass: then there is no one Hessian."""
        if self.seen is None:
            if rows == 0:
                raise InputError("there are no batches: give data that can be gone through again, as a list")
            self.seen = rows, loss
        before = self.seen
        if rows != before[0] or abs(loss - before[1]) > 1e-3 * abs(before[1]) + 1e-6:
            raise InputError(f"data are {rows} rows of mean loss {loss:.4g}, and were {before[0]} of {before[1]:.4g} "
                             "before: give what is the same each time, without random augmentation")  # fmt: skip

    def _gradient(self, loss: Tensor) -> Gradient:
        """Returns the loss's derivatives, to be differentiated again; `None` for parameters that it does not see."""
        gradient: Gradient = (None,)
        if loss.requires_grad:
            with _telling():
                gradient = torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)
        if all(part is None for part in gradient):
            raise InputError("the loss depends on none of the parameters")
        return gradient

    def _times(self, gradient: Gradient, vector: Vector) -> Vector:
        """Returns the product of one batch's Hessian with a vector."""
        next(self.ticks)
        parts = torch.split(torch.tensor(vector), self.sizes)
        pairs = [
            (derivative, part.view_as(parameter).to(parameter))
            for derivative, part, parameter in zip(gradient, parts, self.parameters, strict=True)
            if derivative is not None and derivative.requires_grad  # else it is constant
        ]
        if not pairs:
            return np.zeros(len(vector))
        outputs, weights = zip(*pairs, strict=True)
        with _telling():
            products = torch.autograd.grad(
                outputs, self.parameters, weights, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        flat = torch.cat([product.detach().to_dense().reshape(-1).cpu().double() for product in products])
        numbers: Vector = flat.numpy()
        return numbers

    def _probe(self, number: int) -> Vector:
        """Returns random signs, one bit of the place's words for each."""
        size = sum(self.sizes)
        words = random.keys(random.key(self.seed, "sharpness", "probe", number), np.arange(-(-size // 64)))
        bits = np.unpackbits(words.astype("<u8").view(np.uint8), count=size)
        return bits.astype(np.float64) * 2 - 1

    @contextlib.contextmanager
    def _showing(self, total: int, what: str) -> Iterator[None]:
        ticks: Any = progress.track(itertools.count(), total, what, self.quiet or total == 0)
        with contextlib.closing(ticks):
            self.ticks = ticks
            yield


def _interval(forms: Vector) -> tuple[float, float, float]:
    """Returns the mean and Student's 95 % interval."""
    from scipy.special import stdtrit

    mean = float(forms.mean())
    margin = float(stdtrit(len(forms) - 1, 0.975) * forms.std(ddof=1) / math.sqrt(len(forms)))
    return mean, mean - margin, mean + margin


# ---------------------------------------------------------------------- eigenvalues


def _columns(k: int) -> int:
    """Returns how many vectors ARPACK keeps."""
    return max(20, 2 * k + 1)


def _largest(product: Product, size: int, k: int, tolerance: float, seed: int) -> Vector:
    """Returns the largest eigenvalues of a symmetric operator, in no order.

    Of equal ones a search may see but one. So what is left without those that were found is searched too, until it has
    no larger one.
    """
    values, vectors = _search(product, size, k, tolerance, random.key(seed, "sharpness", "search", 0))
    for number in itertools.count(1):
        last = int(values.argmin())
        if k == 1:
            break
        rest = _without(product, vectors, values[last])
        [value], vector = _search(rest, size, 1, tolerance, random.key(seed, "sharpness", "search", number))
        if value <= values[last] + tolerance * abs(values[last]):
            break
        values[last], vectors[:, last] = value, vector[:, 0]
    return values


def _search(product: Product, size: int, k: int, tolerance: float, key: int) -> tuple[Vector, Vector]:
    """Returns the `k` largest eigenvalues that ARPACK sees from a start that belongs to a key, and their vectors."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    # SciPy 1.17 and later draw where a product adds no new direction, and by default each time anew.
    drawn = {"rng": np.random.default_rng(key)} if "rng" in inspect.signature(eigsh).parameters else {}
    try:
        values, vectors = eigsh(
            LinearOperator((size, size), product, dtype=np.float64), k, which="LA", v0=_start(size, key),
            ncv=_columns(k), tol=tolerance, maxiter=_MOST_RESTARTS, **drawn,
        )  # fmt: skip
    except ArpackNoConvergence:
        raise InputError(f"the largest eigenvalues do not settle to a tolerance of {tolerance}: raise it, or give the "
                         "model and the data in float64") from None  # fmt: skip
    return values, vectors


def _start(size: int, key: int) -> Vector:
    """Returns a vector without a direction of its own: signs would be orthogonal to many that are of whole numbers."""
    return random.uniform(random.keys(key, np.arange(size)), 1)[:, 0] - 0.5


def _without(product: Product, vectors: Vector, value: float) -> Product:
    """Returns an operator with another eigenvalue for orthonormal eigenvectors, the columns of `vectors`."""

    def rest(vector: Vector) -> Vector:
        inside = vectors @ (vectors.T @ vector)
        outside = product(vector - inside)
        return outside - vectors @ (vectors.T @ outside) + value * inside

    return rest


# ---------------------------------------------------------------------- derivatives


@contextlib.contextmanager
def _twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Keeps attention and recurrent layers from their fast kernels, which torch cannot differentiate twice."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    """Says in one line that something in the model has no second derivative."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"the loss cannot be differentiated twice ({in_one_line(error)}): take out what says so, and "
                         "give the model as it was before torch.compile") from error  # fmt: skip


def _refuse_once_differentiable(gradient: Gradient) -> None:
    """Looks for what would raise if torch came by; as it leads to no parameter, torch would leave it out, as if 0."""
    nodes, seen = [part.grad_fn for part in gradient if part is not None], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::Error":
            raise InputError("the loss cannot be differentiated twice: a function in the model is marked with "
                             "@once_differentiable")  # fmt: skip
        nodes += [before for before, _ in node.next_functions]


# ---------------------------------------------------------------------- what is given


def _trainable(model: nn.Module, parameters: Iterable[Tensor] | None) -> list[Tensor]:
    """Returns the parameters that are not frozen, each once."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}: it is to be a torch.nn.Module")
    given = list(model.parameters() if parameters is None else parameters)
    for parameter in given:
        if not isinstance(parameter, Tensor):
            raise InputError(f"parameters holds a {type(parameter).__name__}: give tensors, as model.parameters() does")
        if nn.parameter.is_lazy(parameter):
            raise InputError("the model has parameters without a shape yet: call it once before")
    chosen = list({id(parameter): parameter for parameter in given if parameter.requires_grad}.values())
    if not chosen:
        raise InputError("there is no parameter that requires a gradient: a Hessian is by those that are not frozen")
    for parameter in chosen:
        if parameter.dtype not in (torch.float32, torch.float64):
            kind = str(parameter.dtype).removeprefix("torch.")
            raise InputError(f"a parameter is {kind}: it is to be float32 or float64, as after model.float()")
    return chosen


def _check(k: int, probes: int, tolerance: float, size: int) -> None:
    if not isinstance(k, int) or not 1 <= k <= size:
        raise InputError(f"k is {k!r}: it is a whole number from 1 to {size}, the number of parameters")
    if not isinstance(probes, int) or probes < 2:
        raise InputError(f"probes is {probes!r}: it is a whole number, at least 2, for an interval")
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance is {tolerance}: it is above 0 and below 1")


def _batches(data: Any) -> Iterable[Any]:
    """Returns the batches of what is given."""
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        return [data]
    if isinstance(data, Iterator):
        raise InputError(
            f"data is a {type(data).__name__}, which can be gone through once: give a list or a DataLoader"
        )
    if isinstance(data, Tensor | str) or not isinstance(data, Iterable):
        raise InputError(f"data is a {type(data).__name__}: give a pair of tensors, inputs and targets, or batches of "
                         "them, as a list or a DataLoader")  # fmt: skip
    return data


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    """Returns a batch's inputs and targets, as many of both."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise InputError(f"a batch must be a pair of tensors, inputs and targets, not a {type(batch).__name__}")
    inputs, targets = batch
    if not all(isinstance(part, Tensor) and part.ndim > 0 for part in batch):
        raise InputError("a batch must be a pair of tensors, inputs and targets, with the rows first")
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise InputError(f"a batch has {len(inputs)} inputs and {len(targets)} targets: give as many, at least one")
    return inputs, targets
