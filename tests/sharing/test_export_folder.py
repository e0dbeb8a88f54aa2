"""An exported folder gives the run's own model back to the bit, or is refused with one error."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import numpy as np
import pytest
import safetensors.numpy
from commands import run_module
from huggingface_hub import HfApi, ModelCard
from small import TEXT, config, differing_leaves, quick_environment

import sem_jax
from sem_jax.config import ConfigError
from sem_jax.data import DataError
from sem_jax.data.seal import sealed, unsealed
from sem_jax.data.tokenizers import ByteTokenizer, CharTokenizer
from sem_jax.modules.model import abstract_model, count_parameters, init_model
from sem_jax.sharing import folder as sharing
from sem_jax.sharing import weights
from sem_jax.sharing.hub import push
from sem_jax.training.leaf_record import CheckpointError
from sem_jax.training.metrics import MetricsWriter
from sem_jax.training.state import start_state
from sem_jax.training.workdir import create_workdir, prepare_workdir

pytestmark = pytest.mark.usefixtures("quick_compilation")
TOKENIZER = CharTokenizer.train([TEXT])


@pytest.fixture(scope="module")
def typed():
    return config(
        model__vocab_size=TOKENIZER.vocab_size,
        data__path="/home/someone/secret/text.txt, /srv/more",
        data__cache_dir="/home/someone/cache",
        name='a "name": {of} *marks*',
    )


@pytest.fixture(scope="module")
def parts(typed, quick_compilation):
    return init_model(typed.model, 0)


@pytest.fixture(scope="module")
def run(typed, parts, tmp_path_factory):
    """A workdir at step 0 with metrics of its own."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    create_workdir(workdir, typed, TOKENIZER, start_state(typed, parts))
    with MetricsWriter(workdir) as writer:
        writer.write("train", 0, loss=2.5, seconds=12.3)
        writer.write("validation", 0, nll=2.25, bits_per_byte=3.2461)
        writer.write("validation", 5, nll=1.0, bits_per_byte=1.4427)  # after the step that is exported
    return workdir


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return sem_jax.export(run, tmp_path_factory.mktemp("shared") / "model")


@pytest.fixture
def copy(exported, tmp_path):
    """An export to be damaged."""
    return shutil.copytree(exported, tmp_path / "copy")


def edit(folder, change):
    """Changes the record of an export as its author could: the seal fits."""
    record = unsealed(json.loads((folder / "config.json").read_text()))
    change(record)
    (folder / "config.json").write_text(json.dumps(sealed(record)))


