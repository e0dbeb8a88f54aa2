"""Damage to any file of a run or of the token cache is found, mended or harmless."""

import pytest
import survival_damage
from survival_damage import OUTCOMES


@pytest.fixture(scope="module")
def places(tmp_path_factory, quick_compilation):
    return survival_damage.make_places(tmp_path_factory.mktemp("damage"))


def assert_none_is_silent(found, *vital):
    assert {name: counts for name, counts in found.items() if counts["silent"]} == {}
    for name in vital:
        (counts,) = [counts for path, counts in found.items() if path.endswith(name)]
        assert counts["detected"] + counts["mended"] > 0.7 * sum(counts[outcome] for outcome in OUTCOMES), name


def test_no_damage_to_the_files_of_a_run_is_silent(places):
    found = survival_damage.try_all(places[0], 4, without="checkpoints")
    assert_none_is_silent(found, "config.json", "tokenizer.json", "metrics.jsonl")


def test_no_damage_to_the_token_cache_is_silent(places):
    found = survival_damage.try_all(places[1], 4)
    assert_none_is_silent(found, "metadata.json", "train.bin", "validation.bin")


@pytest.mark.slow
def test_no_damage_to_a_checkpoint_is_silent(places):
    assert_none_is_silent(survival_damage.try_all(places[0], 20), "record/metadata", "state/manifest.ocdbt")
