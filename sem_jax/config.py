"""The configuration: a `ConfigDict` at the edge, frozen typed dataclasses inside.

A config file returns `default()` with a few fields changed; the command line overrides single fields; `build` turns
the result into dataclasses once, and everything that is impossible, unknown or of the wrong type is an error there.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from ml_collections import ConfigDict

Transport = Literal["none", "row_softmax", "population", "causal_sinkhorn", "sequence_sinkhorn"]
Solver = Literal["cg", "dense", "chebyshev", "cg_on_cayley"]
ScanMethod = Literal["auto", "sequential", "associative", "chunked"]
Remat = Literal["none", "elementwise", "layers"]


class ConfigError(ValueError):
    """A configuration value that is unknown, of the wrong type or impossible; the message names field and cure."""


@dataclass(frozen=True)
class EncoderConfig:
    """Token ids to ψ: optimal transport from tokens to a sparse distributed representation (SPEC 2).

    Which causal form is the default was decided by validation loss at equal budget, Shakespeare by characters, D 128,
    4 layers, 1000 steps of 12 x 64, one seed (`python benchmarks/variants.py --path=FILE --dim=128 --layers=4`), nats a
    character: embedding alone 1.9673; row softmax alone 1.9751; beside the embedding row softmax 1.9576, population
    1.9542, causal Sinkhorn 1.9565. The three forms beside the embedding lie within 0.0034; of them row softmax
    alone needs neither state nor sweeps.
    """

    transport: Transport = "row_softmax"  # how the plan is normalised; "sequence_sinkhorn" is the reference, not causal
    embedding_skip: bool = True  # add the plain embedding beside the transport plan
    sdr_candidates: int = 128  # M, columns of the plan
    sdr_sparsity: int = 32  # K_s, columns that stay non-zero in each row
    cost_dim: int = 64  # P, dimension in which the cost is measured
    sinkhorn_epsilon: float = 0.05  # entropic regularisation
    sinkhorn_max_iter: int = 50  # sweeps at most (sequence_sinkhorn), or exactly (causal_sinkhorn)
    sinkhorn_tol: float = 1e-3  # stop on max |Δu| (sequence_sinkhorn)
    sinkhorn_prior: float = 128.0  # virtual rows, spread evenly, that steady a short prefix (causal_sinkhorn)
    population_rate: float = 0.01  # step of the population potential a training step (population)


@dataclass(frozen=True)
class MixerConfig:
    """One sequence-mixing layer: spinor gate, causal convolution, selective SSM (SPEC section 2, Mixer).

    Initialisation, measured as in `EncoderConfig`: fast 1.9576, ring 2.0039, ring with unit variance 1.9981.
    """

    block_size: int = 8  # b, channels of one spinor block
    conv_width: int = 4  # K, taps
    num_groups: int = 8  # G, independent groups of channels
    state_dim: int = 16  # N, complex states of one group
    ssm_init: Literal["fast", "ring"] = "fast"  # decay at start: the reference's |a| near .3, or an LRU-style ring
    ring_max_timescale: float = 64.0  # slowest time constant of the ring, in tokens
    input_scale: Literal["dt", "unit_variance"] = "dt"  # δ·Bx (reference), or sqrt(1-|a|²)·Bx
    clamp_interval: int = 0  # clamp the state's modulus every so many positions; 0 never, 256 in the reference
    scan: ScanMethod = "auto"  # evaluation of the recurrence


@dataclass(frozen=True)
class PropagatorConfig:
    """One propagator layer: Kerr phase, then a unitary Cayley step (SPEC section 2, Propagator layer)."""

    solver: Solver = "dense"
    matvec: Literal["dense", "sparse"] = "dense"  # the Hamiltonian as one matrix or as an edge list
    cayley_dt: float = 0.1  # time step; h = dt/2
    cg_max_iter: int = 8
    cg_tol: float = 1e-7  # relative residual of one token, of cg and chebyshev
    chebyshev_degree: int = 64  # at most; the degree that cg_tol needs is used
    nonlinear_alpha: float = 0.1  # initial Kerr coefficient
    laplacian_sparsity: int = 8  # neighbours a node in the finest of the three graphs
    rewire_probability: float = 0.1  # share of long-range edges (Watts and Strogatz, 1998)
    num_edges: tuple[int, int, int] = (0, 0, 0)  # edges of each graph, set by an import; 0: as laplacian_sparsity says


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the whole model."""

    vocab_size: int = 0  # 0: taken from the tokenizer
    hidden_dim: int = 128  # D
    num_layers: int = 4  # L mixers followed by L propagators
    max_seq_length: int = 2048  # longest sequence that training may use; the arithmetic has no limit
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    mixer: MixerConfig = field(default_factory=MixerConfig)
    propagator: PropagatorConfig = field(default_factory=PropagatorConfig)
    likelihood: Literal["born", "reference"] = "born"  # normalised Born rule, or the reference's unnormalised loss
    born_floor: float = 1e-6  # share of the uniform distribution mixed into the Born rule
    remat: Remat = "none"  # what the backward pass recomputes: nothing, all but real matrix products, or whole layers


