"""The tables of docs/known.md, of the README and of the card, from the rows that `known_rows.py` measured."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from known_looks import LEVELS, SCORES, SIDE
from known_rows import ALPHA, SHOWN, Row

from lensborn.bench.plots import reliability_plot
from lensborn.bench.render import markdown_head, write_block
from lensborn.bundle import KnownPart
from lensborn.delivery import SIDES


def write_page(rows: Sequence[Row], page: Path) -> None:
    """The tables between the marks of a page, and reliability.svg beside it."""
    for section, text in (
        ("auc", tables(rows)),
        ("unseen", unseen_table(rows)),
        ("unseen-damage", unseen_damage_table(rows)),
        ("margins", margins_table(rows)),
        ("unseen-pairs", unseen_pairs_table(rows)),
        ("signs", signs_table(rows)),
        ("conditional", conditional_table(rows)),
        ("damage", damage_table(rows)),
        ("taught", taught_table(rows)),
    ):
        write_block(page, section, text)
    mine = [row for row in rows if row["table"] == "reliability" and row["condition"] != "published"]
    reliability_plot(means_of(mine, ("kind", "bin"), ("given", "was")), page.with_name("reliability.svg"))


def means_of(rows: Sequence[Row], keys: Sequence[str], values: Sequence[str]) -> list[Row]:
    """Rows of equal `keys` as one: means of `values`, the number of `runs`, and the range of the first value."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [
        {
            **members[0],
            **{
                value: float(np.mean([row[value] for row in members]))
                for value in values
                if all(value in row for row in members)
            },
            "runs": len(members),
            "low_run": min(row.get(values[0], np.nan) for row in members),
            "high_run": max(row.get(values[0], np.nan) for row in members),
        }
        for members in groups.values()
    ]


def by_channel(rows: Sequence[Row], keys: Sequence[str]) -> dict[tuple[Any, ...], dict[str, Row]]:
    """Rows of equal `keys`, in their order, each by its channel."""
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), {})[row["channel"]] = row
    return found


def tables(rows: Sequence[Row]) -> str:
    """AUC and shares flagged, in Markdown: means over the runs that left out the same generator."""
    lines = []
    for condition in _conditions(rows):
        mine = [row for row in rows if row.get("condition") == condition]
        aucs = means_of(
            [row for row in mine if row["table"] == "auc"],
            ("channel", "set", "against"),
            ("value", "low", "high"),
        )
        lines += [f"### {condition}", "", "AUC of the generator left out:", ""]
        lines += markdown_head("left out", "n", "against", "n", "one-class", "known", "fused")
        for (name, against), cells in by_channel(aucs, ("set", "against")).items():
            known = cells["known"]
            values = " | ".join(_cell(cells[channel]) for channel in SCORES)
            lines.append(f"| {name} | {known['n']} | {against} | {known['n_against']} | {values} |")
        means = _mean_values([row for row in aucs if "+" in row["against"]])
        lines.append(f"| **mean** | | together | | {means} |")
        flagged = [row for row in mine if row["table"] == "flagged"]
        lines += [
            "",
            f"Flagged at a nominal {100 * ALPHA:g} %, of the generator left out and of photographs:",
            "",
        ]
        lines += markdown_head("pictures", "left out", "n", "one-class", "known", "verdict")
        shares = means_of(flagged, ("channel", "set", "left_out"), ("value", "low", "high"))
        for (name, left_out), cells in by_channel(shares, ("set", "left_out")).items():
            values = " | ".join(_cell(cells[channel]) for channel in LEVELS)
            shown = f"**{name}**" if name == left_out else name
            lines.append(f"| {shown} | {left_out} | {cells['known']['n']} | {values} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def unseen_table(rows: Sequence[Row]) -> str:
    """Shares flagged of photographic sets, left out and not, in Markdown: means over channels."""
    unseen = [row for row in rows if row["table"] == "unseen"]
    names = sorted({row["set"] for row in unseen})
    some = [{**row, "shown": SHOWN[1]} for row in rows if row["table"] == "flagged" and row["set"] in names]
    keys = ("condition", "set", "shown")
    shares = by_channel(means_of(unseen + some, (*keys, "channel"), ("value", "low", "high")), keys)
    lines = markdown_head(
        "condition", "photographs", "shown", "channels", "n", "one-class", "known", "verdict"
    )
    for condition, name, shown in product(_conditions(rows), names, SHOWN):
        cells = shares[condition, name, shown]
        known = cells["known"]
        values = " | ".join(_cell(cells[channel]) for channel in LEVELS)
        lines.append(f"| {condition} | {name} | {shown} | {known['runs']} | {known['n']} | {values} |")
    return "\n".join(lines)


def unseen_damage_table(rows: Sequence[Row]) -> str:
    """Shares flagged of photographic sets left out, after damage, in Markdown."""
    mine = [row for row in rows if row["table"] == "unseen-damage"]
    lines = markdown_head("step", "photographs", "n", "unsure", *LEVELS)
    shares = means_of(mine, ("step", "set", "channel"), ("value", "low", "high", "unsure"))
    for (step, name), cells in by_channel(shares, ("step", "set")).items():
        verdict = cells["verdict"]
        values = " | ".join(_cell(cells[channel]) for channel in LEVELS)
        lines.append(f"| {step} | {name} | {verdict['n']} | {100 * verdict['unsure']:.1f} % | {values} |")
    return "\n".join(lines)


def margins_table(rows: Sequence[Row]) -> str:
    """What the verdict flags of what was left out, with several margins, in Markdown: means over channels."""
    mine = [row for row in rows if row["table"] == "margins"]
    photographs = {row["set"] for row in rows if row["table"] == "unseen"}
    names = sorted({row["set"] for row in mine}, key=lambda name: (name not in photographs, name))
    keys = ("condition", "margin", "set")
    found = {tuple(row[key] for key in keys): row["value"] for row in means_of(mine, keys, ("value",))}
    lines = markdown_head("condition", "margin", *names)
    for condition, margin in dict.fromkeys((row["condition"], row["margin"]) for row in mine):
        shares = " | ".join(f"{100 * found[condition, margin, name]:.1f} %" for name in names)
        lines.append(f"| {condition} | {margin:g} | {shares} |")
    return "\n".join(lines)


def unseen_pairs_table(rows: Sequence[Row]) -> str:
    """AUC where generator and photographs were left out, in Markdown."""
    unseen = [row for row in rows if row["table"] == "unseen auc"]
    lines = markdown_head("condition", "generator", "n", "photographs", "n", "one-class", "known", "fused")
    for condition in _conditions(unseen):
        mine = [row for row in unseen if row["condition"] == condition]
        pairs = by_channel(mine, ("set", "against"))
        for (name, against), cells in pairs.items():
            known = cells["known"]
            values = " | ".join(_short(cells[channel]) for channel in SCORES)
            lines.append(
                f"| {condition} | {name} | {known['n']} | {against} | {known['n_against']} | {values} |"
            )
        lines.append(f"| {condition} | **mean of {len(pairs)} pairs** | | | | {_mean_values(mine)} |")
    return "\n".join(lines)


def _conditions(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["condition"] for row in rows if "condition" in row))


