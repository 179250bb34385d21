"""From settings to a running engine: load, lay out the KV pool, measure, check."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from model_server.config import Settings
from model_server.engine.engine import Engine
from model_server.engine.intake import Intake
from model_server.engine.kv import KvCache
from model_server.engine.prompt import PromptEncoder, choose_template
from model_server.engine.runner import Runner
from model_server.engine.scheduler import Limits, Scheduler
from model_server.errors import SettingError, StartError
from model_server.llama import backend
from model_server.llama.batch import Batch
from model_server.llama.context import MAX_BATCH_ROWS, MAX_SEQS, Context, ContextOptions
from model_server.llama.model import Model, Progress
from model_server.medusa.cost import ROWS, CostCurve, Costs
from model_server.metrics import Metrics
from model_server.protocol import Info

log = logging.getLogger(__name__)

_DEFAULT_CONTEXT = 4_096
_MEASURE_BUDGET_S = 3.0
_MIN_STEP_MS, _PLAIN_STEPS = 50.0, 8
_PROBE_ROWS = 4
_STEADY, _MAX_RUNS = 1.2, 6


@dataclass(frozen=True)
class Served:
    """A model that is being served."""

    engine: Engine
    intake: Intake
    info: Info
    model: Model
    context: Context

    def close(self) -> None:
        """Stop the engine, free the model."""
        self.engine.stop()
        self.context.close()
        self.model.close()


def load(
    settings: Settings,
    metrics: Metrics,
    progress: Progress = lambda _: None,
    on_crash: Callable[[], None] = lambda: None,
) -> Served:
    """Everything between settings and a started engine. Raises StartError."""
    if not settings.exact:
        log.debug("EXACT is off: a token may differ with the company it is decoded in")
    model = Model(settings.model_path, settings.n_gpu_layers, progress)
    context_size = _context_size(settings, model)
    options = context_options(settings, context_size)
    context = Context(model, options)
    prober = _Prober(context, model.vocab.size)
    if settings.exact:
        prober.check_exact()
    costs = Costs(*(CostCurve(prober.measure(output=output)) for output in (False, True)))
    max_step_s = (settings.max_step_ms or _default_step_ms(costs.decode)) / 1_000
    name = settings.model_name or model.name
    template = choose_template(
        model.chat_template, settings.chat_template, f"{name} {model.name} {model.path.stem}"
    )
    intake = Intake(model.vocab, PromptEncoder(model.vocab, template, context_size))
    limits = Limits(settings.n_parallel, min(MAX_BATCH_ROWS, context.num_cells), max_step_s)
    scheduler = Scheduler(
        KvCache(options.num_cells, options.num_seqs, ordered=settings.exact), costs, limits
    )
    engine = Engine(scheduler, Runner(context, model.vocab, costs), metrics, on_crash)
    info = Info(
        model_id=f"{model.fingerprint[:16]}-{options.mode}",
        model_name=name,
        created=int(time.time()),
        build=backend.build(),
        context_size=context_size,
        slots=settings.n_parallel,
        kv_cache_tokens=options.num_cells,
        vocab_size=model.vocab.size,
        longest_piece_bytes=model.vocab.longest_piece_bytes,
        chat=intake.prompts.can_chat,
        exact=settings.exact,
        max_step_ms=round(max_step_s * 1_000, 1),
    )
    engine.start()
    return Served(engine, intake, info, model, context)


def context_options(settings: Settings, context_size: int) -> ContextOptions:
    """The context's layout. Raises SettingError where settings contradict each other."""
    num_cells = settings.kv_cache_tokens or 2 * context_size
    if num_cells < context_size:
        problem = f"{num_cells} is less than the context of {context_size} tokens"
        raise SettingError("KV_CACHE_TOKENS", problem)
    flash = settings.flash_attention
    if flash == "auto" and not backend.has_gpu():
        flash = "off"
    kv_type_k = kv_type_v = settings.kv_cache_type
    if settings.exact:
        flash, kv_type_k, kv_type_v = "on", "f16", "bf16"
    elif flash == "off" and kv_type_v == "q8_0":
        raise SettingError("KV_CACHE_TYPE", "q8_0 needs FLASH_ATTENTION=on")
    return ContextOptions(num_cells, MAX_SEQS, _num_threads(settings), kv_type_k, kv_type_v, flash)


