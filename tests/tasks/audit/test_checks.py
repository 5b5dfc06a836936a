"""Each check of checks/ finds what it is about, and says in a sentence what that is."""

import json
from dataclasses import replace

import pyarrow as pa
import pytest
from worlds import toy_corpus
from worlds.toy_project import POOL, World, make_world

from tasks.artifacts.views import opened
from tasks.audit import audit, queries
from tasks.decisions import Decision, write_decisions
from tasks.masks.settings import MaskSettings

QUERIES = {one.name: one for one in queries.read_queries()}


@pytest.fixture
def world(tmp_path) -> World:
    """A project in which every promise is kept."""
    return make_world(tmp_path)


@pytest.mark.parametrize("one", QUERIES.values(), ids=QUERIES)
def test_a_check_says_what_it_promises_or_shows_in_a_sentence(one):
    text = (queries.CHECKS / f"{one.name}.sql").read_text()
    assert text.startswith(("-- promise: ", "-- shown: "))
    assert one.says.endswith(".")
    assert one.says[0].isupper()
    assert one.promise == text.startswith("-- promise")


def show(world: World, check: str) -> list[str]:
    world.write().check()
    return world.found(check)


def speak(world: World, place: int, text: str) -> None:
    """Let a row of the pool answer with a text."""
    row = world.examples[place]
    world.examples[place] = toy_corpus.reword(row, response=text) | {"id": row["id"]}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["gain", "objective", "cover", "gate_score", "gate_usual"])
def test_a_number_that_is_none_breaks_a_promise(world, name, value):
    world.subset[1][name] = value
    with pytest.raises(audit.AuditError, match=rf"finite: 1, first {world.subset[1]['id']} \({name} "):
        world.write().check()


def test_large_topics_without_a_chosen_row_are_named_with_their_share(world):
    assert show(world, "represented") == ["greetings (33.3% of the pool)"]


def test_chosen_rows_of_almost_the_same_words_are_named(world):
    assert show(world, "near_duplicates") == []
    world.examples[1]["near_duplicate_of"] = world.examples[0]["row"]
    ids = sorted(row["id"] for row in world.examples[:2])
    assert show(world, "near_duplicates") == [f"{id} (2 chosen rows are alike)" for id in ids]


def test_chosen_rows_of_almost_the_words_of_a_held_out_row_are_named(world):
    assert show(world, "near_held_out") == []
    world.examples[POOL]["near_duplicate_of"] = world.examples[1]["row"]
    assert show(world, "near_held_out") == [world.examples[1]["id"]]


def test_length_of_the_chosen_rows_is_told_where_it_differs(world):
    for rows in (world.examples, world.subset):
        for row in rows:
            row["response_tokens"] = 4
    assert show(world, "length") == []
    for rows in (world.examples, world.subset):
        rows[0]["response_tokens"] = 10
    assert show(world, "length") == ["chosen 7.0, pool 5.0 (+40%)"]


def test_topics_and_sources_that_the_choice_prefers_are_told_with_their_shares(world):
    for place, row in enumerate(world.examples[:POOL]):
        row["source"] = "left" if place < 2 else None
    assert show(world, "source_shift") == [
        "left: 100.0% of the chosen, 33.3% of the pool",
        "none: 0.0% of the chosen, 66.7% of the pool",
    ]
    assert "greetings: 0.0% of the chosen, 33.3% of the pool" in world.found("topic_shift")


@pytest.mark.parametrize("name", ["source", "topic"])
def test_a_small_share_that_doubled_is_told_of_ten_rows_or_more(name):
    rows = pa.table({name: [f"s{place % 30}" for place in range(3000)]})
    kinds = {"s0": 21, "s1": 18, "s2": 4, "s3": 7} | {f"s{place}": 10 for place in range(4, 29)}  # of s29 none
    chosen = pa.table({name: [kind for kind, many in kinds.items() for _ in range(many)]})
    views = {"pool": rows, "chosen": chosen}
    with opened(views) as connection:
        found = connection.execute((queries.CHECKS / f"{name}_shift.sql").read_text()).fetchall()
    assert len(chosen) == 300
    assert [line for (line,) in found] == [
        "s0: 7.0% of the chosen, 3.3% of the pool",
        "s29: 0.0% of the chosen, 3.3% of the pool",
        "s2: 1.3% of the chosen, 3.3% of the pool",
    ]


