import json
import re

import numpy as np
import pytest
from corpora import make_texts
from hypothesis import given, settings
from hypothesis import strategies as st

from sem_jax.data import DataError, load_tokenizer, train_tokenizer
from sem_jax.data.tokenizers import SPECIAL_TOKENS, IdsTokenizer, bpe

TEXTS = [*make_texts(40), "def f(x):\n\treturn x  # 1234\n", "x <eos> y <pad><doc_boundary>"]
BYTE = train_tokenizer("byte", [], 0)
CHAR = train_tokenizer("char", TEXTS, 0)
BPE = train_tokenizer("bpe", TEXTS, 350)
IDS = IdsTokenizer(97)
ALL = [pytest.param(tokenizer, id=tokenizer.kind) for tokenizer in (BYTE, CHAR, BPE)]
OPEN = [pytest.param(tokenizer, id=tokenizer.kind) for tokenizer in (BYTE, BPE)]  # know every character

any_text = st.text() | st.text(alphabet="a \n\t\r\0é日𝕊<eos>|_", max_size=60)
literal = st.lists(st.sampled_from([*SPECIAL_TOKENS, "a", " ", "<", "eos>"])).map("".join)


@pytest.mark.parametrize("tokenizer", OPEN)
@settings(deadline=None)
@given(text=any_text | literal)
def test_any_text_survives_without_becoming_a_special_token(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    specials = {tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.unk_id, tokenizer.boundary_id}
    assert not specials & set(ids.tolist())


@settings(deadline=None)
@given(st.text(alphabet=sorted(set("".join(TEXTS)))))
def test_char_survives_over_its_own_characters(text):
    ids = CHAR.encode(text)
    assert CHAR.decode(ids) == text
    assert len(ids) == len(text)
    assert CHAR.token_bytes[ids].sum() == len(text.encode())


def test_byte_ids_are_the_bytes_and_specials_follow():
    assert BYTE.encode("Aé").tolist() == [65, 0xC3, 0xA9]
    assert (BYTE.pad_id, BYTE.eos_id, BYTE.bos_id, BYTE.unk_id, BYTE.boundary_id) == (256, 257, 258, 259, 260)
    assert BYTE.vocab_size == 261


def test_char_vocabulary_is_sorted_by_code_point_and_has_no_specials():
    tokenizer = train_tokenizer("char", ["hello", " 日é"], 0)
    assert tokenizer.decode(range(tokenizer.vocab_size)) == " ehloé日"
    assert tokenizer.token_bytes.tolist() == [1, 1, 1, 1, 1, 2, 3]
    assert tokenizer.boundary_id is tokenizer.eos_id is tokenizer.pad_id is None


def test_bpe_specials_come_first_and_merges_shorten_the_text():
    assert (BPE.pad_id, BPE.eos_id, BPE.bos_id, BPE.unk_id, BPE.boundary_id) == (0, 1, 2, 3, 4)
    assert BPE.token_bytes[:5].tolist() == [0] * 5
    assert len(BPE.encode(TEXTS[0])) < 0.6 * len(BYTE.encode(TEXTS[0]))


def test_bpe_training_is_deterministic_and_bounded(caplog):
    assert train_tokenizer("bpe", iter(TEXTS), 350).fingerprint == BPE.fingerprint
    assert BPE.vocab_size == 350
    short = train_tokenizer("bpe", ["aaaa"], 600)
    assert 261 < short.vocab_size < 270
    assert f"gave a BPE vocabulary of {short.vocab_size}, fewer than 600" in caplog.text


def test_bpe_encodes_a_long_text_in_pieces(monkeypatch):
    text = "\n".join(TEXTS) + "x" * 200
    monkeypatch.setattr(bpe, "_PIECE", 50)
    pieces = list(bpe._pieces(text, 50))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) == 50
    assert sum(piece.endswith("\n") for piece in pieces) > 10
    words = "several words in one line without an end " * 9
    assert "".join(bpe._pieces(words, 50)) == words
    assert all(piece.startswith(" ") for piece in list(bpe._pieces(words, 50))[1:])
    assert BPE.decode(BPE.encode(text)) == text
    assert [ids.tolist() for ids in BPE.encode_batch([text, "", "ab"])] == [
        BPE.encode(part).tolist() for part in (text, "", "ab")
    ]


def test_bpe_learns_from_a_long_text_piece_by_piece_and_not_from_endless_words(monkeypatch):
    seen = []
    monkeypatch.setattr(bpe, "_PIECE", 2**17)
    monkeypatch.setattr(bpe, "_LESSON", 2**14)

    def watched(text):
        for lesson in lessons(text):
            seen.append(lesson)
            yield lesson

    lessons = bpe._lessons
    monkeypatch.setattr(bpe, "_lessons", watched)
    line = " ".join(TEXTS * 30)
    text = line + " " + "x" * 10**7  # learning from such a word would take hours
    tokenizer = train_tokenizer("bpe", [text], 350)
    assert "".join(seen) == line + " "
    assert max(map(len, seen)) <= 2**14
    assert tokenizer.vocab_size == 350
    assert len(tokenizer.encode("x" * 10**5)) == 10**5


