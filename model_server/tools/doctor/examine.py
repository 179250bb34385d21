"""Heads on their base: do they fit, are they right, what do they win? No file is changed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from model_server.config import ModelServerSettings, read_settings
from model_server.engine.leaves import leaf_blocks
from model_server.engine.startup import Served
from model_server.errors import HeadFileError, PromptsError
from model_server.llama.context import MAX_SEQS
from model_server.medusa.head_file import HeadFile
from model_server.medusa.heads import HeadOptions, Heads
from model_server.medusa.limits import MAX_HEADS
from model_server.speculation.confidence import HeadConfidence
from model_server.tools.answers import loaded
from model_server.tools.doctor import (
    calibration,
    fit,
    prompts,
    replay,
    scored,
    speed,
    track,
    trim,
    verdict,
)
from model_server.tools.doctor.fit import Fit
from model_server.tools.doctor.prompts import Prompt
from model_server.tools.doctor.report import Kept, Report, Sample, Table
from model_server.tools.doctor.speed import Speed
from model_server.tools.doctor.track import Track
from model_server.tools.doctor.trim import Trim
from model_server.tools.doctor.write_back import write_uncalibrated
from model_server.tools.options import NUM_PROMPTS, NUM_TOKENS


@dataclass(frozen=True)
class ExamineOptions:
    """What the base is asked. `prompts`: a file with one a line, or a folder of texts; None: ours.

    `given`: these instead, which were held out. `any_base`: try heads that were made for another
    base too. `keep`: tokens that heads are to be trimmed to, 0: only what that would win is said.
    `context_size`: in tokens; 0: the settings'.
    """

    prompts: Path | None = None
    num_prompts: int = NUM_PROMPTS
    num_tokens: int = NUM_TOKENS
    seed: int = 0
    any_base: bool = False
    given: Sequence[Prompt] = ()
    exact: bool = False
    keep: int = 0
    context_size: int = 0

    @property
    def source(self) -> str:
        """Where the prompts are from; empty: ours."""
        return "what was held out" if self.given else str(self.prompts or "")


@dataclass(frozen=True)
class _Seen:
    """All that needs the base and the heads."""

    fit: Fit
    file: HeadFile
    tracks: Sequence[Track]
    n_threads: int
    speed: Speed
    kept: Kept | None


def examine(base: Path, heads: Path, options: ExamineOptions | None = None) -> Report:
    """Try the heads as the server would, with its settings, and show how far that is on stderr.

    Raises StartError where they don't fit or can't be judged, RequestError where a prompt is
    refused, OSError where prompts can't be read.
    """
    options = options or ExamineOptions()
    settings = read_settings(
        model_path=base,
        medusa_path=heads,
        medusa_any_base=options.any_base,
        medusa_mode="auto",
        medusa_max_tokens_per_step=0,
        **({"exact": True} if options.exact else {}),
        **_context(options.context_size),
    )
    return _report(_see(settings, options), settings, options)


def _context(size: int) -> dict[str, int]:
    """Settings of a context that is asked for, with the pool that comes with it."""
    return {"model_context_size": size, "kv_cache_tokens": 0} if size else {}


def _see(settings: ModelServerSettings, options: ExamineOptions) -> _Seen:
    asked = options.given or prompts.read(options.prompts, options.num_prompts, options.seed)
    heads = Path(settings.medusa_path)
    # All heads are examined, though the server may use fewer.
    everything = settings.model_copy(update={"medusa_k_heads": MAX_HEADS})
    with closing(loaded(everything)) as served:
        found, file = fit.look(heads, served.model)
        _refuse_no_trim(found, options)
        requests = track.requests(served, asked, options.num_tokens)
        tracks = track.record(served, requests)
        lengths = [len(each.answer) for each in tracks]
        refuse_too_short(lengths, found.num_heads, options.source or str(prompts.BUILT_IN))
        kept = _kept(served, heads, file, tracks, options.keep) if options.keep else None
        return _Seen(found, file, tracks, served.context.n_threads, speed.measure(served), kept)


def refuse_too_short(lengths: Sequence[int], num_heads: int, source: str) -> None:
    """Raises PromptsError where answers to `source` of so many tokens leave a half without one."""
    recorded = [length for length in lengths if length >= track.MIN_TOKENS]
    if not all(max(half, default=0) > num_heads for half in (recorded[::2], recorded[1::2])):
        problem = f"too few answers of more than {num_heads} tokens to judge by: ask for more"
        raise PromptsError(source, problem)


def _refuse_no_trim(found: Fit, options: ExamineOptions) -> None:
    if options.keep >= found.num_tokens:
        problem = f"its heads know {found.num_tokens} tokens: they can't be trimmed to"
        raise HeadFileError(found.heads_file, f"{problem} {options.keep}")


def _report(seen: _Seen, settings: ModelServerSettings, options: ExamineOptions) -> Report:
    everything = scored.score(seen.tracks)
    first, second = map(scored.score, _halves(seen.tracks))
    accuracy = scored.accuracy(everything)
    tokens = _walk(*_halves(seen.tracks), settings)[: settings.medusa_k_heads]
    predictions = speed.predict(tokens, seen.speed.decode, seen.speed.heads)
    num_tokens = sum(len(each.answer) for each in seen.tracks)
    own_base = seen.fit.made_for == "this base"
    return Report(
        verdict.judge(accuracy, predictions, own_base=own_base, noise=seen.speed.noise),
        seen.fit,
        Sample(options.source, options.seed, len(seen.tracks), num_tokens),
        accuracy,
        calibration.errors(everything, (first, second), seen.file.calibration),
        Table.of(calibration.fit(everything)),
        predictions,
        seen.n_threads,
        tuple(_trim(seen, settings, count) for count in _trim_sizes(seen, options)),
        seen.kept,
    )


def _trim_sizes(seen: _Seen, options: ExamineOptions) -> list[int]:
    parts = {seen.file.num_tokens // part for part in trim.PARTS}
    return sorted({*parts, options.keep} - {0}, reverse=True)


def _trim(seen: _Seen, settings: ModelServerSettings, num_tokens: int) -> Trim:
    """Each half of the tracks with the tokens of the other, so that none is kept by foresight."""
    among = trim.known(seen.file)
    halves = _halves(seen.tracks)
    kept = [trim.most_frequent(half, among, num_tokens) for half in reversed(halves)]
    restricted = [
        [trim.restrict(track, tokens) for track in half]
        for half, tokens in zip(halves, kept, strict=True)
    ]
    tokens = _walk(restricted[0], restricted[1], settings)[: settings.medusa_k_heads]
    costs = trim.costs(seen.file, seen.speed.heads, num_tokens)
    shares = map(trim.covered, halves, kept)
    return Trim(num_tokens, sum(shares) / 2, speed.predict(tokens, seen.speed.decode, costs))


def _kept(
    served: Served, heads: Path, file: HeadFile, tracks: Sequence[Track], num_tokens: int
) -> Kept:
    """Calibrated by what such heads propose themselves: their softmax runs over fewer tokens."""
    tokens = trim.most_frequent(tracks, trim.known(file), num_tokens).tolist()
    options = HeadOptions(served.context.n_threads, any_base=True)
    with TemporaryDirectory() as folder:
        write_uncalibrated(heads, few := Path(folder) / "few.gguf", tokens)
        with closing(Heads(few, served.model, options)) as trimmed:
            own = [track.follow(trimmed, t.states, t.prompt, t.answer) for t in tracks]
    return Kept(tuple(tokens), Table.of(calibration.fit(scored.score(own))))


def _walk(
    first: Sequence[Track], second: Sequence[Track], settings: ModelServerSettings
) -> NDArray[np.float64]:
    """(heads, TREE_ROWS) tokens a step, each half of the tracks with the calibration of the
    other.
    """
    most_leaves = 1 + leaf_blocks(settings.n_parallel, MAX_SEQS).size
    total = np.zeros(())
    for walked, fitted in ((first, second), (second, first)):
        table = calibration.fit(scored.score(fitted))
        confidence = HeadConfidence(len(table[0]), table)
        total = total + replay.walk(walked, confidence, most_leaves)
    return np.asarray(total[..., 0] / total[..., 1])


def _halves(tracks: Sequence[Track]) -> tuple[Sequence[Track], Sequence[Track]]:
    return tracks[::2], tracks[1::2]
