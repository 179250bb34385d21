"""Medusa heads for any GGUF, trained against the very file that is served.

BASE answers prompts, or reads texts, through the engine; its hidden states and the tokens that
followed are kept in a folder. PyTorch learns the heads from them, and OUT is written. After an
interruption the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from model_server.config import read_settings
from model_server.engine.startup import Served, load
from model_server.errors import RequestError, StartError
from model_server.metrics import Metrics
from model_server.tools.convert_heads import TYPES, read_base
from model_server.tools.doctor import examine as doctor
from model_server.tools.doctor import text
from model_server.tools.doctor.prompts import Prompt
from model_server.tools.doctor.report import Report
from model_server.tools.doctor.write_back import write_back
from model_server.training import sources
from model_server.training.collect import CollectOptions, Collector
from model_server.training.corpus import Corpus
from model_server.training.sources import Source

_MAX_EXAMINED = 40  # prompts
_EXACT_ROOM = 4  # times as large a pool, which is started over whenever it is full
_PROMPT_ROOM = 512  # cells of the KV pool for each prompt, about


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m model_server.training", description=__doc__)
    add = parser.add_argument
    add("base", metavar="BASE", type=Path, help="GGUF that will be served with the heads")
    add("out", metavar="OUT", type=Path, help="head file to write, .gguf")
    for name, what in (
        ("--prompts", "files of prompts, one a line; BASE answers them"),
        ("--pieces", "texts or folders; BASE continues pieces of them"),
        ("--texts", "texts or folders, learnt as they stand, besides or alone"),
    ):
        add(name, nargs="+", type=Path, default=[], metavar="PATH", help=what)
    add("--num", type=int, default=0, help="prompts and pieces to take, by chance; 0: all")
    add("--num-texts", type=int, default=0, help="windows of texts to take, by chance; 0: all")
    add("--piece-tokens", type=int, default=256, help="of each piece to continue")
    add("--text-tokens", type=int, default=512, help="of each window of a text")
    add("--answer-tokens", type=int, default=256, help="that BASE adds at most")
    add("--temperature", type=float, default=0.0, help="of the answers")
    add("--at-once", type=int, default=16, help="answers made together")
    add("--exact", action="store_true", help="the same answers on every run (Q8_0, CPU)")
    add("--held-out", type=float, default=0.05, help="share of the data that heads are judged by")
    add("--heads", type=int, default=5)
    add("--blocks", type=int, default=1, help="residual blocks of each head")
    add("--shared-output", action="store_true", help="use BASE's output matrix: a smaller file")
    add("--type", choices=TYPES, default="Q8_0", help="of the matrices in OUT")
    add("--epochs", type=int, default=8, help="passes over the data at most")
    add("--patience", type=int, default=2, help="passes without a gain after which it is over")
    add("--batch", type=int, default=512, help="positions a step")
    add("--learning-rate", type=float, default=1e-3)
    add("--seed", type=int, default=0)
    add("--work", type=Path, help="folder for data and checkpoints; OUT.training if not given")
    return parser.parse_args(arguments)


def build(args: argparse.Namespace) -> Report:
    """Collect, train, write OUT, and let the doctor examine it. Raises StartError, RequestError."""
    data = collect(args)
    train(args, data.corpus)
    report = doctor.examine(args.base, args.out, doctor_options(args, data.judged))
    print(text.render(report))
    print(write_back(args.out, report))
    return report


@dataclass(frozen=True)
class Data:
    """A corpus, and the prompts that were held out of it."""

    corpus: Corpus
    judged: Sequence[Source]


def collect(args: argparse.Namespace) -> Data:
    """The data that the options name, collected as far as they weren't."""
    served = _serve(args)
    try:
        chosen = _sources(args, served)
        made = CollectOptions(args.answer_tokens, args.temperature, args.seed, args.held_out)
        work = args.work or Path(f"{args.out}.training")
        _same_data(work, {"base": served.model.fingerprint, **vars(made)}, chosen)
        corpus = Corpus(work, served.model.hidden_size)
        with tqdm(total=len(chosen), initial=corpus.num_texts, desc="collecting") as bar:
            Collector(served, corpus, made).run(chosen, bar.update)
        return Data(corpus, [source for source in chosen if source.held_out(args.held_out)])
    finally:
        served.close()


