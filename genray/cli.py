"""The `genray` command."""

import dataclasses
import json
import os
import select
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from genray import cli_classify, cli_fit, cli_generate, cli_handover, cli_results, cli_sample, cli_study, snapshot
from genray.config import Config, Data, Eval
from genray.errors import ConfigError, GenrayError, unknown
from genray.paths import base_directory, keep_private, resolved
from genray.presets import PRESETS, expectation, preset
from genray.search import Search
from genray.space import space_of
from genray.spaces import SPACES
from genray.study import Settings

FLAGS = (tyro.conf.FlagConversionOff,)


def parse_run(args: Sequence[str], prog: str) -> tuple[Config, bool]:
    """The config that `PRESET [--section.field VALUE ...] [--dry-run]` describes, and whether it is a dry run.

    Raises:
        ConfigError: the preset, a field or a value is wrong.
    """
    config, _, dry_run = parse_sections(args, prog, {})
    return config, dry_run


def parse_sections(args: Sequence[str], prog: str, extra: Mapping[str, Any]) -> tuple[Config, dict[str, Any], bool]:
    """As `parse_run`, with further sections beside those of the config.

    Args:
        args: of the command line.
        prog: name of the command.
        extra: further sections by name, at their defaults.

    Raises:
        ConfigError: the preset, a field or a value is wrong.
    """
    names = [arg for arg in args if not arg.startswith("-")][:1]
    if not names or args[0] != names[0]:
        if "-h" in args or "--help" in args:
            usage = f"usage: {prog} PRESET [--section.field VALUE ...] [--dry-run]"
            print(f"{usage}\n\npresets: {', '.join(PRESETS)}\nfields:  {prog} PRESET --help")  # noqa: T201
            raise SystemExit(0)
        raise ConfigError(f"no preset given; use {prog} PRESET [--section.field VALUE ...] with one of {list(PRESETS)}")
    default = preset(args[0])
    rest = [arg for arg in args[1:] if arg != "--dry-run"]
    _check_fields(rest, default, extra)
    own = {f.name: getattr(default, f.name) for f in dataclasses.fields(default)}
    sections = own | dict(extra)
    # one class a run: the model and objective sections have the fields of this preset's
    shape = dataclasses.make_dataclass(
        "Sections",
        [(name, type(value), dataclasses.field(default=value)) for name, value in sections.items()],
        kw_only=True,
    )
    parsed: Any = tyro.cli(
        shape, args=rest, prog=f"{prog} {args[0]}", description=expectation(args[0]).summary, config=FLAGS
    )
    config = Config(**{name: getattr(parsed, name) for name in own})
    return config, {name: getattr(parsed, name) for name in extra}, "--dry-run" in args


def _check_fields(args: Sequence[str], default: Config, extra: Mapping[str, Any]) -> None:
    fields = {f"{name}.{f.name}" for name, section in extra.items() for f in dataclasses.fields(section)}
    known = {name.replace("_", "-") for name in {*default.flat(), *fields}} | {"help", "h"}
    for arg in args:
        name = arg.partition("=")[0]
        if name.startswith("--") and name[2:].replace("_", "-") not in known:
            raise ConfigError(unknown("field", name[2:], known - {"help", "h"}))


def train(args: Sequence[str], prog: str = "genray train") -> int:
    """Trains a preset: tracked, scored, registered; joins RAY_ADDRESS, or starts Ray on this machine.

    PRESET --from-trial STUDY/TRIAL [--storage DIR] does a trial of a search again, alone. The exit status is 0
    when all steps are done, and 3 when a health rule has stopped the run.
    """
    config, dry_run = (cli_study.parse_again if cli_study.is_again(args) else parse_run)(args, prog)
    from genray import ray_job

    config = resolved(config)
    if dry_run:
        print(json.dumps(ray_job.plan(config), indent=2))  # noqa: T201
        return 0
    return ray_job.run(config).exit_code


