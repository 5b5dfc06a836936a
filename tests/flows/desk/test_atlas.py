"""A version written for Embedding Atlas: every row with a vector, its place, its nearest rows, what became of it."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
from worlds.commands import tamis

from tasks.artifacts.tables import read_table


def test_every_row_has_its_place_its_nearest_rows_and_what_became_of_it(project):
    done = tamis("desk", "--atlas", "v1")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("embedding-atlas desk.parquet --text prompt --x x --y y --neighbors neighbors")
    rows = pq.read_table("desk.parquet").to_pylist()
    vectors = read_table(Path("data/embedding/version=v1/embedding.parquet"), columns=["id"])["id"].to_pylist()
    subset = {row["id"]: row for row in read_table(Path("data/selection/version=v1/subset.parquet")).to_pylist()}
    assert [row["id"] for row in rows] == vectors
    for row in rows:
        known = subset.get(row["id"], {"chosen": False, "gated": False, "rank": None, "gain": None})
        assert {name: row[name] for name in ("chosen", "gated", "rank", "gain")} == {
            name: known[name] for name in ("chosen", "gated", "rank", "gain")
        }
    near = [row["neighbors"] for row in rows]
    assert all(one["distances"] == sorted(one["distances"]) for one in near)
    assert all(place not in one["ids"] for place, one in enumerate(near))


def test_a_version_without_a_choice_is_refused_with_the_way_out(project):
    for version in ("v2", "v1"):  # then no version has one
        shutil.rmtree(f"data/selection/version={version}")
        done = tamis("desk", "--atlas", version)
        assert done.exit_code == 1
        assert "make it: `tamis run" in done.stderr
        assert not Path("desk.parquet").exists()
