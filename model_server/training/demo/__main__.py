"""Build the demo model: corpus, tokenizer, training, GGUF, evaluation, model card."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from model_server.training.demo import data, tokenizer
from model_server.training.demo.card import Record, write_card
from model_server.training.demo.evaluate import Evaluator
from model_server.training.demo.export import export
from model_server.training.demo.model import Shape
from model_server.training.demo.train import Budget, Trainer
from model_server.training.demo.windows import Streams, Tokens

GGUF_NAME = "stdlib-demo-q8_0.gguf"


@dataclass(frozen=True)
class Folders:
    """Results go to `out`; the tokenizer and checkpoints stay in `work`."""

    out: Path
    work: Path

    @property
    def gguf(self) -> Path:
        return self.out / GGUF_NAME

    @property
    def card(self) -> Path:
        return self.out / "README.md"

    @property
    def held_out(self) -> Path:
        return self.out / "held_out.txt"

    @property
    def tokenizer(self) -> Path:
        return self.work / "tokenizer.json"

    @property
    def checkpoint(self) -> Path:
        return self.work / "model.pt"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m model_server.training.demo", description=__doc__)
    parser.add_argument("--minutes", type=float, default=72, help="training time")
    parser.add_argument("--threads", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("model_server/demo"))
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="for checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on with what --work holds")
    return parser.parse_args()


def prepare(folders: Folders, *, resume: bool) -> None:
    for folder in (folders.out, folders.work):
        folder.mkdir(parents=True, exist_ok=True)
    if not resume:
        folders.tokenizer.unlink(missing_ok=True)
        folders.checkpoint.unlink(missing_ok=True)


def split_files(folders: Folders) -> data.Split:
    """With the shipped list of held-out files; chosen and written when there is none."""
    if not folders.held_out.exists():
        chosen = data.choose_held_out(data.python_files())
        folders.held_out.write_text("\n".join(chosen) + "\n")
    return data.split(data.read_held_out(folders.held_out))


def learn_tokenizer(split: data.Split, folders: Folders) -> Tokenizer:
    if not folders.tokenizer.exists():
        texts = data.texts(split.library * 2 + split.tests)
        tokenizer.train_tokenizer(texts, Shape().vocab).save(str(folders.tokenizer))
    return Tokenizer.from_file(str(folders.tokenizer))


def encode(vocabulary: Tokenizer, files: Sequence[str]) -> list[Tokens]:
    ids = (tokenizer.encode_file(vocabulary, text) for text in data.texts(files))
    return [np.array(file_ids, np.uint16) for file_ids in ids]


def train(split: data.Split, folders: Folders, budget: Budget) -> Trainer:
    """Train and write the GGUF."""
    vocabulary = learn_tokenizer(split, folders)
    streams = Streams(encode(vocabulary, split.library), encode(vocabulary, split.tests))
    library, tests = sum(map(len, streams.library)), sum(map(len, streams.tests))
    print(f"corpus: {library / 1e6:.2f} M tokens of library, {tests / 1e6:.2f} M of tests")
    trainer = Trainer(Shape(), streams, budget)
    trainer.run(folders.checkpoint)
    export(trainer.model, vocabulary, folders.gguf)
    return trainer


def evaluate(trainer: Trainer, split: data.Split, folders: Folders) -> Record:
    evaluator = Evaluator(folders.gguf, trainer.budget.threads)
    record = Record(
        file=folders.gguf,
        shape=trainer.model.shape,
        split=split,
        budget=trainer.budget,
        progress=trainer.progress,
        num_parameters=sum(weight.numel() for weight in trainer.model.parameters()),
        compression=evaluator.compression(split.held_out),
        completions=evaluator.completions(split.held_out),
    )
    evaluator.close()
    return record


def main() -> None:
    args = arguments()
    folders = Folders(args.out, args.work)
    prepare(folders, resume=args.resume)
    split = split_files(folders)
    trainer = train(split, folders, Budget(args.minutes, args.threads))
    record = evaluate(trainer, split, folders)
    write_card(record, folders.card)
    print(folders.card.read_text())


if __name__ == "__main__":
    main()
