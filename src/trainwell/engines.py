"""The ways in which the members of an ensemble are trained: one after the other, in processes, or as one program."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError
from torch import nn

from trainwell import random
from trainwell.api import fit
from trainwell.data.dataset import Data
from trainwell.data.divide import cross_validates
from trainwell.errors import DivergedError, InputError
from trainwell.members_progress import watched
from trainwell.run import Run
from trainwell.run_ensemble import Factory, member, of_snapshots
from trainwell.train import losses
from trainwell.train.custom import Custom
from trainwell.train.display import Display
from trainwell.train.folder import start_run
from trainwell.train.loop import Metric, Trainer
from trainwell.train.misfits import refuse_unaveraged
from trainwell.train.prepare import prepared, wanted_outputs
from trainwell.train.recipe import Recipe
from trainwell.train.result import finish
from trainwell.train.speed import seconds_per_step
from trainwell.train.stacked import refusal, run_stacked, step_time

_ROUNDS, _TRIAL = 3, 0.5  # how often each way is tried, and for how many seconds about
_SHORT = 30.0  # seconds that are too few for processes of their own, which take some to start


@dataclasses.dataclass
class Members:
    """The members of one ensemble, and the ways in which they can be trained.

    Attributes:
        folder: the ensemble's.
        source: as in `fit`.
        plan: what `ensemble.json` says of them: "recipes", "engine", "loading"; and, once it is settled, "threads" and
            "share_of_minutes".
        model: a function that makes each one's model; `None` for the recipe's.
        loss: as in `fit`.
        metrics: as in `fit`.
        jobs: how many processes at once; `None` for as many as the CPU has cores.
        backend: of joblib.
        save_seconds: as in `fit`.
    """

    folder: Path
    source: Any
    plan: dict[str, Any]
    model: Factory | None
    loss: losses.Loss | None
    metrics: dict[str, Metric]
    jobs: int | None
    backend: str | None
    save_seconds: float

    @property
    def recipes(self) -> list[Recipe]:
        """The members' recipes, with the threads and the share of the time that each has."""
        threads, share = self.plan.get("threads"), self.plan.get("share_of_minutes", 1.0)
        asked = [Recipe.from_dict(changes) for changes in self.plan["recipes"]]
        chosen = self.plan.get("chosen", {})
        return [
            dataclasses.replace(
                one,
                threads=one.threads or threads,
                minutes=one.minutes and one.minutes * share,
                **_taken(one, asked[0], chosen),
            )
            for one in asked
        ]

    def own(self, number: int) -> Path:
        """Returns the folder of member `number`, from 1 on."""
        return self.folder / member(number)["run"]

    def pending(self) -> list[int]:
        """Returns the members that are not done."""
        return [n for n in range(1, len(self.plan["recipes"]) + 1) if not (self.own(n) / "report.html").exists()]

    def custom(self, recipe: Recipe) -> Custom:
        """Returns the user's own code for a member."""
        return Custom(_made(self.model, recipe), self.loss, self.metrics)

    # ------------------------------------------------------------------ which way

    def settle(self, data: Data, display: Display) -> None:
        """Tries all that was given, and decides the engine and its threads, which stay with the ensemble."""
        recipes = self.recipes
        with _tried(data, recipes[0], self.custom(recipes[0]), display) as trainer:
            self.plan.setdefault("chosen", _chosen(trainer))
            if cross_validates(data) and "transfer" in self.plan["chosen"]:
                display.say(
                    "notice: all members take what the first one chose, in their folds too, which are judged on images "
                    "that it has seen: their figures may flatter (--transfer … says it beforehand)"
                )
            if trainer.total_steps == 0:
                display.say("a head that is solved for is the same in each member: give steps or epochs, or lp_ft")
        recipes = self.recipes
        for recipe in recipes[1:]:
            if dataclasses.replace(recipe, seed=recipes[0].seed) != recipes[0]:
                with _tried(data, recipe, self.custom(recipe)):
                    pass
        cores = joblib.cpu_count()
        self.jobs = min(self.jobs or cores, len(recipes))
        if "threads" not in self.plan:
            threads = max(1, cores // self.jobs)
            if self.plan["engine"] == "auto":
                self.plan["engine"] = "processes" if self.backend else self._fastest(data, threads, display)
            self._refuse_unstacked(data, "take engine='auto' or 'processes'")
            rounds = {"processes": math.ceil(len(recipes) / self.jobs), "loop": len(recipes), "stacked": 1}
            self.plan["threads"] = threads if self.plan["engine"] == "processes" else None
            self.plan["share_of_minutes"] = 1 / rounds[self.plan["engine"]]
        else:
            self._refuse_unstacked(data, "such members need an ensemble of their own")
        display.say(f"{len(recipes)} members, {_in_words(self.plan['engine'], self.jobs, self.backend)}")

    def _refuse_unstacked(self, data: Data, then: str) -> None:
        """Refuses members that are to be stacked, and are still to be trained, where that cannot be."""
        pending = [self.recipes[number - 1] for number in self.pending()]
        if self.plan["engine"] == "stacked" and pending and (why := self._not_stacked(data, pending)):
            raise InputError(f"the members cannot be stacked: {why}; {then}")

    def _not_stacked(self, data: Data, recipes: Sequence[Recipe]) -> str:
        if cross_validates(data):
            return "cross-validation trains other models too (folds=1 for a single split)"
        if any(recipe.minutes for recipe in recipes):
            return "minutes are measured of one at a time (give epochs or steps)"
        if len(self.recipes) < 2:
            return "there is but one"
        with self._prepared(data, recipes) as trainers:
            return refusal(trainers)

    @contextlib.contextmanager
    def _prepared(self, data: Data, recipes: Sequence[Recipe]) -> Iterator[list[Trainer]]:
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(prepared(data, recipe, self.custom(recipe))) for recipe in recipes]

    def step_times(self, data: Data, threads: int, *, all_ways: bool = False, alone: int = 0) -> dict[str, float]:
        """Returns how many seconds a step of all members takes, by the ways in which they can be trained.

        Args:
            data: what they are trained on.
            threads: of each process.
            all_ways: time processes too where they cannot win: a run that is short does not last as long as they take
                to start, and what is faster than processes that do not slow each other down is faster than processes.
            alone: the place of the member whose steps are timed where one member takes them.

        Raises:
            DivergedError: that member's loss was not finite.
        """
        recipes, jobs = self.recipes, self.jobs or joblib.cpu_count()
        one = recipes[alone]
        found: dict[str, list[float]] = {"loop": []}
        with _tried(data, one, self.custom(one)) as trainer, contextlib.ExitStack() as stack:
            steps, on_cpu = trainer.total_steps, trainer.hardware.device.type == "cpu"
            together = None if self._not_stacked(data, recipes) else stack.enter_context(self._prepared(data, recipes))
            for _ in range(_ROUNDS):
                found["loop"].append(len(recipes) * seconds_per_step(trainer, _TRIAL))
                if together:
                    found.setdefault("stacked", []).append(step_time(together))
        # The least, as what else the machine does makes times longer alone.
        seconds = {way: min(times) for way, times in found.items()}
        if jobs > 1 and on_cpu and len(recipes) > 1:
            rounds, shortest = math.ceil(len(recipes) / jobs), min(seconds.values())
            one = dataclasses.replace(one, threads=threads)
            undisturbed = rounds * _timed(data, one, self.custom(one))
            if all_ways or (undisturbed < shortest and shortest * steps > _SHORT):
                call = joblib.delayed(_timed_in_a_process)(data, one, self.model, self.loss, self.metrics)
                seconds["processes"] = rounds * max(joblib.Parallel(n_jobs=jobs)([call] * jobs))
        return seconds

    def _fastest(self, data: Data, threads: int, display: Display) -> str:
        """Times a step each way, and returns the fastest; one after the other, where each member diverges at once."""
        display.say("trying a step each way …")
        seconds: dict[str, float] = {}
        for place in range(len(self.recipes)):
            with contextlib.suppress(DivergedError):  # its training tells
                seconds = self.step_times(data, threads, alone=place)
                break
        else:
            return "loop"
        told = ", ".join(f"{engine} {1_000 * value:.3g} ms" for engine, value in sorted(seconds.items()))
        display.say(f"a step of all members: {told}")
        return min(seconds, key=seconds.__getitem__)

    # ------------------------------------------------------------------ the ways

    def train(self, data: Data, display: Display) -> dict[int, str]:
        """Trains the members that are not done; returns why those that failed did."""
        pending, engine = self.pending(), self.plan["engine"]
        if not pending:
            return {}
        if engine == "stacked":
            return self._stacked(data, pending, display)
        with prepared(
            data, dataclasses.replace(self.recipes[0], minutes=None), self.custom(self.recipes[0])
        ) as trainer:
            epochs = math.ceil(trainer.total_steps / len(trainer.train))
        if cross_validates(data):
            epochs *= data.options["folds"] + 1
        with watched([self.own(number) for number in pending], epochs, display):
            calls = [(number, self._call(number)) for number in pending]
            if engine == "loop":
                return _failures(pending, [call() for _, call in calls])
            jobs = self.jobs or min(joblib.cpu_count(), len(self.recipes))
            with joblib.parallel_config(backend=self.backend or "loky", n_jobs=-1 if self.backend else jobs):
                try:
                    outcomes = joblib.Parallel()(joblib.delayed(_called)(call) for _, call in calls)
                except TerminatedWorkerError:
                    raise InputError(
                        "a process that trained a member was killed, as happens when memory runs out; what was saved "
                        "is whole: go on with --resume (resume=True) and fewer --jobs (jobs=1)"
                    ) from None
        for number in pending:
            if not self.own(number).exists():
                raise InputError(f"{self.own(number)} is not there: the workers must see the folder of --out as we do")
        return _failures(pending, outcomes)

    def _call(self, number: int) -> Callable[[], str]:
        recipe, loading = self.recipes[number - 1], dict(self.plan["loading"])
        return _Call(
            self.source, self.own(number).absolute(), recipe, self.model, self.loss, self.metrics, loading,
            self.save_seconds,
        )  # fmt: skip

    def _stacked(self, data: Data, pending: list[int], display: Display) -> dict[int, str]:
        recipes, asked = self.recipes, dict(self.plan["loading"])
        with self._prepared(data, [recipes[number - 1] for number in pending]) as trainers:
            for number, trainer in zip(pending, trainers, strict=True):
                own, recipe = self.own(number), recipes[number - 1]
                trainer.save_seconds = self.save_seconds
                own.mkdir(parents=True, exist_ok=True)
                if (own / "run.json").exists():
                    trainer.keep_in(own)
                    trainer.resume()
                else:
                    start_run(own, data, recipe, asked, self.custom(recipe), trainer)
            display.what = f"{len(pending)} members at once, "
            failed: dict[int, str] = {}

            def leave_out(place: int, error: DivergedError) -> None:
                failed[pending[place]] = str(error)
                _show([own for n, own in zip(pending, trainers, strict=True) if n not in failed], display)

            _show(trainers, display)
            run_stacked(trainers, leave_out)
            display.end_of_training()
            for number, trainer in zip(pending, trainers, strict=True):
                if number not in failed:
                    finish(self.own(number), trainer, data)
                    Run(self.own(number), trainer.model).report()
                    if trainer.recipe.snapshots:
                        of_snapshots(self.own(number), trainer.model)
        return failed