def test_chosen_rows_that_repeat_a_text_are_named(world):
    assert show(world, "repetitions") == []
    first, second = (one for one in world.examples if one["id"] in {row["id"] for row in world.subset if row["chosen"]})
    second["same_as"] = first["same_as"]
    assert show(world, "repetitions") == [f"{one['id']} (2 chosen rows say the same)" for one in (first, second)]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("write to ann.lee+x@mail.example.org, please", "an e-mail address"),
        ("pay with 4111 1111 1111 1111 now", "a card number"),
        ("pay with 4111-1111-1111-1112 now", None),  # its check digit is wrong
        ("call +49 30 901820 today", "a phone number"),
        ("1 + 2 + 3 + 4 = 10", None),
        ("the year 2026 and 12345 rows", None),
        (f"key AKIA{'A1' * 8} works", "a key"),
        (f"ghp_{'a1B2' * 9}", "a key"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a key"),
        ("a@b", None),
        ("pay with 4111 1111 1111 1111 12/27", "a card number"),
        ("pay in 2024 4111.1111.1111.1111", "a card number"),
        ("amex 3782 822463 10005", "a card number"),
        ("ISBN 978-3-16-148410-0, 9783161484100", None),
        ("at 1700000000000 ms", None),
        ("call (555) 123-4567.", "a phone number"),
        ("ring 0171 2345678, please", "a phone number"),
        ("0.0171 2345678 and 1,0171 234567", None),
        ("from 2024-01-31 to 01.02.2025, f(555) + 123", None),
        (f"eyJ{'hbGci' * 4}.eyJ{'zdWIi' * 4}.{'x' * 20}", "a key"),
        ("the word eyJ.eyJ alone", None),
        (f"AIza{'Sy012' * 7}", "a key"),
        (f"github_pat_{'11ABC' * 6}", "a key"),
        (f"glpat-{'a1B2c' * 4}", "a key"),
        ("-----BEGIN PGP PRIVATE KEY BLOCK-----", "a key"),
        ("-----BEGIN PGP PUBLIC KEY BLOCK-----", None),
        ("to DE89 3704 0044 0532 0130 00 today", "an IBAN"),
        ("to GB82WEST12345698765432", "an IBAN"),
        ("to DE88 3704 0044 0532 0130 00", None),  # its check digits are wrong
        ("part AB12 CDEF 3456 in stock", None),
        ("AT61 1904 3002 3457 3201 PLEASE", "an IBAN"),
        ("AT611904300234573201 TODAY", "an IBAN"),
        ("ring 415-555-2671.", "a phone number"),
        ("1-800-555-0199 is free", "a phone number"),
        ("020 7946 0958", "a phone number"),
        ("06-12345678", "a phone number"),
        ("020 2024 and 10.415.555.26710", None),
        (f"ASIA{'A1' * 8}", "a key"),
        (f"hf_{'a1B2c' * 7}", "a key"),
        (f"sk_live_{'a1B2' * 6}", "a key"),
        (f"npm_{'a1B2' * 9}", "a key"),
        (f"SG.{'a1B2' * 5}.{'a1B2' * 10}", "a key"),
        (f"sk-proj-{'a1B2_' * 8}", "a key"),
        ("the sk-learn-contrib-package-list is good", None),
        ("mail ann@mail.org or +49 30 901820", "a phone number, an e-mail address"),
    ],
)
def test_rows_that_look_as_if_they_held_secrets_are_named_without_them(world, text, what):
    speak(world, 3, text)
    found = show(world, "secrets")
    assert found == ([f"{world.examples[3]['id']} ({what})"] if what else [])


def test_secrets_are_seen_in_what_a_model_calls_and_thinks(world):
    (turn, *_) = world.examples[3]["messages"]
    arguments = json.dumps({"to": "see\nann@mail.org", "key": f"AKIA{'A1' * 8}"})
    turn["details"] = json.dumps({"tool_calls": [{"function": {"name": "send", "arguments": arguments}}]})
    assert show(world, "secrets") == [f"{world.examples[3]['id']} (a key, an e-mail address)"]


@pytest.mark.parametrize(
    ("kind", "place", "broken"),
    [
        ("veto", 0, "{id} is vetoed and chosen"),
        ("veto", 3, None),
        ("pin", 0, None),
        ("pin", 3, "{id} is pinned and left out"),
        ("pin", POOL, None),  # which the pool does not have
    ],
)
def test_a_choice_that_is_not_as_people_decided_is_named(world, tmp_path, kind, place, broken):
    row = world.examples[place]
    path = tmp_path / "decisions.json"
    write_decisions([Decision(row["id"], row["same_as"], kind, "so", "Ann", "2026-01-01T00:00:00+00:00")], path)
    world.write()
    if broken is None:
        world.check(decisions=path)
        assert world.found("decided") == [f"{kind} of {row['id']}, by Ann: so"]
        return
    with pytest.raises(audit.AuditError, match=f"decisions: 1, first {broken.format(id=row['id'])}"):
        world.check(decisions=path)


def test_a_layer_below_its_quota_is_named(world):
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1)]
    masked = replace(world, mask={names[0]: list(range(10))}, shapes=dict.fromkeys(names, (4, 5))).write()
    asked = MaskSettings(selector="random", budget={"count": 10}, layer_share=0.5, module_share=0.5)
    with pytest.raises(audit.AuditError, match="quotas: 1, first layer 1: 0 parameters, at least 2"):
        masked.check(mask=asked)
    masked.check(mask=replace(asked, layer_share=0.1))


@pytest.mark.parametrize(
    ("recorded", "parameters", "kept"), [(3.0, 3.0, True), (3.0, 3.3, True), (3.1, 3.1, False), (3.0, 4.0, False)]
)
def test_sums_of_scores_that_differ_are_named(world, recorded, parameters, kept):
    world.phi_data[:] = [
        {"id": row["id"], "score": 1.0, "norm": 1.0, "per_norm": 1.0, "loss": 1.0, "order": "first"}
        for row in world.examples[:3]
    ]
    world.write()
    facts = {"sum_phi_data": recorded, "sum_phi_param": parameters}
    (world.folder("gradients") / "gradients.json").write_text(json.dumps(facts))
    if kept:
        world.check()
        return
    with pytest.raises(audit.AuditError, match="law: 1, first rows sum to 3, recorded are "):
        world.check()
