"""What helps: fine-tune real weights with each noise and several seeds; one JSON line a run.

    python tests/benchmarks/study/run.py --model MODEL --data DATA --arms core --jobs 2
    python tests/benchmarks/study/run.py --model MODEL --data DATA --again commongen-600/none/0

Runs whose line is in the file already are left out, so it goes on where it stopped. `--again` makes
a run again from its line, and says whether the weights are equal, bit for bit.
"""

import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import click
import yaml
from comparisons import RESULTS, read

HERE = Path(__file__).resolve().parent
PARTS = ("arguments", "noise", "sparsity", "model", "lora")
TIMES = ("training_seconds", "seconds")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # glibc gives the pages of a large tensor back each time, which costs a third of a step. The
    # largest, as the logits of long rows, it must give back: else the memory is used up.
    "MALLOC_MMAP_THRESHOLD_": "134217728",
    "MALLOC_TRIM_THRESHOLD_": "34359738368",
}


def settings_of(
    study: dict[str, Any], task: str, arm: str, seed: int, threads: int
) -> dict[str, Any]:
    """Every setting of a run: what all have, then the task's, then the arm's."""
    settings: dict[str, Any] = {
        "name": f"{task}/{arm}/{seed}",
        "task": task,
        "arm": arm,
        "seed": seed,
        "threads": threads,
    }
    for given in (study["every_run"], study["tasks"][task], study["arms"][arm]):
        for key, value in given.items():
            settings[key] = settings.get(key, {}) | value if key in PARTS else value
    return settings


def write_rows(*arguments: Any) -> None:
    """The rows of a task, before two runs want them at once."""
    import tasks

    tasks.write_rows(*arguments)


def train_here(*arguments: Any) -> dict[str, Any]:
    """One run, in a process of its own."""
    from training import train

    return train(*arguments)


@click.command()
@click.option("--model", required=True, help="Folder of the model.")
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--work", default="runs/study", type=click.Path(path_type=Path), help="For rows.")
@click.option("--output", default=RESULTS, type=click.Path(path_type=Path), help="JSON lines.")
@click.option("--study", default=HERE / "arms.yaml", type=click.Path(path_type=Path))
@click.option("--task", "tasks", multiple=True, default=["commongen-600"], show_default=True)
@click.option("--arms", multiple=True, help="Arms, or groups of them.")
@click.option("--seeds", default=4, show_default=True, help="How many seeds each arm has.")
@click.option("--first-seed", default=0, show_default=True)
@click.option("--jobs", default=1, show_default=True, help="Runs at a time.")
@click.option("--threads", default=1, show_default=True, help="Threads of a run.")
@click.option("--keep", is_flag=True, help="Save the models under WORK/runs, for `neft report`.")
@click.option("--again", multiple=True, help="Make the run of this name again from its line.")
def main(
    model: str,
    data: Path,
    work: Path,
    output: Path,
    study: Path,
    tasks: tuple[str, ...],
    arms: tuple[str, ...],
    seeds: int,
    first_seed: int,
    jobs: int,
    threads: int,
    keep: bool,
    again: tuple[str, ...],
) -> None:
    """Train the arms that have no line yet, and append a line for each."""
    done = {line["name"]: line for line in read(output)} if output.exists() else {}
    if again:
        unknown = sorted({*again} - {*done})
        if unknown:
            raise click.BadParameter(f"{output} has no run of the name {', '.join(unknown)}.")
        made = run([done[name]["settings"] for name in again], jobs, model, data, work, keep)
        others = [line for line in made if differs(line, done[line["name"]])]
        sys.exit(bool(others))
    given = yaml.safe_load(study.read_text(encoding="utf-8"))
    chosen = [arm for name in arms for arm in given["groups"].get(name, [name])]
    for names, known in ((tasks, given["tasks"]), (chosen, given["arms"])):
        unknown = sorted({*names} - {*known})
        if unknown:
            raise click.BadParameter(f"{study} has no {', '.join(unknown)}.")
    todo = [
        settings_of(given, task, arm, seed, threads)
        for task in tasks
        for seed in range(first_seed, first_seed + seeds)
        for arm in dict.fromkeys(chosen)
        if f"{task}/{arm}/{seed}" not in done
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    run(todo, jobs, model, data, work, keep, output)


def differs(made: dict[str, Any], line: dict[str, Any]) -> bool:
    """Whether a run that was made again is another; in what is printed."""
    keys = [key for key in made if made[key] != line[key] and key not in ("commit", *TIMES)]
    print(f"{made['name']}: " + (f"differs in {', '.join(keys)}" if keys else "the same"))
    return bool(keys)


def run(
    todo: list[dict[str, Any]],
    jobs: int,
    model: str,
    data: Path,
    work: Path,
    keep: bool,
    output: Path | None = None,
) -> list[dict[str, Any]]:
    """The lines of runs, each appended to a file as soon as there is one."""
    os.environ.update(ENVIRONMENT)  # of the processes below
    lines = []
    sets = {(settings["data"], settings["rows"]) for settings in todo}
    context = multiprocessing.get_context("forkserver")
    # What every run imports, once for all.
    context.set_forkserver_preload(["peft", "transformers.trainer", "trl.trainer.sft_trainer"])
    with ProcessPoolExecutor(jobs, context, max_tasks_per_child=1) as pool:
        for name, count in sorted(sets):
            folder = work / "rows" / f"{name}-{count}"
            pool.submit(write_rows, folder, name, count, data, model).result()
        runs = [pool.submit(train_here, settings, model, work, keep) for settings in todo]
        for finished in as_completed(runs):
            try:
                line = finished.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            lines.append(line)
            losses = [f"{one['test_loss']:.3f}" for one in line["evaluations"]]
            print(f"{line['name']}: test loss {' '.join(losses)}, {line['seconds']} s", flush=True)
            if output is not None:
                with output.open("a") as file:
                    file.write(json.dumps(line, separators=(",", ":")) + "\n")
    return lines


if __name__ == "__main__":
    main()
