"""Several trainers at once: their models learn as one program, everything else stays each trainer's own."""

import contextlib
import copy
import functools
import math
import operator
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainwell import random
from trainwell.ensemble.stacked import Stacked
from trainwell.errors import DivergedError, InputError
from trainwell.images import Images
from trainwell.optim import Plateau
from trainwell.regularize import Mixed, Noise, keyed
from trainwell.train import interrupt
from trainwell.train.loop import Trainer, fraction_right, mean_over
from trainwell.train.losses import aligned
from trainwell.train.recipe import Recipe
from trainwell.train.speed import copied

_ALIKE = ("model", "img_size", "batch_size", "optimizer", "precision", "memory_format", "device")
_PROBED = 8  # rows


OnDiverged = Callable[[int, DivergedError], object]


def run_stacked(trainers: Sequence[Trainer], on_diverged: OnDiverged | None = None) -> None:
    """Does what `trainer.run()` does for each trainer, with the steps of all of them taken together.

    What a trainer keeps, validates and saves is what it would be alone, but for rounding. One that ends before the
    others drops out; those at an earlier step, as after an interrupted run, first catch up.

    Args:
        trainers: fresh ones or resumed ones, with models of one architecture, each with its own rates, decay, noise,
            seed, data and length.
        on_diverged: called with the place of a trainer whose loss, gradient or validation loss is not finite, and with
            what it would raise alone; it drops out, with nothing of it saved from then on, and the others go on as if
            it had not been there. By default that ends all.

    Raises:
        InputError: they cannot be trained together, see `refusal`.
        DivergedError: a member's loss or gradient was not finite, and none has taken the step; or its validation loss.
        KeyboardInterrupt: Ctrl-C, or a request to end; the states of all were saved.
    """
    if why := refusal(trainers):
        raise InputError(why)
    with interrupt.deferred() as interrupted:
        for trainer in trainers:
            trainer.begin()
        out: set[int] = set()
        while going := [k for k, trainer in enumerate(trainers) if not trainer.stop_reason and k not in out]:
            least, *later = sorted({trainers[k].step for k in going})
            together = [k for k in going if trainers[k].step == least]
            with _joint(trainers, together, on_diverged) as joint:
                while joint.complete and joint.trainers[0].step not in later:
                    joint.step()
                    joint.after_step(interrupted)
            out |= {together[k] for k in joint.diverged}


def refusal(trainers: Sequence[Trainer]) -> str:
    """Returns in one line why some trainers cannot be trained together, "" if they can."""
    if not trainers:
        return "there is nothing to train: give at least one trainer"
    recipes = [trainer.recipe for trainer in trainers]
    why = next(filter(None, (_of_itself(recipe) for recipe in recipes)), "")
    return why or _of_recipes(recipes) or _of_trainers(trainers)


def step_time(trainers: Sequence[Trainer], steps: int = 10) -> float:
    """Returns the median of the seconds of some steps taken together, without the first two, which prepare kernels.

    They are taken with copies of the models: trainers, models and optimizers stay as they are. One that diverges costs
    as much time as the others.

    Raises:
        InputError: they cannot be trained together, see `refusal`.
    """
    if why := refusal(trainers):
        raise InputError(why)
    seconds = []
    copies = [copied(trainer) for trainer in trainers]
    with random.preserved(), _joint(copies, range(len(copies)), lambda *_: None) as joint:
        for _ in range(2 + steps):
            for probe in copies:
                probe.batch = probe.step % len(probe.train)
            began = time.monotonic()
            joint.step()
            seconds.append(time.monotonic() - began)
    return statistics.median(seconds[2:])


# ---------------------------------------------------------------------- what cannot be together


def _of_itself(recipe: Recipe) -> str:
    if recipe.pretrained not in ("none", "auto") or recipe.transfer not in ("auto", "none"):
        return "a pretrained model has frozen stages and rates of their own: such runs are trained one by one"
    if recipe.sam:
        return "sam looks at each model's gradient before a step: such runs are trained one by one"
    if recipe.grad_accum_steps > 1:
        return "grad_accum_steps is for batches that do not fit at once: such runs are trained one by one"
    if recipe.optimizer in ("muon", "soap"):
        return f"{recipe.optimizer} works on whole matrices: such runs are trained one by one"
    if recipe.on_nonfinite == "halve":
        return "on_nonfinite='halve' goes back in one run alone: take 'stop', or train one by one"
    return ""


