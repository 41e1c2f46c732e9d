"""A study as one HTML page that needs no other file and no network."""

import base64
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from genray import study_table
from genray.space import pairs
from genray.study import Settings, TrialRecord, confirmed, luck

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; height: auto; }
figure { margin: 2rem 0; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
th, td { border-bottom: 1px solid #ddd; padding: 0.25rem 0.6rem; text-align: left; vertical-align: top; }
"""
_ALT = {
    "history": "the score of every trial in order of end",
    "curves": "the score of every trial against its steps",
    "importance": "the share of each parameter in the order of the trials",
    "parallel": "the values of every trial as a line, coloured by its score",
    "population": "whose weights each member took over, and its values over the steps",
    "pareto": "two scores of every trial, and the front",
}


def html(settings: Settings, trials: Mapping[int, TrialRecord], pictures: Sequence[Path]) -> str:
    """The page: what was found, the pictures, every trial, the settings."""
    name = escape(settings.search.name)
    said = "".join(f"<p>{escape(line)}</p>\n" for line in study_table.summary(settings, trials, time.time()))
    shown = "".join(_figure(path) for path in pictures)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>Study {name}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Study {name}</h1>
{said}{_confirmation(settings, trials)}{shown}<h2>Trials</h2>
{_table(study_table.head(settings), study_table.rows(settings, trials))}
<h2>Settings</h2>
{_table(("field", "value"), _settings(settings))}
</body>
</html>
"""


def _confirmation(settings: Settings, trials: Mapping[int, TrialRecord]) -> str:
    found = study_table.confirmation(settings, trials)
    if not found:
        return ""
    table = _table(study_table.CONFIRMATION, found)
    return f"<h2>Confirmation over seeds</h2>\n{table}\n<p>{escape(luck(confirmed(trials)))}</p>\n"


def _figure(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img alt="{escape(_ALT[path.stem])}" src="data:image/png;base64,{data}"></figure>\n'


def _settings(settings: Settings) -> Iterable[tuple[str, str]]:
    values = settings.to_dict()
    for name, value in values["search"].items():
        if name != "space":
            yield f"search.{name}", study_table.fmt(value)
    for pair in pairs(settings.space):
        yield "space", pair
    for name, value in settings.config.flat().items():
        yield name, study_table.fmt(value)


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div><table>\n<tr>{head}</tr>\n{body}\n</table></div>"
