"""Made-up studies: folders as a search leaves them, without a search."""

import json
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from genray.config import Config
from genray.presets import preset
from genray.search import Search
from genray.space import space_of
from genray.spaces import SPACES
from genray.study import TRIALS, Settings, Study, trial_name

BEGIN = 1_700_000_000_000
HOUR = 3_600_000


def settings_of(storage: Path, name: str = "made", preset_name: str = "digits-dcgan", **search: Any) -> Settings:
    """Settings of a study of a preset with its own space."""
    config = preset(preset_name)
    config = replace(config, run=replace(config.run, storage=str(storage)))
    return Settings(config, Search(name=name, **search), space_of(SPACES[preset_name], search.get("space", ())))


def journal(study: Study, *events: tuple[float, int, str, Mapping[str, Any]]) -> None:
    """Appends (hours, trial, event, fields) to the study's journal."""
    with (study.folder.local / "study.jsonl").open("a") as file:
        for at, number, event, fields in events:
            entry = {"time": BEGIN + int(at * HOUR), "step": number, "event": event, "fields": fields}
            file.write(json.dumps(entry) + "\n")


def started(at: float, number: int, values: Mapping[str, Any], of: int | None = None) -> tuple[Any, ...]:
    phase = "race" if of is None else "confirm"
    return at, number, "started", {"values": values, "phase": phase} | ({} if of is None else {"of": of})


def report(at: float, number: int, step: int, *objective: float) -> tuple[Any, ...]:
    said = ["Infinity" if math.isinf(value) else value for value in objective]
    return at, number, f"report/{step}", {"objective": said, "metrics": {}}


def keep_config(study: Study, number: int, values: Mapping[str, Any], **changes: Any) -> Config:
    """Writes the config that a trial's run records."""
    config = study.settings.trial_config(number, values, "race")
    folder = study.folder.local / TRIALS / trial_name(number)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return config


def fid_of(values: Mapping[str, Any]) -> float:
    """A landscape on which the learning rate alone matters."""
    return 2 + 3 * (math.log10(values["optim.lr"]) + 3) ** 2


def raced(storage: Path, num: int, preset_name: str = "digits-dcgan", seed: int = 0, **search: Any) -> Study:
    """A study of `num` trials under ASHA: most pruned, some stopped, one failed, the last still running."""
    study = Study.claim(settings_of(storage, preset_name=preset_name, num_trials=num, **search))
    source, steps = random.Random(seed), study.settings.config.train.num_steps
    two = len(search.get("metric", ())) > 1
    for number, values in enumerate(study.settings.points()):
        at = 0.1 * number
        journal(study, started(at, number, values))
        final = fid_of(values) * source.lognormvariate(0, 0.1)
        rungs = steps if number % 3 == 0 or final < 2.3 else steps // source.choice((3, 9))
        for step in range(steps // 10, steps + 1, steps // 10):
            if step > rungs or (number == num - 1 and step > steps // 2):
                break
            at += 0.02
            value = final * (1 + 4 * math.exp(-4 * step / steps)) * source.lognormvariate(0, 0.03)
            if number % 16 == 5:
                value = math.inf if step > steps // 5 else 900.0
            both = (value, -1 / (1 + value * source.lognormvariate(0, 0.4))) if two else (value,)
            journal(study, report(at, number, step, *both))
        if number % 16 == 7:
            journal(study, (at, number, "failed", {"reason": "ConfigError: <b>broke</b> & [bold]fell[/bold]"}))
        elif number % 16 == 5:
            journal(study, (at, number, "stopped", {"reason": "score rule: fid 900 above 1.5 times its best"}))
        elif number < num - 1:
            done = rungs == steps
            journal(study, (at, number, "finished" if done else "pruned", {} if done else {"reason": "rung of asha"}))
    return study


def population(storage: Path, num: int = 4) -> Study:
    """A population whose worst member takes over the weights of the best at two steps."""
    study = Study.claim(settings_of(storage, num_trials=num, scheduler="pbt"))
    source, steps = random.Random(1), study.settings.config.train.num_steps
    values = dict(enumerate(study.settings.points()))
    level = {n: 8.0 + 3 * n for n in values}
    for number in values:
        journal(study, started(0, number, values[number]))
    for step in range(steps // 10, steps + 1, steps // 10):
        for number in values:
            level[number] *= 0.8 if number == 0 else 0.9
            journal(study, report(step / steps, number, step, level[number] * source.lognormvariate(0, 0.02)))
        if step in (3 * steps // 10, 6 * steps // 10):
            best, worst = min(level, key=level.__getitem__), max(level, key=level.__getitem__)
            level[worst] = level[best]
            values[worst] = values[best] | {"optim.lr": values[best]["optim.lr"] * source.choice((0.8, 1.2))}
            fields = {"donor": best, "values": values[worst]}
            journal(study, (step / steps, worst, f"exploit/{step}", fields))
    for number in values:
        journal(study, (1.1, number, "finished", {}))
    return study
