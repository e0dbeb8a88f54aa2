"""An export of 8 or 4 bits: its file, what is read from it, what it cost, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from commands import run_module
from huggingface_hub import ModelCard
from small import TEXT, config, differing_leaves, quick_environment, text_config

import sem_jax
from sem_jax.config import ConfigError, MeshConfig
from sem_jax.data import open_dataset
from sem_jax.data.seal import sealed, unsealed
from sem_jax.data.tokenizers import CharTokenizer
from sem_jax.modules.model import abstract_model, init_model
from sem_jax.sharing import weights
from sem_jax.sharing.folder import write_folder
from sem_jax.sharing.quantise import GROUP, Quantisation
from sem_jax.sharing.rounding import Rounding
from sem_jax.training import evaluation, step
from sem_jax.training.evaluation import Evaluator
from sem_jax.training.leaf_record import CheckpointError
from sem_jax.training.metrics import MetricsWriter
from sem_jax.training.state import start_state
from sem_jax.training.workdir import create_workdir, exported, with_own_tokenizer, write_record

pytestmark = pytest.mark.usefixtures("quick_compilation")
TOKENIZER = CharTokenizer.train([TEXT])
ROUNDED = {
    "encoder.embedding",
    "encoder.input_proj.weight",
    "mixers.in_proj.weight",
    "mixers.out_proj",
    "mixers.output_gate.weight",
    "mixers.ssm.qk_proj",
    "mixers.ssm.rates.weight",
    "readout.weight",
}


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    return text_config(tmp_path_factory.mktemp("text"), model__vocab_size=TOKENIZER.vocab_size)


@pytest.fixture(scope="module")
def parts(typed, quick_compilation):
    return init_model(typed.model, 0)


@pytest.fixture(scope="module")
def dataset(typed):
    return open_dataset(typed.data, typed.training.seed, typed.training.global_batch)


@pytest.fixture(scope="module")
def run(typed, parts, dataset, tmp_path_factory):
    """A workdir as a training on `TEXT` would leave it, at step 0."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    create_workdir(workdir, typed, dataset.tokenizer, start_state(typed, parts))
    write_record(workdir, typed, dataset.fingerprint)
    with MetricsWriter(workdir) as writer:
        writer.write("validation", 0, nll=2.25, bits_per_byte=3.2461)
    return workdir


@pytest.fixture(scope="module")
def compiled_once():
    """Evaluations of one configuration share their program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "make_eval_step", functools.cache(step.make_eval_step))
        yield


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def shared(run, told, compiled_once, tmp_path_factory):
    """Exports of 8 and of 4 bits."""
    folder = tmp_path_factory.mktemp("shared")
    return {bits: sem_jax.export(run, folder / str(bits), bits=bits, echo=told.append) for bits in (8, 4)}


@pytest.fixture
def copy(shared, tmp_path):
    """An export of 4 bits to be damaged."""
    return shutil.copytree(shared[4], tmp_path / "copy")


def edit(folder, **changes):
    """Changes the record of an export as its author could: the seal fits. None removes a field."""
    record = unsealed(json.loads((folder / "config.json").read_text())) | changes
    kept = {name: value for name, value in record.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(sealed(kept)))


def rewrite(folder, change):
    """Changes the tensors of an export as its author could: no digest contradicts."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    edit(folder, weights=None)


def spread(log_probs, others):
    return float(jnp.sqrt(jnp.mean(jnp.square(others - log_probs))))