def _of_recipes(recipes: Sequence[Recipe]) -> str:
    for name in _ALIKE:
        values = list(dict.fromkeys(getattr(recipe, name) for recipe in recipes))
        if len(values) > 1:
            return f"{name} is {values[0]} in one run and {values[1]} in another: runs of one {name} train together"
    if recipes[0].optimizer == "sgd" and len({recipe.momentum > 0 for recipe in recipes}) > 1:
        return "momentum is 0 in some runs alone: sgd takes another rule then, and they do not train together"
    if recipes[0].optimizer == "sgd" and len({recipe.nesterov for recipe in recipes}) > 1:
        return "nesterov is true in some runs alone: sgd takes another rule then, and they do not train together"
    return ""


def _of_trainers(trainers: Sequence[Trainer]) -> str:
    first = trainers[0]
    for what, read in (("hardware", operator.attrgetter("hardware")), ("batches", _shape_of_batches),
                       ("task", operator.attrgetter("classification"))):  # fmt: skip
        if len({read(trainer) for trainer in trainers}) > 1:
            return f"the {what} of the runs differ: {read(first)} and {_other(trainers, read)}"
    try:
        Stacked([copy.deepcopy(trainer.model) for trainer in trainers], _probe(first))
    except InputError as error:
        return str(error)
    return ""


def _other(trainers: Sequence[Trainer], read: Callable[[Trainer], Any]) -> Any:
    return next(read(trainer) for trainer in trainers if read(trainer) != read(trainers[0]))


def _shape_of_batches(trainer: Trainer) -> tuple[Any, ...]:
    """Returns the size of a batch, of the last one, and the shape of a sample."""
    batches, inputs = trainer.train, trainer.train.part.inputs
    last = batches.batch_size if batches.drop_last else len(batches.part) % batches.batch_size
    sample = batches.size if isinstance(inputs, Images) else inputs.shape[1:]
    return batches.batch_size, last, sample, len(batches.mean)


def _probe(trainer: Trainer) -> Tensor:
    inputs: Tensor = trainer.train.batch(0, 0)[0][:_PROBED]
    return inputs


# ---------------------------------------------------------------------- the steps


@contextlib.contextmanager
def _joint(
    trainers: Sequence[Trainer], chosen: Sequence[int], on_diverged: OnDiverged | None = None
) -> Iterator["_Joint"]:
    """Yields some trainers as one; afterwards models and optimizers are their own again."""
    joint = _Joint(trainers, chosen, on_diverged)
    try:
        yield joint
    finally:
        joint.release()


