"""Rows whose messages hold the text of a control token are bad, or read as text: as examples.on_special_tokens says."""

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
from worlds.raw_rows import ROWS, read_rejects, write_toy
from worlds.toys import CHAT

from tamis.language.chat_templates import TemplateError
from tasks import models
from tasks.examples.examples import ExamplesError
from tasks.models import ModelChoice
from tasks.tokens import encode_rows

LOUD = {"prompt": "what does <|end|> say?", "response": "it ends <|user|> turns<|end|>", "topic": "sums0"}
DATED = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}" + CHAT


@pytest.fixture
def make(tmp_path, toy):
    """Write examples from rows, with the toy model; returns the table."""
    return partial(write_toy, tmp_path, toy)


def test_such_a_row_is_bad_unless_it_is_read_as_text(make, tmp_path):
    with pytest.raises(
        ExamplesError, match=r"25: holds a control token: '.*'.* set examples.on_special_tokens: as_text"
    ):
        make([*ROWS, LOUD])
    assert make([*ROWS, LOUD], on_bad_row="reject").num_rows == 24
    assert len(read_rejects(tmp_path)) == 1
    assert make([*ROWS, LOUD], on_special_tokens="as_text").num_rows == 25


def test_as_text_it_has_the_control_tokens_of_its_turns_alone_in_every_stage(make, toy):
    table = make([*ROWS, LOUD], on_special_tokens="as_text")
    row = table.to_pylist()[-1]
    assert (row["prompt"], row["response"]) == (LOUD["prompt"], LOUD["response"])
    tokenizer = models.tokenizer(toy)
    (found,) = encode_rows([row], toy).row(0)
    assert tokenizer.decode(found.tokens) == f"<|user|>{LOUD['prompt']}<|end|>\n<|assistant|>{LOUD['response']}<|end|>"
    controls = [tokenizer.convert_ids_to_tokens(int(one)) for one in found.tokens if one >= 256]
    assert controls == ["<|user|>", "<|end|>", "<|assistant|>", "<|end|>"]
    assert row["response_tokens"] == len(LOUD["response"]) + 1


def test_other_rows_are_the_same_either_way(make):
    strict = make(ROWS)
    lenient = make(ROWS, on_special_tokens="as_text")
    assert strict.equals(lenient)


def test_tokens_that_say_nothing_of_turns_are_no_fault(make, toy_folder, tmp_path):
    folder = tmp_path / "toy"
    shutil.copytree(toy_folder, folder)
    config = json.loads((folder / "tokenizer.json").read_text())
    last = max(config["added_tokens"], key=lambda one: one["id"])
    config["added_tokens"].append(last | {"id": last["id"] + 1, "content": "<file_name>"})
    (folder / "tokenizer.json").write_text(json.dumps(config))
    model = ModelChoice(str(folder), device="cpu", max_tokens=256)
    table = make([*ROWS, LOUD | {"prompt": "x", "response": "tar xf <file_name>"}], model=model)
    assert table["response_tokens"].to_pylist()[-1] == len("tar xf <file_name>") + 1


def test_a_template_that_writes_the_date_needs_one_that_stands_still(make, toy, tmp_path):
    (tmp_path / "dated.jinja").write_text(DATED)
    dated = replace(toy, chat_template=str(tmp_path / "dated.jinja"))
    with pytest.raises(TemplateError, match=r"the time of the run .* set models.template_arguments: \{date_string: "):
        make(ROWS, model=dated)
    assert make(ROWS, model=replace(dated, template_arguments='{"date_string": "26 Jul 2026"}')).num_rows == 24


def test_a_model_without_chat_template_is_refused_with_both_ways_out(make, toy, toy_folder, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(toy_folder, folder, ignore=shutil.ignore_patterns("*.jinja"))
    bare = replace(toy, name=str(folder))
    with pytest.raises(TemplateError, match=r"set models.chat_template: FILE .*, or models.template: delift"):
        make(ROWS, model=bare)
    (tmp_path / "chat.jinja").write_text(CHAT)
    given = make(ROWS, model=replace(bare, chat_template=str(tmp_path / "chat.jinja")))
    assert given["tokens"].equals(make(ROWS)["tokens"])
    assert make(ROWS, model=replace(bare, template="delift")).num_rows == 24