def signs_table(rows: Sequence[Row]) -> str:
    """Either sign by itself and the greater of the two, equalised, in Markdown: means over runs."""
    mine = [row for row in rows if row["table"] == "signs" and row["condition"] != "published"]
    names = list(dict.fromkeys(row["left_out"] for row in mine))
    found = {(row["way"], row["left_out"]): row for row in means_of(mine, ("way", "left_out"), ("value",))}
    lines = markdown_head(f"{SIDE} px, AUC of the generator left out", *names, "mean")
    for way in dict.fromkeys(row["way"] for row in mine):
        values = [found[way, name]["value"] for name in names]
        lines.append(f"| {way} | {' | '.join(f'{v:.3f}' for v in values)} | {np.mean(values):.3f} |")
    return "\n".join(lines)


def conditional_table(rows: Sequence[Row]) -> str:
    """Three calibrations side by side, in Markdown: false alarms by set, means over all runs."""
    mine = [row for row in rows if row["table"] == "conditional"]
    lines = markdown_head(
        "condition", "channel", "photographs", "corpus alone", "as shipped", "given delivery"
    )
    shares = means_of(mine, ("condition", "channel", "way", "set"), ("value", "auc", "explained"))
    keys = dict.fromkeys((row["condition"], row["channel"], row["set"]) for row in shares)
    for key in keys:
        cells = [row for row in shares if (row["condition"], row["channel"], row["set"]) == key]
        values = " | ".join(f"{100 * row['value']:.1f} %, {row['auc']:.3f}" for row in cells)
        lines.append(f"| {' | '.join(key)} | {values} |")
    explained = means_of(mine, ("condition", "channel"), ("explained",))
    said = ", ".join(f"{row['channel']} {row['condition']} {row['explained']:.2f}" for row in explained)
    return "\n".join(
        [*lines, "", f"Share of a score's variance on photographs that delivery explains: {said}."]
    )


def damage_table(rows: Sequence[Row]) -> str:
    """What is too small or too damaged for a verdict, or flagged, in Markdown: means over the runs that left out
    the same generator, and their range."""
    mine = [row for row in rows if row["table"] == "damage"]
    columns = {
        "photographs unsure": "unsure_real",
        "generated unsure": "unsure_fake",
        "photographs flagged": "flagged_real",
        "of the set with most": "flagged_most",
        "generated flagged": "flagged_fake",
    }
    lines = markdown_head("step", "left out", *columns, "AUC of the known channel")
    keys = ("step", "left_out")
    shares = [means_of(mine, keys, (key,)) for key in columns.values()]
    for row, *each in zip(means_of(mine, keys, ("value", "low", "high")), *shares, strict=True):
        cells = " | ".join(_share(one, key) for one, key in zip(each, columns.values(), strict=True))
        auc = _cell(row) if "value" in row else "too few"
        lines.append(f"| {row['step']} | {row['left_out']} | {cells} | {auc} |")
    return "\n".join(lines)