class _Joint:
    """Takes the steps of several trainers, which are at the same one, together.

    The state of each trainer's own optimizer is a view of the joint one's, as its model's weights are of the stacked
    ones, so that a trainer's checkpoint is what it would be alone.
    """

    def __init__(self, trainers: Sequence[Trainer], chosen: Sequence[int], on_diverged: OnDiverged | None) -> None:
        self.trainers = [trainers[k] for k in chosen]
        self.diverged: set[int] = set()  # of these, those that drop out
        self._places, self._on_diverged = chosen, on_diverged
        self._names = [f"member {k + 1} of {len(trainers)}" for k in chosen]
        first = self.trainers[0]
        self.stacked = Stacked([trainer.model for trainer in self.trainers], _probe(first))
        self._noisy = [_is_noisy(trainer) for trainer in self.trainers]
        # With one rate for all, a step of the optimizer need not look at each member.
        self._one_rate = all(
            not isinstance(t.schedule, Plateau) and (t.schedule, t.lr_scale) == (first.schedule, first.lr_scale)
            for t in self.trainers
        )
        limits = [t.recipe.clip_grad for t in self.trainers]
        self._limits: Tensor | None = None
        if any(limit is not None for limit in limits):
            bounds = [math.inf if limit is None else limit for limit in limits]
            self._limits = torch.tensor(bounds, device=first.hardware.device)
        self._seen: list[Any] = []
        self._stacks: list[tuple[Tensor, tuple[Tensor, ...]]] = []
        try:
            self._take_over()
        except BaseException:
            self.stacked.release()
            raise

    @property
    def complete(self) -> bool:
        """Whether all go on still."""
        return not (self.diverged or any(trainer.stop_reason for trainer in self.trainers))

    def step(self) -> None:
        """Takes one step of all whose loss and gradient are finite; of none, if those that are not end all."""
        trainers, count = self.trainers, len(self.trainers)
        batches = [trainer.take_batch() for trainer in trainers]
        mixed = [trainer.mixed(inputs) for trainer, (inputs, _) in zip(trainers, batches, strict=True)]
        inputs = [own.inputs if own else batch[0] for own, batch in zip(mixed, batches, strict=True)]
        targets = [batch[1] for batch in batches]
        with contextlib.ExitStack() as places:
            for trainer, noisy in zip(trainers, self._noisy, strict=True):
                if noisy:
                    rows = range(len(inputs[0]))
                    places.enter_context(keyed(trainer.model, trainer.recipe.seed, "noise", trainer.step, rows=rows))
            with trainers[0].hardware.autocast():
                outputs = self.stacked(inputs)
            losses, reported, right = _figures(trainers, outputs.float(), targets, mixed)
            torch.autograd.backward(losses.sum())
        grads = [stack.grad for stack, _ in self.stacked.stacks if stack.grad is not None]
        norms = _norms(grads, count)

        # One transfer from the device says all that is to be known.
        table = torch.stack([x.detach().double() for x in (losses, reported, right, norms)]).T.tolist()
        for k, (loss, _, _, norm) in enumerate(table):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._drop(k, trainers[k].diverged(f"the loss is {loss:.4g}, the gradient's norm {norm:.4g}"))
                # The others step now, as the pass has moved their batch norms: it cannot be taken once more without it.
        if self._limits is not None:
            shares = (self._limits / (norms + 1e-6)).clamp(max=1)
            for grad in grads:
                grad.mul_(shares.to(grad.dtype).view(-1, *[1] * (grad.ndim - 1)))
        self._set_rates()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._share_state()
        for k, (_, reported_, right_, _) in enumerate(table):
            if k not in self.diverged:
                trainers[k].count(reported_, right_, len(targets[0]))

    def after_step(self, interrupted: Callable[[], bool]) -> None:
        """Does for each trainer what is to be done after a step; on a request to end all save before it is raised.

        All save when one does, so that after a kill those that took their steps together do so again: in a smaller
        stack they would be rounded otherwise.
        """
        for k, trainer in self._going():
            try:
                trainer.end_step()
            except DivergedError as error:
                self._drop(k, error)
        ends, came = interrupted(), None
        due = any(trainer.save_is_due for _, trainer in self._going())
        for _, trainer in self._going():
            try:
                trainer.save_if_due(lambda: ends, due=due)
            except KeyboardInterrupt as request:
                if not request.args:  # a second one, which acts at once
                    raise
                came = came or request
        if came:
            raise came

    def _going(self) -> list[tuple[int, Trainer]]:
        return [(k, trainer) for k, trainer in enumerate(self.trainers) if k not in self.diverged]

    def _drop(self, k: int, error: DivergedError) -> None:
        """Lets a trainer that diverged drop out, if that does not end all."""
        if self._on_diverged is None:
            self.optimizer.zero_grad()
            raise DivergedError(f"{self._names[k]}: {error}") from None
        if k not in self.diverged:
            self.diverged.add(k)
            self._on_diverged(self._places[k], error)

    def _set_rates(self) -> None:
        for group, *own in self._groups():
            rates = [one["lr"] for one in own]
            group["lr"] = rates[0] if self._one_rate else rates

    def _groups(self) -> Iterator[tuple[dict[str, Any], ...]]:
        """Yields each group of the joint optimizer and those of the trainers' own."""
        return zip(self.optimizer.param_groups, *(t.optimizer.param_groups for t in self.trainers), strict=True)

    # ------------------------------------------------------------------ the optimizer and its state

    def _take_over(self) -> None:
        """Makes the joint optimizer of the trainers' own, with their state."""
        first: Any = self.trainers[0].optimizer
        stacks = {id(parts[0]): (stack, parts) for stack, parts in self.stacked.stacks}
        groups = []
        for own in zip(*(t.optimizer.param_groups for t in self.trainers), strict=True):
            here = [stacks[id(p)] for p in own[0]["params"]]
            settings = {name: _merged([group[name] for group in own], name) for name in first.fields if name in own[0]}
            if not self._one_rate:
                settings["lr"] = [group["lr"] for group in own]
            groups.append({**settings, "params": [stack for stack, _ in here]})
            self._stacks += here
        self.optimizer = type(first)(groups)
        for group, *own in self._groups():
            group["steps"] = own[0]["steps"]
        for stack, parts in self._stacks:
            states = [t.optimizer.state.get(p, {}) for t, p in zip(self.trainers, parts, strict=True)]
            if any(state.keys() != states[0].keys() for state in states):
                raise InputError("the optimizers' states are of different rules: such runs are trained one by one")
            if states[0]:
                self.optimizer.state[stack] = {
                    name: self._joined(name, stack, [state[name] for state in states]) for name in states[0]
                }
        self._share_state()

    def _joined(self, name: str, stack: Tensor, values: Sequence[Tensor]) -> Tensor:
        """Returns a part of the state for all members."""
        if name != "step" and name not in self.optimizer.numbers:
            arrays = torch.empty_like(stack, dtype=values[0].dtype)
            for part, own in zip(arrays, values, strict=True):
                part.copy_(own)
            return arrays
        if all(torch.equal(value, values[0]) for value in values):
            return values[0].clone()
        if name == "step":
            raise InputError("the optimizers have taken different numbers of steps: such runs are trained one by one")
        return torch.stack(list(values))

    def _share_state(self) -> None:
        """Lets the trainers' own optimizers have the joint one's state, where it has become another."""
        state = self.optimizer.state
        values = [value for stack, _ in self._stacks for value in state.get(stack, {}).values()]
        if len(values) != len(self._seen) or not all(map(operator.is_, values, self._seen)):
            self._seen = values
            for stack, parts in self._stacks:
                for k, (trainer, p) in enumerate(zip(self.trainers, parts, strict=True)):
                    trainer.optimizer.state[p] = {
                        name: value if name == "step" or value.ndim == 0 else value[k]
                        for name, value in state.get(stack, {}).items()
                    }
        for group, *own in self._groups():
            for one in own:
                one["steps"] = group["steps"]

    def release(self) -> None:
        """Gives every trainer's model and optimizer memory of their own again."""
        self.stacked.release()
        for trainer in self.trainers:
            for values in trainer.optimizer.state.values():
                values.update({name: value.clone() for name, value in values.items()})


