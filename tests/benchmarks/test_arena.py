"""The arena's tasks say what they ask, its tables are those of docs/arena.md, and a cell of each can be made again."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from arena import (
    bounds,
    counting,
    decoding,
    depth,
    language,
    library,
    library_bytes,
    recall,
    sampling,
    scaling,
    start,
    state_tracking,
)
from arena.campaign import TUNING_SEED, Grid, Record, judged, rate_row, tuned
from arena.catalogue import TABLES, record_of, text_of
from arena.equal_time import Comparison
from arena.page import tables_in, write_table
from arena.rivals import BUT, LESS_BOUNDED, RIVALS, installed
from arena.trials import Trial, configure, products, train

from sem_jax.config import default
from sem_jax.training.state import init_state
from sem_jax.training.step import make_train_step, model_loss

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "arena.md"


@pytest.mark.parametrize("group", state_tracking.GROUPS)
def test_tables_of_groups(group):
    table = state_tracking.table(group)
    everything = np.arange(len(table))
    np.testing.assert_array_equal(table[0], everything)
    np.testing.assert_array_equal(table[:, 0], everything)
    for line in (*table, *table.T):
        np.testing.assert_array_equal(np.sort(line), everything)
    a, b, c = np.random.default_rng(0).integers(len(table), size=(3, 200))
    np.testing.assert_array_equal(table[table[a, b], c], table[a, table[b, c]])
    commutes = bool((table == table.T).all())
    assert (len(table), commutes) == {"s3": (6, False), "a5": (60, False)}.get(group, (int(group[-1]), True))


def test_state_tracking_answers_the_sum_so_far():
    batch = state_tracking.batch("mod5", 3, 20, (0,))
    elements = batch.tokens[:, :-1] % state_tracking.VOCABULARY
    answers = batch.tokens[:, 1:] // state_tracking.VOCABULARY
    np.testing.assert_array_equal(answers, np.cumsum(elements, axis=1) % 5)


def pairs(batch):
    return batch.tokens[:, :-1] % recall.VOCABULARY, batch.tokens[:, 1:] // recall.VOCABULARY


def test_recall_asks_each_key_once_for_its_value():
    batch = recall.batch("mqar_64_4", 5, (0,))
    inputs, answers = pairs(batch)
    for row in range(5):
        known = dict(zip(inputs[row, 0:8:2], inputs[row, 1:8:2], strict=True))
        places = np.flatnonzero(batch.weights[row])
        assert sorted(inputs[row, places]) == sorted(known)
        assert [known[key] for key in inputs[row, places]] == list(answers[row, places])
        assert np.count_nonzero(inputs[row]) == 12


def test_copying_asks_for_the_symbols_in_their_order():
    batch = recall.batch("copy_64_8", 5, (0,))
    inputs, answers = pairs(batch)
    for row in range(5):
        body = inputs[row, :56]
        np.testing.assert_array_equal(answers[row, 56:], body[body > 0])
        assert (batch.weights[row] == np.repeat([0, 1], [56, 8])).all()


def test_the_best_rate_of_the_grid_is_taken_and_no_cell_is_made_twice(tmp_path):
    made = []

    def measure(asked):
        made.append(asked)
        return [{"loss": {1: np.nan, 2: 0.5, 3: 0.7}[each["rate"]]} for each in asked]

    path, grid = tmp_path / "cells.json", Grid("easy", 1, (1, 2, 3))
    asked = [{"task": "hard", "layers": 2, "seed": seed} for seed in range(3)]
    for count in (2, 2, 3):
        record = Record(path, {"steps": 3})
        cells = tuned(record, measure, grid, "gru", asked[:count])
        assert [cell["rate"] for cell in cells] == [2] * count
    questions = [{"rival": "gru", "rate": 2} | each for each in asked]
    tuning = [{"rival": "gru", "task": "easy", "layers": 1, "seed": TUNING_SEED, "rate": rate} for rate in (1, 2, 3)]
    assert made == [tuning, questions[:2], questions[2:]]
    assert judged(record) == cells
    with pytest.raises(SystemExit, match="another budget"):
        Record(path, {"steps": 4})


def test_a_rate_is_chosen_by_the_mean_over_the_tuning_seeds(tmp_path):
    losses = {1: (0.0, 3.0), 2: (1.0, 1.5)}  # the first trial alone would choose the other

    def measure(asked):
        return [{"loss": losses[each["rate"]][each["seed"] % TUNING_SEED], "parameters": 7} for each in asked]

    grid, record = Grid("easy", 1, tuple(losses), seeds=2), Record(tmp_path / "cells.json", {})
    (cell,) = tuned(record, measure, grid, "gru", [{"task": "easy", "layers": 1, "seed": 0}])
    assert cell["rate"] == 2
    assert judged(record) == [cell]
    assert rate_row(record, "gru", grid) == ["1.500 ± 2.121", "1.250 ± 0.354", "7"]


@pytest.mark.slow
def test_trials_in_one_program_are_what_each_is_alone(quick_compilation):
    budget = dataclasses.replace(tiny(state_tracking), steps=3)

    def trial(rate, seed):
        return Trial(rate, seed, lambda number: state_tracking.batch("mod3", 2, 8, (seed, number)))

    trials = [trial(1e-2, 0), trial(1e-3, 1)]
    _, together = train("gpt", budget, 1, trials)
    config = configure("gpt", budget, 1, trials[1].rate)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=1))
    losses, norms = [], []
    with installed(RIVALS["gpt"], budget.vocabulary):
        step, state = make_train_step(config), init_state(config)
        for number in range(budget.steps):
            state, metrics = step(state, trials[1].batch(number))
            losses.append(float(metrics.nll))
            norms.append(float(metrics.grad_norm))
    # Means of 16 numbers near 4, each after some hundred roundings of 6e-8; a step at the other rate moves them by more
    # than 1e-3.
    np.testing.assert_allclose(together.losses, losses, rtol=1e-5)
    np.testing.assert_allclose(together.grad_norms, norms, rtol=1e-4)  # sums over the tokens in another order


def test_the_ends_of_a_rival_take_larger_steps(quick_compilation):
    budget = dataclasses.replace(tiny(state_tracking), steps=10)
    moved = {}
    for name in ("gru", "gru_ends"):
        config = configure(name, budget, 1, 1e-2)
        with installed(RIVALS[name], budget.vocabulary):
            state = init_state(config)
            start = jax.tree.map(np.array, state.model.params)
            state, _ = make_train_step(config)(state, state_tracking.batch("mod3", 2, 8, (0,)))
        moved[name] = jax.tree.map(np.subtract, state.model.params, start)
    changes = zip(*(jax.tree_util.tree_leaves_with_path(moved[name]) for name in moved), strict=True)
    factors = set()
    for (path, change), (_, larger) in changes:
        factor = 5 if path[0].key in ("encoder", "readout") else 1
        # A change is the difference of numbers below 2, each rounded to 2^-24 of it.
        np.testing.assert_allclose(larger, factor * change, atol=5 * 2**-23, err_msg=str(path))
        factors |= {factor} if np.abs(change).max() > 1e-4 else set()
    assert factors == {1, 5}


def tiny(module):
    return dataclasses.replace(module.BUDGET, steps=2, batch=2, parameters=6000)


@pytest.mark.parametrize(
    ("module", "task"), [(state_tracking, "mod2"), (counting, "mod2, longer"), (depth, "s3, longer")]
)
def test_state_tracking_cell(module, task, monkeypatch, tmp_path, quick_compilation):
    monkeypatch.setattr(state_tracking, "LENGTHS", (40,))
    budget = tiny(module)
    record = Record(tmp_path / "cells.json", dataclasses.asdict(budget))
    what = {"rival": "gru", "task": task, "layers": 1, "rate": 1e-2}
    record.answers([what | {"seed": seed} for seed in range(2)], lambda asked: module.measure(budget, asked))
    shares = [100 * cell["accuracy_40"] for cell in record.cells()]
    assert all(0 < share < 100 for share in shares)
    text = f"| GRU | {np.mean(shares):.0f} ±{np.std(shares, ddof=1):.0f} | – |"
    assert text in module.tables(record)


def test_counting_takes_the_rate_of_state_tracking_and_eight_times_its_steps(monkeypatch, tmp_path):
    measured = []

    def measure(budget, asked):
        measured.extend((each["task"], budget.steps, each["rate"], each["seed"]) for each in asked)
        return [{"loss": abs(np.log(each["rate"] / 4e-3)) if budget.steps == 600 else 0.0} for each in asked]

    monkeypatch.setattr(state_tracking, "measure", measure)
    monkeypatch.setattr(counting, "RIVAL_NAMES", ("gru",))
    record = record_of("counting", tmp_path)
    counting.campaign(record, 2)
    judgements = [each for each in measured if each[-1] != TUNING_SEED]
    assert judgements == [(f"mod{n}", 4800, 4e-3, seed) for seed in range(2) for n in (2, 3, 5, 7)]
    assert {steps for _, steps, _, seed in measured if seed == TUNING_SEED} == {600}
    assert not judged(record, task="mod3")


def test_depth_takes_the_rate_of_each_group_in_two_layers_after_as_many_steps(monkeypatch, tmp_path):
    best, measured = {"s3": 4e-3, "a5": 1.2e-2}, []

    def measure(budget, asked):
        measured.extend((each["task"], each["layers"], budget.steps, each["rate"], each["seed"]) for each in asked)
        return [{"loss": abs(np.log(each["rate"] / best[each["task"]]))} for each in asked]

    monkeypatch.setattr(state_tracking, "measure", measure)
    monkeypatch.setattr(depth, "RIVAL_NAMES", ("gru",))
    depth.campaign(record_of("depth", tmp_path), 1)
    tuning = [each[:3] for each in measured if each[-1] == TUNING_SEED]
    assert tuning == [(task, 2, 4800) for task in best for _ in range(4)]
    judgements = [each for each in measured if each[-1] != TUNING_SEED]
    assert judgements == [(task, layers, 4800, best[task], 0) for task in best for layers in (1, 2, 4)]


@pytest.mark.slow  # the cell of state tracking takes the same path
@pytest.mark.parametrize(
    ("module", "rival", "task", "row"),
    [
        (recall, "gru", "copy_64_8", "| GRU | – | {:.1f} | – |"),
        (start, "sem_unbounded_but_taps", "mqar_64_4", "| SEM, unbounded, with taps drawn apart | {:.1f} |"),
    ],
)
def test_recall_cell(module, rival, task, row, tmp_path, quick_compilation):
    budget = tiny(module)
    record = Record(tmp_path / "cells.json", dataclasses.asdict(budget))
    what = {"rival": rival, "task": task, "layers": 1, "seed": 0, "rate": 1e-2}
    (cell,) = record.answers([what], lambda asked: module.measure(budget, asked))
    assert row.format(100 * cell["accuracy"]) in module.tables(record)


def test_a_start_without_one_part_is_trained_at_the_rate_of_the_whole(monkeypatch, tmp_path):
    made = []

    def measure(budget, asked):
        made.extend((each["rival"], each["seed"], each["rate"]) for each in asked)
        return [{"loss": each["rate"], "accuracy": each["seed"] / 4, "parameters": 1} for each in asked]

    monkeypatch.setattr(start, "measure", measure)
    record = Record(tmp_path / "cells.json", dataclasses.asdict(start.BUDGET))
    start.campaign(record, 2)
    judged_trials = [each for each in made if each[1] < TUNING_SEED]
    names = ("sem_unbounded", *BUT)
    assert judged_trials == [(name, seed, 1.3e-3) for name in names for seed in (0, 1)]
    assert start.tables(record).count("| 0.0, 25.0 |") == len(names)


def test_language_cell(monkeypatch, tmp_path, quick_compilation):
    path = tmp_path / "text.txt"
    path.write_text("the wave turns and the phase turns with it. " * 100, encoding="utf-8")
    monkeypatch.setattr(language, "BUCKETS", (0, 64, 128))
    monkeypatch.setattr(language, "RIVAL_NAMES", ("gru",))
    monkeypatch.setattr(language, "CURVE", 2)
    budget = tiny(language)
    what = {"rival": "gru", "task": "tokens", "layers": 1, "rate": 1e-2, "seed": 0}
    record = Record(tmp_path / "cells.json", dataclasses.asdict(budget))
    (cell,) = record.answers([what], lambda asked: language.measure(budget, str(path), asked))
    assert 1 < cell["nats"] < 1.5 * np.log(65)
    assert f"| GRU | {cell['nats']:.4f} | – | – | " in language.tables(record)
    monkeypatch.setattr(language, "GRID", Grid("tokens", 1))
    cost = language.comparison(str(path), budget).step_cost(record, "gru")
    for kind, unit in (("step_ms", 1e-3), ("step_gflop", 1)):
        costs, losses = language.curves(record, kind)["GRU"]
        assert losses == cell["curve"]
        assert losses[-1] < losses[0]
        np.testing.assert_allclose(costs, cost[kind] * unit * np.array([1, 2]))
    language.draw(record, tmp_path)
    assert all((tmp_path / f"arena_{kind}.svg").stat().st_size > 1000 for kind in ("seconds", "gflop"))


def on_a_small_text(module, monkeypatch, tmp_path):
    """Two held-out batches of a text by characters in the place of the standard library."""
    path = tmp_path / "text.txt"
    path.write_text("the wave turns and the phase turns with it. " * 200, encoding="utf-8")
    monkeypatch.setattr(module, "dataset", lambda seed, batch: language.dataset(str(path), seed, batch, 64))
    monkeypatch.setattr(library, "JUDGED", 2)


@pytest.mark.parametrize(
    ("table", "reader"),  # and the module with its dataset
    [pytest.param(library, library, marks=pytest.mark.slow), (library_bytes, scaling)],
)
def test_library_cell(table, reader, monkeypatch, tmp_path, quick_compilation):
    on_a_small_text(reader, monkeypatch, tmp_path)
    budget = tiny(table)
    what = {"rival": "gru", "task": "tokens", "layers": 1, "rate": 1e-2, "seed": 0}
    record = Record(tmp_path / "cells.json", dataclasses.asdict(budget))
    (cell,) = record.answers([what], lambda asked: table.measure(budget, asked))
    assert 1 < cell["nats"] < 1.5 * np.log(budget.vocabulary)
    assert cell["bits"] == pytest.approx(cell["nats"] / np.log(2), abs=1e-4)  # a character of this text is a byte
    assert f"| GRU | {cell['bits']:.4f} | – | – | " in table.tables(record)


def test_bounds_cell(monkeypatch, tmp_path, quick_compilation):
    on_a_small_text(scaling, monkeypatch, tmp_path)
    monkeypatch.setattr(bounds, "RIVAL_NAMES", ("gru",))
    monkeypatch.setattr(library_bytes, "GRID", Grid("tokens", 1))
    budget = dataclasses.replace(tiny(bounds), steps=1)
    record = Record(tmp_path / "cells.json", dataclasses.asdict(budget))
    bounds.campaign(record, 1, budget)
    (cell,) = record.cells()
    config = configure("gru", budget, 1, bounds.RATE)
    with installed(RIVALS["gru"]):
        state = init_state(dataclasses.replace(config, training=dataclasses.replace(config.training, seed=0)))
        batch = scaling.dataset(0, budget.batch).train.batch(0)

        def loss(params):
            sums, _ = model_loss(config, state.model.replace(params=params), batch)
            return sums.loss / np.sum(batch.weights)

        norm = np.sqrt(sum(float(np.sum(np.abs(leaf) ** 2)) for leaf in jax.tree.leaves(jax.grad(loss)(state.params))))
    assert cell["grad_norm"] == pytest.approx(norm, rel=6e-3)  # three digits are kept
    assert f"| GRU | {cell['bits']:.4f} | {cell['grad_norm']:,.0f} |" in bounds.tables(record)


def test_without_one_bound_a_rival_has_the_others():
    fields = "mixer.rotation", "mixer.output_norm", "propagator.kerr_saturation"
    without = RIVALS["sem_unbounded"].fields
    assert tuple(without) == fields
    model = default().model
    for name, field in zip(LESS_BOUNDED, fields, strict=True):
        assert RIVALS[name].fields == {field: without[field]}
        group, _, key = field.partition(".")
        assert model[group][key] != without[field]


def test_a_rate_for_bytes_is_chosen_after_a_fifth_of_the_steps(monkeypatch, tmp_path):
    measured = []

    def measure_on(dataset, budget, asked):
        measured.extend((budget.steps, each["seed"]) for each in asked)
        return [{"loss": each["rate"]} for each in asked]

    monkeypatch.setattr(library, "measure_on", measure_on)
    record = record_of("bytes", tmp_path)
    question = {"task": "tokens", "layers": 6, "seed": 0}
    tuned(record, partial(library_bytes.measure, library_bytes.BUDGET), library_bytes.GRID, "gru", [question])
    assert measured == [(200, TUNING_SEED)] * 4 + [(1000, 0)]


def test_equal_time_is_as_many_steps_as_fit_into_that_of_the_sem(monkeypatch, tmp_path):
    measured = []

    def measure(budget, asked):
        measured.append((asked[0]["rival"], asked[0]["task"], budget.steps))
        return [{"loss": each["rate"], "steps": budget.steps, "nats": 2.0, "bits": 1.0} for each in asked]

    milliseconds = {"sem": 200.0, "gpt": 70.0, "mamba2": 240.0, "gru": 10.0}
    monkeypatch.setattr("arena.equal_time.step_ms", lambda name, *_: milliseconds[name])
    monkeypatch.setattr("arena.equal_time.step_gflop", lambda *_: 1.0)
    record = Record(tmp_path / "cells.json", {})
    Comparison(Grid("tokens", 2), library.BUDGET, None, measure).campaign(record, (*milliseconds, "gpt_ends"), 1)
    assert [each for each in measured if each[1] == "time"] == [
        ("gpt", "time", 2900),
        ("mamba2", "time", 800),
        ("gru", "time", 4000),
        ("gpt_ends", "time", 2900),  # a step costs as much as the GPT's
    ]
    assert {steps for _, task, steps in measured if task == "tokens"} == {1000}


@pytest.mark.slow  # the library cell takes the same path
def test_scaling_cell(monkeypatch, tmp_path, quick_compilation):
    on_a_small_text(scaling, monkeypatch, tmp_path)
    budget = tiny(scaling)
    what = {"rival": "gru", "task": "25000", "layers": 1, "rate": 1e-2}
    monkeypatch.setattr(scaling, "RIVAL_NAMES", ("gru",))
    record = Record(tmp_path / "cells.json", dataclasses.asdict(budget))
    asked = [what | {"seed": seed} for seed in range(2)]
    cells = record.answers(asked, lambda asked: scaling.measure(budget, asked))
    nats = [cell["nats"] for cell in cells]
    assert all(1 < each < 1.5 * np.log(261) for each in nats)
    assert f"| GRU | {np.mean(nats):.4f} ± {np.std(nats, ddof=1):.4f} | – | " in scaling.tables(record)


def test_larger_models_take_the_rate_of_the_largest_that_was_tuned(monkeypatch, tmp_path):
    measured = []

    def measure(budget, asked):
        measured.extend((budget.parameters, budget.steps, each["rate"], each["seed"]) for each in asked)
        return [{"loss": abs(np.log(each["rate"] / 4e-3)), "nats": 2.0, "parameters": 7} for each in asked]

    monkeypatch.setattr(scaling, "measure", measure)
    monkeypatch.setattr(scaling, "RIVAL_NAMES", ("gru",))
    scaling.campaign(Record(tmp_path / "cells.json", dataclasses.asdict(scaling.BUDGET)), 2)
    judgements = [each for each in measured if each[-1] != TUNING_SEED]
    tuned_sizes = [(size, seed) for size in (25_000, 50_000, 100_000) for seed in range(2)]
    assert [(size, seed) for size, _, _, seed in judgements] == [*tuned_sizes, (200_000, 0), (400_000, 0)]
    assert {rate for _, _, rate, _ in judgements} == {4e-3}
    # 20 bytes a parameter in steps of 8 x 128.
    assert all(steps == 20 * size // 1024 for size, steps, _, _ in measured)


def test_a_power_law_is_found_with_the_errors_of_its_floor_and_exponent():
    sizes = np.array([1e4, 3e4, 1e5, 1e6, 1e7])
    nats = 0.8 + 50 * sizes**-0.4
    law = scaling.power_law(sizes, nats)
    np.testing.assert_allclose(law[:3], (0.8, 50, 0.4), rtol=1e-5)
    assert max(law[3:]) < 1e-5
    # Residuals r of the logarithms have the estimated variance Σr²/(n − 3), and so have the numbers of the fit that of
    # (JᵀJ)⁻¹, with J the slopes of the logarithms; residuals that are orthogonal to J leave the fit where it is.
    slopes = np.stack([np.ones(5), 50 * sizes**-0.4, -50 * sizes**-0.4 * np.log(sizes)], axis=1) / nats[:, None]
    noise = 1e-3 * np.linalg.svd(slopes)[0][:, 3:].sum(axis=1)
    law = scaling.power_law(sizes, nats * np.exp(noise))
    errors = np.sqrt(np.diag(np.linalg.inv(slopes.T @ slopes)) * np.sum(noise**2) / 2)
    np.testing.assert_allclose(law[:3], (0.8, 50, 0.4), rtol=1e-5)
    np.testing.assert_allclose(law[3:], errors[[0, 2]], rtol=1e-2)


def test_two_rivals_are_compared_at_equal_parameters_on_lines_between_the_points_of_one(monkeypatch, tmp_path):
    def measure(budget, asked):
        # nats = 40·parameters^(−1/4) is a line of logarithms; the GRU has a tenth more parameters than the SEM.
        parameters = budget.parameters * (1.1 if asked[0]["rival"] == "gru" else 1)
        nats = 40 * parameters**-0.25 * (1 if asked[0]["rival"] == "gru" else 0.9)
        return [{"loss": 1.0, "nats": nats, "parameters": parameters} for _ in asked]

    monkeypatch.setattr(scaling, "measure", measure)
    monkeypatch.setattr(scaling, "RIVAL_NAMES", ("sem", "gru"))
    monkeypatch.setattr(scaling, "LAYERS", {25_000: 2, 50_000: 2, 100_000: 3})  # too few for a power law
    record = Record(tmp_path / "cells.json", dataclasses.asdict(scaling.BUDGET))
    scaling.campaign(record, 1)
    found = ["–", *(f"{40 * size**-0.25:.4f}" for size in (50_000, 100_000))]
    assert f"| GRU, at the SEM's parameters | {' | '.join(found)} | – | – | – | – |" in scaling.tables(record)


def test_the_arithmetic_of_a_step_is_that_of_its_products():
    def program(x, w):
        carry, _ = jax.lax.scan(lambda c, _: (c @ w, None), x, length=5)
        return jax.lax.complex(carry, carry) @ jax.jit(lambda w: jax.lax.complex(w, w))(w)

    x, w = np.ones((3, 4), np.float32), np.ones((4, 4), np.float32)
    # 2·3·4·4 FLOPs five times, and 8·3·4·4 of the complex product.
    assert products(jax.make_jaxpr(program)(x, w).jaxpr) == 5 * 96 + 384


def test_calibration_error_is_the_gap_between_sure_and_right():
    sure = np.array([0.95, 0.95, 0.95, 0.95, 0.62, 0.62])
    probabilities = np.stack([sure, 1 - sure], axis=-1)
    targets = np.array([0, 0, 0, 1, 0, 1])
    # Four of 0.95 with 0.75 right, two of 0.62 with 0.5 right; the two kinds lie in bins of their own.
    assert sampling.calibration_error(probabilities, targets) == pytest.approx((4 * 0.2 + 2 * 0.12) / 6)
    assert sampling.nats(probabilities, targets) == pytest.approx(
        -(3 * np.log(0.95) + np.log(0.05) + np.log(0.62) + np.log(0.38)) / 6
    )


@pytest.mark.slow
def test_sampling_cell(monkeypatch, tmp_path, quick_compilation):
    path = tmp_path / "text.txt"
    path.write_text("the wave turns and the phase turns with it. " * 400, encoding="utf-8")
    monkeypatch.setattr(sampling, "SAMPLES", 2)
    monkeypatch.setattr(sampling, "RIVAL", "gru")
    budget = dataclasses.replace(sampling.BUDGET, steps=8, batch=2, parameters=6000)
    record = Record(tmp_path / "cells.json", dataclasses.asdict(budget))
    (cell,) = record.answers([{"run": "1/N", "seed": 0}], lambda asked: sampling.measure(budget, str(path), asked))
    train_tokens = sampling.dataset(str(path), 0, 2, 64).train_tokens
    assert cell["temperature"] == pytest.approx(1 / train_tokens)
    # −log of a mean is at most the mean of −log: the samples together are no worse than they are one by one.
    assert 1 < cell["nats_together"] < 1.5 * np.log(65)
    assert f"| T = 1/N | {cell['nats_last']:.4f} | {cell['ece_last']:.4f} | " in sampling.tables(record)


def test_decoding_cell(monkeypatch, tmp_path, quick_compilation):
    monkeypatch.setattr(decoding, "CALLS", 3)
    cells = {past: decoding.measure(tiny(decoding), "gpt", past) for past in (4, 8)}
    assert cells[8]["bytes"] == 2 * cells[4]["bytes"]


def test_the_page_has_the_tables_of_the_kept_trials():
    kept = {name: text_of(name, record_of(name, ROOT / "docs" / "results")) for name in TABLES}
    assert tables_in(PAGE) == kept


def test_a_table_is_written_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    marks = [f"<!-- arena {name} -->\nold\n<!-- end -->\n" for name in ("depth", "recall")]
    page.write_text("before\n" + "between\n".join(marks), encoding="utf-8")
    write_table(page, "recall", "new")
    assert tables_in(page) == {"depth": "old", "recall": "new"}
    assert page.read_text(encoding="utf-8").startswith("before\n<!-- arena depth -->")
    with pytest.raises(KeyError, match="language"):
        write_table(page, "language", "new")