def search(args: Sequence[str], prog: str = "genray search") -> int:
    """Searches for the best values of a preset, confirms them over seeds, and lets the best compete.

    The same command after an interruption goes on where the study was.
    """
    config, extra, dry_run = parse_sections(args, prog, {"search": Search()})
    from genray import ray_study

    config = resolved(config)
    asked: Search = extra["search"]
    asked = dataclasses.replace(asked, name=asked.name or f"{config.run.name}-study")
    settings = Settings(config, asked, space_of(SPACES.get(args[0], {}), asked.space))
    if dry_run:
        print(json.dumps(ray_study.plan(settings), indent=2))  # noqa: T201
        return 0
    ray_study.run(settings)
    return 0


def presets(args: Sequence[str]) -> int:
    """The presets: what they train, and what to expect."""
    tyro.cli(_Nothing, args=args, prog="genray presets", description=presets.__doc__)
    table = Table("name", "data", "model", "hardware", "time", "expected score")
    for name in PRESETS:
        config, expect = preset(name), expectation(name)
        table.add_row(
            name, config.data.name, config.to_dict()["model"]["name"], expect.hardware, expect.time, expect.score
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 0


@dataclass(frozen=True)
class _Nothing:
    pass


@dataclass(frozen=True)
class Evaluate:
    """Scores a model, or a folder of images; prints the table, writes it as JSON, and notes it in MLflow.

    A model of the registry is noted in any case, as a run of its own; a folder where --uri or
    $MLFLOW_TRACKING_URI says where.
    """

    model: tyro.conf.Positional[str]
    """NAME@ALIAS, NAME/VERSION, a snapshot folder, or a folder of PNG or JPEG images of one size, which may lie in
    one folder a class."""
    data: str | None = None
    """Data set to compare with, for a folder of images. None: that of the model's run."""
    image_size: tuple[int, int] | None = None
    """Height and width of its images. None: the set's own, or that of the model's run."""
    metrics: tuple[str, ...] = ()
    """Names of metrics besides the first, or all. None named: the cheap ones; with --card all."""
    protocol: Path | None = None
    """JSON file of --out whose metrics and protocols are followed; other protocols are refused. None: the run's."""
    extractor: str | None = None
    """What gives features: NAME@ALIAS or a snapshot folder of a classifier, or KIND:PATH of weights, e.g.
    resnet18:weights.pth, inception-v3:…, torchscript:…, exported:…, fid-inception:….
    None: DATASET-classifier@champion."""
    split: str | None = None
    """Split of the data to compare with. None: what the run's config says, or test."""
    root: str | None = None
    """Folder of the data set's files. None: where the run had them, or $GENRAY_DATA."""
    num_samples: int | None = None
    """Images generated per seed. None: what the run's config says."""
    num_seeds: int | None = None
    """Times the score is taken, with other latents. None: what the run's config says."""
    out: Path | None = None
    """JSON file for the scores, each with its protocol."""
    card: Path | None = None
    """Folder for the score card: all metrics that fit as JSON and as a Markdown table, and a picture of samples, each
    beside the training images nearest to it."""
    uri: str | None = None
    """MLflow server or database. None: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."""


@dataclass(frozen=True)
class Promote:
    """Makes a version champion of its name, if it beats the present one under the same protocol."""

    model: tyro.conf.Positional[str]
    """NAME (its candidate), NAME@ALIAS or NAME/VERSION."""
    extractor: str | None = None
    """Classifier whose features are compared. None: DATASET-classifier@champion."""
    root: str | None = None
    """Folder of the data set's files. None: where the run had them, or $GENRAY_DATA."""
    uri: str | None = None
    """MLflow server or database. None: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."""


@dataclass(frozen=True)
class Pull:
    """Copies a registered model here, checked against its digests; runs nothing that it carries."""

    model: tyro.conf.Positional[str]
    """NAME@ALIAS or NAME/VERSION."""
    to: Path
    """Folder to make."""
    uri: str | None = None
    """MLflow server or database. None: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."""


@dataclass(frozen=True)
class Doctor:
    """Looks at everything a run needs: each line OK, or what to do."""

    fix: bool = False
    """Free placement groups that ended jobs have left behind on the cluster of RAY_ADDRESS."""
    root: str | None = None
    """Folder of the data sets. None: $GENRAY_DATA."""
    uri: str | None = None
    """MLflow server or database. None: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."""


def evaluate(args: Sequence[str], prog: str = "genray evaluate") -> int:
    """Scores a registry model, a snapshot, or a folder of images."""
    asked = tyro.cli(Evaluate, args=args, prog=prog)
    from genray import mlflow_evaluate
    from genray.evaluation.scoring import write_scores

    values = {f.name: getattr(asked, f.name) for f in dataclasses.fields(asked) if f.name not in ("out", "uri")}
    log = bool(asked.uri or os.environ.get("MLFLOW_TRACKING_URI"))
    scores = mlflow_evaluate.evaluate(mlflow_evaluate.Request(**values), _tracking(asked.uri), log=log)
    table = Table("metric", "value", "spread", "protocol")
    for score in scores:
        table.add_row(score.metric, f"{score.value:.4f}", f"{score.spread:.4f}", score.protocol.digest[:12])
    Console().print(table)
    if asked.out:
        write_scores(asked.out, scores)
    return 0


def promote(args: Sequence[str]) -> int:
    """Makes a version champion, if it is better."""
    asked = tyro.cli(Promote, args=args, prog="genray promote")
    from genray import mlflow_champion

    uri = _tracking(asked.uri)
    reference = asked.model if "@" in asked.model or "/" in asked.model else f"{asked.model}@candidate"
    with mlflow_champion.local_snapshot(reference, uri) as directory:
        data, settings = _scoring(directory, asked.root, asked.extractor)
        with mlflow_champion.extractor_for(directory, uri, data, settings) as extractor:
            decision = mlflow_champion.promote(uri, reference, data, settings, extractor)
    print(decision.reason)  # noqa: T201
    return 0


def pull(args: Sequence[str]) -> int:
    """Copies a registered model here."""
    asked = tyro.cli(Pull, args=args, prog="genray pull")
    from genray import mlflow_registry

    print(mlflow_registry.pull(_tracking(asked.uri), asked.model, asked.to))  # noqa: T201
    return 0


def doctor(args: Sequence[str]) -> int:
    """Looks at everything a run needs."""
    asked = tyro.cli(Doctor, args=args, prog="genray doctor")
    from genray import ray_doctor

    return ray_doctor.examine(root=asked.root, uri=asked.uri, fix=asked.fix)


def _tracking(uri: str | None) -> str:
    from genray import mlflow_tracking

    return mlflow_tracking.resolve_uri(uri, base_directory())


def _scoring(directory: Path, root: str | None, extractor: str | None) -> tuple[Data, Eval]:
    """Reference images and protocol of a snapshot: those of its run, with what the user said otherwise."""
    config = snapshot.load(directory).config
    data = dataclasses.replace(config.data, root=root or os.environ.get("GENRAY_DATA") or config.data.root)
    return data, dataclasses.replace(config.eval, extractor=extractor)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "presets": presets,
    "train": train,
    "study": cli_study.study,
    "search": search,
    "evaluate": evaluate,
    "results": cli_results.results,
    "promote": promote,
    "pull": pull,
    "export": cli_handover.export,
    "import": cli_handover.bring,
    "sample": cli_sample.sample,
    "fit": cli_fit.fit,
    "classify": cli_classify.classify,
    "generate": cli_generate.generate,
    "doctor": doctor,
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs `genray COMMAND ...`; the exit status.

    0 done, 1 refused or failed, 2 not understood, 3 trained until a health rule stopped the run, 130 interrupted.
    """
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        lines = [f"  {name:9} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
        print("usage: genray COMMAND ...\n\n" + "\n".join(lines) + "\n\ngenray COMMAND --help says more")  # noqa: T201
        return 0 if args else 2
    return guarded(lambda: _dispatch(args[0], args[1:]))


def _dispatch(name: str, rest: Sequence[str]) -> int:
    if name not in COMMANDS:
        raise ConfigError(unknown("command", name, COMMANDS))
    return COMMANDS[name](rest)


def guarded(command: Callable[[], int]) -> int:
    """The exit status of `command`; an error of ours becomes one line on stderr, the last of the output."""
    keep_private()
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _unread():
            raise  # another pipe, or a connection
        # nobody reads on, as behind `| head`; what is left to print goes nowhere, so that Python's exit is quiet, too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except GenrayError as error:
        if os.environ.get("GENRAY_TRACEBACK"):
            raise
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)  # noqa: T201
        return 130


def _unread() -> bool:
    """Whether whoever was to read the standard output has gone."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
