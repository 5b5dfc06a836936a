"""Stages that ask a model about conversations of many turns: figures are those of one plain pass per learnt turn."""

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import oracles
import pytest
import safetensors.torch
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from worlds import toy_gradients, toy_pairs, toy_training
from worlds.chat_templates import QWEN_3
from worlds.places import find_folders
from worlds.slow_turns import cut_question, cut_turns, measure_distance, measure_loss, predict
from worlds.toy_corpus import write_conversations

from tamis.examples.conversations import Conversation
from tamis.scores.baselines import score_ifd, score_perplexity
from tamis.scores.scoring_prompts import empty_questions
from tamis.training.steps import plan_steps, scale_rate
from tasks import models
from tasks.artifacts import schemas
from tasks.artifacts.tables import read_table
from tasks.conversations import read_conversation
from tasks.evaluation.settings import EvaluationSettings
from tasks.finetuning import trainer
from tasks.finetuning.settings import FinetuningSettings
from tasks.finetuning.trainer import Recipe
from tasks.models import ModelChoice
from tasks.scores.scores import write_scores
from tasks.scores.settings import ScoresSettings
from tasks.settings import RuntimeSettings
from tasks.tokens import encode_rows

CHOSEN = {0, 2, 3, 5}
LORA = FinetuningSettings(arms={"chosen": [0]}, batch_rows=2, epochs=2)
EVALUATED = EvaluationSettings(new_tokens=6, demos=0, bootstrap=20)
PACKS = RuntimeSettings(shard_rows=4, pack_tokens=300)


@dataclass(frozen=True)
class World:
    """Conversations as examples, and the model that is asked."""

    folder: Path
    model: ModelChoice
    ids: list[str]  # of the pool

    @property
    def network(self):
        """The model in double precision, of its own."""
        return AutoModelForCausalLM.from_pretrained(self.model.name, dtype=torch.float64).eval()

    @property
    def conversations(self) -> dict[str, Conversation]:
        """All conversations by their ids."""
        table = read_table(self.folder / "examples/examples.parquet", schemas.EXAMPLES)
        return {row["id"]: read_conversation(row) for row in table.to_pylist()}

    def turns(self, name: str) -> list:
        """The learnt turns of a row."""
        return cut_turns(models.tokenizer(self.model), self.conversations[name])


@pytest.fixture(params=["one sequence per row", "rows that are split"])
def world(request, tmp_path, toy) -> World:
    """Twelve conversations of the pool, three held-out ones and two of the target task."""
    own = tmp_path / "own.jinja"
    own.write_text(QWEN_3)
    split = request.param == "rows that are split"
    model = replace(toy, max_tokens=1200, chat_template=str(own) if split else None)
    ids = write_conversations(tmp_path / "examples", pool=12, held_out=3, target=2)
    return World(tmp_path, model, ids)


def test_the_corpus_has_what_conversations_can_have(world):
    conversations = [world.conversations[name] for name in world.ids]
    roles = [[message.role for message in one.messages] for one in conversations]
    assert {"system" in each for each in roles} == {True, False}
    assert any("tool" in each for each in roles)
    assert {each.count("user") for each in roles} == {2, 3}
    assert {len(one.learnt) for one in conversations} == {1, 2, 3, 4}
    rows = [{"messages": [vars(message) for message in one.messages], "tools": ""} for one in conversations]
    found = encode_rows(rows, world.model)
    pieces = np.diff(found.rows).tolist()
    assert set(pieces) == ({1} if world.model.chat_template is None else {1, 2, 3, 4})
    heads = [head.tolist() for head, _ in found.by_head(range(len(found)))]
    assert 1 < len(heads) < len(found)


def test_distances_and_utility_are_those_of_a_pass_per_turn(world):
    toy_pairs.embed(world.folder, world.model)
    toy_pairs.run(world.folder, world.model)
    network, tokenizer, known = world.network, models.tokenizer(world.model), world.conversations
    alone = {row["id"]: row for row in read_table(world.folder / "out/distances.parquet").to_pylist()}
    for name in world.ids:
        turns = world.turns(name)
        assert alone[name]["distance"] == pytest.approx(measure_distance(network, turns), abs=1e-5)
        assert alone[name]["tokens"] == sum(len(answer) for _, answer in turns)
        with torch.no_grad():
            assert alone[name]["log_likelihood"] == pytest.approx(-float(measure_loss(network, turns)), rel=1e-5)
    found = toy_pairs.pairs_of(world.folder / "out/utility.parquet")
    for target in world.ids[:6]:
        for demo in world.ids[:6]:
            shown = measure_distance(network, cut_turns(tokenizer, known[target], known[demo]))
            assert found[target, demo] == pytest.approx(alone[target]["distance"] - shown, abs=2e-5)


def test_perplexity_and_difficulty_are_those_of_a_pass_per_turn(world):
    network, tokenizer = world.network, models.tokenizer(world.model)
    rows = [world.conversations[name] for name in world.ids]
    with torch.no_grad():
        losses, bare = (
            np.array([float(measure_loss(network, cut_turns(tokenizer, one))) for one in each])
            for each in (rows, [empty_questions(one) for one in rows])
        )
    for selector, expected in (("perplexity", score_perplexity(losses)), ("ifd", score_ifd(losses, bare))):
        folders = find_folders(world.folder, scores=world.folder / selector, cache=world.folder / "store")
        write_scores(folders, model=world.model, settings=ScoresSettings(), runtime=PACKS, selector=selector)
        table = read_table(world.folder / selector / "scores.parquet", schemas.SCORES)
        assert table["id"].to_pylist() == world.ids
        assert table["score"].to_pylist() == pytest.approx(expected.tolist(), rel=1e-4)


