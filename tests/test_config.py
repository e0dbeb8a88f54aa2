"""What a configuration accepts, and what it says about the rest."""

import dataclasses
import json
import math
import pathlib
import sys

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags
from small import fields

from sem_jax.config import (
    Config,
    ConfigError,
    build,
    default,
    override,
    parse_factors,
    to_config_dict,
    upgrade,
    with_posterior_temperature,
    with_vocabulary,
)
from sem_jax.config.describe import help_text, markdown
from sem_jax.config.fields import walk

GROUPS = [group.name for group in dataclasses.fields(Config) if group.name != "name"]


def nested(path, value):
    head, _, rest = path.partition(".")
    return {head: nested(rest, value) if rest else value}


def numeric_fields(group, prefix=""):
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if dataclasses.is_dataclass(value):
            yield from numeric_fields(value, f"{prefix}{field.name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{field.name}", type(value)


NUMERIC = dict(numeric_fields(Config()))


def test_the_default_is_the_dataclasses_own():
    assert build(default()) == build({}) == Config()


def test_round_trip_keeps_every_field():
    config = build(fields(optimizer__temperature=1e-6, model__encoder__transport="causal_sinkhorn", name="other"))
    assert config != Config()
    assert build(to_config_dict(config)) == config


def test_the_config_dict_is_locked_and_the_result_frozen():
    with pytest.raises((AttributeError, KeyError)):
        default().model.hidden_dims = 8
    config = build({})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.hidden_dim = 8
    assert hash(config) == hash(Config())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": {}}, r"config\.modle does not exist; did you mean config\.model\?"),
        (
            {"model": {"hiden_dim": 8}},
            r"config\.model\.hiden_dim does not exist; did you mean config\.model\.hidden_dim",
        ),
        ({"model": {"mixer": {"group": 8}}}, r"config\.model\.mixer\.group does not exist.*num_groups"),
        ({"training": {"zzz": 1}}, r"config\.training\.zzz does not exist; its fields are seed, max_steps"),
    ],
)
def test_an_unknown_field_is_refused_with_the_right_one(values, message):
    with pytest.raises(ConfigError, match=message):
        build(values)


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        ("model.hidden_dim", "128", "int"),
        ("model.hidden_dim", 12.5, "int"),
        ("model.hidden_dim", True, "int"),
        ("model.hidden_dim", None, "int"),
        ("model.hidden_dim", math.inf, "int"),
        ("model.remat", "some", "elementwise"),
        ("optimizer.learning_rate", "1e-3", "float"),
        ("optimizer.learning_rate", False, "float"),
        ("name", 3, "str"),
        ("data.path", ["a.txt"], "str"),
        ("model.encoder.transport", "sinkhorn", "not one of none, row_softmax"),
        ("model.encoder", 3, "must be a group of fields"),
    ],
)
def test_a_wrong_type_is_refused_by_name(path, value, wanted):
    with pytest.raises(ConfigError, match=rf"config\.{path}\b.*{wanted}"):
        build(nested(path, value))


@pytest.mark.parametrize("path", [path for path, kind in NUMERIC.items() if kind is float])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_float_may_be_infinite_or_nan(path, value):
    with pytest.raises(ConfigError, match=rf"config\.{path} = .*finite"):
        build(nested(path, value))


@pytest.mark.parametrize("path", sorted(NUMERIC))
@pytest.mark.parametrize("value", [10**400, 10**5000, -(10**400), 1e39], ids=["large", "huge", "negative", "float"])
def test_no_number_may_be_larger_than_a_device_holds(path, value):
    with pytest.raises(ConfigError, match=rf"config\.{path} = ") as error:
        build(nested(path, value))
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", [path for path, kind in NUMERIC.items() if kind is float])
def test_no_float_may_be_lost_in_float32(path):
    with pytest.raises(ConfigError, match=rf"config\.{path} = 1e-39 is 0 in float32"):
        build(nested(path, 1e-39))