@dataclass(frozen=True)
class OptimizerConfig:
    """Complex AdamW, its schedule, Langevin noise and the guard (SPEC section 2, Optimizer and Schedule)."""

    learning_rate: float = 1.2e-3
    schedule: Literal["wsd", "cosine"] = "wsd"  # warmup-stable-decay, or a cosine from the warm-up to the last step
    warmup_steps: int = 100
    decay_steps: int = 500  # the last steps of the run, a cosine down to lr_min_ratio (wsd)
    lr_min_ratio: float = 0.1
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.1  # matrices only
    decay_all: bool = False  # decay every parameter, as the reference does
    clip_norm: float = 1.0  # global norm of the gradient; 0 switches clipping off
    lr_factors: str = ""  # learning rate by group, "propagators/edge_weights=0.1,readout=2"; 0 freezes a group
    decay_factors: str = ""  # weight decay by group, of parameters that decay at all; 0 switches it off
    temperature: float = 0.0  # T of the Langevin noise; 0 is noiseless AdamW
    thermostat: Literal["fixed", "posterior"] = "fixed"  # posterior: T becomes 1 / number of training tokens
    noise_floor: float = 1e-4  # least sqrt of the second moment in the noise's preconditioner
    noise_cap: float = 1.0  # largest noise standard deviation, in units of the learning rate
    unitary_lambda: float = 1e-3  # λ of the log²Z term of the loss
    guard_backoff: float = 0.5  # LR scale after a bad step, times this
    guard_min_scale: float = 1e-3  # the LR scale never falls below this
    guard_regrow_steps: int = 200  # clean steps after which the LR scale doubles again, up to 1
    guard_max_consecutive: int = 20  # bad steps in a row that end the run
    spike_zscore: float = 0.0  # skip a step this many robust standard deviations above the last ones; 0: never
    spike_window: int = 100  # good steps that a spike is measured against
    spike_patience: int = 5  # spikes in a row that are skipped; the next one is a new level and is taken


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from and how it becomes batches."""

    source: str = "pystdlib"  # a name in sem_jax/data/sources.py: pystdlib, text, jsonl, parquet, hf
    path: str = ""  # file, folder or glob; several are separated by commas (text, jsonl, parquet); dataset name (hf)
    hf_config: str = ""  # configuration of the dataset (hf)
    hf_split: str = "train"
    text_field: str = "text"
    score_field: str = ""  # quality score; empty: no filter
    min_score: float = 0.0
    max_documents: int = 0  # 0: all
    split: Literal["hash", "tail"] = "hash"  # hold out whole documents by hash, or the last share of the characters
    validation_fraction: float = 0.05
    tokenizer: Literal["byte", "char", "bpe", "ids"] = "byte"  # ids: text is numbers, of a converted model
    tokenizer_path: str = ""  # a trained tokenizer; empty: train one on the source and cache it
    bpe_vocab_size: int = 4096
    tokenizer_sample: int = 20_000  # documents of the training split that a bpe tokenizer is trained on; 0: all
    stream: bool = False  # read the source while training; needs packing = documents and split = hash
    shard_tokens: int = 2**22  # tokens of a shard, the unit in which a stream is cached and shuffled
    seq_length: int = 128
    packing: Literal["documents", "windows"] = "documents"  # packed documents, or random windows of one long stream
    reset_at_boundary: bool = True  # conv, SSM, encoder and position start afresh at each document
    cache_dir: str = ""  # empty: $SEM_JAX_CACHE or ~/.cache/sem_jax


@dataclass(frozen=True)
class TrainingConfig:
    """The run: length, batches and how often what happens."""

    seed: int = 0
    max_steps: int = 2000
    global_batch: int = 16  # sequences a step
    micro_batch: int = 16  # sequences a forward pass; gradients are accumulated up to global_batch
    log_every: int = 10
    eval_every: int = 200
    eval_batches: int = 16
    health_every: int = 50
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    overfit_batches: int = 0  # train on the first so many batches over and over, a check that learning works; 0: all
    ema_decay: float = 0.0  # of the parameters' moving average; 0 keeps no average
    ema_decay_start: float = 0.0  # decay of the first step, where ema_decay_steps is not 0
    ema_decay_steps: int = 0  # steps over which the decay goes linearly from ema_decay_start to ema_decay; 0: constant
    distill_weight: float = 0.0  # α: (1−α)·loss + α·divergence from the averaged model, the teacher; 0 has no teacher
    distill_temperature: float = 1.5  # softens teacher and student alike


@dataclass(frozen=True)
class SamplingConfig:
    """Defaults of generation."""

    prompt: str = "\n"
    max_tokens: int = 200
    temperature: float = 0.8
    top_k: int = 50  # 0: no limit
    top_p: float = 0.95
    context_length: int = 0  # tokens read at most before the next one; 0: data.seq_length, what training has seen


@dataclass(frozen=True)
class Config:
    """One experiment."""

    name: str = "sem"
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


def default() -> ConfigDict:
    """The default configuration as a locked `ConfigDict`: the start of every config file."""
    return to_config_dict(Config())


def to_config_dict(config: Config) -> ConfigDict:
    """The `ConfigDict` with the same fields and values."""
    return ConfigDict(dataclasses.asdict(config)).lock()


def build(config: Mapping[str, Any] | ConfigDict) -> Config:
    """Typed and validated configuration.

    Args:
      config: nested mapping; missing fields take their defaults.

    Raises:
      ConfigError: a field is unknown, of the wrong type or has an impossible value.
    """
    values = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    typed = _from_mapping(Config, values, "config")
    _validate(typed)
    return typed


def override(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested `values` with fields such as "data.path" replaced by `changes`."""
    copy = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    for path, value in changes.items():
        head, _, rest = path.partition(".")
        copy[head] = override(copy[head], {rest: value}) if rest else value
    return copy


