from __future__ import annotations

from dataclasses import replace

from model_server.tools.doctor import speed, text
from model_server.tools.doctor.report import Report
from model_server.tools.doctor.trim import Trim


def test_the_text_says_what_was_found_in_aligned_columns(report: Report) -> None:
    lines = text.render(report).splitlines()
    assert lines[0] == "Base      tiny twin (twin-f32.gguf)"
    assert lines[1] == "Heads     doctor-heads.gguf: 5 heads of 1 block Q8_0, Q8_0 output"
    assert lines[-1] == report.verdict.sentence
    assert any(line.startswith("ECE") and "uncalibrated" in line for line in lines)
    table = [line for line in lines if line.startswith("  ") and "made for" not in line]
    rows = {line[:16].strip(): line[16:].split() for line in table}
    tokens = [f"{each.tokens_per_step:.2f}" for each in report.predictions]
    assert rows["tokens a step"] == tokens
    assert rows["rows"] == ["1", "2", "3", "4", "6", "8", "12", "16", "32", "64"]
    assert len({len(line) for line in table}) == 1
    assert max(len(line) for line in lines[:-1]) <= 100


def test_it_says_which_trim_is_the_fastest_and_how_to_get_it(report: Report) -> None:
    usual = replace(report.predictions[5], tokens_per_step=1.9, heads_s=0.0012)
    assert usual.rows == 8
    fast = replace(usual, speed_up=2 * speed.best(report.predictions).speed_up)
    trims = tuple(Trim(count, 0.987, (fast,)) for count in (256, 128))
    said = text.render(replace(report, trims=trims))
    start = "256: 98.7 % of the answers' tokens, 1.90 a step, heads 1.20 ms, at best"
    assert f"\n{start} {fast.speed_up:.2f} times as fast\n" in said
    assert "\nThe fastest are written by: --trimmed OUT.gguf --keep 256\n" in said
    slow = tuple(replace(each, predictions=(replace(usual, speed_up=0.5),)) for each in trims)
    assert "None of them makes a lone stream faster." in text.render(replace(report, trims=slow))


def test_a_trim_a_shared_output_and_blocks_are_said(report: Report) -> None:
    fit = replace(
        report.fit, num_tokens=100, shared_output=True, num_blocks=2, made_for="this base"
    )
    said = text.render(replace(report, fit=fit))
    lone = text.render(replace(report, fit=replace(fit, num_heads=1)))
    assert "1 head of 2 blocks" in lone
    assert "5 heads of 2 blocks Q8_0, the base's output of 100 tokens" in said
    assert "made for this base, hidden size 512, 512 tokens" in said
    told = text.render(replace(report, fit=replace(fit, sees_token=True)))
    assert "5 heads of 2 blocks Q8_0, told the token drawn, the base's output of 100" in told


def test_a_head_that_was_never_reached_has_no_numbers(report: Report) -> None:
    shares = (*report.accuracy.behind_right[:-1], ())
    found = replace(report, accuracy=replace(report.accuracy, behind_right=shares))
    assert "  head 4             -\n" in text.render(found)