@pytest.mark.parametrize("bits", [8, 4])
def test_matrices_are_codes_on_grids_and_all_else_is_as_it_was_to_the_bit(shared, parts, bits):
    tensors = safetensors.numpy.load_file(shared[bits] / "model.safetensors")
    named = {name: np.asarray(leaf) for name, leaf in weights._named(parts).items()}
    suffixes = (".real", ".imag", ".codes", ".lows", ".scales")
    found = {name for name in tensors if name.endswith(suffixes[2:])}
    base = set(found)
    for suffix in reversed(suffixes):
        base = {name.removesuffix(suffix) for name in base}
    assert base == ROUNDED
    for name, tensor in tensors.items():
        if name not in found:
            np.testing.assert_array_equal(tensor, named[name])
            assert tensor.dtype == named[name].dtype
    kinds = ("codes", "lows", "scales")
    codes, lows, scales = (
        tensors[f"readout.weight.imag.{kind}"].astype(np.int32 if kind == "codes" else np.float64) for kind in kinds
    )
    numbers = codes if bits == 8 else np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)
    moved = np.abs(lows + numbers * scales - named["readout.weight"].imag)
    assert (moved <= scales / 2 * (1 + 2**bits * 2.0**-23)).all()  # two roundings of float32 before the code


@pytest.mark.parametrize("bits", [8, 4])
def test_the_file_is_as_small_as_promised(shared, parts, bits):
    path = shared[bits] / "model.safetensors"
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    size = 0
    for name, leaf in weights._named(parts).items():
        numbers = 2 if jnp.iscomplexobj(leaf) else 1
        if name in ROUNDED:
            rows, width = leaf.size // leaf.shape[-1], leaf.shape[-1]
            size += numbers * rows * (math.ceil(width * bits / 8) + 2 * 2 * math.ceil(width / GROUP))
        else:
            size += leaf.nbytes
    assert path.stat().st_size == header + size


def test_the_same_model_gives_the_same_bytes(run, shared, tmp_path):
    again = sem_jax.export(run, tmp_path / "again", bits=4, echo=lambda line: None)
    for path in shared[4].iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_read_is_the_model_that_was_measured(shared, parts, bits):
    loaded = sem_jax.load(shared[bits])
    assert differing_leaves(loaded.parts, weights.rounded(parts, Quantisation(bits))) == []
    assert loaded.parts.graphdef == parts.graphdef
    assert exported(shared[bits])[-2:] == (bits, GROUP)


def test_the_log_probs_move_as_far_as_noise_of_half_a_step_moves_them(run, shared, parts, dataset):
    """Errors of rounding are all but uniform in ±scale / 2 and independent: so much noise must do the same.

    The mean square over some hundred log-probabilities comes from thousands of weights, few of which dominate: the two
    estimates agree within a factor of two, while a scale or a nibble in a wrong place makes it tens.
    """
    full = sem_jax.load(run)
    tokens = full.encode_prompt("the wave turns")[None]
    log_probs = full.log_probs(tokens)
    moved = {}
    for bits, folder in shared.items():
        moved[bits] = spread(log_probs, sem_jax.load(folder).log_probs(tokens))
        noisy = [_with_noise(full, bits, seed).log_probs(tokens) for seed in range(3)]
        expected = math.sqrt(np.mean([spread(log_probs, each) ** 2 for each in noisy]))
        assert expected / 2 < moved[bits] < 2 * expected
    assert 255 / 15 / 2 < moved[4] / moved[8] < 2 * 255 / 15  # steps of 4 bits are longer by that


def _with_noise(model, bits, seed):
    """The model with uniform noise of half a step, by the range of each row, which is one group here."""
    rng = np.random.default_rng(seed)

    def noise(part):
        half = np.ptp(part, axis=-1, keepdims=True) / (2**bits - 1) / 2
        return rng.uniform(-half, half, part.shape).astype(np.float32)

    leaves = []
    for name, leaf in weights._named(model.parts).items():
        array = np.asarray(leaf)
        if name in ROUNDED:
            assert array.shape[-1] <= GROUP
            array = array + noise(array.real) + (1j * noise(array.imag) if np.iscomplexobj(array) else 0)
        leaves.append(jnp.asarray(array.astype(leaf.dtype)))
    noisy = jax.tree.unflatten(jax.tree.structure(model.parts), leaves)
    return sem_jax.LanguageModel(model.config, model.tokenizer, noisy)


def test_text_is_generated_from_the_rounded_weights(shared):
    loaded = sem_jax.load(shared[4])
    tokens = loaded.encode_prompt("the wave turns")
    (likeliest,) = loaded.tokenizer.decode([int(jnp.argmax(loaded.log_probs(tokens[None])[0, -1]))])
    assert loaded.generate("the wave turns", max_tokens=1, temperature=0) == "the wave turns" + likeliest


