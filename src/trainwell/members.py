"""`fit_members`: several models on the same data, which answer together."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from trainwell.api import changed, read_data, told_apart, unused_folder
from trainwell.engines import Members
from trainwell.errors import DivergedError, InputError, nearest
from trainwell.files import write_json
from trainwell.run_ensemble import Ensemble, Factory, make, member
from trainwell.train import losses
from trainwell.train.display import Display
from trainwell.train.ensemble_result import FILE, Mean, read, sentence
from trainwell.train.folder import at_work_in, refuse_used, remove_run
from trainwell.train.loop import Metric
from trainwell.train.prepare import tell
from trainwell.train.recipe import Recipe

Engine = Literal["auto", "loop", "processes", "stacked"]
Changes = Recipe | Mapping[str, Any]

_MEMBERS = 5


def fit_members(
    source: Any,
    *,
    members: int | Sequence[Changes] | None = None,
    out: Path | str | None = None,
    recipe: Recipe | Path | str | None = None,
    model: Factory | str | None = None,
    loss: losses.Loss | None = None,
    metrics: dict[str, Metric] | None = None,
    engine: Engine = "auto",
    jobs: int | None = None,
    backend: str | None = None,
    mean: Mean = "arithmetic",
    folds: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    save_seconds: float = 60.0,
    quiet: bool = False,
    **options: Any,
) -> Ensemble:
    """Trains several models on the same data, and makes an ensemble of those that help on validation.

    Lakshminarayanan, Pritzel and Blundell, *Simple and scalable predictive uncertainty estimation using deep ensembles*
    (2017). Each member is a run like any other, in `out/members/1`, `out/members/2`, …: saved, gone on with after an
    interruption, and left alone if it is done.

    Args:
        source: as in `fit`; with `resume`, `None` stands for what the ensemble was started on.
        members: how many, which differ by their seeds alone (from the recipe's on); or what is different in each, as
            `[{"lr": 1e-3}, {"model": "resnet14"}]`, or recipes. By default 5. More than there were, with `resume`, are
            trained in addition.
        out: the ensemble's folder; by default a new one below `runs/`.
        recipe: what the members have in common.
        model: the name of a model, or a function that makes one, so that each member begins at weights of its own.
        loss: as in `fit`.
        metrics: as in `fit`.
        engine: "processes", each on its share of the CPU; "stacked", all at once as one program, of small networks of
            one architecture; "loop", one after the other; "auto" tries a step of each way and takes the fastest. With
            the same engine, a member is the same to the bit however often it was interrupted, and wherever it ran.
        jobs: how many processes at once; by default as many as the CPU has cores.
        backend: of joblib, for processes elsewhere: "ray" or "dask", on a cluster that is there already and sees the
            folder.
        mean: of the probabilities: "arithmetic" or "geometric".
        folds: as in `fit`.
        resume: go on with the ensemble in `out` if there is one.
        overwrite: remove what is in `out`.
        save_seconds: as in `fit`.
        quiet: show nothing.
        **options: as in `fit`.

    Returns:
        The ensemble. A member whose loss was not finite is left out, and told.

    Raises:
        InputError: something given cannot be used; the message says what to do.
        DivergedError: the loss of no member was finite.

    Example:
        >>> import tempfile
        >>> ensemble = fit_members("digits", members=2, out=tempfile.mkdtemp() + "/run", model="mlp", epochs=5, folds=1,
        ...                        engine="loop", quiet=True)
        >>> ensemble.result["test_accuracy"] > 0.7
        True
    """
    if isinstance(model, str):
        options["model"], model = model, None
    if isinstance(model, nn.Module):
        raise InputError("all members would begin at the same weights: give a function that makes the model, or a name")
    _check(engine, jobs, backend, mean)
    given, loading = told_apart(recipe, options)
    folder = Path(out) if out is not None else unused_folder(source)
    plan = read(folder) if resume and (folder / FILE).exists() else None
    if plan is None:
        if source is None:
            raise InputError(f"{folder} holds no ensemble to go on with; give the data to start one")
        plan = _plan(source, members, given, engine, mean, changed(loading, folds))
    else:
        _extend(folder, plan, members, given, engine, changed(loading, folds))
        source = _source_again(folder, plan, source)
    work = Members(folder, source, plan, model, loss, metrics or {}, jobs, backend, save_seconds)
    with at_work_in(folder) as now, Display(quiet) as display:
        if resume and "result" in plan and not work.pending():
            display.say(f"{folder} is done already")
            return Ensemble(folder, model)
        now.how = _how_to_resume(folder, source, model, loss, metrics)
        if not resume or not (folder / FILE).exists():
            refuse_used(folder, overwrite)
        asked = dict(plan["loading"])
        _, data = read_data(source, asked, asked.pop("folds", None), quiet)
        now.doing, now.recipe = "preparing", work.recipes[0]
        tell(data, display)
        work.settle(data, display)
        if not (folder / FILE).exists() or overwrite:
            remove_run(folder)
        if plan.setdefault("fingerprint", data.fingerprint) != data.fingerprint:
            raise InputError(f"the data are not what {folder} was trained on; start a new ensemble")
        for outcome in ("kept", "temperature", "result", "failed", "trainwell"):
            plan.pop(outcome, None)
        write_json(folder / FILE, plan)
        now.doing = "training"
        failed = work.train(data, display)
        done = [number for number in range(1, len(work.recipes) + 1) if number not in failed]
        for number, why in failed.items():
            display.warn(f"member {number} is left out: {why}")
        if not done:
            raise DivergedError(f"no member of {folder} could be trained; the first: {failed[1]}")
        now.doing = "judging the ensemble"
        about = {name: value for name, value in plan.items() if name not in ("members", "mean")}
        make(folder, [member(number) for number in done], plan["mean"], **about, failed=failed)
        ensemble = Ensemble(folder, model)
        report = ensemble.report()
        display.say(f"the members are in {folder}; the report: {report}")
        display.say(sentence(ensemble.about))
    return ensemble


# ---------------------------------------------------------------------- what is asked for


def _check(engine: str, jobs: int | None, backend: str | None, mean: str) -> None:
    for name, value, kinds in (("engine", engine, get_args(Engine)), ("mean", mean, get_args(Mean))):
        if value not in kinds:
            raise InputError(f"{name} must be one of {', '.join(kinds)}; it is {value!r}{nearest(str(value), kinds)}")
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs must be at least 1; it is {jobs}")
    if backend is not None and engine not in ("auto", "processes"):
        raise InputError(f"backend is for engine='processes', not for {engine!r}")


def _recipes(members: int | Sequence[Changes] | None, given: Recipe) -> list[Recipe]:
    """Returns the members' recipes, no two of which are alike."""
    members = _MEMBERS if members is None else members
    if isinstance(members, int):
        if members < 1:
            raise InputError(f"members must be at least 1; it is {members}")
        members = [{}] * members
    if not members or not all(isinstance(one, Recipe | Mapping) for one in members):
        raise InputError("members is a number, or a list of recipes or of what is different in each")
    recipes: list[Recipe] = []
    for number, one in enumerate(members):
        if isinstance(one, Mapping):
            Recipe.from_dict(dict(one))  # names the field that there is not
            one = dataclasses.replace(given, **{"seed": given.seed + number, **one})
        if one in recipes:
            raise InputError(
                f"member {number + 1} is the same as member {recipes.index(one) + 1}; give it another seed"
            )
        recipes.append(one)
    return recipes


def _plan(
    source: Any, members: int | Sequence[Changes] | None, given: Recipe, engine: str, mean: Mean, asked: dict[str, Any]
) -> dict[str, Any]:
    recipes = _recipes(members, given)
    return {
        "members": [member(number) for number in range(1, len(recipes) + 1)], "mean": mean, "engine": engine,
        "source": str(source) if isinstance(source, str | Path) else "arrays", "loading": asked,
        "recipes": [one.changes() for one in recipes],
    }  # fmt: skip


def _extend(
    folder: Path, plan: dict[str, Any], members: int | Sequence[Changes] | None, given: Recipe, engine: str,
    asked: dict[str, Any],
) -> None:  # fmt: skip
    """Adds members that are asked for to a plan; refuses what is asked for otherwise than the ensemble was started."""
    then = plan["recipes"]
    if members is not None or given != Recipe():
        first = Recipe.from_dict(then[0])
        wanted = _recipes(len(then) if members is None else members, first if given == Recipe() else given)
        if [one.changes() for one in wanted][: len(then)] != then:
            raise InputError(f"{folder} was started with other members; resume it as it is, or choose another --out")
        plan["recipes"] = [one.changes() for one in wanted]
        plan["members"] = [member(number) for number in range(1, len(wanted) + 1)]
    if engine not in ("auto", plan["engine"]) or any(plan["loading"].get(name) != asked[name] for name in asked):
        raise InputError(f"{folder} was started otherwise; resume it as it is, or choose another --out")


def _source_again(folder: Path, plan: dict[str, Any], source: Any) -> Any:
    if source is not None:
        return source
    if plan["source"] == "arrays":
        raise InputError(f"{folder} was trained on arrays, which are not kept; give them again: fit_members(data, …)")
    return plan["source"]


def _how_to_resume(
    folder: Path, source: Any, model: Factory | None, loss: losses.Loss | None, metrics: dict[str, Metric] | None
) -> str:
    yours = [name for name, value in (("model", model), ("loss", loss), ("metrics", metrics)) if value]
    if yours or not isinstance(source, str | Path):
        words = ["data" if not isinstance(source, str | Path) else "None", f"out={str(folder)!r}", "resume=True"]
        return f"tw.fit_members({', '.join([*words, *(f'{name}=…' for name in yours)])})"
    return shlex.join(["trainwell", "fit", "--resume", "--out", str(folder)])