# A score may have any sign, and so may a phase.
SIGNED = {"data.min_score", "model.propagator.nonlinear_alpha"}
MAY_BE_ZERO = SIGNED | {
    "model.vocab_size", "model.encoder.sinkhorn_prior", "model.mixer.clamp_interval",
    "model.propagator.kerr_saturation", "model.propagator.rewire_probability", "model.born_floor",
    "optimizer.warmup_steps", "optimizer.decay_steps", "optimizer.lr_min_ratio", "optimizer.b1", "optimizer.b2",
    "optimizer.weight_decay", "optimizer.clip_norm", "optimizer.temperature", "optimizer.unitary_lambda",
    "optimizer.spike_zscore", "data.max_documents", "data.tokenizer_sample", "training.seed",
    "training.distill_weight", "training.ema_decay", "training.ema_decay_start", "training.ema_decay_steps",
    "training.overfit_batches", "sampling.temperature", "sampling.top_k", "sampling.context_length", "mesh.data",
}  # fmt: skip


@pytest.mark.parametrize("path", sorted(NUMERIC.keys() - SIGNED))
def test_no_number_may_be_negative(path):
    with pytest.raises(ConfigError, match=rf"config\.{path}\b"):
        build(nested(path, -1))


@pytest.mark.parametrize("path", sorted(NUMERIC))
def test_zero_is_refused_exactly_where_it_means_nothing(path):
    if path in MAY_BE_ZERO:
        build(nested(path, 0))
    else:
        with pytest.raises(ConfigError, match=rf"config\.{path.rpartition('.')[0]}.*{path.rpartition('.')[2]}"):
            build(nested(path, 0))


@pytest.mark.parametrize(
    ("path", "value"),
    [("model.hidden_dim", 16_385), ("model.num_layers", 1025), ("model.mixer.state_dim", 16_385)],
)
def test_a_size_beyond_all_sense_is_refused_with_range_and_meaning(path, value):
    (setting,) = [each for group, _, found in walk(Config) for each in found if group + each.name == path]
    with pytest.raises(ConfigError) as error:
        build(nested(path, value))
    assert str(error.value) == f"config.{path} = {value} must be {setting.range}; it is: {setting.meaning}"
    assert value - 1 in setting.range


@pytest.mark.parametrize("values", [None, 3, ["model"]])
def test_what_is_no_group_of_fields_is_refused(values):
    with pytest.raises(ConfigError, match="config must be a group of fields, got"):
        build(values)


