"""The tables: ours beside the published rows, and all measures, with what differs from the published protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from marigold_ros.family import DEPTH, NORMALS
from marigold_ros.files import written_beside
from trainer.evaluation import depth, normals
from trainer.evaluation.protocols import DSINE, MARIGOLD, protocols
from trainer.evaluation.published import published
from trainer.evaluation.scores import SETTINGS_FILE, read_json, write_json

# Of one dataset, in its folder; and of all, in the folder above.
RESULT_FILE = "result.json"
RESULTS_FILE, TABLE_FILE = "results.json", "table.md"
_HEADINGS = {
    "abs_rel": "AbsRel",
    "sq_rel": "SqRel",
    "rmse_m": "RMSE m",
    "rmse_log": "RMSE log",
    "log10": "log10",
    "delta1": "δ1",
    "delta2": "δ2",
    "delta3": "δ3",
    "irmse": "iRMSE 1/m",
    "silog": "SILog",
    "mean": "mean °",
    "median": "median °",
    "rmse": "RMSE °",
    **{f"a{limit}": f"< {limit}° %" for limit in ("5", "7.5", "11.25", "22.5", "30")},
}
# The two measures that are published, their headings, and what turns ours into the published unit.
_PUBLISHED = {
    DEPTH: (("abs_rel", "AbsRel %", 100.0), ("delta1", "δ1 %", 100.0)),
    NORMALS: (("mean", "mean °", 1.0), ("a11.25", "< 11.25° %", 1.0)),
}
# A mirrored answer that is better by this factor is no chance.
_SUSPICIOUS = 0.8
_ALIGNMENTS = {
    "depth": "least squares in depth",
    "disparity": "least squares in disparity",
    "log_depth": "least squares in log depth",
    "none": "no alignment",
}


def write_report(out: Path) -> str:
    """Gather the results of all datasets below `out` into results.json and table.md there; returns the latter."""
    run = read_json(out / SETTINGS_FILE)
    order = list(dict.fromkeys(name for kind in (DSINE, MARIGOLD) for name in protocols(run["task"], kind)))
    paths = sorted(out.glob(f"*/{RESULT_FILE}"), key=lambda path: order.index(path.parent.name))
    results = [read_json(path) for path in paths]
    write_json(out / RESULTS_FILE, {"run": run, "datasets": {result["name"]: result for result in results}})
    text = report(run, results)
    with written_beside(out / TABLE_FILE) as beside:
        beside.write_text(text, encoding="utf-8")
    return text


def report(run: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """The tables as Markdown; run: the settings; results: of each dataset."""
    parts = [f"# {run['checkpoint']} by the published protocols", _run(run, results)]
    if run["task"] in _PUBLISHED:
        parts.append(_beside_published(run, results))
    parts += [_all_measures(run["task"], results), _notes(run, results)]
    return "\n\n".join(parts) + "\n"


def _run(run: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    engines = sorted({engine for result in results for engine in result["engines"]})
    steps = f"{run['steps']} step" + "s" * (run["steps"] != 1)
    members = f"{run['ensemble']} member" + "s" * (run["ensemble"] != 1)
    kind = f"{run['task']}, DSINE's protocol" if run.get("protocol") == DSINE else run["task"]
    return f"{kind}; {steps}, {members}; {'; '.join(engines)}; weights {run['digest'][:12]}."


def _beside_published(run: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    measures = _PUBLISHED[run["task"]]
    head = [f"{result['title']}{_mark(result)} {heading}" for result in results for _, heading, _ in measures]
    lines = _table_head(["method", "steps", "ensemble", *head])
    ours = [f"{factor * result['measures'][name]:.1f}" for result in results for name, _, factor in measures]
    lines.append(_line([f"**{run['checkpoint']} (this run)**", run["steps"], run["ensemble"], *ours]))
    rows = published(run["task"]) if run.get("protocol") != MARIGOLD else ()
    for row in rows:
        cells = [value for result in results for value in row.values.get(result["name"], ("–", "–"))]
        if any(cell != "–" for cell in cells):
            lines.append(_line([row.method, row.steps, row.ensemble, *cells]))
    if rows:
        lines += ["", _what_is_published(run)]
    else:
        lines += ["", "No published rows by this protocol could be read."]
    return "\n".join(lines)


def _mark(result: Mapping[str, Any]) -> str:
    """What is not comparable with published numbers is marked where it stands."""
    return "" if result["images"] == result["published_images"] else f" ({result['images']} images only)"


def _what_is_published(run: Mapping[str, Any]) -> str:
    text = "Published rows: arXiv 2409.11355"
    if run["task"] == NORMALS:
        return f"{text}, DSINE's protocol."
    text += ", after least squares in depth."
    if run["alignment"] != "depth":
        text += f" This run: {_ALIGNMENTS[run['alignment']]}; `--align depth` gives what the published rows show."
    return text


def _all_measures(task: str, results: Sequence[Mapping[str, Any]]) -> str:
    if task in (DEPTH, NORMALS):
        names = list((depth if task == DEPTH else normals).MEASURES)
    else:
        names = list(dict.fromkeys(name for result in results for name in result["measures"]))
    head = [_HEADINGS.get(name, name.replace("_", " ").upper()) for name in names]
    lines = _table_head(["dataset", "images", "mean over", *head])
    for result in results:
        over = "pixels" if result["mean"] == "pooled" else "images"
        values = [_number(result["measures"].get(name)) for name in names]
        lines.append(_line([result["title"], f"{result['images']} of {result['published_images']}", over, *values]))
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def _table_head(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _notes(run: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    lines = ["How each was run:", ""]
    for result in results:
        lines.append(f"- {result['title']}: " + "; ".join(_facts(run, result)) + ".")
    return "\n".join(lines)


def _facts(run: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[str]:
    asked = f"{result['resolution']} px on the long side" if result["resolution"] else "the image's own size"
    metres = run.get("alignment") == "none"
    if run["size"] != "protocol":
        near = ", as on the robot, near its canonical focal length where the engine takes every size" if metres else ""
        asked += f", not used: it ran at the checkpoint's own{near}"
    elif metres:
        asked += ", as asked for; the robot would bring focal lengths near the checkpoint's canonical one"
    ran = list(result["working_sizes"].items())
    shown = ", ".join(f"{working} for {size}" for size, working in ran[:3])
    more = f" and {len(ran) - 3} more" if len(ran) > 3 else ""
    yield f"working size {shown}{more} (protocol: {asked})"
    if "alignment" in result:
        yield _ALIGNMENTS[result["alignment"]]
    if result["mean"] != result["published_mean"]:
        other = {"image": "images", "pooled": "all pixels"}[result["published_mean"]]
        yield f"published numbers are means over {other}"
    if result["images"] != result["published_images"]:
        yield f"published numbers rest on {result['published_images']} images, so these cannot be compared with them"
    if result["damaged"]:
        yield f"{len(result['damaged'])} damaged images left out, the first is {next(iter(result['damaged']))}"
    mirrored = result["measures"].get(normals.MIRRORED)
    if mirrored is not None and mirrored < _SUSPICIOUS * result["measures"]["mean"]:
        yield (
            f"with x negated the mean would be {mirrored:.1f}°: x of its normals may point to the other side than "
            "normals_x in its marigold_ros.json, or its name, says (docs/checkpoints.md)"
        )
    if "lpips_missing" in result:
        yield f"LPIPS is missing ({result['lpips_missing']})"
    best, median, worst = (result["pictures"][name]["image"] for name in ("best", "median", "worst"))
    yield f"best {best}, median {median}, worst {worst} (pictures in {result['name']}/)"