def with_vocabulary(config: Config, vocab_size: int) -> Config:
    """The configuration with the vocabulary size of its tokenizer.

    Raises:
      ConfigError: another size is configured.
    """
    if config.model.vocab_size not in (0, vocab_size):
        raise ConfigError(
            f"config.model.vocab_size = {config.model.vocab_size}, but the {config.data.tokenizer} tokenizer has "
            f"{vocab_size} ids; set it to 0 to take the tokenizer's"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=vocab_size))


def with_posterior_temperature(config: Config, train_tokens: int | None) -> Config:
    """The configuration in which the thermostat "posterior" has become a fixed T = 1/N; "fixed" stays as it is.

    The loss is a mean over tokens, in nats, so exp(−loss / T) with T = 1/N is the likelihood of all N training tokens.
    A run keeps the result, not the question: what resumes or evaluates it reads the same T.

    Args:
      config: the experiment.
      train_tokens: N; None of a stream, with which the validation refuses "posterior".
    """
    if config.optimizer.thermostat == "fixed":
        return config
    assert train_tokens is not None
    optimizer = dataclasses.replace(config.optimizer, thermostat="fixed", temperature=1 / train_tokens)
    return dataclasses.replace(config, optimizer=optimizer)


def parse_factors(text: str, field: str) -> dict[str, float]:
    """Factors by path, in their order: {"propagators": 0.1, "readout": 2.0} from "propagators=0.1, readout=2".

    Args:
      text: pairs PATH=FACTOR with commas between them; empty: there are none.
      field: where the text stands, for the message.

    Raises:
      ConfigError: an entry is no such pair, its factor is negative or not finite, or a path comes twice.
    """
    factors: dict[str, float] = {}
    for entry in text.split(",") if text.strip() else ():
        path, _, value = map(str.strip, entry.partition("="))
        try:
            factor = float(value)
        except ValueError:
            factor = math.nan
        _require(
            path != "" and math.isfinite(factor) and factor >= 0,
            f"{field}: {entry.strip()!r} must be PATH=FACTOR with a finite factor >= 0, such as readout=0.5",
        )
        _require(path not in factors, f"{field} gives {path} twice; keep one of the two")
        factors[path] = factor
    return factors