def test_a_whole_float_is_an_integer_and_an_integer_a_float():
    config = build({"training": {"max_steps": 1e3}, "optimizer": {"weight_decay": 0}})
    assert (config.training.max_steps, type(config.training.max_steps)) == (1000, int)
    assert type(config.optimizer.weight_decay) is float


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model.hidden_dim": 100, "model.mixer.block_size": 4}, ["model.mixer.num_heads = 8", "hidden_dim = 100"]),
        (
            {"model.hidden_dim": 100, "model.mixer.block_size": 4, "model.mixer.kind": "fixed"},
            ["model.mixer.num_groups = 8", "hidden_dim = 100"],
        ),
        ({"model.hidden_dim": 100, "model.mixer.num_heads": 4}, ["model.mixer.block_size = 8", "hidden_dim = 100"]),
        ({"model.encoder.sdr_sparsity": 129}, ["sdr_sparsity = 129", "sdr_candidates = 128"]),
        ({"model.encoder.transport": "none", "model.encoder.embedding_skip": False}, ["transport", "embedding_skip"]),
        ({"model.mixer.ring_max_timescale": 1.0}, ["ring_max_timescale = 1.0"]),
        ({"training.micro_batch": 3}, ["micro_batch = 3", "global_batch = 16"]),
        ({"training.micro_batch": 32}, ["micro_batch = 32", "global_batch = 16"]),
        ({"optimizer.warmup_steps": 1501}, ["2001", "max_steps = 2000"]),
        ({"optimizer.schedule": "cosine", "optimizer.warmup_steps": 2000}, ["warmup_steps = 2000", "max_steps = 2000"]),
        (
            {"optimizer.thermostat": "posterior", "optimizer.temperature": 1e-5},
            ["optimizer.temperature = 1e-05", "optimizer.thermostat = posterior"],
        ),
        ({"optimizer.thermostat": "posterior", "model.likelihood": "reference"}, ["posterior", "likelihood = born"]),
        (
            {"optimizer.thermostat": "posterior", "training.distill_weight": 0.5, "training.ema_decay": 0.9},
            ["posterior", "distill_weight = 0"],
        ),
        ({"optimizer.thermostat": "posterior", "training.overfit_batches": 1}, ["posterior", "overfit_batches = 0"]),
        ({"data.seq_length": 4096}, ["seq_length = 4096", "max_seq_length = 2048"]),
        ({"data.source": "text"}, ["data.source = text", "data.path"]),
        ({"data.validation_fraction": 1.0}, ["validation_fraction = 1.0"]),
        ({"data.stream": True, "data.packing": "windows"}, ["data.stream", "data.packing = documents", "windows"]),
        ({"data.stream": True, "data.split": "tail"}, ["data.stream", "data.split = hash", "tail"]),
        ({"data.stream": True, "data.tokenizer": "char"}, ["data.stream", "data.tokenizer = char"]),
        ({"data.stream": True, "data.tokenizer_sample": 0}, ["data.stream", "data.tokenizer_sample = 0"]),
        ({"data.stream": True, "data.shard_tokens": 128}, ["data.shard_tokens = 128", "data.seq_length = 128"]),
        ({"data.stream": True, "optimizer.thermostat": "posterior"}, ["thermostat = posterior", "data.stream"]),
        ({"optimizer.b1": 1.0}, ["b1"]),
        ({"optimizer.b2": 1.0}, ["b2"]),
        ({"optimizer.guard_backoff": 1.0}, ["guard_backoff"]),
        ({"optimizer.guard_min_scale": 2.0}, ["guard_min_scale = 2.0", "above 0 and at most 1"]),
        ({"optimizer.guard_min_scale": 0.0}, ["guard_min_scale = 0.0", "above 0 and at most 1"]),
        (
            {"optimizer.spike_zscore": 8.0, "optimizer.spike_patience": 20},
            ["spike_patience = 20", "guard_max_consecutive = 20"],
        ),
        ({"sampling.top_p": 1.1}, ["top_p = 1.1"]),
        ({"training.ema_decay": 1.01}, ["ema_decay = 1.01"]),
        (
            {"training.ema_decay": 0.9, "training.ema_decay_start": 0.99, "training.ema_decay_steps": 10},
            ["training.ema_decay_start = 0.99", "training.ema_decay = 0.9"],
        ),
        ({"training.distill_weight": 0.5}, ["training.distill_weight = 0.5 needs a teacher", "training.ema_decay"]),
        ({"training.distill_weight": 1.0, "training.ema_decay": 0.9}, ["training.distill_weight = 1"]),
        (
            {
                "training.distill_weight": 0.5,
                "training.ema_decay": 0.9,
                "model.born_floor": 0.0,
                "model.likelihood": "born",
            },
            ["training.distill_weight", "model.born_floor > 0"],
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_fields_that_exclude_each_other_are_named_together(changes, named):
    with pytest.raises(ConfigError) as error:
        build(override(dataclasses.asdict(Config()), changes))
    assert [part for part in named if part not in str(error.value)] == []
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.encoder.sdr_sparsity": 128},
        {"optimizer.warmup_steps": 1500},
        {"optimizer.schedule": "cosine", "optimizer.warmup_steps": 1999},  # decay_steps are not read
        {"optimizer.spike_zscore": 8.0, "optimizer.spike_patience": 19},
        {"data.seq_length": 2048},
        {"data.stream": True, "data.shard_tokens": 129},
        {"training.micro_batch": 8},
        {"model.encoder.transport": "none"},
        {"sampling.top_p": 1.0},
        {"training.ema_decay": 0.9, "training.ema_decay_start": 0.9, "training.ema_decay_steps": 10},
        {"training.ema_decay": 0.9, "training.ema_decay_start": 0.99},  # a constant decay has no start
        {"training.ema_decay": 0.9, "training.distill_weight": 0.99},
    ],
    ids=lambda changes: list(changes)[-1],
)
def test_the_border_of_a_rule_is_allowed(changes):
    build(override(dataclasses.asdict(Config()), changes))