def _as_evaluated(typed, run):
    return dataclasses.replace(with_own_tokenizer(typed, run), mesh=MeshConfig(data=1))


def test_the_card_tells_the_loss_of_both_as_an_evaluation_finds_it(shared, told, typed, parts, run, dataset):
    evaluate = Evaluator(_as_evaluated(typed, run), dataset)
    card = ModelCard.load(shared[4] / "README.md")
    of_file, of_8 = (evaluate(sem_jax.load(shared[bits]).parts).values for bits in (4, 8))
    before = evaluate(parts).values
    assert of_file["nll"] != before["nll"]
    metrics = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert metrics == {"loss": round(of_file["nll"], 6), "bits_per_byte": round(of_file["bits_per_byte"], 6)}
    for row in (
        f"| validation loss before rounding | {before['nll']:.4f} nats/token |",
        f"| validation bits/byte before rounding | {before['bits_per_byte']:.4f} |",
        f"| validation loss rounded to 4 bits | {of_file['nll']:.4f} nats/token |",
        f"| validation bits/byte rounded to 4 bits | {of_file['bits_per_byte']:.4f} |",
    ):
        assert row in card.text
    assert "2.2500" not in card.text
    assert "codes of 4 bits, two in a byte" in card.text
    assert told == [
        f"validation loss {before['nll']:.4f} nats/token, rounded to {bits} bits {after['nll']:.4f} "
        f"({after['nll'] - before['nll']:+.4f})"
        for bits, after in ((8, of_8), (4, of_file))
    ]


@pytest.mark.slow
def test_where_the_text_is_gone_the_card_says_that_nothing_was_measured(typed, parts, run, dataset, tmp_path, caplog):
    workdir = tmp_path / "run"
    create_workdir(
        workdir, config(model__vocab_size=TOKENIZER.vocab_size), dataset.tokenizer, start_state(typed, parts)
    )
    shutil.copy(run / "metrics.jsonl", workdir)
    flags = [f"--workdir={workdir}", f"--to={tmp_path / 'new'}"]
    done = run_module("sem_jax.export", *flags, "--bits=4", folder=tmp_path, variables=quick_environment())
    assert done.stdout.startswith("rounded to 4 bits; what that costs is not measured\n")
    assert "unused" in done.stderr
    card = ModelCard.load(tmp_path / "new" / "README.md")
    assert not card.data.eval_results
    assert "| validation loss before rounding | 2.2500 nats/token at step 0 |" in card.text
    assert "| validation loss rounded to 4 bits | not measured |" in card.text
    assert exported(tmp_path / "new").bits == 4


def test_another_text_than_the_run_s_is_not_measured(typed, run, tmp_path, caplog):
    workdir = shutil.copytree(run, tmp_path / "run")
    write_record(workdir, typed, "another")
    told = []
    sem_jax.export(workdir, tmp_path / "new", bits=8, echo=told.append)
    assert told == ["rounded to 8 bits; what that costs is not measured"]
    assert "text or split are not those of the run" in caplog.text


def test_rounded_weights_are_not_rounded_again(shared, tmp_path):
    for bits in (None, 4, 8):
        with pytest.raises(ConfigError, match="are rounded to 4 bits already; export the run itself"):
            sem_jax.export(shared[4], tmp_path / "new", bits=bits)
    assert list(tmp_path.iterdir()) == []


def test_another_number_of_bits_is_refused_before_the_run_is_read(tmp_path):
    with pytest.raises(ConfigError, match="the export asks for weights of 3 bits"):
        sem_jax.export(tmp_path / "missing", tmp_path / "new", bits=3)
    done = run_module("sem_jax.export", "--workdir=a", "--to=b", "--bits=3", folder=tmp_path)
    assert done.returncode == 1
    assert "value should be one of <8|4>" in done.stderr