def train(args: argparse.Namespace, corpus: Corpus) -> None:
    """Heads from a corpus, written to OUT."""
    try:
        import torch  # optional: most people only serve
    except ImportError:
        raise StartError("PyTorch is missing: `make heads` installs it") from None
    from model_server.training import heads
    from model_server.training.train import Figures, Recipe, Trainer

    recipe = Recipe(
        heads.HeadShape(args.heads, args.blocks, args.shared_output),
        epochs=args.epochs,
        patience=args.patience,
        batch_size=args.batch,
        learning_rate=args.learning_rate,
        seed=args.seed,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = Trainer(corpus, heads.output_matrix(args.base), recipe, device)
    with tqdm(total=recipe.epochs * trainer.steps_per_epoch, desc="training") as bar:

        def report(trainer: Trainer, found: Figures) -> None:
            bar.update(trainer.num_steps - bar.n)
            accuracy = " ".join(f"{share:.3f}" for share in found.accuracy)
            if found.held_out:
                epoch = trainer.standing.epoch
                bar.write(
                    f"epoch {epoch}: held out: loss {found.loss:.3f}, accuracy {accuracy}, "
                    f"{found.length:.3f} heads right in a row"
                )
            else:
                bar.set_postfix_str(f"loss {found.loss:.3f}, accuracy {accuracy}")

        work = args.work or Path(f"{args.out}.training")
        trained = trainer.run(work / "checkpoint.pt", report)
    heads.write(trained, read_base(args.base), args.out, args.type)


def doctor_options(args: argparse.Namespace, judged: Sequence[Source]) -> doctor.Options:
    """The held-out prompts, and the beginnings of held-out texts."""
    given = [
        Prompt(tokens=source.tokens[: None if source.answered else args.piece_tokens])
        for source in judged[:_MAX_EXAMINED]
    ]
    return doctor.Options(num_tokens=args.answer_tokens, seed=args.seed, given=given)


def _serve(args: argparse.Namespace) -> Served:
    room = args.answer_tokens + max(args.piece_tokens, _PROMPT_ROOM if args.prompts else 0)
    settings = read_settings(
        model_path=args.base,
        medusa_mode="off",
        n_parallel=args.at_once,
        kv_cache_tokens=args.at_once * room * (_EXACT_ROOM if args.exact else 1),
        exact=args.exact,
        model_context_size=0,
    )
    return load(settings, Metrics())


def _sources(args: argparse.Namespace, served: Served) -> list[Source]:
    """Prompts and pieces, then texts. Texts that are held out serve only where nothing else does.

    Raises StartError where there is nothing to learn from, or nothing to judge by.
    """

    def cut(paths: Sequence[Path], num_tokens: int, *, answered: bool) -> list[Source]:
        texts = sources.read_texts(paths)
        return sources.pieces(texts, served.intake.vocab, num_tokens, answered=answered)

    asked = sources.prompts(args.prompts, served.intake.prompts)
    asked += cut(args.pieces, args.piece_tokens, answered=True)
    texts = cut(args.texts, args.text_tokens, answered=False)
    if asked:
        texts = [text for text in texts if not text.held_out(args.held_out)]
    chosen = sources.choose(asked, args.num, args.seed)
    chosen += sources.choose(texts, args.num_texts, args.seed)
    num_held_out = sum(source.held_out(args.held_out) for source in chosen)
    if not 0 < num_held_out < len(chosen):
        raise StartError(
            f"{len(chosen)} texts, {num_held_out} of them held out: both training and judging need "
            "some; give more by --prompts, --pieces or --texts, or change --held-out"
        )
    return chosen


def _same_data(work: Path, made: dict[str, object], chosen: Sequence[Source]) -> None:
    """Refuse to mix data that were made in different ways."""
    path = work / "data.json"
    wanted = {**made, "sources": sources.digest(chosen)}
    if path.exists():
        found = json.loads(path.read_text())
        if differing := [name for name in wanted if found.get(name) != wanted[name]]:
            raise StartError(
                f"{work} holds data of another run (other {', '.join(differing)}): "
                "remove it, or choose another --work"
            )
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted))


def main(arguments: Sequence[str] | None = None) -> int:
    """Collect, train, examine. The exit code is 1, with one sentence, when that can't be done."""
    args = options(arguments)
    try:
        build(args)
    except (StartError, RequestError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped: the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
