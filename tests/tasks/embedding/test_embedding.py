import numpy as np
import pytest
from worlds.places import find_folders
from worlds.toy_corpus import learn, row, write_examples, write_rows

from tasks.artifacts.tables import provenance, read_table
from tasks.embedding.embedding import write_embedding
from tasks.embedding.settings import EmbeddingSettings
from tasks.settings import RuntimeSettings


def run(tmp_path, toy, name="out", pool=4, **changes):
    write_examples(tmp_path / "examples", pool=pool)
    return encode_all(tmp_path, toy, name, **changes)


def counted(facts) -> dict:
    return {name: value for name, value in facts.items() if name.startswith("texts_")}


def encode_all(tmp_path, toy, name="out", max_tokens=64, **changes):
    return write_embedding(
        find_folders(tmp_path, embedding=tmp_path / name, cache=tmp_path / "store"),
        model=toy,
        settings=EmbeddingSettings(max_tokens=max_tokens),
        runtime=RuntimeSettings(embedding_rows=4),
        **changes,
    )


def test_every_used_example_has_a_unit_vector(tmp_path, toy):
    assert counted(run(tmp_path, toy)) == {"texts_encoded": 6, "texts_cut": 0, "texts_known": 0}
    table = read_table(tmp_path / "out/embedding.parquet")
    vectors = np.array(table["embedding"].to_pylist())
    assert table["id"].to_pylist() == read_table(tmp_path / "examples/examples.parquet")["id"].to_pylist()
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_only_new_text_is_encoded_and_the_artifact_is_the_same(tmp_path, toy):
    run(tmp_path, toy, "first", pool=4)
    assert counted(run(tmp_path, toy, "again", pool=4)) == {"texts_encoded": 0, "texts_cut": 0, "texts_known": 6}
    first, again = (tmp_path / name / "embedding.parquet" for name in ("first", "again"))
    assert first.read_bytes() == again.read_bytes()
    assert counted(run(tmp_path, toy, "more", pool=7)) == {"texts_encoded": 3, "texts_cut": 0, "texts_known": 6}


@pytest.mark.parametrize("known", [range(5), range(1000, 1003), range(50, 300)])
def test_rows_of_which_the_store_knows_none_are_encoded_beside_what_it_holds(tmp_path, toy, known):
    for places in (known, range(20, 26), known):
        write_rows(tmp_path / "examples", [row(place, "pool") for place in places])
        encode_all(tmp_path, toy)
        table = read_table(tmp_path / "out/embedding.parquet")
        alone = read_table(tmp_path / "examples/examples.parquet")["id"]
        assert table["id"].to_pylist() == alone.to_pylist()
        assert np.array(table["embedding"].to_pylist()).shape == (len(places), 32)


@pytest.mark.parametrize("known", [0, 3])
def test_without_a_used_row_the_table_is_empty(tmp_path, toy, known):
    if known:
        run(tmp_path, toy, pool=known)
    write_rows(tmp_path / "examples", [row(0, "pool", used=False)])
    assert counted(encode_all(tmp_path, toy)) == {"texts_encoded": 0, "texts_cut": 0, "texts_known": 0}
    assert read_table(tmp_path / "out/embedding.parquet").num_rows == 0


def test_nobody_asked_for_it_gives_an_empty_artifact_that_says_so(tmp_path, toy):
    assert run(tmp_path, toy, wanted=False) == {"wanted": False, "scoring_seconds": 0.0, "scoring_flops": 0}
    assert read_table(tmp_path / "out/embedding.parquet").num_rows == 0
    assert provenance(tmp_path / "out/embedding.parquet")["parameters"] == {"wanted": False}


def test_texts_that_are_cut_are_counted(tmp_path, toy):
    assert run(tmp_path, toy, max_tokens=10)["texts_cut"] == 6


def test_the_artifact_says_where_it_comes_from(tmp_path, toy):
    run(tmp_path, toy)
    record = provenance(tmp_path / "out/embedding.parquet")
    assert record["stage"] == "embedding"
    assert list(record["inputs"]) == [f"{tmp_path.name}/examples/examples.parquet"]


def test_the_target_task_and_what_was_learnt_have_vectors_too(tmp_path, toy):
    write_examples(tmp_path / "examples", pool=2, held_out=1, target=1, learnt=1)
    ids = read_table(tmp_path / "examples/examples.parquet")["id"].to_pylist()
    assert encode_all(tmp_path, toy)["texts_encoded"] == 5
    assert read_table(tmp_path / "out/embedding.parquet")["id"].to_pylist() == ids


def test_unused_rows_have_none_and_a_learnt_row_in_the_pool_has_one(tmp_path, toy):
    twice = learn(row(1, "pool", used=False)) | {"duplicate_of": 0, "unused_because": "duplicate"}
    rows = [learn(row(0, "pool")), twice, row(2, "pool", used=False) | {"earlier": "offered"}]
    (known,) = write_rows(tmp_path / "examples", rows)
    encode_all(tmp_path, toy)
    assert read_table(tmp_path / "out/embedding.parquet")["id"].to_pylist() == [known]


def test_what_vectors_cost_is_told_again_when_they_are_known(tmp_path, toy):
    first = run(tmp_path, toy, pool=6)["scoring_seconds"]
    assert first > 0
    assert run(tmp_path, toy, "again", pool=6)["scoring_seconds"] == first
    assert run(tmp_path, toy, "fewer", pool=2)["scoring_seconds"] == pytest.approx(first / 2, abs=2e-3)


def test_a_part_of_the_store_records_the_seconds_that_it_took(tmp_path, toy):
    run(tmp_path, toy)
    (part,) = (tmp_path / "store").rglob("part-*.parquet")
    assert provenance(part)["parameters"]["seconds"] > 0
