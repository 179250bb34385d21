"""From settings to a running engine: load, lay out the KV pool, measure, check."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict, dataclass, replace

from pydantic import ValidationError

from model_server import kept, logs
from model_server.config import ModelServerSettings
from model_server.contract.protocol import Info, Sampling
from model_server.engine import exactness, memory
from model_server.engine.attention import likely, open_context
from model_server.engine.cost import Costs
from model_server.engine.engine import Engine
from model_server.engine.intake import Intake
from model_server.engine.kv import KvCache
from model_server.engine.layout import choose_context_size, context_options
from model_server.engine.leaves import leaf_blocks
from model_server.engine.profiler import Measurements, Profiler
from model_server.engine.prompt import PromptEncoder, choose_template
from model_server.engine.runner import Runner
from model_server.engine.scheduler import Limits, Scheduler
from model_server.engine.verifier import Verifier
from model_server.errors import EngineError, ModelFileError, StartError
from model_server.guide.compiler import Compiler
from model_server.llama import backend, identity, kernels
from model_server.llama.context import MAX_BATCH_ROWS, MAX_SEQS, Context, ContextOptions
from model_server.llama.model import LoadProgress, Model
from model_server.medusa.heads import HeadOptions, Heads
from model_server.metrics import ModelServerMetrics
from model_server.speculation.confidence import HeadConfidence
from model_server.speculation.drafter import Drafter, DraftOptions
from model_server.speculation.policy import Policy

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """A model that is being served."""

    engine: Engine
    intake: Intake
    info: Info
    model: Model
    context: Context
    heads: Heads | None = None

    @property
    def current_info(self) -> Info:
        """What clients are told, with the warnings of this moment."""
        alarm = self.engine.scheduler.drafter.alarm.warning
        return (
            self.info.model_copy(update={"warnings": [*self.info.warnings, alarm]})
            if alarm
            else self.info
        )

    def close(self) -> None:
        """Stop the engine, free the model."""
        self.intake.close()
        self.engine.stop()
        if self.heads:
            self.heads.close()
        self.context.close()
        self.model.close()


def load(
    settings: ModelServerSettings,
    metrics: ModelServerMetrics,
    progress: LoadProgress = lambda _: None,
    on_crash: Callable[[], None] = lambda: None,
    distrust: str = "",
) -> Served:
    """All between settings and a started engine; `distrust`: why own kernels must not be used.

    Raises StartError.
    """
    untrusted = [f"kernels of our own are not used: {distrust}"] if distrust else []
    if settings.cpu_kernels == "off":
        distrust = "CPU_KERNELS=off"
    packed = not distrust and _can_pack(settings)
    with ExitStack() as opened:  # what is there goes again where the rest can't be had
        model = Model(settings.model_path, settings.n_gpu_layers, progress, packed=packed)
        opened.enter_context(closing(model))
        context_size = choose_context_size(settings, model)
        options = context_options(settings, context_size)
        memory.require(likely(model, options, distrust), model)
        context = opened.enter_context(closing(open_context(model, options, distrust)))
        _prove(context, model)
        options = context.options
        own = HeadOptions(options.n_threads, own_kernels=packed, own_threads=context.own_threads)
        heads = _heads(settings, model, own)
        opened.enter_context(closing(heads) if heads else nullcontext())
        key = _conditions(settings, model, options, heads)
        exact = exactness.is_kept(settings.exact, model, context, key)
        costs, quiet = _costs(Profiler(context, model.vocab.size), heads, key)
        intake = _intake(settings, model, context_size)
        opened.callback(intake.close)
        scheduler = _scheduler(settings, model, context, costs, quiet, exact=exact, heads=heads)
        name = settings.shown_name or model.name
        info = Info(
            model_id="-".join(_identity(settings, model, options)),
            model_name="-".join(name.split()),
            title=name,
            created=int(time.time()),
            build=backend.build(),
            context_size=context_size,
            slots=settings.n_parallel,
            kv_cache_tokens=options.num_cells,
            vocab_size=model.vocab.size,
            longest_piece_bytes=model.vocab.longest_piece_bytes,
            chat=intake.prompts.can_chat,
            sampling=_sampling(model),
            exact=exact,
            cpu_kernels=_computed_by_own(model, options, heads),
            max_step_ms=round(scheduler.limits.max_step_s * 1_000, 1),
            heads=heads.num_heads if heads else 0,
            medusa_mode=settings.medusa_mode,
            warnings=[*_warnings(settings, model, context, scheduler.kv.leaves.most), *untrusted],
        )
        opened.pop_all()
    runner = Runner(context, Verifier(model.vocab), costs, heads)
    engine = Engine(scheduler, runner, metrics, on_crash)
    engine.start()
    return Served(engine, intake, info, model, context, heads)


def _scheduler(
    settings: ModelServerSettings,
    model: Model,
    context: Context,
    costs: Costs,
    quiet: Costs,
    *,
    exact: bool,
    heads: Heads | None,
) -> Scheduler:
    options = context.options
    max_rows = min(MAX_BATCH_ROWS, context.num_cells)
    max_step_s = settings.max_step_ms / 1_000 or quiet.usual_step_s
    limits = Limits(settings.n_parallel, max_rows, max_step_s, not settings.max_step_ms)
    blocks = leaf_blocks(settings.n_parallel, options.num_seqs)
    ordered = exact and not options.own_attention
    kv = KvCache(
        options.num_cells,
        options.num_seqs,
        ordered=ordered,
        windowed=model.is_windowed,
        leaf_blocks=blocks,
    )
    return Scheduler(kv, costs, limits, _drafter(settings, costs, heads))


def _prove(context: Context, model: Model) -> None:
    """Raises ModelFileError where not even a few rows can be computed as text is."""
    if not context.is_causal:
        problem = "it is an encoder, which goes on with no text: its rows see those behind them"
        raise ModelFileError(str(model.path), problem)
    try:
        context.prove()
    except EngineError as error:
        raise ModelFileError(str(model.path), f"nothing can be computed with it: {error}") from None


def _intake(settings: ModelServerSettings, model: Model, context_size: int) -> Intake:
    names = f"{settings.shown_name} {model.name} {model.path.stem}"
    template = choose_template(model.chat_template, settings.chat_template, names)
    prompts = PromptEncoder(model.vocab, template, context_size)
    return Intake(model.vocab, prompts, Compiler(model.vocab))


def _identity(settings: ModelServerSettings, model: Model, options: ContextOptions) -> list[str]:
    """What a model's id says: the promise of equal texts holds on one kind of processor only."""
    processor = [backend.kernels()] if settings.exact is True else []
    packed = ["packed"] if model.packed else []
    is_short = model.short_context is None or options.num_cells <= model.short_context
    rope = [] if is_short else ["long"]
    return [model.fingerprint[:16], options.mode, *processor, *packed, *rope]


