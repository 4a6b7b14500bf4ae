"""`fit_members`: several models on the same data, which answer together."""

import dataclasses
import inspect
import math
import numbers
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from trainwell.engines import Members, register
from trainwell.errors import DivergedError, InputError, in_one_line, nearest
from trainwell.files import write_json
from trainwell.run_ensemble import Ensemble, Factory, make, member
from trainwell.train import losses
from trainwell.train.asked import changed, check_save_seconds, read_data, told_apart
from trainwell.train.display import Display
from trainwell.train.ensemble_file import FILE, read, sentence
from trainwell.train.ensemble_result import Mean
from trainwell.train.folder import at_work_in, folder_of, refuse_used, remove_run
from trainwell.train.loop import Metric
from trainwell.train.prepare import tell
from trainwell.train.recipe import Recipe

Engine = Literal["auto", "loop", "processes", "stacked"]
Changes = Recipe | Mapping[str, Any]

_MEMBERS = 5
_BACKENDS = ("ray", "dask")


def fit_members(
    source: Any,
    *,
    members: int | Iterable[Changes] | None = None,
    out: Path | str | None = None,
    recipe: Recipe | Path | str | None = None,
    model: Factory | str | None = None,
    loss: losses.Loss | None = None,
    metrics: dict[str, Metric] | None = None,
    engine: Engine = "auto",
    jobs: int | None = None,
    backend: str | None = None,
    mean: Mean | None = None,
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
        mean: of the probabilities: "arithmetic" or "geometric"; by default the arithmetic one, or with `resume` that
            of the ensemble. Another one than before makes the ensemble anew of the members that are there.
        folds: as in `fit`.
        resume: go on with the ensemble in `out` if there is one. A model that is code, "package.module:function", is to
            be named again: none is run because a file names it.
        overwrite: remove what is in `out`, if it is not gone on with.
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
    if "on_epoch_end" in options:
        raise InputError("on_epoch_end is for fit alone, as members may be trained in other processes: leave it out")
    members = _listed(members)
    _check(engine, jobs, backend, mean, members, model)
    check_save_seconds(save_seconds)
    given, loading = told_apart(recipe, options, inspect.signature(fit_members).parameters)
    _refuse_beside_recipes(members, given)
    folder = folder_of(out, source)
    plan = _planned(folder) if resume and (folder / FILE).exists() else None
    begun = plan is not None
    if plan is None:
        if source is None:
            raise InputError(f"{folder} holds no ensemble to go on with; give the data to start one")
        plan = _plan(source, members, given, engine, mean or "arithmetic", changed(loading, folds))
    else:
        _extend(folder, plan, members, given, engine, changed(loading, folds))
        source = _source_again(folder, plan, source)
    another_mean, plan["mean"] = mean not in (None, plan["mean"]), mean or plan["mean"]
    work = Members(folder, source, plan, model, loss, metrics or {}, jobs, backend, save_seconds)
    codes = [] if model is not None else sorted({one.model for one in work.recipes if ":" in one.model})
    _refuse_unnamed(folder, codes, members, given)
    again = codes or model
    with at_work_in(folder) as now, Display(quiet) as display:
        if begun and "result" in plan and not another_mean and not work.pending():
            display.say(f"{folder} is done already")
            ensemble = Ensemble(folder, again)
            if not (folder / "report.html").exists():  # a kill came just before it
                ensemble.report()
            return ensemble
        now.how = _how_to_resume(folder, source, model, loss, metrics, codes)
        if not begun:
            refuse_used(folder, overwrite)
        asked = dict(plan["loading"])
        _, data = read_data(source, asked, asked.pop("folds", None), quiet)
        if isinstance(source, str | Path):
            plan["source"] = data.source
        if plan["mean"] == "geometric" and data.task != "classification":
            raise InputError("the geometric mean is of the probabilities of classes; take the arithmetic one")
        now.doing, now.recipe = "preparing", work.recipes[0]
        tell(data, display)
        work.settle(data, display)
        if not begun:
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
        ensemble = Ensemble(folder, again)
        report = ensemble.report()
        display.say(f"the members are in {folder}; the report: {report}")
        display.say(sentence(ensemble.about))
    return ensemble


# ---------------------------------------------------------------------- what is asked for


def _listed(members: int | Iterable[Changes] | None) -> int | list[Changes] | None:
    """Returns a number as `int`, and what else there is of members as a list."""
    if members is None:
        return None
    if isinstance(members, numbers.Integral) and not isinstance(members, bool):
        return int(members)
    if isinstance(members, Iterable) and not isinstance(members, str | Mapping):
        listed = list(members)
        if listed and all(isinstance(one, Recipe | Mapping) for one in listed):
            return listed
    raise InputError("members is a number, or a list of recipes or of what is different in each")


def _check(
    engine: str, jobs: int | None, backend: str | None, mean: str | None, members: int | list[Changes] | None,
    model: Factory | None,
) -> None:  # fmt: skip
    for name, value, kinds in (("engine", engine, get_args(Engine)), ("mean", mean, get_args(Mean)),
                               ("backend", backend, _BACKENDS)):  # fmt: skip
        if value not in kinds and (name == "engine" or value is not None):
            raise InputError(f"{name} must be one of {', '.join(kinds)}; it is {value!r}{nearest(str(value), kinds)}")
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs must be at least 1; it is {jobs}")
    if backend is not None and engine not in ("auto", "processes"):
        raise InputError(f"backend is for engine='processes', not for {engine!r}")
    register(backend)
    for number, one in enumerate(members if isinstance(members, list) else (), 1):
        if model is not None and _model_of(one) != "auto":
            raise InputError(f"member {number} names the model {_model_of(one)!r}, and model= is a function for all: "
                             "give one of the two")  # fmt: skip


def _model_of(one: Changes) -> str:
    """Returns the model that a member names; "auto" if it names none."""
    return one.model if isinstance(one, Recipe) else str(one.get("model", "auto"))


def _refuse_unnamed(folder: Path, codes: list[str], members: int | list[Changes] | None, given: Recipe) -> None:
    """Refuses models that are code which a file alone names, as whoever wrote it could have anything run."""
    named = {given.model, *map(_model_of, members if isinstance(members, list) else ())}
    unnamed = [code for code in codes if code not in named]
    if unnamed:
        how = f"--model {codes[0]}" if len(codes) == 1 else "members=[{'model': …}, …]"
        raise InputError(
            f"the model of {folder} is code, {unnamed[0]!r}, which is not run because a file names it; "
            f"if you trust it, name it again: {how}"
        )


def _refuse_beside_recipes(members: int | list[Changes] | None, given: Recipe) -> None:
    """Refuses what is said of all members where each is a whole recipe, to which it would say nothing."""
    whole = isinstance(members, list) and all(isinstance(one, Recipe) for one in members)
    if whole and (changes := given.changes()):
        raise InputError(
            f"{', '.join(changes)} beside members that are recipes would be lost: give what is different in each, as "
            "in members=[{'lr': 1e-3}, …], or say it in each recipe"
        )


def _recipes(members: int | list[Changes] | None, given: Recipe) -> list[Recipe]:
    """Returns the members' recipes, no two of which are alike."""
    members = _MEMBERS if members is None else members
    if isinstance(members, int):
        if members < 1:
            raise InputError(f"members must be at least 1; it is {members}")
        members = [{}] * members
    recipes: list[Recipe] = []
    for number, one in enumerate(members):
        if isinstance(one, Mapping):
            one = given.but(**{"seed": given.seed + number, **one})
        if one in recipes:
            raise InputError(
                f"member {number + 1} is the same as member {recipes.index(one) + 1}; give it another seed"
            )
        recipes.append(one)
    return recipes


def _plan(
    source: Any, members: int | list[Changes] | None, given: Recipe, engine: str, mean: Mean, asked: dict[str, Any]
) -> dict[str, Any]:
    recipes = _recipes(members, given)
    return {
        "members": [member(number) for number in range(1, len(recipes) + 1)], "mean": mean, "engine": engine,
        "source": str(source) if isinstance(source, str | Path) else "arrays", "loading": asked,
        "common": given.changes(), "recipes": [one.changes() for one in recipes],
    }  # fmt: skip


def _planned(folder: Path) -> dict[str, Any]:
    """Returns the plan of an ensemble that is to be gone on with; whoever wrote it, it holds data alone.

    Raises:
        InputError: it is damaged, or no plan, as the ensemble was made of runs that were there.
    """
    plan = read(folder)
    if "recipes" not in plan:
        raise InputError(f"{folder} is an ensemble of finished runs, with which there is no going on: Ensemble.of "
                         "makes one of more runs")  # fmt: skip
    try:
        _check_plan(plan)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / FILE} is damaged ({in_one_line(error)})") from None
    return plan


