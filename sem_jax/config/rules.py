"""The rules between fields: what each alone may be, and both together may not."""

from __future__ import annotations

from sem_jax.config.experiment import Config
from sem_jax.config.fields import ConfigError, require, shown
from sem_jax.config.model import MOST_EDGES, ModelConfig
from sem_jax.config.optimizer import OptimizerConfig, parse_factors
from sem_jax.config.sizes import count_edges, count_state, count_weights
from sem_jax.config.stages import at_stage, stages_of
from sem_jax.config.training import profiled_steps, tracker_names

# Each number alone may be large, but not all at once. Eight times the largest models that the package is made for.
_MOST_WEIGHTS = 2**33  # real numbers in the parameters: 32 GiB
_LARGEST_STATE = 2**28  # real numbers that a text carries along: 1 GiB
_LARGEST_STEP = 2**27  # tokens of a step; the largest of published runs have 2**24
_LARGEST_ACTIVATION = 2**34  # entries of one array of a forward pass, on all devices together: 64 GiB
_COLDEST = 1e-4  # log P / temperature stays finite in float32 down to here


def check_rules(config: Config) -> None:
    """Raises ConfigError at the first rule that two or more fields break; the message names all of them."""
    _check_model(config.model)
    _check_size(config)
    _check_optimizer(config.optimizer, config.training.max_steps)
    _check_data(config)
    _check_training(config)
    _check_stages(config)
    if config.optimizer.thermostat == "posterior":
        _check_posterior(config)


def _check_model(model: ModelConfig) -> None:
    mixer, encoder = model.mixer, model.encoder
    used = "num_heads" if mixer.kind == "selective" else "num_groups"
    for name in (used, "block_size"):
        parts = getattr(mixer, name)
        require(
            model.hidden_dim % parts == 0,
            f"config.model.mixer.{name} = {parts} must divide config.model.hidden_dim = {model.hidden_dim}",
        )
    require(
        encoder.sdr_sparsity <= encoder.sdr_candidates,
        f"config.model.encoder.sdr_sparsity = {encoder.sdr_sparsity} must not exceed "
        f"config.model.encoder.sdr_candidates = {encoder.sdr_candidates}",
    )
    require(
        encoder.transport != "none" or encoder.embedding_skip,
        "config.model.encoder.transport = none needs config.model.encoder.embedding_skip = True, or no token gets in",
    )


def _check_size(config: Config) -> None:
    model, training = config.model, config.training
    dim, length = model.hidden_dim, config.data.seq_length
    for given, edges in zip(model.propagator.num_edges, count_edges(model), strict=True):
        require(
            edges <= min(dim * dim, MOST_EDGES),
            f"config.model.propagator.num_edges = {given} and laplacian_sparsity = "
            f"{model.propagator.laplacian_sparsity} ask for {edges:_} edges between config.model.hidden_dim = {dim} "
            f"nodes; at most {min(dim * dim, MOST_EDGES):_} are sensible",
        )
    weights = count_weights(model)
    require(
        weights <= _MOST_WEIGHTS,
        f"the model would have about {weights:.1e} weights, more than {_MOST_WEIGHTS:.1e}; lower "
        f"config.model.hidden_dim = {dim}, num_layers = {model.num_layers} or vocab_size = {model.vocab_size}",
    )
    state = count_state(model)
    require(
        state <= _LARGEST_STATE,
        f"a text would carry {state:.1e} numbers along, more than {_LARGEST_STATE:.1e}; lower "
        f"config.model.mixer.state_dim = {model.mixer.state_dim}, or encoder.sdr_candidates = "
        f"{model.encoder.sdr_candidates} and encoder.sinkhorn_max_iter = {model.encoder.sinkhorn_max_iter}",
    )
    require(
        training.global_batch * length <= _LARGEST_STEP,
        f"config.training.global_batch = {training.global_batch} times config.data.seq_length = {length} is more than "
        f"{_LARGEST_STEP:_} tokens a step; lower one of them",
    )
    require(
        training.micro_batch * length * max(dim, model.encoder.sdr_candidates) <= _LARGEST_ACTIVATION,
        f"config.training.micro_batch = {training.micro_batch} times config.data.seq_length = {length} times "
        f"config.model.hidden_dim = {dim} (or encoder.sdr_candidates) is more than {_LARGEST_ACTIVATION:.1e} numbers "
        "in one array; lower config.training.micro_batch",
    )