@pytest.mark.parametrize("tokenizer", OPEN)
def test_decoding_passes_over_specials_and_mends_cut_characters(tokenizer):
    ids = [tokenizer.boundary_id, *tokenizer.encode("é"), tokenizer.eos_id]
    assert tokenizer.decode(ids) == "é"
    assert tokenizer.decode(tokenizer.encode("é\U0001d54a")[:-1]) == "é\ufffd"
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("tokenizer", ALL)
def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    path = tmp_path / "deep" / "tokenizer.json"
    tokenizer.save(path)
    loaded = load_tokenizer(path)
    text = TEXTS[-1]
    assert loaded.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.kind, loaded.vocab_size, loaded.eos_id) == (tokenizer.kind, tokenizer.vocab_size, tokenizer.eos_id)
    assert [entry.name for entry in path.parent.iterdir()] == ["tokenizer.json"]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 96)), max_size=4))
def test_ids_survive_in_texts_that_are_put_one_behind_the_other(lists):
    texts = [IDS.decode(ids) for ids in lists]
    assert IDS.encode("".join(texts)).tolist() == [i for ids in lists for i in ids]
    assert [IDS.token_bytes[ids].sum() for ids in lists] == [len(text.encode()) for text in texts]


def test_an_ids_tokenizer_reads_words_and_comes_back_from_its_file(tmp_path):
    assert IDS.encode(" 17\n4\t96 ").tolist() == [17, 4, 96]
    assert (IDS.vocab_size, IDS.boundary_id, IDS.eos_id) == (97, None, None)
    IDS.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path / "tokenizer.json").fingerprint == IDS.fingerprint


@pytest.mark.parametrize("word", ["97", "-1", "x", "007", "+3", "1_0", "٣", "1.0", "9" * 5000])
def test_a_word_that_is_no_id_is_named_with_its_place(word):
    with pytest.raises(DataError, match=rf"word 2, '{re.escape(word[:40])}', is no token id 0\.\.96; .*--tokenizer"):
        IDS.encode(f"5 6 {word} 7")


def test_an_ids_tokenizer_is_not_trained():
    with pytest.raises(DataError, match=r"ids needs config\.data\.tokenizer_path.*sem_jax\.convert"):
        train_tokenizer("ids", ["1 2"], 97)


def test_fingerprints_tell_vocabularies_apart():
    others = [train_tokenizer("char", [text], 0) for text in ("ab", "ac")] + [train_tokenizer("bpe", TEXTS, 351)]
    assert len({tokenizer.fingerprint for tokenizer in (BYTE, CHAR, BPE, IDS, IdsTokenizer(96), *others)}) == 8


def test_the_byte_table_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        BPE.token_bytes[0] = 1


@pytest.mark.parametrize("tokenizer", ALL)
@pytest.mark.parametrize("bad", [-1, 10_000])
def test_ids_outside_the_vocabulary_are_named(tokenizer, bad):
    with pytest.raises(DataError, match=rf"token id {bad} is outside the vocabulary of {tokenizer.vocab_size}"):
        tokenizer.decode([5, bad])


@pytest.mark.parametrize("tokenizer", OPEN)
def test_half_a_surrogate_pair_is_named(tokenizer):
    with pytest.raises(DataError, match=r"half of a surrogate pair .* at character 2"):
        tokenizer.encode("ab\ud800")


def test_an_unseen_character_is_named_with_its_place():
    with pytest.raises(DataError, match=r"'Ж' \(U\+0416\) at position 5, in 'wave Жx', .*tokenizer = byte or bpe"):
        CHAR.encode("wave Жx")


def test_too_small_a_bpe_vocabulary_is_an_error():
    with pytest.raises(DataError, match=r"bpe_vocab_size = 260 must be at least 261"):
        train_tokenizer("bpe", TEXTS, 260)


def _swap(vocabulary, a, b):
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]


def _edited(change) -> str:
    content = json.loads(BPE.to_json())
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("\udcff", "is damaged"),
        ("[1]", "it is not a tokenizer"),
        ('{"kind": "char", "characters": "ba"}', "ascending"),
        ('{"kind": "char", "characters": ""}', "at least one"),
        ('{"kind": "ids", "vocab_size": 0}', "1 to 1_048_576 ids, not 0"),
        ('{"kind": "ids", "vocab_size": 1000000000000}', "1 to 1_048_576 ids"),
        ("[" * 100_000, "nested too deeply"),
        ('{"kind": "ids", "vocab_size": "97"}', "it is not a tokenizer"),
        ('{"model": {}}', "not a tokenizer of the HuggingFace library"),
        (_edited(lambda c: c["pre_tokenizer"].update(add_prefix_space=True)), "without a prefix space"),
        (_edited(lambda c: c.update(normalizer={"type": "Lowercase"})), "without normalizer"),
        (_edited(lambda c: c["added_tokens"].pop()), "no added token but the special ones"),
        (_edited(lambda c: c["model"]["vocab"].update({"qqq": 700})), "without a gap"),
        (_edited(lambda c: _swap(c["model"]["vocab"], "<eos>", "!")), "must start with <pad>"),
    ],
)
def test_files_that_break_a_promise_are_named(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=message) as caught:
        load_tokenizer(path)
    assert "tokenizer.json" in str(caught.value)
    assert "python -m sem_jax.tokenizer" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read the tokenizer .*absent.json"):
        load_tokenizer(tmp_path / "absent.json")
