"""An engine stepped by hand on a real model, which remembers the logits behind every token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.contract.protocol import Done, Event, Failed, GenerateRequest, Sampling, Tokens
from model_server.engine.cost import CostCurve, Costs
from model_server.engine.engine import Engine
from model_server.engine.intake import Intake
from model_server.engine.kv import KvCache
from model_server.engine.leaves import leaf_blocks
from model_server.engine.plan import DecodeTree
from model_server.engine.prompt import PromptEncoder
from model_server.engine.runner import Runner
from model_server.engine.scheduler import Limits, Scheduler
from model_server.engine.sequence import Sequence as Sequence_
from model_server.engine.sequence import Verified
from model_server.engine.verifier import Verifier
from model_server.guide.compiler import Compiler
from model_server.llama.context import MAX_SEQS, Context, ContextOptions
from model_server.llama.model import Model
from model_server.llama.vocab import Vocab
from model_server.medusa.heads import HeadOptions, Heads
from model_server.metrics import ModelServerMetrics
from tests.model_server.drafters import MakeDrafter, plain

EXACT = {"kv_type_k": "f16", "kv_type_v": "bf16", "flash_attention": "on"}
F32 = {"kv_type_k": "f32", "kv_type_v": "f32", "flash_attention": "off"}


class RecordingVerifier(Verifier):
    """Keeps a copy of every row of logits, drafts' too, by the tokens before it."""

    def __init__(self, vocab: Vocab) -> None:
        super().__init__(vocab)
        self.rows: list[tuple[list[int], NDArray[np.float32]]] = []

    def verify(self, decoded: DecodeTree, logits: NDArray[np.float32]) -> Verified:
        paths = [list(decoded.sequence.tokens)]
        tree = decoded.tree
        for node in range(1, tree.num_nodes):
            paths.append([*paths[tree.parents[node]], tree.tokens[node]])
        self.rows += [(path, row.copy()) for path, row in zip(paths, logits, strict=True)]
        return super().verify(decoded, logits)


@dataclass
class Stack:
    """The parts of an engine whose thread is not started, and what its clients heard."""

    engine: Engine
    runner: Runner
    verifier: RecordingVerifier
    scheduler: Scheduler
    context: Context
    intake: Intake
    events: dict[str, list[Event]] = field(default_factory=dict)

    def submit(self, request_id: str, prompt: Sequence[int], **fields: object) -> None:
        """Queue a request; `sampling` and all other fields as in the protocol."""
        request = GenerateRequest.model_validate(
            {"id": request_id, "prompt_tokens": list(prompt), **fields}
        )
        self.submit_made(self.intake.make(request))

    def submit_made(self, sequence: Sequence_) -> None:
        """Queue what the intake has made."""
        self.engine.submit(sequence, self._hear)

    def run(self, max_steps: int = 10_000) -> None:
        """Step until nothing is left to do."""
        for _ in range(max_steps):
            self.engine.step()
            if not self.engine.num_unfinished:
                return
        raise AssertionError(f"not finished after {max_steps} steps")

    def steps(self, request_id: str) -> list[Tokens]:
        """The steps that gave a request tokens."""
        heard = self.events.get(request_id, [])
        return [event for event in heard if isinstance(event, Tokens)]

    def answer(self, request_id: str) -> list[int]:
        """All tokens a request was given."""
        return [token for step in self.steps(request_id) for token in step.ids]

    def text(self, request_id: str) -> str:
        """All text a request was given."""
        return "".join(step.text for step in self.steps(request_id))

    def num_accepted(self) -> int:
        """Drafts that were accepted, over all requests heard of."""
        return sum(sum(step.from_draft) for name in self.events for step in self.steps(name))

    def ending(self, request_id: str) -> Done | Failed:
        """Its last event."""
        last = self.events[request_id][-1]
        assert isinstance(last, (Done, Failed))
        return last

    def num_leaks(self) -> int:
        """Cells and sequence ids still held once nothing is cached, ledger and llama.cpp alike."""
        self.runner.apply(self.scheduler.kv.clear_cached())
        kv = self.scheduler.kv
        held = sum(bool(self.context.length(seq)) for seq in range(MAX_SEQS))
        return kv.num_used + kv.num_seqs_held + held

    def _hear(self, events: list[Event]) -> None:
        for event in events:
            self.events.setdefault(event.id, []).append(event)


@dataclass(frozen=True)
class Layout:
    """What a test wants of the engine. By default a prefill step takes at most 8 rows."""

    num_cells: int = 1_024
    num_slots: int = 8
    max_step_s: float = 0.0085
    kv: dict[str, Any] = field(default_factory=lambda: dict(F32))
    step_s: dict[int, float] = field(default_factory=lambda: {1: 0.001, 512: 0.512})
    ordered: bool = False
    heads: Path | None = None
    verifier: type[RecordingVerifier] = RecordingVerifier


@contextmanager
def stack(
    path: Path, layout: Layout | None = None, make_drafter: MakeDrafter = plain
) -> Iterator[Stack]:
    """An engine over the model at `path`."""
    layout = layout or Layout()
    model = Model(path, 0)
    options = ContextOptions(layout.num_cells, MAX_SEQS, 1, **layout.kv)
    context = Context(model, options)
    heads = Heads(layout.heads, model, HeadOptions(n_threads=1)) if layout.heads else None
    cost = CostCurve(layout.step_s)
    cost.observe = lambda *_, **__: None  # type: ignore[method-assign]  # not by the clock
    costs = Costs(cost, cost)
    limits = Limits(layout.num_slots, layout.num_cells, layout.max_step_s)
    blocks = leaf_blocks(layout.num_slots, MAX_SEQS)
    kv = KvCache(
        layout.num_cells,
        MAX_SEQS,
        ordered=layout.ordered,
        windowed=model.is_windowed,
        leaf_blocks=blocks,
    )
    scheduler = Scheduler(kv, costs, limits, make_drafter(costs, heads))
    verifier = layout.verifier(model.vocab)
    runner = Runner(context, verifier, costs, heads)
    prompts = PromptEncoder(model.vocab, None, min(layout.num_cells, 2_048))
    compiler = Compiler(model.vocab)
    intake = Intake(model.vocab, prompts, compiler)
    engine = Engine(scheduler, runner, ModelServerMetrics())
    yield Stack(engine, runner, verifier, scheduler, context, intake)
    compiler.close()
    if heads:
        heads.close()
    context.close()
    model.close()


def greedy() -> Sampling:
    """Temperature 0."""
    return Sampling(temperature=0)