def _num_threads(settings: Settings) -> int:
    if settings.n_threads:
        return settings.n_threads
    cores = backend.physical_cores()
    return cores - 1 if settings.gateway_is_local and cores > 2 else cores


def _context_size(settings: Settings, model: Model) -> int:
    wanted = settings.model_context_size or min(model.context_size, _DEFAULT_CONTEXT)
    if wanted > model.context_size:
        problem = f"{wanted} is more than the {model.context_size} tokens the model was made for"
        raise SettingError("MODEL_CONTEXT_SIZE", problem)
    return wanted


def _default_step_ms(cost: CostCurve) -> float:
    return max(_MIN_STEP_MS, _PLAIN_STEPS * cost.seconds(1) * 1_000)


class _Prober:
    """Decodes rows for no request, before there is any: what do they cost, are they exact?"""

    def __init__(self, context: Context, vocab_size: int) -> None:
        self._context = context
        self._tokens = np.random.default_rng(0).integers(0, vocab_size, MAX_BATCH_ROWS).tolist()
        self._batch = Batch(MAX_BATCH_ROWS)

    def measure(self, *, output: bool) -> dict[int, float]:
        """Seconds by row count, until the time for measuring is over."""
        measured: dict[int, float] = {}
        self._time(1, output)  # the first decode pages the weights in
        started = time.perf_counter()
        for rows in ROWS:
            spent = time.perf_counter() - started
            expected = 4 * measured[rows // 2] if measured else 0.0
            if rows > self._context.num_cells or spent + expected > _MEASURE_BUDGET_S:
                break
            measured[rows] = self._steady_time(rows, output)
        return measured

    def check_exact(self) -> None:
        """Refuse to promise what this file on this processor can't keep. Raises StartError."""
        alone = []
        for seq in range(_PROBE_ROWS):
            self._prefix(seq)
            self._batch.clear()
            self._batch.add(self._tokens[seq], 16, [seq], output=True)
            self._context.decode(self._batch)
            alone.append(self._context.logits(1).copy())
            self._context.remove(seq, 16)
        self._batch.clear()
        for seq in range(_PROBE_ROWS):
            self._batch.add(self._tokens[seq], 16, [seq], output=True)
        self._context.decode(self._batch)
        together = self._context.logits(_PROBE_ROWS).copy()
        self._context.clear()
        difference = float(np.abs(together - np.concatenate(alone)).max())
        if difference:
            raise StartError(
                f"EXACT=true can't be kept: alone and in a batch of {_PROBE_ROWS} logits differ by "
                f"{difference:.1e} with this file on this processor; Q8_0 files are known to work"
            )

    def _prefix(self, seq: int) -> None:
        self._batch.clear()
        self._batch.add_span(self._tokens[seq : seq + 16], 0, seq)
        self._context.decode(self._batch)

    def _steady_time(self, rows: int, output: bool) -> float:
        """The best of two runs; of more where they disagree, because something else ran too."""
        times = [self._time(rows, output) for _ in range(2)]
        while max(times[-2:]) > _STEADY * min(times) and len(times) < _MAX_RUNS:
            times.append(self._time(rows, output))
        return min(times)

    def _time(self, rows: int, output: bool) -> float:
        self._batch.clear()
        for position in range(rows):
            self._batch.add(self._tokens[position], position, [0], output=output)
        started = time.perf_counter()
        self._context.decode(self._batch)
        self._context.synchronize()
        seconds = time.perf_counter() - started
        self._context.clear()
        return seconds