def _show(trainers: list[Trainer], display: Display) -> None:
    """Shows how far some trainers are, which take their steps together, by the first of them."""
    for trainer in trainers[:1]:
        trainer.on_step, trainer.on_epoch_end = display.step, display.epoch


@contextlib.contextmanager
def _tried(data: Data, recipe: Recipe, custom: Custom, display: Display | None = None) -> Iterator[Trainer]:
    """Prepares a member's trainer as `prepared` does, without measuring what fits some minutes.

    Raises:
        InputError: an ensemble could make nothing of what the member says.
    """
    with prepared(data, dataclasses.replace(recipe, minutes=None), custom, display) as trainer:
        refuse_unaveraged(trainer, wanted_outputs(data))
        yield trainer


def _chosen(trainer: Trainer) -> dict[str, Any]:
    """Returns what a member's recipe had left open of the pretrained model, so that all members take the same."""
    chosen: dict[str, Any] = {"pretrained": trainer.recipe.pretrained}
    if trainer.choice is not None and trainer.choice.asked.get("transfer") == "auto":
        chosen |= trainer.choice.as_fields()
    return chosen


def _taken(recipe: Recipe, first: Recipe, chosen: dict[str, Any]) -> dict[str, Any]:
    """Returns what a member takes of what the first one chose: what it leaves open likewise."""
    if recipe.transfer == "none" or (recipe.pretrained, recipe.model) != (first.pretrained, first.model):
        return {}  # nothing is pretrained, or another network, for which something else may be best
    return {name: value for name, value in chosen.items() if name == "pretrained" or recipe.transfer == "auto"}