T = TypeVar("T")


def _from_mapping(cls: type[T], values: Any, path: str) -> T:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} must be a group of fields, got {values!r}")
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            close = difflib.get_close_matches(str(name), hints, n=1)
            cure = f"did you mean {path}.{close[0]}?" if close else f"its fields are {', '.join(hints)}"
            raise ConfigError(f"{path}.{name} does not exist; {cure}")
    return cls(**{name: _typed(hints[name], value, f"{path}.{name}") for name, value in values.items()})


def _typed(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _from_mapping(typing.cast(type, hint), value, path)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ConfigError(f"{path} = {value!r} is not one of {', '.join(map(str, choices))}")
        return value
    if typing.get_origin(hint) is tuple:
        hints = typing.get_args(hint)
        if not isinstance(value, list | tuple) or len(value) != len(hints):  # JSON knows no tuples
            raise ConfigError(f"{path} = {value!r} must be {len(hints)} values, such as {(0,) * len(hints)}")
        return tuple(
            _typed(each, entry, f"{path}[{i}]") for i, (each, entry) in enumerate(zip(hints, value, strict=True))
        )
    assert not isinstance(hint, types.UnionType), f"{path}: unions are not supported"
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # 1e3 is a natural way to write a number of steps
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{path} = {value!r} must be of type {hint.__name__}")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{path} = {value!r} must be finite")
    return value


_POSITIVE = """
    model.hidden_dim model.num_layers model.max_seq_length
    model.encoder.sdr_candidates model.encoder.sdr_sparsity model.encoder.cost_dim model.encoder.sinkhorn_epsilon
    model.encoder.sinkhorn_max_iter model.encoder.sinkhorn_tol model.mixer.block_size model.mixer.conv_width
    model.mixer.num_groups model.mixer.state_dim model.propagator.cg_max_iter model.propagator.cg_tol
    model.propagator.chebyshev_degree model.propagator.laplacian_sparsity optimizer.learning_rate optimizer.eps
    optimizer.noise_floor optimizer.noise_cap optimizer.guard_min_scale optimizer.guard_regrow_steps
    optimizer.guard_max_consecutive optimizer.spike_window optimizer.spike_patience
    data.bpe_vocab_size data.shard_tokens data.seq_length training.max_steps training.global_batch
    training.micro_batch training.log_every training.eval_every training.eval_batches training.health_every
    training.checkpoint_every training.keep_checkpoints training.distill_temperature sampling.max_tokens
""".split()

