"""docs/experiments.md and its plots, from the settings files and cards in experiments/ alone.

Newest (by number) first: question, what was learnt, a table a condition; before them what a choice does: of all
rows the one that is best on two of the three generators, and what it does on the third; and what was asked and
reached.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lensborn.bench.plots import flagged_plot
from lensborn.bench.protocols import EQUALISED, PUBLISHED
from lensborn.bench.render import escaped, markdown_head, write

CONDITIONS = (PUBLISHED, EQUALISED)
PAGE = "experiments.md"
GENERATORS = ("stylegan1", "stylegan2", "sd2.1")
ALARMS = "alarms "  # begins the names of a summary's false alarms
ALPHAS = [round(0.05 * step, 2) for step in range(1, 20)]  # at which cards say how many are flagged

SHIPPED_KIND = "22-greater, five-all-and-trace"  # the row that is made as the shipped first channel is
SEVERAL = 3  # training seeds, of a row that may answer what was asked:
ASKED = (
    (EQUALISED, "mean AUC", ("mean",), 0.75),
    (EQUALISED, "the matched pair", ("matched",), 0.65),
    (EQUALISED, "every generator", GENERATORS, 0.6),
    (PUBLISHED, "mean AUC", ("mean",), 0.9),
)

Card = Mapping[str, Any]


def write_page(experiments: Path, docs: Path) -> None:
    """The page, and a plot for each settings file that names rows to `plot`."""
    found: dict[str, tuple[Mapping[str, Any], dict[str, Card]]] = {}
    for path in sorted(experiments.glob("*.toml"), reverse=True):
        asked = tomllib.loads(path.read_text())
        if cards := read(path, asked["rows"]):
            found[path.stem] = asked, cards
    lines = [(experiments / "head.md").read_text().rstrip("\n"), ""]
    every = {stem: cards for stem, (_, cards) in found.items()}
    lines += [*chosen(every), "", *reached(every), ""]
    for stem, (asked, cards) in found.items():
        lines += [f"## {stem}: {escaped(asked['question'])}", "", asked.get("learnt", "").strip(), ""]
        if "plot" in asked:
            name = f"experiments-{stem}.svg"
            flagged_plot(curves(cards, asked["plot"]), docs / name)
            lines += [f"![Share flagged over the nominal false alarms, by set]({name})", ""]
        for condition in CONDITIONS:
            lines += [*table(condition, cards), ""]
    write(docs, {PAGE: "\n".join(lines).rstrip("\n") + "\n"})


def card_of(path: Path, row: str) -> Path:
    """Where the card of a settings file's row lies."""
    return path.with_name(f"{path.stem}.{row}.json")


def read(path: Path, rows: Iterable[str]) -> dict[str, Card]:
    """The cards of a settings file by the names of their rows, in the order of the file."""
    cards = {name: card_of(path, name) for name in rows}
    return {name: json.loads(card.read_text()) for name, card in cards.items() if card.exists()}


def chosen(experiments: Mapping[str, Mapping[str, Card]]) -> list[str]:
    """For each generator, the row that is best on the two others, equalised: of all rows, and of those of several
    training seeds; and where the row of the shipped kind stands there."""
    cards = {
        f"{stem}, {name}": card
        for stem, rows in experiments.items()
        for name, card in rows.items()
        if set(GENERATORS) <= card.get("summary", {}).get(EQUALISED, {}).keys()
    }
    lines = markdown_head(
        *("left out", "rows to choose from", "best on the two others", "mean AUC there", "AUC left out"),
        *("alarms", f"rank of {escaped(SHIPPED_KIND)}: AUC there, left out"),
    )
    for among, seeds in (("all", 1), (f"those of {SEVERAL} training seeds", SEVERAL)):
        rows = {
            name: card["summary"][EQUALISED] for name, card in cards.items() if card.get("runs", 1) >= seeds
        }
        if rows:
            lines += _choices(f"{among}, {len(rows)}", rows)
    return lines


def _choices(among: str, rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A line for each generator left out, and one for their mean."""
    lines, left_out = [], []
    for third in GENERATORS:
        others = [name for name in GENERATORS if name != third]
        means = {name: float(np.mean([row[other] for other in others])) for name, row in rows.items()}
        best = max(means, key=lambda name: means[name])
        alarms = ", ".join(
            f"{key.removeprefix(ALARMS)} {100 * value:.0f} %"
            for key, value in rows[best].items()
            if key.startswith(ALARMS)
        )
        shipped = "-"
        if SHIPPED_KIND in rows:
            rank = 1 + sum(mean > means[SHIPPED_KIND] for mean in means.values())
            shipped = f"{rank}: {means[SHIPPED_KIND]:.3f}, {rows[SHIPPED_KIND][third]:.3f}"
        left_out.append(rows[best][third])
        lines.append(
            f"| {third} | {among} | {escaped(best)} | {means[best]:.3f} | {left_out[-1]:.3f} "
            f"| {alarms} | {shipped} |"
        )
    return [*lines, f"| mean | {among} | | | {np.mean(left_out):.3f} | | |"]


def reached(experiments: Mapping[str, Mapping[str, Card]]) -> list[str]:
    """What was asked of the first channel, and the row of three training seeds that is best at it."""
    several = {
        f"{stem}, {name}": card["summary"]
        for stem, cards in experiments.items()
        for name, card in cards.items()
        if "summary" in card and card.get("runs", 1) >= SEVERAL
    }
    lines = ["What was asked of the first channel, and the best mean of three training seeds:", ""]
    lines += markdown_head("asked", "at least", "best row", "its value")
    for condition, what, names, least in ASKED:
        values = {row: min(summary[condition][name] for name in names) for row, summary in several.items()}
        if values:
            best = max(values, key=lambda row: values[row])
            lines.append(f"| {condition}: {what} | {least:.2f} | {escaped(best)} | {values[best]:.3f} |")
    return lines


def table(condition: str, cards: Mapping[str, Card]) -> list[str]:
    """A line a row, with its failures."""
    found = [card["summary"][condition] for card in cards.values() if "summary" in card]
    keys = list(dict.fromkeys(key for one in found for key in one))
    lines = markdown_head(condition, *keys)
    for name, card in cards.items():
        if "error" in card:
            lines.append(f"| {escaped(name)} | failed: {escaped(card['error'])} |" + " |" * (len(keys) - 1))
            continue
        cells = (card["summary"][condition].get(key) for key in keys)
        lines.append(f"| {escaped(name)} | {' | '.join('-' if c is None else f'{c:.3f}' for c in cells)} |")
    return lines


def curves(cards: Mapping[str, Card], names: Sequence[str]) -> list[dict[str, Any]]:
    """Of some rows, equalised: the share of each set flagged over alpha, the mean over seeds."""
    found = []
    for name in names:
        mine = [row for row in cards[name]["rows"] if row["condition"] == EQUALISED and "flagged" in row]
        for of in dict.fromkeys(row["set"] for row in mine):
            runs = [row for row in mine if row["set"] == of]
            share = np.mean([row["flagged"] for row in runs], axis=0)
            what = {"panel": name, "set": of, "generated": runs[0]["generated"]}
            found += [
                {**what, "alpha": alpha, "flagged": float(s)} for alpha, s in zip(ALPHAS, share, strict=True)
            ]
    return found
