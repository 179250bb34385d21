from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from model_server.config import ModelServerSettings
from model_server.engine import exactness, profiler, startup
from model_server.engine.layout import context_options
from model_server.engine.profiler import Profiler
from model_server.engine.startup import Served, load
from model_server.errors import HeadFileError, ModelFileError, SettingError, StartError
from model_server.llama import backend
from model_server.llama.context import MAX_SEQS
from model_server.metrics import ModelServerMetrics
from tests import encoders, gguf_file, random_heads, twin
from tests.model_server.engine.test_profiler import Clock
from tests.random_heads import Kind

Start = Callable[..., tuple[bool, int]]  # whether costs were measured, and ms of 4 rows


def test_info_states_the_limits(served: Served) -> None:
    info = served.info
    assert (info.model_name, info.title) == ("tiny-twin", twin.TINY.name)
    assert (info.slots, info.context_size) == (4, 256)
    assert (info.kv_cache_tokens, info.vocab_size) == (512, twin.TINY.vocab_size)
    assert info.max_step_ms >= 50
    assert not info.chat
    assert not info.exact


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"model_context_size": 4_097}, "MODEL_CONTEXT_SIZE: 4097 is more than the 4096"),
        ({"kv_cache_tokens": 100, "model_context_size": 101}, "KV_CACHE_TOKENS: 100 is less"),
        ({"kv_cache_type": "q8_0", "flash_attention": "off"}, "KV_CACHE_TYPE: q8_0 needs"),
        ({"chat_template": Path("/no/such/file")}, "CHAT_TEMPLATE: /no/such/file can't be read"),
        ({"exact": True}, "EXACT=true can't be kept"),
        ({"kv_cache_tokens": 2_000_000_000}, "KV_CACHE_TOKENS: 2000000000 cells take"),
        (
            {"exact": True, "flash_attention": "off"},
            "EXACT: true needs flash attention, so it contradicts FLASH_ATTENTION=off; leave one",
        ),
        (
            {"exact": True, "kv_cache_type": "q8_0"},
            "EXACT: true keeps K in f16, so it contradicts KV_CACHE_TYPE=q8_0; leave one",
        ),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(
    twin_path: Path, fields: dict[str, Any], problem: str
) -> None:
    with pytest.raises(StartError, match=problem):
        load(ModelServerSettings(model_path=twin_path, n_threads=1, **fields), ModelServerMetrics())


def test_a_load_that_fails_leaves_nothing_behind(random_q8_path: Path, tmp_path: Path) -> None:
    """Heads of another base are found when model and pool are there."""
    heads = random_heads.write(tmp_path / "heads.gguf", Kind(hidden=64))
    base = tmp_path / "base.gguf"  # that no other test has open
    base.write_bytes(random_q8_path.read_bytes())
    settings = ModelServerSettings(
        model_path=base, medusa_path=heads, n_threads=1, kv_cache_tokens=200_000
    )
    sizes = []
    for _ in range(4):
        with pytest.raises(HeadFileError):
            load(settings, ModelServerMetrics())
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4_096)
    pool = 200_000 * 2 * 256 * 2  # bytes of one of K and V
    assert max(sizes) - sizes[0] < pool / 4
    assert str(base) not in Path("/proc/self/maps").read_text()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        load(ModelServerSettings(model_path=tmp_path / "x.gguf"), ModelServerMetrics())


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (encoders.two_way_llama, "it is an encoder"),
        (encoders.bert, "it is an encoder"),
        (encoders.llama_embed, "it gives no logits"),
    ],
)
def test_a_model_that_goes_on_with_no_text_is_refused(
    tmp_path: Path, write: Callable[[Path], Path], problem: str
) -> None:
    """llama.cpp computes something with each; served, they answered with zeros or nonsense."""
    settings = ModelServerSettings(model_path=write(tmp_path / "a.gguf"), n_threads=1)
    with pytest.raises(ModelFileError, match=problem):
        load(settings, ModelServerMetrics())


@pytest.mark.parametrize("context_size", [16, 50, 300])
def test_any_context_size_starts_and_answers(twin_path: Path, context_size: int) -> None:
    settings = ModelServerSettings(
        model_path=twin_path, n_threads=1, model_context_size=context_size
    )
    loaded = load(settings, ModelServerMetrics())
    assert loaded.info.context_size == context_size
    assert loaded.info.kv_cache_tokens == 2 * context_size
    loaded.close()


def test_exact_mode_fixes_the_numeric_mode(random_q8_path: Path) -> None:
    settings = ModelServerSettings(
        model_path=random_q8_path, n_threads=1, exact=True, cpu_kernels="off",
        model_context_size=128, model_name="mine", max_step_ms=70, chat_template="vicuna",
    )  # fmt: skip
    loaded = load(settings, ModelServerMetrics())
    loaded.close()
    assert loaded.info.model_id.endswith(f"-f16-bf16-flash-on-{backend.kernels()}")
    assert (loaded.info.model_name, loaded.info.max_step_ms) == ("mine", 70)
    assert loaded.info.chat


@pytest.mark.parametrize(
    ("fields", "flash"),
    [
        ({}, "auto"),
        ({"flash_attention": "off"}, "off"),
        ({"exact": True}, "on"),
    ],
)
def test_exact_decides_about_flash_attention(fields: dict[str, Any], flash: str) -> None:
    assert context_options(ModelServerSettings(**fields), 100).flash_attention == flash