def test_a_tuple_survives_json_a_config_dict_and_the_command_line(monkeypatch):
    config = build({"model": {"propagator": {"num_edges": [78, 160.0, 320]}}})
    assert config.model.propagator.num_edges == (78, 160, 320)
    assert build(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert build(to_config_dict(config)) == config
    monkeypatch.setattr(sys, "argv", ["train", "--config.model.propagator.num_edges=(1, 2, 3)"])
    command_line = flags.FlagValues()
    flag = config_flags.DEFINE_config_dict("config", to_config_dict(config), flag_values=command_line)
    command_line(sys.argv)
    assert build(flag.value).model.propagator.num_edges == (1, 2, 3)
    assert hash(config) == hash(build(dataclasses.asdict(config)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((1, 2), r"num_edges = \(1, 2\) must be 3 values, such as \(0, 0, 0\)"),
        (7, r"num_edges = 7 must be 3 values"),
        ("123", r"num_edges = '123' must be 3 values"),
        ((1, 2, "3"), r"num_edges\[2\] = '3' must be of type int"),
        ((1, 2.5, 3), r"num_edges\[1\] = 2.5 must be of type int"),
        ((1, -2, 3), r"num_edges\[1\] = -2 must be at least 0"),
    ],
)
def test_a_wrong_tuple_is_refused_by_name(value, message):
    with pytest.raises(ConfigError, match=rf"config\.model\.propagator\.{message}"):
        build(nested("model.propagator.num_edges", value))


def test_override_changes_the_named_fields_of_a_copy():
    values = dataclasses.asdict(Config())
    changed = override(values, {"data.path": "x", "model.mixer.state_dim": 4, "name": "y"})
    assert values == dataclasses.asdict(Config())
    assert (changed["data"]["path"], changed["model"]["mixer"]["state_dim"], changed["name"]) == ("x", 4, "y")
    changed["data"]["path"], changed["model"]["mixer"]["state_dim"], changed["name"] = "", 16, "sem"
    assert changed == values


def test_build_reads_a_plain_mapping_like_a_config_dict():
    assert build(fields()) == build(ConfigDict(fields()))
    assert {group for group in fields() if group in GROUPS} == set(GROUPS)


def test_the_vocabulary_is_the_tokenizers():
    assert with_vocabulary(build({}), 261).model.vocab_size == 261
    config = build({"model": {"vocab_size": 261}})
    assert with_vocabulary(config, 261) == config
    with pytest.raises(ConfigError, match=r"vocab_size = 261.*byte tokenizer has 23"):
        with_vocabulary(config, 23)


@pytest.mark.parametrize(
    ("text", "factors"),
    [
        ("", {}),
        ("  ", {}),
        ("readout=2", {"readout": 2.0}),
        (" propagators/edge_weights = 1e-1 , readout=0", {"propagators/edge_weights": 0.1, "readout": 0.0}),
    ],
)
def test_factors_are_pairs_of_path_and_number(text, factors):
    assert parse_factors(text, "field") == factors


@pytest.mark.parametrize(
    "entry", ["readout", "readout=", "=2", "readout=-0.1", "readout=nan", "readout=inf", "a=1=2", ""]
)
@pytest.mark.parametrize("field", ["lr_factors", "decay_factors"])
def test_an_entry_that_is_no_factor_is_refused_by_field(field, entry):
    with pytest.raises(ConfigError, match=rf"config\.optimizer\.{field}: '{entry}' must be PATH=FACTOR"):
        build({"optimizer": {field: f"encoder=2,{entry}"}})


def test_a_path_with_two_factors_is_refused():
    with pytest.raises(ConfigError, match=r"config\.optimizer\.lr_factors gives readout twice"):
        build({"optimizer": {"lr_factors": "readout=2,readout=3"}})


def test_factors_survive_the_command_line(monkeypatch):
    text = "propagators/edge_weights=0.1,readout=2"
    monkeypatch.setattr(sys, "argv", ["train", f"--config.optimizer.lr_factors={text}"])
    command_line = flags.FlagValues()
    flag = config_flags.DEFINE_config_dict("config", default(), flag_values=command_line)
    command_line(sys.argv)
    assert build(flag.value).optimizer.lr_factors == text


def test_the_posterior_thermostat_becomes_one_over_the_tokens():
    resolved = with_posterior_temperature(build({"optimizer": {"thermostat": "posterior"}}), 250_000)
    assert (resolved.optimizer.temperature, resolved.optimizer.thermostat) == (4e-6, "fixed")
    assert build(dataclasses.asdict(resolved)) == resolved  # what a workdir keeps can be read again
    fixed = build({"optimizer": {"temperature": 1e-5}})
    assert with_posterior_temperature(fixed, 250_000) == fixed


SETTINGS = {f"{path}{each.name}": each for path, _, found in walk(Config) for each in found}


def test_every_field_has_a_meaning_and_a_default_in_its_own_range():
    assert [path for path, each in SETTINGS.items() if not each.meaning] == []
    assert [path for path in NUMERIC if SETTINGS[path].default not in SETTINGS[path].range] == []
    assert [path for path in NUMERIC if not is_bounded(SETTINGS[path].range)] == ["data.min_score"]  # read on the host


def is_bounded(allowed):
    return (allowed.above, allowed.at_least) != (None, None) and (allowed.below, allowed.at_most) != (None, None)


def test_the_page_of_the_fields_is_current():
    page = pathlib.Path(__file__).parents[1] / "docs" / "configuration.md"
    current = page.read_text(encoding="utf-8") == markdown() + "\n"
    assert current, "write it again: python -m sem_jax.config.describe > docs/configuration.md"


def test_help_names_each_field_once_with_default_meaning_and_range():
    lines = help_text().splitlines()
    assert [line.split("=")[0] for line in lines] == [f"--config.{path}" for path in SETTINGS]
    (line,) = [line for line in lines if "top_p" in line]
    assert line.startswith("--config.sampling.top_p=0.95: ")
    assert line.endswith("[above 0 and at most 1]")


def earlier_record():
    """What version 0.1.0 wrote, as far as it differs from what this one writes."""
    record = dataclasses.asdict(build(fields(model__likelihood="born")))
    for name in ("kind", "num_heads", "input_map", "selective_init", "rotation", "output_norm"):
        del record["model"]["mixer"][name]
    del record["model"]["layout"], record["model"]["blocks"]
    for name in ("solver_tol", "kerr_saturation"):
        del record["model"]["propagator"][name]
    record["model"]["propagator"]["cg_tol"] = 1e-5
    del record["model"]["encoder"]["position_phase"]
    record["model"]["encoder"]["population_rate"] = 0.01
    record["model"]["mixer"]["scan"] = "chunked"
    return record


def test_a_record_of_an_earlier_version_is_upgraded():
    record = earlier_record()
    before = json.dumps(record)
    mixer = {"kind": "fixed", "input_map": "spinor_gate", "num_heads": 8}
    mixer |= {"selective_init": "mamba3", "rotation": "affine", "output_norm": False}
    expected = override(
        fields(model__propagator__solver_tol=1e-5, model__propagator__kerr_saturation=0.0, model__likelihood="born"),
        {"model.mixer": {**fields()["model"]["mixer"], **mixer}},
    )
    assert build(upgrade(record)) == build(expected)
    assert json.dumps(record) == before


def test_a_record_of_this_version_stays_as_it_is():
    config = build(fields(model__layout="interleaved", model__propagator__solver_tol=1e-5))
    assert build(upgrade(dataclasses.asdict(config))) == config


def test_a_transport_that_is_gone_is_refused():
    record = override(earlier_record(), {"model.encoder.transport": "population"})
    with pytest.raises(ConfigError, match=r"config\.model\.encoder\.transport = population is gone.*row_softmax"):
        upgrade(record)


@pytest.mark.parametrize("values", [{"model": 3}, {"model": {"encoder": None}}, {"model": {"mixer": []}}])
def test_a_damaged_record_is_left_to_build(values):
    assert upgrade(values) == values
    with pytest.raises(ConfigError, match="must be a group of fields"):
        build(upgrade(values))
