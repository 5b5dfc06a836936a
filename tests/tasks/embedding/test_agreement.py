"""How alike what rows ask and their responses are, for the gate of that name."""

import numpy as np
import pytest
from worlds.places import find_folders
from worlds.toy_corpus import learn, row, talk, tell, write_rows

from tamis.examples.conversations import transcribe
from tamis.language.embedding import encode_texts
from tasks import models
from tasks.artifacts import schemas
from tasks.artifacts.tables import provenance, read_table
from tasks.conversations import read_conversation
from tasks.embedding.embedding import write_embedding
from tasks.embedding.settings import EmbeddingSettings
from tasks.settings import RuntimeSettings


@pytest.fixture
def corpus(tmp_path):
    """Five rows of the pool, one of them of several turns, and rows that no gate asks about."""
    rows = [row(place, "pool") for place in range(4)] + [row(4, "pool") | tell(talk(4))]
    rows += [row(5, "held_out"), row(6, "target"), learn(row(7, "pool", used=False))]
    return tmp_path, write_rows(tmp_path / "examples", rows)


def run(tmp_path, toy, name="out", **asked):
    return write_embedding(
        find_folders(tmp_path, embedding=tmp_path / name, cache=tmp_path / "store"),
        model=toy,
        settings=EmbeddingSettings(max_tokens=64),
        runtime=RuntimeSettings(embedding_rows=2),
        **{"wanted": False, "agreement": True} | asked,
    )


def scores(path):
    return read_table(path / "agreement.parquet", schemas.SCORES)


def test_each_row_has_the_cosine_of_its_own_two_texts(corpus, toy):
    tmp_path, ids = corpus
    run(tmp_path, toy)
    rows = {one["id"]: one for one in read_table(tmp_path / "examples/examples.parquet").to_pylist()}
    tokenizer, network = models.tokenizer(toy), models.embedder(toy)
    slow = []
    for each in ids:
        texts = list(transcribe(read_conversation(rows[each])))
        asked, said = (encode_texts(network, tokenizer, [text], 1, 64).numpy()[0] for text in texts)
        slow.append(float(np.dot(asked, said)))
    assert scores(tmp_path / "out")["id"].to_pylist() == ids
    assert scores(tmp_path / "out")["score"].to_numpy() == pytest.approx(slow, abs=1e-5)


def test_only_rows_not_seen_before_are_encoded_and_the_artifact_is_the_same(corpus, toy):
    tmp_path, ids = corpus
    first, again = run(tmp_path, toy), run(tmp_path, toy, "again")
    assert (first["texts_encoded"], first["texts_known"]) == (2 * len(ids), 0)
    assert (again["texts_encoded"], again["texts_known"]) == (0, 2 * len(ids))
    assert first["scoring_seconds"] == again["scoring_seconds"] > 0
    assert (tmp_path / "out/agreement.parquet").read_bytes() == (tmp_path / "again/agreement.parquet").read_bytes()


def test_vectors_beside_it_are_those_without_it(corpus, toy):
    tmp_path, ids = corpus
    alone = run(tmp_path, toy, "alone", wanted=True, agreement=False)
    both = run(tmp_path, toy, "both", wanted=True)
    assert (tmp_path / "alone/embedding.parquet").read_bytes() == (tmp_path / "both/embedding.parquet").read_bytes()
    assert both["texts_encoded"] + both["texts_known"] == alone["texts_encoded"] + 2 * len(ids)


def test_nobody_asked_for_it_gives_an_empty_table_that_says_so(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy, agreement=False)
    assert scores(tmp_path / "out").num_rows == 0
    assert provenance(tmp_path / "out/agreement.parquet")["parameters"] == {"wanted": False}


def test_without_a_row_of_the_pool_there_is_no_score(tmp_path, toy):
    write_rows(tmp_path / "examples", [row(0, "held_out")])
    run(tmp_path, toy)
    assert scores(tmp_path / "out").num_rows == 0
