"""Coverage-guided fuzzing of everything that reads a file or a word: `make fuzz`, SECONDS=300.

What a reader takes in is bent until it reaches new code of genray; a reader that raises anything but
one of genray's own errors ends it, with the input in a file `crash-…`.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["genray"]):
    from genray.checkpoint import STATE, TENSORS, read
    from genray.config import Config
    from genray.errors import GenrayError
    from genray.evaluation.protocol import Protocol, Score
    from genray.evaluation.scoring import read_scores
    from genray.manifest import MANIFEST, seal, verify
    from genray.presets import PRESETS, preset
    from genray.search import parse_constraint
    from genray.snapshot import CARD, WEIGHTS, read_card
    from genray.space import space_of
    from genray.study import SETTINGS, Study
    from genray.tracking import read_journal

PLACE = Path(tempfile.mkdtemp(prefix="genray-fuzz-"))
PROTOCOL = Protocol(metric="fid", data="digits", split="test", data_digest="ab", num_samples=10, num_seeds=1)


def config(content: bytes) -> None:
    made = Config.from_dict(json.loads(content))
    assert Config.from_dict(made.to_dict()) == made


def protocol(content: bytes) -> None:
    made = Protocol.from_dict(json.loads(content))
    assert Protocol.from_dict(made.to_dict()) == made


def scores(content: bytes) -> None:
    (PLACE / "scores.json").write_bytes(content)
    read_scores(PLACE / "scores.json")


def journal(content: bytes) -> None:
    (PLACE / "train.jsonl").write_bytes(content)
    entries, end = read_journal(PLACE / "train.jsonl")
    assert len(entries) == content[:end].count(b"\n")


def manifest(content: bytes) -> None:
    (PLACE / "m").mkdir(exist_ok=True)
    (PLACE / "m" / MANIFEST).write_bytes(content)
    verify(PLACE / "m", ())


def state(content: bytes) -> None:
    def write(folder: Path) -> None:
        (folder / STATE).write_bytes(content)
        (folder / TENSORS).write_bytes(b"\x02\0\0\0\0\0\0\0{}")

    seal(PLACE / "c", write)
    read(PLACE / "c")


def card(content: bytes) -> None:
    (PLACE / CARD).write_bytes(content)
    read_card(PLACE / CARD)


def study(content: bytes) -> None:
    (PLACE / "s").mkdir(exist_ok=True)
    (PLACE / "s" / SETTINGS).write_bytes(content)
    Study.open(str(PLACE), "s")


def typed(content: bytes) -> None:
    text = content.decode(errors="ignore")
    for reader in (lambda: space_of({}, [text]), lambda: parse_constraint(text)):
        try:
            reader()
        except GenrayError:
            continue


READERS: tuple[Callable[[bytes], None], ...] = (
    config, protocol, scores, journal, manifest, state, card, study, typed,
)  # fmt: skip


def seeds() -> dict[Callable[[bytes], None], list[object]]:
    """Whole inputs to begin from."""
    configs = [preset(name).to_dict() for name in PRESETS]
    files = {"format": 1, "files": {WEIGHTS: "0" * 64}}
    return {
        config: list(configs),
        protocol: [PROTOCOL.to_dict()],
        scores: [{"format": 1, "scores": [Score("fid", 1.0, 0.1, PROTOCOL).to_dict()]}],
        journal: [
            {"time": 1, "step": 2, "metrics": {"a/b": "NaN"}},
            {"time": 1, "step": 2, "event": "e", "fields": {}},
        ],
        manifest: [files],
        state: [{"step": 1, "config": configs[0], "world_size": 1}],
        card: [{"format": 1, "config": configs[0], "image_shape": [1, 8, 8], "classes": [], "data": {"digest": "ab"}}],
        study: [{"format": 1}],
    }


def one(data: bytes) -> None:
    if not data:
        return
    try:
        READERS[data[0] % len(READERS)](data[1:])
    except GenrayError:
        return
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        if READERS[data[0] % len(READERS)] not in (config, protocol):  # these two are given what was read
            raise


def main() -> None:
    corpus = PLACE / "corpus"
    corpus.mkdir()
    for reader, wholes in seeds().items():
        for number, whole in enumerate(wholes):
            content = bytes([READERS.index(reader)]) + json.dumps(whole).encode() + b"\n"
            (corpus / f"{reader.__name__}-{number}").write_bytes(content)
    for number, text in enumerate((b"optim.lr=log 1e-4 1e-2", b"recall>=0.4", b"a=choice 1 2")):
        (corpus / f"typed-{number}").write_bytes(bytes([READERS.index(typed)]) + text)
    atheris.Setup([sys.argv[0], *sys.argv[1:], "-max_len=20000", str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