def test_weights_too_large_for_a_scale_are_refused(typed, parts, tmp_path):
    readout = parts.params["readout"]
    huge = parts.params | {"readout": readout | {"weight": readout["weight"].at[0, 0].set(-1e5j)}}
    model = sem_jax.LanguageModel(typed, TOKENIZER, parts.replace(params=huge))
    with pytest.raises(CheckpointError, match=r"readout\.weight .* too large to be rounded; leave --bits out"):
        write_folder(tmp_path / "new", model, [], "", Rounding(Quantisation(8)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: edit(folder, bits=2), r"config.json asks for weights of 2 bits"),
        (lambda folder: edit(folder, bits=True), r"weights of True bits"),
        (lambda folder: edit(folder, bits="4" * 10**6), r"weights of '444.* bits"),
        (lambda folder: edit(folder, bits=4.0), r"weights of 4.0 bits"),
        (lambda folder: edit(folder, bits=[4]), r"weights of \[4\] bits"),
        (lambda folder: edit(folder, bits=None), r"weights of None bits in groups of 64"),
        (lambda folder: edit(folder, group=None), r"in groups of None"),
        (lambda folder: edit(folder, group=0), r"in groups of 0"),
        (lambda folder: edit(folder, group=10**30), r"in groups of 10000"),
        (lambda folder: edit(folder, group=8), r"embedding.scales: float16\[23, 1\] saved, float16\[23, 2\] expected"),
        (lambda folder: edit(folder, bits=8), r"embedding.codes: uint8\[23, 8\] saved, uint8\[23, 16\] expected"),
        (
            lambda folder: edit(folder, bits=None, group=None),
            r"embedding.codes: uint8\[23, 8\] saved, nothing expected",
        ),
        (
            lambda folder: rewrite(folder, lambda t: t.pop("readout.weight.imag.scales")),
            r"readout.weight.imag.scales: nothing saved, float16",
        ),
        (
            lambda folder: rewrite(folder, lambda t: _cast(t, "mixers.out_proj.real.codes", np.int8)),
            r"out_proj.real.codes: I8\[1, 16, 8\] saved, uint8\[1, 16, 8\] expected",
        ),
        (
            lambda folder: rewrite(folder, lambda t: _cast(t, "mixers.out_proj.real.scales", np.float32)),
            r"out_proj.real.scales: float32\[1, 16, 1\] saved, float16\[1, 16, 1\] expected",
        ),
        (
            lambda folder: rewrite(folder, lambda t: t["mixers.out_proj.imag.scales"].fill(math.inf)),
            r"out_proj.imag.scales .* not finite",
        ),
        (
            lambda folder: rewrite(folder, lambda t: t["mixers.out_proj.imag.scales"].fill(math.nan)),
            r"out_proj.imag.scales .* not finite",
        ),
    ],
)
def test_a_hostile_or_damaged_folder_is_refused(copy, damage, message):
    damage(copy)
    with pytest.raises(sem_jax.SemJaxError, match=message):
        sem_jax.load(copy)


def _cast(tensors, name, dtype):
    tensors[name] = tensors[name].astype(dtype)


def test_a_flipped_bit_is_an_error(copy):
    path = copy / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="has changed since it was exported"):
        sem_jax.load(copy)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("changes", [{}, {"model__num_layers": 5}, {"model__hidden_dim": 32}])
def test_the_guess_from_the_size_of_the_file_refuses_no_real_model(bits, changes):
    model = config(model__vocab_size=2, **changes).model
    forms = weights._stored_forms(abstract_model(model), Quantisation(bits)).values()
    size = sum(form.size * form.dtype.itemsize for form in forms)
    assert size * 32 > 2 * weights.count_weights(model) * bits


def test_more_weights_than_the_file_can_hold_are_refused_before_the_model_is_traced(copy, monkeypatch):
    record = unsealed(json.loads((copy / "config.json").read_text()))
    record["config"]["model"]["num_layers"] = 1024
    edit(copy, config=record["config"])
    monkeypatch.setattr(weights, "abstract_model", None)
    with pytest.raises(CheckpointError, match="far too few for the"):
        sem_jax.load(copy)