def _is_noisy(trainer: Trainer) -> bool:
    """Says whether there is noise of ours to be keyed."""
    return any(isinstance(layer, Noise) and getattr(layer, "p", None) != 0 for layer in trainer.model.modules())


def _merged(values: Sequence[Any], name: str) -> Any:
    """Returns a hyper-parameter for all members: one value, or a list of theirs."""
    if all(value == values[0] for value in values):
        return values[0]
    if isinstance(values[0], tuple):
        return tuple(_merged(parts, name) for parts in zip(*values, strict=True))
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        raise InputError(f"{name} of the optimizers is {values[0]} in one run and another in others: train one by one")
    return list(values)


def _norms(grads: Sequence[Tensor], count: int) -> Tensor:
    """Returns the 2-norm of each member's gradients."""
    each = [torch.linalg.vector_norm(grad, dim=list(range(1, grad.ndim))) if grad.ndim > 1 else grad.abs()
            for grad in grads]  # fmt: skip
    return torch.linalg.vector_norm(torch.stack(each), dim=0) if each else torch.zeros(count)


# ---------------------------------------------------------------------- the losses

Figures = tuple[Tensor, Tensor, Tensor]


def _figures(
    trainers: Sequence[Trainer], outputs: Tensor, targets: Sequence[Tensor], mixed: Sequence[Mixed | None]
) -> Figures:
    """Returns of each member the loss, what is reported, and how many were right."""
    objectives = [_cross_entropy(trainer.objective) for trainer in trainers]
    plain = all(_cross_entropy(trainer.reported) == {} and trainer.classification for trainer in trainers)
    same = objectives[0] is not None and all(options == objectives[0] for options in objectives)
    if same and plain and outputs.ndim == 3 and not any(mixed):
        return _figures_of_classes(outputs, torch.stack(list(targets)), objectives[0] or {})
    rows = zip(trainers, outputs.unbind(), targets, mixed, strict=True)
    losses, reported, right = zip(*(_figures_of_one(*row) for row in rows), strict=True)
    return torch.stack(losses), torch.stack(reported), torch.stack(right)


def _figures_of_one(trainer: Trainer, outputs: Tensor, targets: Tensor, mixed: Mixed | None) -> Figures:
    mean, outputs = mean_over(slice(0, len(targets)), targets, mixed), aligned(outputs, targets)
    loss = mean(trainer.objective, outputs)
    with torch.no_grad():
        reported = loss if trainer.reported is trainer.objective else mean(trainer.reported, outputs)
        right = mean(fraction_right, outputs) * len(targets) if trainer.classification else torch.zeros_like(loss)
    return loss, reported, right


def _cross_entropy(loss: Any) -> dict[str, Any] | None:
    """Returns the options of a loss that is torch's cross-entropy; `None` for another."""
    if loss is F.cross_entropy:
        return {}
    own = isinstance(loss, functools.partial) and loss.func is F.cross_entropy and not loss.args
    return dict(loss.keywords) if own and loss.keywords.keys() == {"label_smoothing"} else None


def _figures_of_classes(outputs: Tensor, targets: Tensor, options: dict[str, Any]) -> Figures:
    """Returns the same for all members in a few operations."""
    flat, labels = outputs.flatten(0, 1), targets.flatten()
    losses = F.cross_entropy(flat, labels, reduction="none", **options).view(targets.shape).mean(1)
    with torch.no_grad():
        reported = losses
        if options:
            reported = F.cross_entropy(flat, labels, reduction="none").view(targets.shape).mean(1)
        right = (outputs.argmax(2) == targets).sum(1)
    return losses, reported, right
