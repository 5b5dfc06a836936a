"""What params.yaml says of a model reaches what the stages are called with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from worlds.projects import run_stages

from flows import params, stage
from flows.stage_calls import encoder, language
from tasks.tokens import open_template

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


def test_rows_that_the_task_metric_cannot_judge_are_refused_before_training(real_copy):
    path = Path("data/raw/v1/toys.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"response": f"word {row['topic']}"}) + "\n" for row in rows))
    settings = yaml.safe_load(Path("params.yaml").read_text())
    settings["evaluation"]["task_metric"] = "exact_match"
    Path("params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    run_stages("v1", until="selection")
    with pytest.raises(ValueError, match="held-out rows have no number in their response, by which exact_match judges"):
        stage.run("finetuning", "v1")
    assert not list(Path(".cache/finetuning").rglob("*.safetensors"))