def _check_plan(plan: dict[str, Any]) -> None:
    loading = {name: value for name, value in plan["loading"].items() if name != "folds"}
    if told_apart(None, loading, ())[1].keys() != loading.keys():
        raise ValueError(f"{loading} are no options of loading")
    if plan["engine"] not in get_args(Engine) or not isinstance(plan["source"], str):
        raise ValueError(f"engine is {plan['engine']!r}, and source {plan['source']!r}")
    if not isinstance(plan.get("threads"), int | None):
        raise ValueError(f"threads is {plan['threads']!r}")
    Recipe.from_dict(plan["common"])
    if not Members(Path(), None, plan, None, None, {}, None, None, math.inf).recipes:
        raise ValueError("there is no recipe")


def _extend(
    folder: Path, plan: dict[str, Any], members: int | list[Changes] | None, given: Recipe, engine: str,
    asked: dict[str, Any],
) -> None:  # fmt: skip
    """Adds members that are asked for to a plan; refuses what is asked for otherwise than the ensemble was started."""
    plan["recipes"] = _extended(folder, plan, members, given)
    plan["members"] = [member(number) for number in range(1, len(plan["recipes"]) + 1)]
    if engine not in ("auto", plan["engine"]) or any(plan["loading"].get(name) != asked[name] for name in asked):
        raise InputError(f"{folder} was started otherwise; resume it as it is, or choose another --out")


