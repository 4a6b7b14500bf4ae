"""Averages of weights, snapshots and members, each at 10 seeds: accuracy, log loss, calibration, and what they cost.

    python bench/ensembles.py cifar10/train [--jobs 2] [--folder ROWS]

The evidence task is `rate_decay.py`'s, with Adam and a cosine at the rate that was best there. `single` is a run as it
is, `constant` one whose rate does not fall; `ema`, `constant-ema` and `swa`, whose rate stays constant over the last
quarter, hand over the average if validation favours it; `snapshots` is an ensemble of three, from a run as long as the
others; `members-2` to `members-8` are of that many runs, all of them (`all`) and those chosen on validation, with a
temperature. Rows are appended as runs end, and the answers of runs are kept beside them: stop it, and start it again at
will.
"""

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from safetensors.torch import load_file

import trainwell as tw
from evidence import EPOCHS, SETTINGS, arguments
from rows import append
from seeds import limited, mean_and_interval, parse
from trainwell.ensemble import tempered
from trainwell.metrics import calibration
from trainwell.train.ensemble_result import Answers, choose, combined

MOST = 8
STEPS = EPOCHS * (4_000 // 64)
ADAM = f"optimizer=adam model=resnet8 epochs={EPOCHS} {SETTINGS}"
FALLEN = round(STEPS * 0.75)
CONSTANT_AT_LAST = f"warmup(then(cosine(0.03,steps={STEPS}),0.005,at={FALLEN}),steps={round(STEPS * 0.05)})"
RECIPES = {
    "single": f"single: {ADAM} lr=0.03",
    "ema": f"ema: {ADAM} lr=0.03 average=ema",
    "constant": f"constant: {ADAM} lr=0.03 schedule=constant",
    "constant-ema": f"constant-ema: {ADAM} lr=0.03 schedule=constant average=ema",
    "swa": f"swa: {ADAM} average=swa schedule={CONSTANT_AT_LAST}",
    "snapshots": f"snapshots: {ADAM} lr=0.03 schedule=restarts snapshots=3",
}
LIMITS, SPLIT = {"train": 4_000, "val": 200, "test": 20_000}, {"val": 0.04, "test": 0.4}


def train(source: str, arm: str, seed: int, answers: Path) -> dict[str, Any]:
    """Trains one run; returns its figures, and leaves its answers."""
    fields = parse(RECIPES[arm])[1]
    data = limited(tw.load(source, split_seed=0, quiet=True, **SPLIT), LIMITS, 0)
    with tempfile.TemporaryDirectory() as folder:
        run = tw.fit(data, out=Path(folder) / "run", quiet=True, save_seconds=1e9, threads=1, **fields | {"seed": seed})
        row: dict[str, Any] = {"seconds": run.result["seconds"], "kept": run.result["kept_weights"]}
        row |= {"favoured": favoured(run)}
        if arm == "snapshots":
            ensemble = tw.Ensemble(run.path)
            return row | figures(ensemble.result["ensemble"]) | {"kept": len(ensemble.members)}
        held = load_file(run.path / "evaluation.safetensors")
        np.savez(answers, **{name: value.numpy() for name, value in held.items()})
        return row | figures(calibration.scores(held["test_outputs"].double().numpy(), held["test_targets"].numpy()))


def favoured(run: tw.Run) -> str:
    """Returns which of a run's last weights validation favours: the higher accuracy, among equals the lower loss."""
    row, average = run.history[-1], run.recipe.average
    prefixes = {"raw": ""} | ({} if f"{average}_val_loss" not in row else {average: f"{average}_"})
    return max(prefixes, key=lambda w: (row[f"{prefixes[w]}val_accuracy"], -row[f"{prefixes[w]}val_loss"]))


def figures(found: dict[str, Any]) -> dict[str, float]:
    return {name: found[name]["value"] for name in ("accuracy", "log_loss", "brier_score", "calibration_error")}


def together(paths: list[Path]) -> list[dict[str, Any]]:
    """Returns the figures of the members whose answers are given: all of them, and those chosen, with a temperature."""
    held = [{name: torch.from_numpy(value) for name, value in np.load(path).items()} for path in paths]
    answers = [
        Answers(one["val_outputs"].double(), one["val_targets"], one["test_outputs"].double(), one["test_targets"],
                one["test_rows"], None)
        for one in held
    ]  # fmt: skip
    truth = answers[0].test_targets.numpy()
    kept, T = choose(answers, "arithmetic", "classification")
    everybody = combined([answer.test for answer in answers], "arithmetic")
    chosen = tempered(combined([answers[k].test for k in kept], "arithmetic"), T)
    name = f"members-{len(paths)}"
    return [
        {"arm": f"{name}-all", "kept": len(paths)} | figures(calibration.scores(everybody.numpy(), truth)),
        {"arm": name, "kept": len(kept)} | figures(calibration.scores(chosen.numpy(), truth)),
    ]


def main() -> None:
    options = arguments(__doc__).parse_args()
    folder = options.folder
    rows_at, answers = folder / "ensembles.csv", folder / "ensembles-answers"
    answers.mkdir(parents=True, exist_ok=True)
    rows = list(csv.DictReader(rows_at.open())) if rows_at.exists() else []
    done = {(row["arm"], int(row["seed"])) for row in rows}
    columns = ["arm", "seed", "member", "accuracy", "log_loss", "brier_score", "calibration_error", "seconds", "kept",
               "favoured"]  # fmt: skip

    def keep(row: dict[str, Any]) -> None:
        append(rows_at, row, columns)
        rows.append({name: str(value) for name, value in row.items()})
        print(f"{len(rows)} rows, the last: {row}", flush=True)

    wanted = [
        (arm, seed, member)
        for seed in range(options.seeds)
        for arm, member in [*((arm, 0) for arm in RECIPES), *(("single", member) for member in range(1, MOST))]
        if not any(row["arm"] == arm and int(row["seed"]) == seed and int(row["member"] or 0) == member for row in rows)
    ]

    def one(arm: str, seed: int, member: int) -> dict[str, Any]:
        path = answers / f"{arm}-{seed}-{member}.npz"
        return {"arm": arm, "seed": seed, "member": member} | train(options.source, arm, 100 * member + seed, path)

    for row in joblib.Parallel(n_jobs=options.jobs, return_as="generator_unordered")(
        joblib.delayed(one)(*task) for task in wanted
    ):
        keep(row)
    for seed in range(options.seeds):
        for count in range(2, MOST + 1):
            if (f"members-{count}", seed) not in done:
                for row in together([answers / f"single-{seed}-{member}.npz" for member in range(count)]):
                    keep({"seed": seed, "member": 0} | row)

    table(rows)
    wrong = [row for row in rows if row["favoured"] and row["arm"] != "snapshots" and row["kept"] != row["favoured"]]
    print(f"\naverages kept that validation did not favour: {len(wrong)}")


def table(rows: list[dict[str, str]]) -> None:
    """Prints means with intervals, and paired differences to a single run of the same seed."""
    first = [row for row in rows if int(row["member"] or 0) == 0]
    for figure in ("accuracy", "log_loss", "calibration_error"):
        print(f"\n{figure}: mean, 95 % interval, standard deviation; then the paired difference to single")
        by_arm: dict[str, dict[int, float]] = {}
        for row in first:
            by_arm.setdefault(row["arm"], {})[int(row["seed"])] = float(row[figure])
        for arm, values in by_arm.items():
            shared = sorted(values.keys() & by_arm["single"].keys())
            paired = mean_and_interval([values[seed] - by_arm["single"][seed] for seed in shared])
            print(f"  {arm:16} {mean_and_interval(list(values.values()))}  |  {paired}")
    print("\n" + json.dumps({"rows": len(rows)}))


if __name__ == "__main__":
    main()