def _can_pack(settings: ModelServerSettings) -> bool:
    """Whether our own kernels are to multiply: asked before the model is loaded."""
    if settings.n_gpu_layers and backend.has_gpu():
        return False
    try:
        return kernels.instructions() != "none"
    except StartError:
        return False  # open_context says why


def _computed_by_own(model: Model, options: ContextOptions, heads: Heads | None) -> dict[str, str]:
    served = {"attention": options.own_attention, "heads": bool(heads and heads.packed)}
    names = [*(name for name, by_own in served.items() if by_own), *model.packed]
    return dict.fromkeys(names, kernels.instructions()) if names else {}


def _costs(profiler: Profiler, heads: Heads | None, key: kept.Key) -> tuple[Costs, Costs]:
    """What an earlier start measured, where it still holds; else it is measured now, and kept.
    Twice: as things are now, and without what slows this very start.
    """
    measured = kept.recall("costs", key, Measurements)
    pace = profiler.pace(measured) if measured else None
    if measured is None or pace is None:
        logs.say.info("measuring what a step costs here; later starts only look whether it holds")
        measured, pace = profiler.measure_all(heads), 1.0
        kept.keep("costs", key, asdict(measured))
    return measured.costs(pace), measured.costs(min(pace, 1.0))


def _conditions(
    settings: ModelServerSettings, model: Model, options: ContextOptions, heads: Heads | None
) -> kept.Key:
    """All that costs and exactness depend on."""
    return {
        "model": model.fingerprint,
        "layers on the GPU": settings.n_gpu_layers if model.uses_gpu else 0,
        "context": asdict(options),
        "packed": model.packed,
        "heads": heads and (heads.fingerprint, heads.num_heads, heads.packed),
        "build": identity.build(),
        "kernels": backend.kernels(),
        "processor": identity.processor(),
        "devices": backend.devices(),
        "cores": backend.physical_cores(),
        "OpenMP": {name: os.environ[name] for name in sorted(os.environ) if "OMP_" in name},
    }


def _heads(settings: ModelServerSettings, model: Model, options: HeadOptions) -> Heads | None:
    """The heads that the settings name. Raises HeadFileError."""
    most_drafts = settings.medusa_max_tokens_per_step - 1
    path = settings.heads_path
    if path is None or settings.medusa_mode == "off" or most_drafts == 0:
        return None
    num_heads = settings.medusa_k_heads
    if most_drafts > 0:
        num_heads = min(num_heads, most_drafts)
    any_base = settings.medusa_any_base
    return Heads(path, model, replace(options, any_base=any_base, max_heads=num_heads))


def _drafter(settings: ModelServerSettings, costs: Costs, heads: Heads | None) -> Drafter:
    confidence = HeadConfidence(
        heads.num_heads if heads else 0, heads.calibration if heads else None
    )
    options = DraftOptions(
        settings.medusa_mode,
        settings.medusa_rows,
        settings.medusa_max_tokens_per_step,
        settings.prompt_lookup,
    )
    return Drafter(Policy(costs.decode, costs.heads, confidence), options)


def _sampling(model: Model) -> dict[str, float]:
    """The file's own defaults, but for those that no request could ask for."""
    try:
        Sampling.model_validate(model.sampling)
    except ValidationError as error:
        wrong = {str(each["loc"][0]): each["msg"] for each in error.errors()}
        log.warning("sampling defaults of %s are left out: %s", model.path.name, wrong)
        return {name: value for name, value in model.sampling.items() if name not in wrong}
    return model.sampling


def _warnings(
    settings: ModelServerSettings, model: Model, context: Context, most_leaves: int
) -> list[str]:
    found = []
    if settings.medusa_mode not in ("off", "chain") and most_leaves <= 1:
        few = f"N_PARALLEL={settings.n_parallel} leaves no sequence ids for draft trees"
        found.append(f"{few} ({MAX_SEQS} in all): drafts are chains")
    short, num_cells = model.short_context, context.options.num_cells
    if short and choose_context_size(settings, model) <= short < num_cells:
        long = f"a KV pool of {num_cells} positions has the model's factors for long contexts"
        found.append(f"{long}; KV_CACHE_TOKENS={short} or less has those for short ones")
    for problem in found:
        log.warning("%s", problem)
    return found