def _extended(
    folder: Path, plan: dict[str, Any], members: int | list[Changes] | None, given: Recipe
) -> list[dict[str, Any]]:
    """Returns the recipes that there were, and those of further members; a model's name alone asks for no others."""
    then: list[dict[str, Any]] = plan["recipes"]
    models = ("auto", *(one.get("model", "auto") for one in then))
    as_it_is = dataclasses.replace(given, model="auto") == Recipe() and given.model in models
    if as_it_is and members is None:
        return then
    for common in [given, Recipe.from_dict(plan["common"])] if as_it_is else [given]:
        wanted = [one.changes() for one in _recipes(len(then) if members is None else members, common)]
        if wanted[: len(then)] == then:
            return wanted
    raise InputError(f"{folder} was started with other members; resume it as it is, or choose another --out")


def _source_again(folder: Path, plan: dict[str, Any], source: Any) -> Any:
    if source is not None:
        return source
    if plan["source"] == "arrays":
        raise InputError(f"{folder} was trained on arrays, which are not kept; give them again: fit_members(data, …)")
    return plan["source"]


def _how_to_resume(
    folder: Path, source: Any, model: Factory | None, loss: losses.Loss | None, metrics: dict[str, Metric] | None,
    codes: list[str],
) -> str:  # fmt: skip
    """Returns how to go on with an ensemble; `codes` are the models that are to be named again."""
    yours = [name for name, value in (("model", model), ("loss", loss), ("metrics", metrics)) if value]
    if yours or len(codes) > 1 or not isinstance(source, str | Path):
        words = ["data" if not isinstance(source, str | Path) else "None", f"out={str(folder)!r}", "resume=True"]
        named = [f"model={codes[0]!r}"] if len(codes) == 1 else ["members=…"] * bool(codes)
        return f"tw.fit_members({', '.join([*words, *(f'{name}=…' for name in yours), *named])})"
    named = ["--model", *codes] if codes else []
    return shlex.join(["trainwell", "fit", "--resume", "--out", str(folder), *named])
