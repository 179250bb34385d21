"""Medusa heads for any GGUF, trained against the very file that is served."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from model_server.config import read_settings
from model_server.engine.layout import context_options
from model_server.engine.prompt import PromptEncoder, choose_template
from model_server.errors import RequestError, StartError
from model_server.llama.model import Model
from model_server.tools import options
from model_server.tools.convert_heads import read_base
from model_server.tools.doctor import examine as doctor
from model_server.tools.doctor import text
from model_server.tools.doctor.prompts import Prompt
from model_server.tools.doctor.report import Report
from model_server.tools.doctor.write_back import write_back
from model_server.tools.gguf_writer import whole
from model_server.tools.outcome import exit_code
from model_server.tools.progress import Progress
from model_server.training import ask, needs, sources
from model_server.training.collect import CollectOptions, Collector
from model_server.training.corpus import Corpus, alone
from model_server.training.lanes import Lanes
from model_server.training.sources import Source

_MIN_EXAMINED, _MAX_EXAMINED = 2, 40  # prompts
_SHOWN_CHARS = 60  # of a prompt that is refused
_CELL_BLOCK = 256  # a lane has whole blocks


def build(args: argparse.Namespace) -> Report:
    """Collect, train, write OUT, and let the doctor examine it.

    Raises StartError, RequestError, or OSError of the disk.
    """
    needs.check(args)
    with alone(args.work):
        data = collect(args)
        _refuse_unjudgeable(args, data)
        train(args, data.corpus)
        try:
            report = doctor.examine(args.base, args.target, doctor_options(args, data))
        except (StartError, RequestError) as error:
            raise StartError(f"{args.target} is written, but can't be judged: {error}") from None
    print(text.render(report))
    print(write_back(args.target, report))
    print(f"{args.work} is not needed any more.")
    return report


class Author:
    """BASE as it writes: its prompts' encoder, and lanes to write in. `close` frees the weights."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Raises StartError."""
        self._at_once = args.at_once
        self._settings = read_settings(model_path=args.base, exact=args.exact, model_context_size=0)
        with Progress(f"loading {args.base.name}", 1) as progress:
            self.model = model = Model(args.base, self._settings.n_gpu_layers, progress)
        template = choose_template(
            model.chat_template, self._settings.chat_template, f"{model.name} {model.path.stem}"
        )
        self.encoder = PromptEncoder(model.vocab, template, model.context_size)

    def close(self) -> None:
        """Free the weights."""
        self.model.close()

    def room(self, num_tokens: int) -> int:
        """Tokens of a lane for texts of so many: in whole blocks, within the context."""
        return min(-(-num_tokens // _CELL_BLOCK) * _CELL_BLOCK, self.model.context_size)

    def lanes(self, num_tokens: int) -> Lanes:
        """Lanes for texts of so many tokens, to be closed before the weights. Raises StartError."""
        room = self.room(num_tokens)
        cells = {"kv_cache_tokens": self._at_once * room}
        options = context_options(self._settings.model_copy(update=cells), context_size=room)
        return Lanes(self.model, replace(options, num_seqs=self._at_once))


@dataclass(frozen=True)
class Data:
    """A corpus, and the prompts that were held out of it. `room`: of the longest with its answer,
    in tokens.
    """

    corpus: Corpus
    judged: Sequence[Source]
    room: int


def collect(args: argparse.Namespace) -> Data:
    """The data that the options name, collected as far as they weren't."""
    with closing(Author(args)) as author:
        chosen = _sources(args, author)
        made = CollectOptions(args.answer_tokens, args.temperature, args.seed, args.held_out)
        _same_data(args.work, {"base": author.model.fingerprint, **vars(made)}, chosen)
        corpus = Corpus(args.work, author.model.hidden_size)
        needs.check_space(args, chosen[corpus.num_texts :])
        longest = max(_num_tokens(source, args) for source in chosen)
        with (
            closing(author.lanes(longest)) as lanes,
            Progress("collecting", len(chosen)) as progress,
        ):
            Collector(lanes, corpus, made).run(chosen, progress)
        judged = [source for source in chosen if source.held_out(args.held_out)]
        return Data(corpus, judged, author.room(longest))


def _num_tokens(source: Source, args: argparse.Namespace) -> int:
    """At most, with the answer. The beginning of a text is answered when heads are judged by it."""
    num_tokens = len(source.tokens)
    if source.answered:
        return num_tokens + int(args.answer_tokens)
    return max(num_tokens, min(num_tokens, args.piece_tokens) + args.answer_tokens)


def _refuse_unjudgeable(args: argparse.Namespace, data: Data) -> None:
    """Raises PromptsError where the doctor would: found before the training rather than after."""
    said = [
        length - 1 if source.answered else args.answer_tokens
        for source, length in zip(data.judged, data.corpus.lengths(held_out=True), strict=True)
    ]
    doctor.refuse_too_short(said[:_MAX_EXAMINED], args.heads, "what was held out")


def train(args: argparse.Namespace, corpus: Corpus) -> None:
    """Heads from a corpus, written to OUT."""
    import torch  # takes seconds, and has been looked for

    from model_server.training import heads
    from model_server.training.judge import Figures
    from model_server.training.train import Recipe, Trainer

    recipe = Recipe(
        heads.HeadShape(args.heads, args.blocks, args.shared_output, args.vocab, args.token),
        epochs=args.epochs,
        patience=args.patience,
        batch_size=args.batch,
        learning_rate=args.learning_rate,
        dropout=args.dropout,
        seed=args.seed,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        trainer = Trainer(corpus, heads.base_matrices(args.base), recipe, device)
        with Progress("training", recipe.epochs * trainer.steps_per_epoch) as progress:

            def report(trainer: Trainer, found: Figures) -> None:
                accuracy = " ".join(f"{share:.3f}" for share in found.accuracy)
                said = f"loss {found.loss:.3f}, accuracy {accuracy}"
                if found.held_out:
                    length = f"{found.length:.3f} heads right in a row"
                    progress.tell(f"epoch {trainer.standing.epoch}: held out: {said}, {length}")
                else:
                    progress(trainer.num_steps, said)

            trained = trainer.run(args.work / "checkpoint.pt", report)
    except torch.OutOfMemoryError:
        problem = "take fewer --heads, --shared-output or a smaller --batch"
        raise StartError(f"{device} has too little memory: {problem}") from None
    heads.write(trained, read_base(args.base), args.target, args.type)


def doctor_options(args: argparse.Namespace, data: Data) -> doctor.ExamineOptions:
    """The held-out prompts, and the beginnings of held-out texts, in the context of the data."""
    beginning = max(min(args.piece_tokens, data.room - args.answer_tokens), 1)
    given = [
        Prompt(tokens=source.tokens[: None if source.answered else beginning])
        for source in data.judged[:_MAX_EXAMINED]
    ]
    return doctor.ExamineOptions(
        num_tokens=args.answer_tokens,
        seed=args.seed,
        given=given,
        exact=args.exact,
        context_size=data.room,
    )


def _sources(args: argparse.Namespace, author: Author) -> list[Source]:
    """Prompts and pieces, then texts. Texts that are held out serve only where nothing else does.

    Raises StartError where there is nothing to learn from, or nothing to judge by, or where a
    prompt and its answer exceed the context.
    """

    def cut(paths: Sequence[Path], num_tokens: int, *, answered: bool) -> list[Source]:
        texts = sources.read_texts(paths)
        return sources.pieces(texts, author.model.vocab, num_tokens, answered=answered)

    own = [_asked(args, author)] if args.ask else []
    asked = sources.prompts([*args.prompts, *own], author.encoder)
    asked += cut(args.pieces, args.piece_tokens, answered=True)
    texts = cut(args.texts, args.text_tokens, answered=False)
    if asked:
        texts = [text for text in texts if not text.held_out(args.held_out)]
    chosen = sources.choose(asked, args.num, args.seed)
    chosen += sources.choose(texts, args.num_texts, args.seed)
    num_held_out = sum(source.held_out(args.held_out) for source in chosen)
    if not _MIN_EXAMINED <= num_held_out < len(chosen):
        raise StartError(
            f"{len(chosen)} texts, {num_held_out} of them held out: judging needs "
            f"{_MIN_EXAMINED}, training others, and all pieces of a file go together; give more "
            "by --ask, --prompts, --pieces or --texts, or change --held-out"
        )
    for source in chosen:
        answer_tokens = args.answer_tokens if source.answered else 0
        _refuse_too_long(source, answer_tokens, author.model.context_size)
    return chosen


def _asked(args: argparse.Namespace, author: Author) -> Path:
    """The file of prompts that BASE asked itself, made once."""
    path: Path = args.work / f"asked-{args.ask}-{args.seed}.jsonl"
    if not path.exists():
        args.work.mkdir(parents=True, exist_ok=True)
        beginning = ask.user_turn(author.encoder)
        kept = path.with_suffix(f".{author.model.fingerprint[:12]}.part")  # another base asks anew
        asking = ask.Asking(args.ask, args.seed, kept)
        with closing(author.lanes(len(beginning) + ask.MAX_PROMPT_TOKENS)) as lanes:
            ask.save(path, ask.ask(asking, lanes, beginning, author.model.vocab))
        kept.unlink()
    return path


def _refuse_too_long(source: Source, answer_tokens: int, context_size: int) -> None:
    num_tokens = len(source.tokens)
    if num_tokens + answer_tokens > context_size:
        answer = f", with --answer-tokens {answer_tokens}," if answer_tokens else ""
        raise StartError(
            f"{source.group[:_SHOWN_CHARS]}: {num_tokens} tokens{answer} exceed the context of "
            f"{context_size} tokens"
        )


def _same_data(work: Path, made: dict[str, object], chosen: Sequence[Source]) -> None:
    """Refuse to mix data that were made in different ways."""
    path = work / "data.json"
    wanted = {**made, "sources": sources.digest(chosen)}
    if path.exists():
        try:
            found = dict(json.loads(path.read_text()))
        except (ValueError, TypeError):
            raise StartError(f"{path}: is damaged: remove {work}, or choose another") from None
        if differing := [name for name in wanted if found.get(name) != wanted[name]]:
            raise StartError(
                f"{work} holds data of another run (other {', '.join(differing)}): "
                "remove it, or choose another --work"
            )
    with whole(path) as part:
        part.write_text(json.dumps(wanted))


def main(arguments: Sequence[str] | None = None) -> int:
    """Collect, train, examine. The exit code is 1, with one sentence, when that can't be done."""
    args = options.heads(arguments)
    return exit_code(lambda: _run(args), args.target, "the same command goes on from here")


def _run(args: argparse.Namespace) -> None:
    build(args)


if __name__ == "__main__":
    sys.exit(main())