_NOT_NEGATIVE = """
    model.vocab_size model.encoder.sinkhorn_prior model.mixer.clamp_interval model.propagator.cayley_dt
    optimizer.warmup_steps optimizer.decay_steps optimizer.weight_decay optimizer.clip_norm optimizer.temperature
    optimizer.unitary_lambda optimizer.spike_zscore
    data.max_documents data.tokenizer_sample training.overfit_batches training.seed training.ema_decay_steps
    sampling.top_k sampling.temperature sampling.context_length
""".split()

_SHARE = """
    model.encoder.population_rate model.propagator.rewire_probability model.born_floor optimizer.lr_min_ratio
    optimizer.b1 optimizer.b2 optimizer.guard_backoff optimizer.guard_min_scale data.validation_fraction
    training.ema_decay training.ema_decay_start training.distill_weight sampling.top_p
""".split()


def lookup(config: Config, path: str) -> Any:
    """The value of a field such as "data.path"."""
    return operator.attrgetter(path)(config)


def _validate(config: Config) -> None:
    for path in _POSITIVE:
        if not lookup(config, path) > 0:
            raise ConfigError(f"config.{path} = {lookup(config, path)} must be positive")
    for path in _NOT_NEGATIVE:
        if lookup(config, path) < 0:
            raise ConfigError(f"config.{path} = {lookup(config, path)} must not be negative")
    for path in _SHARE:
        if not 0 <= lookup(config, path) <= 1:
            raise ConfigError(f"config.{path} = {lookup(config, path)} must lie between 0 and 1")
    _validate_model(config.model)
    _validate_run(config)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _validate_model(model: ModelConfig) -> None:
    mixer, encoder = model.mixer, model.encoder
    for name, parts in (("num_groups", mixer.num_groups), ("block_size", mixer.block_size)):
        _require(
            model.hidden_dim % parts == 0,
            f"config.model.mixer.{name} = {parts} must divide config.model.hidden_dim = {model.hidden_dim}",
        )
    _require(
        encoder.sdr_sparsity <= encoder.sdr_candidates,
        f"config.model.encoder.sdr_sparsity = {encoder.sdr_sparsity} must not exceed "
        f"config.model.encoder.sdr_candidates = {encoder.sdr_candidates}",
    )
    _require(
        encoder.sdr_sparsity > 1,
        "config.model.encoder.sdr_sparsity = 1 keeps no column, since the largest entry is the threshold; raise it",
    )
    _require(
        encoder.transport != "none" or encoder.embedding_skip,
        "config.model.encoder.transport = none needs config.model.encoder.embedding_skip = True, or no token gets in",
    )
    _require(
        min(model.propagator.num_edges) >= 0,
        f"config.model.propagator.num_edges = {model.propagator.num_edges} must not be negative",
    )
    _require(
        mixer.ring_max_timescale > 1,
        f"config.model.mixer.ring_max_timescale = {mixer.ring_max_timescale} must exceed 1 token",
    )


