"""What params.yaml says of a model reaches what the stages are called with."""

import json
from dataclasses import replace
from pathlib import Path

from flows import params
from flows.stage_calls import encoder, language
from tasks.conversations import open_template

ROOT = Path(__file__).parents[2]


def read(**changes) -> params.Params:
    values = params.read(ROOT / "params.yaml")
    return replace(values, models=replace(values.models, **changes))


def test_the_language_model_has_the_template_its_arguments_and_its_file():
    chosen = language(read(template_arguments={"b": [1, {"c": "é"}], "a": None}, chat_template="x.jinja"))
    assert json.loads(chosen.template_arguments) == {"a": None, "b": [1, {"c": "é"}]}
    assert (chosen.template, chosen.chat_template) == ("chat", "x.jinja")


def test_the_order_of_arguments_is_no_difference():
    first, second = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert language(read(template_arguments=first)) == language(read(template_arguments=second))


def test_the_project_has_no_arguments_and_the_tokenizers_own_template():
    chosen = language(params.read(ROOT / "params.yaml"))
    assert (chosen.template_arguments, chosen.chat_template) == ("{}", None)


def test_the_encoder_has_no_part_in_chats():
    assert encoder(read(template_arguments={"a": 1}, chat_template="x")) == encoder(read())


def test_arguments_reach_the_chat_template(toy_folder, tmp_path):
    (tmp_path / "named.jinja").write_text("{% for turn in messages %}{{ named + turn.content }}{% endfor %}")
    named = {"template_arguments": {"named": "at "}, "chat_template": str(tmp_path / "named.jinja")}
    template = open_template(language(read(language=str(toy_folder), max_tokens=256, **named)))
    turns = [{"role": "user", "content": "home"}]
    assert template.tokenizer.apply_chat_template(turns, tokenize=False, **template.arguments) == "at home"