def _in_words(engine: str, jobs: int, backend: str | None) -> str:
    where = f"on the {backend} cluster" if backend else f"{jobs} at a time, each in a process of its own"
    return {"processes": where, "stacked": "all at once, as one program", "loop": "one after the other"}[engine]


def _made(model: Factory | None, recipe: Recipe) -> nn.Module | None:
    """Returns a member's own model, at weights that are a function of its seed."""
    if model is None:
        return None
    with random.preserved():
        random.seed_everything(recipe.seed, "init")
        made = model()
    if not isinstance(made, nn.Module):
        raise InputError(f"model must return a torch.nn.Module, not a {type(made).__name__}")
    return made


@dataclasses.dataclass
class _Call:
    """The training of one member, wherever it runs; returns why it failed, or ""."""

    source: Any
    own: Path
    recipe: Recipe
    model: Factory | None
    loss: losses.Loss | None
    metrics: dict[str, Metric]
    loading: dict[str, Any]
    save_seconds: float

    def __call__(self) -> str:
        try:
            fit(
                self.source, out=self.own, recipe=self.recipe, model=_made(self.model, self.recipe), loss=self.loss,
                metrics=self.metrics, resume=True, save_seconds=self.save_seconds, quiet=True, **self.loading,
            )  # fmt: skip
        except DivergedError as error:
            return str(error)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(str(interrupt).partition("; go on with: ")[0]) from None  # with all of them
        return ""


