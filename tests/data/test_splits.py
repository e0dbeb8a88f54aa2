import random

import pytest
from corpora import make_texts, source_of

from sem_jax.config import DataConfig
from sem_jax.data import DataError
from sem_jax.data.splits import split_documents

HASH = DataConfig(validation_fraction=0.2)


def splits(texts, config=HASH):
    sides = {"train": [], "validation": []}
    for split, text in split_documents(source_of(texts), config):
        sides[split].append(text)
    return sides


class TestHash:
    def test_no_text_is_lost_or_leaks(self):
        texts = make_texts(300)
        sides = splits(texts + texts[:50])  # copies must stay together
        assert sorted(sides["train"] + sides["validation"]) == sorted(texts + texts[:50])
        assert not set(sides["train"]) & set(sides["validation"])

    def test_reordering_and_adding_documents_moves_no_other_document(self):
        texts = make_texts(300)
        held_out = set(splits(texts)["validation"])
        shuffled = texts + make_texts(200, seed=1)
        random.Random(0).shuffle(shuffled)
        assert set(splits(shuffled)["validation"]) & set(texts) == held_out

    def test_the_share_is_near_the_fraction_and_grows_with_it(self):
        texts = make_texts(2000)
        small, large = (set(splits(texts, DataConfig(validation_fraction=f))["validation"]) for f in (0.1, 0.3))
        assert small < large
        assert 150 < len(small) < 250
        assert 520 < len(large) < 680

    def test_the_choice_is_the_same_on_every_machine(self):
        assert splits([str(i) for i in range(20)])["validation"] == ["2", "6", "17", "18"]


class TestTail:
    @pytest.mark.parametrize("fraction", [0.1, 0.05, 0.3])
    def test_cuts_the_stream_of_characters_where_nanogpt_does(self, fraction):
        text = "".join(make_texts(10))
        sides = splits([text], DataConfig(split="tail", validation_fraction=fraction))
        cut = int(len(text) * (1 - fraction))
        assert sides == {"train": [text[:cut]], "validation": [text[cut:]]}

    def test_only_the_document_on_the_cut_is_divided(self):
        sides = splits(["aaaa", "bbbb", "cccc"], DataConfig(split="tail", validation_fraction=0.5))
        assert sides == {"train": ["aaaa", "bb"], "validation": ["bb", "cccc"]}
        sides = splits(["aaaa", "bbbb"], DataConfig(split="tail", validation_fraction=0.5))
        assert sides == {"train": ["aaaa"], "validation": ["bbbb"]}

    @pytest.mark.parametrize("fraction", [0.05, 0.1, 0.35, 0.5, 0.9])
    def test_a_token_id_stays_whole(self, fraction):
        texts = ["12 345 6 7890\n", "1", "23 45\n678 9"]
        sides = splits(texts, DataConfig(split="tail", validation_fraction=fraction, tokenizer="ids"))
        words = [word for text in sides["train"] + sides["validation"] for word in text.split()]
        assert words == [word for text in texts for word in text.split()]
        assert "".join(sides["train"] + sides["validation"]) == "".join(texts)
        # At most the longest number is held out beyond the share.
        excess = len("".join(sides["validation"])) - fraction * len("".join(texts))
        assert 0 <= excess < 1 + 4


@pytest.mark.parametrize(
    ("texts", "config", "empty"),
    [
        (["only one"], DataConfig(validation_fraction=1e-9), "validation"),
        (["only one"], DataConfig(validation_fraction=1 - 1e-9), "train"),
        (["x"], DataConfig(split="tail", validation_fraction=0.1), "train"),
    ],
)
def test_an_empty_split_is_an_error_with_a_cure(texts, config, empty):
    with pytest.raises(DataError, match=rf"the {empty} split is empty .*config.data.split = tail"):
        splits(texts, config)
