"""What finishing came to, as summary.json holds it and as the last lines say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..common.readable_json import read_json, without_nan, write_json
from ..common.run_folder import ScoresFolder
from ..postprocessing.apply import Rules, describe
from ..report.writing import PAGE
from .configuration import Configuration
from .output import Output

__all__ = ["format_end", "write_summary"]


def write_summary(
    configuration: Configuration,
    held_out: ScoresFolder | None,
    rules: Rules | None,
    why_none: str | None,
    changed: Sequence[Mapping[str, Any]],
    report: Mapping[str, Any],
    comparison: Mapping[str, Any] | None,
    output: Output,
) -> dict[str, Any]:
    """Write summary.json.

    Args:
        held_out: scores of all held-out cases, None where nothing was held out.
        rules, why_none: one of them.
        changed: what each rule changed in the predictions.
        report: the report's summary.
        comparison: of several configurations, of which this was chosen; see comparison.compare.

    Returns:
        {"configuration": {"name", "config_files", "settings"}, "comparison", "folds", "weights": {file: digest},
        "held_out": scores of the raw predictions of held-out cases, "rules": what was learned with its evidence,
        "no_rules": why there are none, "changed_voxels": [{"rule", "class", "voxels", "cases"}, …],
        "predicted": {"cases", "units", "raw", "cleaned"}, scores where there are labels, else sizes, "files"}.
    """
    place = output.folder
    files = {
        "predictions": place.predictions,
        "postprocessed": place.postprocessed,
        "report": place.report / PAGE,
        "configuration": place.configuration,
        "rules": place.rules if rules else None,
        "held_out": held_out.path if held_out else None,
    }
    scores = read_json(held_out.metrics) if held_out else None
    results = report["results"]
    summary = {
        "configuration": {
            "name": configuration.name,
            "config_files": configuration.settings.files,
            "settings": configuration.inference_settings(),
        },
        "comparison": comparison,
        "folds": [fold.number for fold in configuration.folds],
        "weights": dict(zip(map(str, configuration.weights), configuration.digests(), strict=True)),
        "held_out": {key: scores[key] for key in ("cases", "classes")} if scores else None,
        "rules": rules,
        "no_rules": why_none,
        "changed_voxels": list(changed),
        "predicted": {
            "cases": report["cases"],
            "units": report["units"],
            "raw": results["prediction"],
            "cleaned": results["postprocessed"],
        },
        "files": {name: output.name_of(path) for name, path in files.items() if path},
    }
    write_json(place.summary, without_nan(summary))
    return summary


def format_end(summary: Mapping[str, Any], output: Output) -> str:
    """Rules, what they changed, scores and where everything is, for the terminal."""
    rules, predicted = summary["rules"], summary["predicted"]
    lines = [f"rules: {describe(rules)}" if rules else f"no rules: {summary['no_rules']}"]
    for change in summary["changed_voxels"]:
        name = change["rule"].replace("_", " ") + (f", {change['class']}" if change["class"] else "")
        lines.append(f"  {name}: {change['voxels']} voxels of {change['cases']} cases changed")
    lines += _scores(predicted)
    lines += [f"{name}: {output.folder.path / file}" for name, file in summary["files"].items()]
    return "\n".join(lines)


def _scores(predicted: Mapping[str, Any]) -> list[str]:
    """The first metric, class by class: Dice with labels, sizes without."""
    metric, unit = next(iter(predicted["units"].items()))
    shown = metric.removesuffix(f"_{unit}").replace("_", " ") + (f" in {unit}" if unit else "")
    head = f"{predicted['cases']} case(s), mean {shown}"
    width = max(map(len, (head, *predicted["raw"]))) + 2
    lines = [f"{head:<{width}}{'raw':>10}{'cleaned':>10}"]
    for name in predicted["raw"]:
        means = (predicted[kind][name][metric]["mean"] for kind in ("raw", "cleaned"))
        lines.append(f"{name:<{width}}" + "".join(f"{'-':>10}" if m is None else f"{m:10.4f}" for m in means))
    return lines