def _called(call: Callable[[], str]) -> str:
    return call()


def _failures(numbers: list[int], outcomes: list[str]) -> dict[int, str]:
    return {number: why for number, why in zip(numbers, outcomes, strict=True) if why}


def _timed(data: Data, recipe: Recipe, custom: Custom) -> float:
    with _tried(data, recipe, custom) as trainer:
        return min(seconds_per_step(trainer, _TRIAL) for _ in range(_ROUNDS))


def _timed_in_a_process(
    data: Data, recipe: Recipe, model: Factory | None, loss: losses.Loss | None, metrics: dict[str, Metric]
) -> float:
    return _timed(data, recipe, Custom(_made(model, recipe), loss, metrics))


def register(backend: str | None) -> None:
    """Makes a cluster's backend known to joblib.

    Raises:
        InputError: its library is not installed, or there is no cluster that it finds.
    """
    try:
        if backend == "ray":
            from ray.util.joblib import register_ray

            register_ray()  # type: ignore[no-untyped-call]
        elif backend == "dask":
            import distributed  # which registers itself

            try:
                distributed.get_client()
            except ValueError:
                raise InputError("backend='dask' finds no cluster: in Python, make a distributed.Client of one before "
                                 "fit_members") from None  # fmt: skip
    except ImportError:
        raise InputError(f"backend={backend!r} needs a library: pip install 'trainwell[{backend}]'") from None