def _check_optimizer(optimizer: OptimizerConfig, max_steps: int) -> None:
    require(
        optimizer.schedule != "wsd" or optimizer.warmup_steps + optimizer.decay_steps <= max_steps,
        f"config.optimizer.warmup_steps + decay_steps = {optimizer.warmup_steps + optimizer.decay_steps} "
        f"must fit in config.training.max_steps = {max_steps}",
    )
    require(
        optimizer.schedule != "cosine" or optimizer.warmup_steps < max_steps,
        f"config.optimizer.warmup_steps = {optimizer.warmup_steps} must be below config.training.max_steps = "
        f"{max_steps}, or no step is left for the cosine",
    )
    require(
        optimizer.matrices != "muon" or (optimizer.temperature == 0 and optimizer.thermostat == "fixed"),
        "config.optimizer.matrices = muon takes no Langevin noise, whose size is that of Adam's second moment; set "
        "config.optimizer.temperature = 0 and thermostat = fixed, or matrices = adam",
    )
    require(
        not optimizer.spike_zscore or optimizer.spike_patience < optimizer.guard_max_consecutive,
        f"config.optimizer.spike_patience = {optimizer.spike_patience} must be below "
        f"config.optimizer.guard_max_consecutive = {optimizer.guard_max_consecutive}, or spikes alone end the run",
    )
    for name in ("lr_factors", "decay_factors"):
        parse_factors(getattr(optimizer, name), f"config.optimizer.{name}")


def _check_data(config: Config) -> None:
    data = config.data
    require(
        data.seq_length <= config.model.max_seq_length,
        f"config.data.seq_length = {data.seq_length} exceeds "
        f"config.model.max_seq_length = {config.model.max_seq_length}",
    )
    require(
        data.source == "pystdlib" or bool(data.path),
        f"config.data.source = {data.source} needs config.data.path, the file, folder, glob or dataset to read",
    )
    require(
        config.sampling.temperature == 0 or config.sampling.temperature >= _COLDEST,
        f"config.sampling.temperature = {config.sampling.temperature} must be at least {_COLDEST}, or 0, which takes "
        "the likeliest token",
    )
    if data.stream:
        _check_stream(config)


def _check_training(config: Config) -> None:
    training = config.training
    profiled_steps(training.profile)
    tracker_names(training.trackers)
    require(
        training.global_batch % training.micro_batch == 0,
        f"config.training.micro_batch = {training.micro_batch} must divide "
        f"config.training.global_batch = {training.global_batch}",
    )
    require(
        not (training.ema_decay and training.ema_decay_steps) or training.ema_decay_start <= training.ema_decay,
        f"config.training.ema_decay_start = {training.ema_decay_start} must not exceed "
        f"config.training.ema_decay = {training.ema_decay}",
    )
    require(
        not training.distill_weight or training.ema_decay > 0,
        f"config.training.distill_weight = {training.distill_weight} needs a teacher, the average of the parameters; "
        "set config.training.ema_decay, to 0.9999 say, or config.training.distill_weight = 0",
    )
    require(
        not training.distill_weight or config.model.likelihood != "born" or config.model.born_floor > 0,
        "config.training.distill_weight needs config.model.born_floor > 0: the divergence from the teacher is infinite "
        "where an amplitude vanishes",
    )


def _check_stages(config: Config) -> None:
    """A stage that could never begin is an error now, not a disappointment after the last step."""
    max_steps, before = config.training.max_steps, 0
    for number, stage in enumerate(stages_of(config)[1:], start=2):
        where = f"config.training.stages = {shown(config.training.stages)}, stage {number}"
        require(stage.begins > before, f"{where}: begins after {stage.begins} steps, not after the stage before it")
        require(
            stage.begins < max_steps,
            f"{where}: never begins: after {stage.begins} steps the run, of config.training.max_steps = {max_steps}, "
            "has ended; lower one, raise the other, or leave the stage out",
        )
        try:
            for check in (_check_size, _check_data, _check_training):
                check(at_stage(config, stage))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        before = stage.begins


def _check_posterior(config: Config) -> None:
    training = config.training
    require(
        config.optimizer.temperature == 0,
        f"config.optimizer.temperature = {config.optimizer.temperature} and config.optimizer.thermostat = posterior "
        "both set T; leave the temperature at 0, or set the thermostat to fixed",
    )
    require(
        config.model.likelihood != "reference" and not training.distill_weight and not training.overfit_batches,
        "config.optimizer.thermostat = posterior needs a loss that is the likelihood of all training data; set "
        "config.model.likelihood = born, config.training.distill_weight = 0 and config.training.overfit_batches = 0",
    )


def _check_stream(config: Config) -> None:
    data = config.data
    for name, needed in (("packing", "documents"), ("split", "hash")):
        value = getattr(data, name)
        require(
            value == needed,
            f"config.data.stream needs config.data.{name} = {needed}, got {value}: where a stream ends is not known",
        )
    require(
        data.tokenizer != "char",
        "config.data.stream cannot have config.data.tokenizer = char, which knows no character outside its sample; "
        "set config.data.tokenizer = bpe or byte",
    )
    require(
        data.tokenizer_sample > 0,
        "config.data.tokenizer_sample = 0 reads the whole source before the first step; with config.data.stream, give "
        "a number of documents",
    )
    require(
        data.shard_tokens > data.seq_length,
        f"config.data.shard_tokens = {data.shard_tokens} must exceed config.data.seq_length = {data.seq_length}, "
        "or a shard holds no sequence",
    )
    require(
        config.optimizer.thermostat != "posterior",
        "config.optimizer.thermostat = posterior needs the number of training tokens, which a stream does not know; "
        "set config.data.stream = False, or config.optimizer.thermostat = fixed and config.optimizer.temperature",
    )