def taught_table(rows: Sequence[Row]) -> str:
    """What a lesson brings, in Markdown: means over the runs that left out the same generator."""
    mine = [row for row in rows if row["table"] == "taught"]
    lines = markdown_head("taught", "AUC of", "n", "before", "after", "seconds")
    for row in means_of(mine, ("left_out", "set"), ("value", "low", "high", "before", "seconds")):
        name = f"**{row['set']}**" if row["taught"] else row["set"]
        lines.append(
            f"| {row['left_out']} ({row['pictures']} pictures) | {name} | {row['n']} | {row['before']:.3f} | "
            f"{_cell(row)} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def aucs_together(rows: Sequence[Row]) -> list[Row]:
    """AUC of each generator left out against all photographs together: means over runs."""
    mine = [row for row in rows if row["table"] == "auc" and "+" in row["against"]]
    return means_of(mine, ("condition", "channel", "set"), ("value", "low", "high"))


def readme_table(rows: Sequence[Row], model: str, sha256: str) -> str:
    """The README's table of the known channel, in Markdown."""
    channels = len({row["seed"] for row in rows if row["table"] == "auc"})
    lines = [
        f"Model `{model}`, sha256 `{sha256[:16]}…`; its known channel was shown all three generators. Here each is "
        f"left out in turn, by channels made alike; means of {channels} channels, 95 % intervals; by "
        "`tools/known.py`; more in [docs/known.md](docs/known.md).",
        "",
        *markdown_head(
            *("protocol", "generator left out"),
            *("AUC, first channel", "AUC, known channel", "AUC, both", "found at 5 %"),
        ),
    ]
    aucs = aucs_together(rows)
    found = means_of(
        [
            row
            for row in rows
            if row["table"] == "flagged" and row["set"] == row["left_out"] and row["channel"] == "verdict"
        ],
        ("condition", "channel", "set"),
        ("value", "low", "high"),
    )
    cells = {(row["condition"], row["channel"], row["set"]): row for row in aucs + found}
    for condition, name in dict.fromkeys((row["condition"], row["set"]) for row in aucs):
        each = " | ".join(_short(cells[condition, channel, name]) for channel in SCORES)
        flagged = cells[condition, "verdict", name]
        share = (
            f"{100 * flagged['value']:.0f} % [{100 * flagged['low']:.0f} %, {100 * flagged['high']:.0f} %]"
        )
        lines.append(f"| {condition} | {name} | {each} | {share} |")
    return "\n".join(lines)


def card(part: KnownPart, rows: Sequence[Row]) -> str:
    """What the model card says of the channel."""
    memory = part.head.memory
    shown = ", ".join(
        name for name, generated in zip(memory.names, memory.generated, strict=True) if generated
    )
    return f"""
Everything above is about the first channel, which never saw a generated picture; its files are the same with this
channel and without. The known channel was shown generated faces of {shown}, against photographs, patch by
patch ({part.manifest["patch"]} px of a face at {part.manifest["side"]} px). It says how much a face looks
like those, or unlike all photographs; of a generator that it was not shown it may say nothing. Calibrated on
{memory.calibrated_on} faces as they are and as sites hand them on; a p-value is the largest over these
populations. The verdict is by the sum of both channels' scores, calibrated on the same faces, less a margin of
{part.head.margin:g} for photographs of other populations.
Faces whose crop is below {part.manifest["least_side"]} px get no such score. Crops of less
than {SIDES[0]} px were learnt from, calibrated on and measured only as larger ones that were made smaller.

How it does on a generator left out (channels trained without it; `python tools/known.py measure`):

{tables(rows)}
"""


def _mean_values(rows: Sequence[Row]) -> str:
    """The mean value of rows for each channel, as cells."""
    means = [np.mean([row["value"] for row in rows if row["channel"] == channel]) for channel in SCORES]
    return " | ".join(f"**{mean:.3f}**" for mean in means)


def _cell(row: Row) -> str:
    several = row["low_run"] != row["high_run"]
    runs = f" ({row['low_run']:.3f} to {row['high_run']:.3f})" if several else ""
    return f"{_short(row)}{runs}"


def _share(row: Row, key: str) -> str:
    """A share of several channels, and its range."""
    mean, low, high = (f"{100 * value:.1f}" for value in (row[key], row["low_run"], row["high_run"]))
    return f"{mean} %" if low == high else f"{mean} % ({low} to {high})"


def _short(row: Row) -> str:
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