def _validate_run(config: Config) -> None:
    optimizer, training, data = config.optimizer, config.training, config.data
    _require(
        training.global_batch % training.micro_batch == 0,
        f"config.training.micro_batch = {training.micro_batch} must divide "
        f"config.training.global_batch = {training.global_batch}",
    )
    _require(
        not (training.ema_decay and training.ema_decay_steps) or training.ema_decay_start <= training.ema_decay,
        f"config.training.ema_decay_start = {training.ema_decay_start} must not exceed "
        f"config.training.ema_decay = {training.ema_decay}",
    )
    _require(
        not training.distill_weight or training.ema_decay > 0,
        f"config.training.distill_weight = {training.distill_weight} needs a teacher, the average of the parameters; "
        "set config.training.ema_decay, to 0.9999 say, or config.training.distill_weight = 0",
    )
    _require(
        training.distill_weight < 1,
        "config.training.distill_weight = 1 leaves nothing to learn from but the model itself; lower it",
    )
    _require(
        not training.distill_weight or config.model.likelihood == "reference" or config.model.born_floor > 0,
        "config.training.distill_weight needs config.model.born_floor > 0: the divergence from the teacher is infinite "
        "where an amplitude vanishes",
    )
    _require(
        optimizer.schedule != "wsd" or optimizer.warmup_steps + optimizer.decay_steps <= training.max_steps,
        f"config.optimizer.warmup_steps + decay_steps = {optimizer.warmup_steps + optimizer.decay_steps} "
        f"must fit in config.training.max_steps = {training.max_steps}",
    )
    _require(
        optimizer.schedule != "cosine" or optimizer.warmup_steps < training.max_steps,
        f"config.optimizer.warmup_steps = {optimizer.warmup_steps} must be below config.training.max_steps = "
        f"{training.max_steps}, or no step is left for the cosine",
    )
    _require(
        data.seq_length <= config.model.max_seq_length,
        f"config.data.seq_length = {data.seq_length} exceeds "
        f"config.model.max_seq_length = {config.model.max_seq_length}",
    )
    _require(
        data.source == "pystdlib" or bool(data.path),
        f"config.data.source = {data.source} needs config.data.path, the file, folder, glob or dataset to read",
    )
    _require(
        0 < data.validation_fraction < 1,
        f"config.data.validation_fraction = {data.validation_fraction} must lie strictly between 0 and 1",
    )
    _require(
        not optimizer.spike_zscore or optimizer.spike_patience < optimizer.guard_max_consecutive,
        f"config.optimizer.spike_patience = {optimizer.spike_patience} must be below "
        f"config.optimizer.guard_max_consecutive = {optimizer.guard_max_consecutive}, or spikes alone end the run",
    )
    if optimizer.thermostat == "posterior":
        _validate_posterior(config)
    if data.stream:
        _validate_stream(config)
    for name in ("lr_factors", "decay_factors"):
        parse_factors(getattr(optimizer, name), f"config.optimizer.{name}")
    for name in ("b1", "b2", "guard_backoff"):
        _require(getattr(optimizer, name) < 1, f"config.optimizer.{name} must be below 1")
    _require(optimizer.guard_backoff > 0, "config.optimizer.guard_backoff must be positive")
    _require(config.sampling.top_p > 0, "config.sampling.top_p must be positive")


def _validate_posterior(config: Config) -> None:
    training = config.training
    _require(
        config.optimizer.temperature == 0,
        f"config.optimizer.temperature = {config.optimizer.temperature} and config.optimizer.thermostat = posterior "
        "both set T; leave the temperature at 0, or set the thermostat to fixed",
    )
    _require(
        config.model.likelihood == "born" and not training.distill_weight and not training.overfit_batches,
        "config.optimizer.thermostat = posterior needs a loss that is the likelihood of all training data; set "
        "config.model.likelihood = born, config.training.distill_weight = 0 and config.training.overfit_batches = 0",
    )


def _validate_stream(config: Config) -> None:
    data = config.data
    for name, needed in (("packing", "documents"), ("split", "hash")):
        value = getattr(data, name)
        _require(
            value == needed,
            f"config.data.stream needs config.data.{name} = {needed}, got {value}: where a stream ends is not known",
        )
    _require(
        data.tokenizer != "char",
        "config.data.stream cannot have config.data.tokenizer = char, which knows no character outside its sample; "
        "set config.data.tokenizer = bpe or byte",
    )
    _require(
        data.tokenizer_sample > 0,
        "config.data.tokenizer_sample = 0 reads the whole source before the first step; with config.data.stream, give "
        "a number of documents",
    )
    _require(
        data.shard_tokens > data.seq_length,
        f"config.data.shard_tokens = {data.shard_tokens} must exceed config.data.seq_length = {data.seq_length}, "
        "or a shard holds no sequence",
    )
    _require(
        config.optimizer.thermostat != "posterior",
        "config.optimizer.thermostat = posterior needs the number of training tokens, which a stream does not know; "
        "set config.data.stream = False, or config.optimizer.thermostat = fixed and config.optimizer.temperature",
    )
