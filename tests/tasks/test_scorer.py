from tasks import models, scorer


def test_a_model_is_checked_once_and_is_the_one_that_others_use(toy, monkeypatch):
    checked = []
    monkeypatch.setattr(scorer, "verify_packing", checked.append)
    scorer.scoring_model.cache_clear()
    assert scorer.scoring_model(toy) is scorer.scoring_model(toy) is models.language_model(toy)
    assert checked == [models.language_model(toy)]
    scorer.scoring_model.cache_clear()
