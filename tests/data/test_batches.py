import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sem_jax.data import DataError
from sem_jax.data.batches import Chunks, Sequences, Windows

BOUNDARY = 1000


def counting(length, seq_length, boundary_id=None, reset=True):
    """A stream in which every id says where it stands."""
    return Sequences(np.arange(length, dtype=np.uint16), seq_length, boundary_id, reset)


def targets(batch):
    return batch.tokens[:, 1:][batch.weights == 1].tolist()


def same(a, b):
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", [Chunks, Windows])
class TestPurity:
    def test_a_batch_depends_on_seed_and_step_alone(self, kind):
        first, second = (kind(counting(500, 8), seed=7, global_batch=4) for _ in range(2))
        forward = [first.batch(step) for step in range(40)]
        backward = [second.batch(step) for step in reversed(range(40))][::-1]
        assert all(map(same, forward, backward))

    def test_steps_and_seeds_differ(self, kind):
        batches = [kind(counting(500, 8), seed, 4).batch(step) for seed in (0, 1) for step in range(10)]
        assert len({batch.tokens.tobytes() for batch in batches}) == 20

    def test_types(self, kind):
        batch = kind(counting(500, 8), 0, 4).batch(0)
        assert [(a.dtype, a.shape) for a in batch] == [(np.int32, (4, 9)), (bool, (4, 9)), (np.float32, (4, 8))]

    def test_cut_anew_they_are_those_of_the_other_size(self, kind):
        recut, fresh = kind(counting(500, 8), 7, 4).recut(12, 3), kind(counting(500, 12), 7, 3)
        assert all(same(recut.batch(step), fresh.batch(step)) for step in range(30))

    def test_evaluation_repeats_and_ignores_the_seed(self, kind):
        once, again = (list(kind(counting(500, 8), seed, 4).evaluation_batches(5)) for seed in (0, 1))
        assert len(once) == 5
        assert all(map(same, once, again))
        assert len({batch.tokens.tobytes() for batch in once}) == 5


class TestChunks:
    @settings(deadline=None, max_examples=50)
    @given(length=st.integers(2, 300), seq_length=st.integers(1, 40), global_batch=st.integers(1, 9))
    def test_every_token_is_a_target_exactly_once_an_epoch(self, length, seq_length, global_batch):
        batches = Chunks(counting(length, seq_length), 0, global_batch)
        num_chunks = -(-(length - 1) // seq_length)
        epochs = 3
        rows = [
            batch.tokens[row, 1:][batch.weights[row] == 1].tolist()
            for batch in map(batches.batch, range(-(-epochs * num_chunks // global_batch)))
            for row in range(global_batch)
        ]
        for epoch in range(epochs):
            seen = itertools.chain(*rows[epoch * num_chunks : (epoch + 1) * num_chunks])
            assert sorted(seen) == list(range(1, length))

    def test_epochs_differ_in_order(self):
        batches = Chunks(counting(801, 8), 0, 100)
        assert batches.batches_per_epoch == 1
        firsts = [tuple(batches.batch(epoch).tokens[:, 0]) for epoch in range(4)]
        assert len(set(firsts)) == 4
        assert len({tuple(sorted(first)) for first in firsts}) == 1

    def test_inputs_and_targets_are_neighbours(self):
        batch = Chunks(counting(801, 8), 0, 100).batch(0)
        assert np.array_equal(np.diff(batch.tokens), np.ones((100, 8)))

    def test_the_whole_split_is_evaluated_once_and_in_order(self):
        batches = Chunks(counting(103, 8), 0, 5)
        assert batches.batches_per_epoch == 3
        evaluated = list(batches.evaluation_batches(99))
        assert len(evaluated) == 3
        assert list(itertools.chain(*map(targets, evaluated))) == list(range(1, 103))
        assert evaluated[-1].weights[3:].sum() == 0  # 13 chunks in rows of 5

    def test_a_short_evaluation_is_spread_over_the_split(self):
        (batch,) = Chunks(counting(801, 8), 0, 4).evaluation_batches(1)
        assert batch.tokens[:, 0].tolist() == [0, 200, 400, 600]

    def test_a_stream_without_a_target_is_an_error(self):
        with pytest.raises(DataError, match="nothing to predict"):
            Chunks(counting(1, 8), 0, 4)


class TestWindows:
    def test_every_start_is_reached_and_none_passes_the_end(self):
        batches = Windows(counting(20, 8), 0, 50)
        starts = np.concatenate([batches.batch(step).tokens[:, 0] for step in range(100)])
        counts = np.bincount(starts)
        assert len(counts) == 12  # 0 .. 20 - 8 - 1
        assert counts.min() > 340  # of 417 expected
        assert all(batches.batch(step).weights.all() for step in range(10))

    def test_a_stream_of_one_window_will_do_and_a_shorter_is_an_error(self):
        assert Windows(counting(9, 8), 0, 1).batch(0).tokens.tolist() == [list(range(9))]
        with pytest.raises(DataError, match=r"8 tokens holds no window of config.data.seq_length \+ 1 = 9"):
            Windows(counting(8, 8), 0, 1)


class TestBoundaries:
    stream = np.array([BOUNDARY, 1, 2, BOUNDARY, 3, BOUNDARY, 4, 5], np.uint16)

    def cut(self, boundary_id=BOUNDARY, reset=True):
        return Sequences(self.stream, 3, boundary_id, reset).cut(np.array([0, 3, 6]))

    def test_resets_mark_the_tokens_that_open_a_document(self):
        assert self.cut().resets.astype(int).tolist() == [[1, 0, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0]]

    def test_a_boundary_or_padding_is_no_target(self):
        assert self.cut().weights.tolist() == [[1, 1, 0], [1, 0, 1], [1, 0, 0]]
        assert self.cut(reset=False).weights.tolist() == self.cut().weights.tolist()

    def test_without_boundaries_nothing_resets(self):
        assert not self.cut(reset=False).resets.any()
        assert not self.cut(boundary_id=None).resets.any()
        assert self.cut(boundary_id=None).weights.tolist() == [[1, 1, 1], [1, 1, 1], [1, 0, 0]]

    def test_padding_is_no_boundary_even_if_the_boundary_is_id_zero(self):
        batch = Sequences(np.array([0, 5], np.uint16), 3, 0, True).cut(np.array([0]))
        assert batch.resets.tolist() == [[True, False, False, False]]