def slow_warm_up(network, turns: list, settings) -> None:
    """Train in place by plain passes."""
    steps = plan_steps(len(turns), settings.batch_rows, 1, settings.seed)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.0)
    for number, places in enumerate(steps):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * scale_rate(number, len(steps), 0.1)
        optimizer.zero_grad()
        torch.stack([measure_loss(network, turns[place]) for place in places]).mean().backward()
        optimizer.step()


def slow_prior(network, teacher, anchors: list, settings) -> dict[str, torch.Tensor]:
    """Return the gradient of the distillation of a teacher, a conversation at a time."""
    total, weights = 0.0, 0.0
    for turns in anchors:
        with torch.no_grad():
            q = (predict(teacher, turns)[0] / settings.temperature).softmax(-1)
        p = (predict(network, turns)[0] / settings.temperature).log_softmax(-1)
        weight = q.amax(-1).mean()
        total = total + weight * (q * (q.log() - p)).sum(-1).mean()
        weights = weights + weight
    return toy_gradients.slow_gradient(network, settings.temperature**2 * total / weights)


def test_scores_and_sums_of_gradients_are_those_of_a_pass_per_turn(world):
    settings = toy_gradients.FIRST
    toy_gradients.run(world.folder, world.model, settings)
    sets = toy_gradients.sets_of(world.folder, world.model, settings)
    turns = [world.turns(name) for name in sets.ids]
    network, teacher = world.network, world.network
    slow_warm_up(network, [turns[place] for place in sets.warmup], settings)
    each, steering = (
        [toy_gradients.slow_gradient(network, measure_loss(network, turns[place])) for place in places]
        for places in (sets.pool, sets.validation)
    )
    prior = slow_prior(network, teacher, [turns[place] for place in sets.anchors], settings)
    u, G = {}, {}
    for name in prior:
        G[name] = sum(one[name] for one in each)
        mean = sum(one[name] for one in steering) / len(steering)
        u[name] = settings.lambda_new * mean + settings.lambda_prior * prior[name]
    expected = np.array([sum(float((u[name] * one[name]).sum()) for name in u) for one in each])
    found = toy_gradients.scored(world.folder / "out")
    assert found == pytest.approx(expected, abs=2e-3 * np.abs(expected).max())
    summed = safetensors.torch.load_file(world.folder / "out/phi_param.safetensors")
    for name, direction in u.items():
        wanted = direction * G[name]
        assert (summed[name] - wanted).abs().max() <= 5e-3 * wanted.abs().max(), name


def slow_training(world: World, settings: FinetuningSettings) -> list[float]:
    """Return the loss of each step of an arm that is trained by plain passes."""
    _, network = trainer.load(0, Recipe(world.model, settings))
    names = [world.ids[place] for place in sorted(CHOSEN)]
    steps = plan_steps(len(names), settings.batch_rows, settings.epochs, 0)
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=0.0)
    losses = []
    rates = oracles.learning_rates(len(steps), round(settings.lr_warmup_fraction * len(steps)))
    for rate, places in zip(rates, steps, strict=True):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * rate
        optimizer.zero_grad()
        loss = torch.stack([measure_loss(network, world.turns(names[place])) for place in places]).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.fixture
def trained(world) -> World:
    """The world after an arm was trained."""
    toy_training.write_subset(world.folder / "selection", world.ids, CHOSEN)
    (world.folder / "base/arms").mkdir(parents=True)
    toy_training.run(world.folder, world.model, LORA)
    return world


def test_training_is_that_of_plain_passes_per_turn(trained):
    with open(trained.folder / "out/curve.csv", newline="") as file:
        found = [float(row["loss"]) for row in csv.DictReader(file)]
    assert found == pytest.approx(slow_training(trained, LORA), rel=1e-3)
    told = json.loads((trained.folder / "out/finetuning.json").read_text())["arms"]["chosen-0"]
    answers = [answer for place in CHOSEN for _, answer in trained.turns(trained.ids[place])]
    assert told["response_tokens"] == LORA.epochs * sum(map(len, answers))


def test_held_out_losses_and_answers_are_those_of_plain_passes(trained):
    network, tokenizer = trained.network, models.tokenizer(trained.model)
    write_conversations(trained.folder / "before/examples", pool=2, held_out=2)
    toy_training.evaluate(trained.folder, trained.folder / "before", trained.model, EVALUATED)
    arm = PeftModel.from_pretrained(trained.network, trained.folder / "out/arms/chosen-0").double().eval()
    table = read_table(trained.folder / "evaluation/evaluation.parquet", schemas.EVALUATION)
    for label, asked in (("base", network), ("chosen", arm)):
        rows = toy_training.rows_of(table, arm=label, held_out_of="v2")
        assert len(rows) == 3
        for row in rows:
            turns, conversation = trained.turns(row["id"]), trained.conversations[row["id"]]
            with torch.no_grad():
                assert row["loss"] == pytest.approx(float(measure_loss(asked, turns)), rel=1e-5)
            assert row["response_tokens"] == sum(len(answer) for _, answer in turns)
            end = turns[-1][1][-1]
            said = oracles.greedy_answer(asked, cut_question(tokenizer, conversation), EVALUATED.new_tokens, end)
            assert row["generated"] == tokenizer.decode(said, skip_special_tokens=True).strip()