@pytest.mark.parametrize(
    ("cores", "host", "wanted", "threads"),
    [
        (8, "127.0.0.1", 0, 7),
        (2, "127.0.0.1", 0, 2),
        (8, "0.0.0.0", 0, 8),
        (8, "127.0.0.1", 5, 5),
    ],
)
def test_a_core_is_left_to_a_local_gateway(
    monkeypatch: pytest.MonkeyPatch, cores: int, host: str, wanted: int, threads: int
) -> None:
    monkeypatch.setattr(backend, "physical_cores", lambda: cores)
    options = context_options(ModelServerSettings(model_server_host=host, n_threads=wanted), 100)
    assert options.n_threads == threads
    assert (options.num_cells, options.num_seqs) == (200, MAX_SEQS)


def test_the_pool_must_hold_one_context() -> None:
    assert context_options(ModelServerSettings(kv_cache_tokens=100), 100).num_cells == 100
    with pytest.raises(SettingError, match="99 is less than the context of 100"):
        context_options(ModelServerSettings(kv_cache_tokens=99), 100)


def test_measuring_ends_in_time(twin_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "_MEASURE_BUDGET_S", 0.001)
    loaded = load(ModelServerSettings(model_path=twin_path, n_threads=1), ModelServerMetrics())
    assert loaded.engine.scheduler.costs.decode.seconds(512) > 0
    loaded.close()


@pytest.fixture
def nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def start(
    twin_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Start:
    def started(decode_s: float, **fields: Any) -> tuple[bool, int]:
        timed = partial(Profiler, clock=Clock(decode_s))
        monkeypatch.setattr(startup, "Profiler", timed)
        settings = {"model_path": twin_path, "n_threads": 1, "model_context_size": 64, **fields}
        caplog.clear()
        with caplog.at_level("INFO"):
            loaded = load(ModelServerSettings(**settings), ModelServerMetrics())
        loaded.close()
        cost_ms = 1_000 * loaded.engine.scheduler.costs.decode.seconds(4)
        return "measuring" in caplog.text, round(cost_ms)

    return started


def test_costs_are_measured_once(nothing_kept: None, start: Start) -> None:
    assert start(0.010) == (True, 10)
    assert start(0.010) == (False, 10)
    assert start(0.025) == (False, 25)  # a busy hour is no reason to
    assert start(0.004) == (True, 4)  # a better one is
    assert start(0.004) == (False, 4)


def test_a_busy_start_makes_no_longer_steps(
    nothing_kept: None, twin_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is slow at a start passes, and its limit would stay."""
    settings = ModelServerSettings(model_path=twin_path, n_threads=1, model_context_size=64)
    limits = []
    for decode_s in (0.1, 0.3):
        monkeypatch.setattr(startup, "Profiler", partial(Profiler, clock=Clock(decode_s)))
        loaded = load(settings, ModelServerMetrics())
        limits.append(loaded.info.max_step_ms)
        loaded.close()
    assert limits[0] == limits[1] > 50


@pytest.mark.parametrize(
    "fields",
    [
        {"n_threads": 2},
        {"flash_attention": "off"},
        {"kv_cache_type": "f32"},
        {"kv_cache_tokens": 512},
        {"model_context_size": 65},
    ],
)
def test_costs_of_other_settings_are_others(
    nothing_kept: None, start: Start, fields: dict[str, Any]
) -> None:
    assert start(0.010)[0]
    assert start(0.010, **fields)[0]
    assert not start(0.010)[0]
    assert not start(0.010, **fields)[0]


def test_costs_of_other_files_and_heads_are_others(
    nothing_kept: None, start: Start, twin_q8_path: Path, tmp_path: Path
) -> None:
    kind = Kind(hidden=twin.TINY.hidden, vocab_size=twin.TINY.vocab_size)
    heads = random_heads.write(tmp_path / "heads.gguf", kind)
    one = {"medusa_path": heads, "medusa_k_heads": 1}
    for fields in ({}, {"model_path": twin_q8_path}, {"medusa_path": heads}, one):
        assert start(0.010, **fields)[0]
    for fields in ({}, {"model_path": twin_q8_path}, {"medusa_path": heads}, one):
        assert not start(0.010, **fields)[0]


@pytest.mark.parametrize("variable", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_costs_of_threads_that_wait_otherwise_are_others(
    nothing_kept: None, start: Start, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start(0.010)[0]
    monkeypatch.setenv(variable, "7")
    assert start(0.010)[0]


def test_exactness_is_checked_once(
    nothing_kept: None, random_q8_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[int] = []
    check = exactness.difference

    def counted(*args: Any, **options: Any) -> float:
        checks.append(1)
        return check(*args, **options)

    monkeypatch.setattr(exactness, "difference", counted)
    for n_threads, num_checks in ((1, 1), (1, 1), (2, 2), (1, 2)):
        settings = ModelServerSettings(
            model_path=random_q8_path, n_threads=n_threads, exact=True, model_context_size=128
        )
        load(settings, ModelServerMetrics()).close()
        assert len(checks) == num_checks


def test_what_is_not_exact_is_refused_each_time(nothing_kept: None, twin_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(StartError, match="EXACT=true can't be kept"):
            load(
                ModelServerSettings(model_path=twin_path, n_threads=1, exact=True),
                ModelServerMetrics(),
            )


def test_defaults_of_sampling_that_nobody_could_ask_for_are_left_out(tmp_path: Path) -> None:
    said = {"temp": 0.6, "top_p": 1.5, "top_k": -1}
    tensors = twin.tensors(twin.TINY, "F32")
    path = gguf_file.write(tmp_path / "a.gguf", twin.TINY, "F32", tensors, said)
    loaded = load(
        ModelServerSettings(model_path=path, n_threads=1, model_context_size=64),
        ModelServerMetrics(),
    )
    assert loaded.info.sampling == {"temperature": 0.6}
    loaded.close()