def rewrite(folder, change):
    """Changes the tensors of an export as its author could: no digest contradicts."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    edit(folder, lambda record: record.pop("weights"))


def test_the_model_comes_back_to_the_bit(run, exported):
    ours, theirs = sem_jax.load(run), sem_jax.load(exported)
    assert differing_leaves(ours.parts, theirs.parts) == []
    assert theirs.parts.graphdef == ours.parts.graphdef
    tokens = ours.encode_prompt("the wave turns")[None]
    np.testing.assert_array_equal(theirs.log_probs(tokens), ours.log_probs(tokens))
    assert theirs.tokenizer.fingerprint == TOKENIZER.fingerprint
    assert (theirs.config.model, theirs.config.sampling) == (ours.config.model, ours.config.sampling)


def test_the_weights_stand_under_the_names_of_their_attributes(exported, parts):
    tensors = safetensors.numpy.load_file(exported / "model.safetensors")
    model = parts.merge()
    np.testing.assert_array_equal(tensors["mixers.ssm.decay"], model.mixers.ssm.decay[...])
    np.testing.assert_array_equal(tensors["readout.weight"], model.readout.weight[...])
    assert tensors["readout.weight"].dtype == np.complex64
    np.testing.assert_array_equal(tensors["propagators.edges.0"], model.propagators.edges[0][...])


def test_the_card_tells_the_figures_of_that_step_and_leaves_the_licence_open(exported, typed, parts):
    card = ModelCard.load(exported / "README.md")
    assert card.data.library_name == "sem_jax"
    assert card.data.license is None
    assert card.data.model_name == typed.name
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        "loss": 2.25,
        "bits_per_byte": 3.2461,
    }
    for row in (
        f"| parameters | {count_parameters(parts.params):,} real numbers |",
        "| validation loss | 2.2500 nats/token at step 0 |",
        "| training loss | 2.5000 nats/token |",
        "| time of the run | 12 s |",
    ):
        assert row in card.text
    assert "1.0000" not in card.text


def test_whoever_may_read_one_file_may_read_all(exported):
    assert len({path.stat().st_mode for path in exported.iterdir()}) == 1


def test_no_place_of_this_machine_is_shared(exported):
    data = sem_jax.load(exported).config.data
    assert (data.path, data.cache_dir) == ("text.txt,more", "")
    assert [path.name for path in exported.iterdir() if b"someone" in path.read_bytes()] == []


def test_the_commands_write_and_read_the_folder(run, exported, tmp_path):
    def command(name, *flags):
        return run_module(f"sem_jax.{name}", *flags, folder=tmp_path, variables=quick_environment()).stdout

    names = ["model.safetensors,", "config.json,", "tokenizer.json,", "README.md"]
    new = tmp_path / "new"
    assert command("export", f"--workdir={run}", f"--to={new}").split() == [f"{new}:", *names]
    assert [(new / name).read_bytes() for name in sharing.FILES] == [
        (exported / name).read_bytes() for name in sharing.FILES
    ]
    said = command("generate", f"--workdir={new}", "--prompt=the ", "--seed=3")
    assert said.rstrip("\n") == sem_jax.load(run).generate("the ", seed=3)


@pytest.mark.slow
def test_an_export_is_evaluated_as_its_run_is(run, exported, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    flags = [f"--config.data.path={tmp_path}/text.txt", f"--config.data.cache_dir={tmp_path}/cache"]
    outputs = [
        run_module("sem_jax.evaluate", f"--workdir={workdir}", *flags, folder=tmp_path).stdout
        for workdir in (run, exported)
    ]
    assert "nats/token" in outputs[0]
    assert outputs[0] == outputs[1]


def test_an_export_has_no_other_checkpoint(exported):
    with pytest.raises(CheckpointError, match="holds the model of step 0 alone"):
        sem_jax.load(exported, "best")
    assert sem_jax.load(exported, 0).step == 0


def test_an_export_can_be_replaced_and_exported_again(run, copy, tmp_path):
    inode = copy.stat().st_ino
    assert sem_jax.export(copy, copy) == copy
    assert copy.stat().st_ino != inode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]
    assert sem_jax.load(copy).step == 0


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda target: target.write_text("x"), "is a file"),
        (lambda target: (target.mkdir(), (target / "thesis.tex").write_text("x")), r"what no export.*\(thesis.tex\)"),
        (lambda target: (target.mkdir(), (target / "README.md").write_text("mine")), r"what no export"),
    ],
)
def test_a_target_that_holds_something_else_is_left_alone(run, tmp_path, prepare, message):
    target = tmp_path / "target"
    prepare(target)
    before = [path.read_bytes() for path in [target, *target.glob("*")] if path.is_file()]
    with pytest.raises(ConfigError, match=message):
        sem_jax.export(run, target)
    assert [path.read_bytes() for path in [target, *target.glob("*")] if path.is_file()] == before
    assert list(tmp_path.iterdir()) == [target]


def test_a_card_that_was_edited_and_files_beside_an_export_are_kept(run, copy):
    (copy / "NOTES").write_text("mine")
    with pytest.raises(ConfigError, match=r"what no export has written \(NOTES\)"):
        sem_jax.export(run, copy)
    (copy / "NOTES").unlink()
    (copy / "README.md").write_text("license: mit")
    with pytest.raises(ConfigError, match=r"README.md has been edited"):
        sem_jax.export(run, copy)
    assert (copy / "README.md").read_text() == "license: mit"


def test_the_old_export_stays_where_the_new_one_cannot_be_finished(run, copy, monkeypatch):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}

    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    for name in ("write_weights", "write_record"):
        with monkeypatch.context() as patch:
            patch.setattr(sharing, name, fails)
            with pytest.raises(DataError, match="No space left"):
                sem_jax.export(run, copy)
        assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
        assert list(copy.parent.iterdir()) == [copy]


def test_a_damaged_model_is_not_exported(typed, parts, tmp_path):
    readout = parts.params["readout"]
    damaged = parts.params | {"readout": readout | {"bias": readout["bias"].at[1].set(math.nan)}}
    model = sem_jax.LanguageModel(typed, TOKENIZER, parts.replace(params=damaged))
    with pytest.raises(CheckpointError, match=r"readout\.bias in this checkpoint holds numbers that are not finite"):
        sharing.write_folder(tmp_path / "new", model, [], "")
    assert list(tmp_path.iterdir()) == []


def test_no_run_starts_in_an_export(typed, copy):
    before = (copy / "config.json").read_bytes()
    with pytest.raises(ConfigError, match="is an exported model"):
        prepare_workdir(copy, typed, SimpleNamespace(tokenizer=TOKENIZER, fingerprint="first"))
    assert (copy / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), r"model.safetensors is missing; get the folder"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"cannot read the tokenizer .*tokenizer.json"),
        (lambda folder: (folder / "config.json").unlink(), r"config.json does not exist"),
        (lambda folder: ByteTokenizer().save(folder / "tokenizer.json"), r"tokenizer.json has changed"),
        (
            lambda folder: (
                ByteTokenizer().save(folder / "tokenizer.json"),
                edit(folder, lambda r: r.pop("tokenizer")),
            ),
            r"tokenizer.json has 261 ids, the model",
        ),
        (lambda folder: rewrite(folder, lambda t: t.pop("final_gamma")), r"final_gamma: nothing saved"),
        (lambda folder: rewrite(folder, lambda t: t.update(extra=np.ones(2))), r"extra: float64|extra: F64"),
        (lambda folder: rewrite(folder, lambda t: t.update({"\x1b[2J": np.ones(2)})), r"'\\x1b\[2J': F64\[2\] saved"),
        (
            lambda folder: rewrite(folder, lambda t: t.update(final_gamma=t["final_gamma"].astype(np.float64))),
            r"final_gamma: F64\[16\] saved, float32\[16\] expected",
        ),
        (
            lambda folder: rewrite(folder, lambda t: t.update({"readout.weight": t["readout.weight"].real.copy()})),
            r"readout.weight: float32\[.*\] saved, complex64\[.*\] expected",
        ),
        (lambda folder: rewrite(folder, lambda t: t["final_gamma"].fill(math.nan)), r"final_gamma .* not finite"),
        (lambda folder: rewrite(folder, lambda t: t["readout.weight"].fill(1e30j)), r"readout.weight .* too large"),
        (lambda folder: rewrite(folder, lambda t: t["propagators.edges.1"].fill(16)), r"edges.1 .* outside of 0..15"),
        (lambda folder: rewrite(folder, lambda t: t["propagators.edges.1"].fill(-1)), r"edges.1 .* outside of 0..15"),
        (lambda folder: edit(folder, lambda r: r.update(step=-1)), r"config.json is damaged .*step"),
        (lambda folder: edit(folder, lambda r: r.update(step="x" * 10**6)), r"config.json is damaged .*step"),
        (lambda folder: edit(folder, lambda r: r.update(weights=3)), r"model.safetensors has changed"),
        (lambda folder: edit(folder, lambda r: r["config"]["model"].update(hidden_dim=2**20)), r"hidden_dim"),
        (
            lambda folder: edit(folder, lambda r: r["config"]["model"].update(num_layers=1024)),
            r"far too few for the .* weights that config.json tells of",
        ),
        (
            lambda folder: edit(folder, lambda r: r["config"]["model"].update(num_layers=2)),
            r"mixers.conv.bias: float32\[1, 16, 2\] saved, float32\[2, 16, 2\] expected",
        ),
    ],
)
def test_a_hostile_or_damaged_folder_is_refused(copy, damage, message):
    damage(copy)
    with pytest.raises(sem_jax.SemJaxError, match=message):
        sem_jax.load(copy)


def test_a_flipped_bit_is_an_error_and_not_another_model(copy):
    path = copy / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # the lowest bit of a number
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="has changed since it was exported"):
        sem_jax.load(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_out_of_the_folder_is_refused_and_one_within_is_not(copy, tmp_path, name):
    (copy / name).rename(copy / "blob")
    (copy / name).symlink_to("blob")
    assert sem_jax.load(copy).step == 0
    (copy / "blob").rename(tmp_path / "blob")
    (copy / name).unlink()
    (copy / name).symlink_to("../blob")
    with pytest.raises(DataError, match=rf"{name} is a link to a file outside"):
        sem_jax.load(copy)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"x":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}', "no sound safetensors"),
        (b'{"x":{"dtype":"F32","shape":[18446744073709551615,4],"data_offsets":[0,16]}}', "no sound safetensors"),
        (b"{" * 1000, "no sound safetensors"),
        (None, r"its header has 1_125_899_906_842_624 bytes"),
    ],
)
def test_a_header_that_lies_is_refused_before_a_tensor_is_read(copy, monkeypatch, header, message):
    length = 2**50 if header is None else len(header)
    (copy / "model.safetensors").write_bytes(length.to_bytes(8, "little") + (header or b"") + bytes(2**16))
    monkeypatch.setattr(weights, "_require_sound", None)  # the first thing that a tensor would meet
    with pytest.raises(CheckpointError, match=message):
        sem_jax.load(copy)


def test_the_shapes_are_compared_before_a_tensor_is_read(copy, monkeypatch):
    rewrite(copy, lambda tensors: tensors.update(extra=np.ones(2)))
    monkeypatch.setattr(weights.safetensors, "safe_open", lambda *_, **__: _Header(copy / "model.safetensors"))
    with pytest.raises(CheckpointError, match="extra"):
        sem_jax.load(copy)


class _Header:
    """An open file that tells its header alone."""

    def __init__(self, path):
        self._tensors = safetensors.numpy.load_file(path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def keys(self):
        return list(self._tensors)

    def get_slice(self, name):
        tensor = self._tensors[name]
        return SimpleNamespace(get_dtype=lambda: str(tensor.dtype), get_shape=lambda: list(tensor.shape))


@pytest.mark.parametrize(
    "changes",
    [{}, {"model__num_layers": 5}, {"model__mixer__kind": "fixed", "model__encoder__transport": "none"}],
)
def test_the_guess_from_the_size_of_the_file_refuses_no_real_model(changes):
    model = config(model__vocab_size=2, **changes).model
    leaves = weights._named(abstract_model(model)).values()
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) > 2 * weights.count_weights(model)


@pytest.fixture
def hub():
    """The library's own methods and signatures, without a network."""
    return create_autospec(HfApi, instance=True)


def test_a_push_uploads_the_files_to_a_private_repository(exported, hub):
    uploaded = {}

    def upload_folder(*, repo_id, folder_path, allow_patterns, **_):
        uploaded.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
        assert sorted(allow_patterns) == sorted(uploaded)
        return f"hub/{repo_id}"

    hub.upload_folder.side_effect = upload_folder
    assert push(exported, "someone/wave", hub) == "hub/someone/wave"
    hub.create_repo.assert_called_once_with("someone/wave", private=True, exist_ok=True)
    assert uploaded == {name: (exported / name).read_bytes() for name in sharing.FILES}


def test_a_push_that_fails_says_so_in_one_line_and_keeps_the_folder(exported, hub):
    hub.create_repo.side_effect = ConnectionError("no route\nto host")
    with pytest.raises(DataError, match=r"someone/wave has not been uploaded \(ConnectionError: no route to host\)"):
        push(exported, "someone/wave", hub)
    assert sem_jax.load(exported).step == 0


def test_a_push_without_the_library_names_the_extra(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r"pip install 'sem-jax\[hub\]'"):
        push(exported, "someone/wave")
