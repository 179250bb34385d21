"""A report as text: aligned tables that fit into an issue. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from model_server.tools.doctor import speed
from model_server.tools.doctor.fit import Fit
from model_server.tools.doctor.report import Report
from model_server.tools.doctor.scored import Accuracy
from model_server.tools.doctor.speed import Prediction
from model_server.tools.doctor.verdict import USUAL_ROWS

_LABEL, _CELL, _INDENT = 16, 6, 2
_WORTH_TRIMMING = 1.01


def render(report: Report) -> str:
    """The whole report, the verdict at its end."""
    parts = (_facts(report), _accuracy(report.accuracy), _predictions(report), _trims(report))
    return "\n\n".join(["\n".join(part) for part in parts] + [report.verdict.sentence])


def _facts(report: Report) -> Iterator[str]:
    fit, sample, errors = report.fit, report.sample, report.calibration_errors
    source = Path(sample.prompts).name or sample.prompts or "its own"
    prompts = f"{sample.num_prompts} prompts of {source}"
    yield _fact("Base", f"{fit.base_name} ({Path(fit.base_file).name})")
    yield _fact("Heads", f"{Path(fit.heads_file).name}: {_heads(fit)}")
    yield _fact("", f"{_made_for(fit)}, {fit.heads_bytes / 1e6:,.1f} MB")
    yield _fact("Tried on", f"{sample.num_tokens:,} tokens, greedy, behind {prompts}")
    stands = "as it stands" if errors.stored is not None else "uncalibrated"
    yield _fact(
        "ECE", f"{errors.before:.3f} {stands}, {errors.fitted:.3f} calibrated on the other half"
    )


def _heads(fit: Fit) -> str:
    output = "the base's output" if fit.shared_output else f"{fit.output_type} output"
    trim = "" if fit.num_tokens == fit.vocab_size else f" of {fit.num_tokens:,} tokens"
    matrices = f" {fit.matrix_type}" if fit.num_blocks else ""
    heads, blocks = _count(fit.num_heads, "head"), _count(fit.num_blocks, "block")
    told = ", told the token drawn" if fit.sees_token else ""
    return f"{heads} of {blocks}{matrices}{told}, {output}{trim}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _made_for(fit: Fit) -> str:
    whose = {
        "this base": "made for this base",
        "another base": "made for another base",
        "unknown": "made for a base that it doesn't name",
    }[fit.made_for]
    return f"{whose}, hidden size {fit.hidden_size:,}, {fit.vocab_size:,} tokens"


def _accuracy(accuracy: Accuracy) -> Iterator[str]:
    yield "Right token among the best candidates, %"
    yield _row("", range(1, len(accuracy.alone[0]) + 1))
    yield "each head alone"
    yield from _shares(accuracy.alone)
    yield "where all heads before it were right"
    yield from _shares(accuracy.behind_right)


def _shares(heads: Sequence[Sequence[float]]) -> Iterator[str]:
    for number, shares in enumerate(heads):
        yield _row(f"head {number}", [f"{100 * share:.1f}" for share in shares] or ["-"])


def _predictions(report: Report) -> Iterator[str]:
    found: Sequence[Prediction] = report.predictions
    yield f"One stream on this machine (threads: {report.n_threads})"
    yield _row("rows", [each.rows for each in found])
    yield _row("tokens a step", [f"{each.tokens_per_step:.2f}" for each in found])
    yield _row("decode, ms", [_ms(each.decode_s) for each in found])
    yield _row("heads, ms", [_ms(each.heads_s) for each in found])
    yield _row("heads used", [each.num_heads for each in found])
    yield _row("times as fast", [f"{each.speed_up:.2f}" for each in found])


def _trims(report: Report) -> Iterator[str]:
    yield f"Heads that know fewer tokens, the most frequent ones, at {USUAL_ROWS} rows"
    for each in report.trims:
        usual = next(found for found in each.predictions if found.rows == USUAL_ROWS)
        best = speed.best(each.predictions)
        yield (
            f"{each.num_tokens:,}: {100 * each.covered:.1f} % of the answers' tokens, "
            f"{usual.tokens_per_step:.2f} a step, heads {_ms(usual.heads_s)} ms, "
            f"at best {best.speed_up:.2f} times as fast"
        )
    fastest = max(report.trims, key=lambda each: speed.best(each.predictions).speed_up)
    won = speed.best(fastest.predictions).speed_up / speed.best(report.predictions).speed_up
    if won < _WORTH_TRIMMING:
        yield "None of them makes a lone stream faster."
    else:
        yield f"The fastest are written by: --trimmed OUT.gguf --keep {fastest.num_tokens}"


def _ms(seconds: float) -> str:
    """Three digits where they matter."""
    ms = 1_000 * seconds
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


def _fact(name: str, text: str) -> str:
    return f"{name:<{_LABEL - _CELL}}{text}"


def _row(label: str, cells: Iterable[object]) -> str:
    name = " " * _INDENT + label
    return f"{name:<{_LABEL}}" + "".join(f"{cell!s:>{_CELL}}" for cell in cells)
