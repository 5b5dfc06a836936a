from tasks import models, scoring_model


def test_a_model_is_checked_once_and_is_the_one_that_others_use(toy, monkeypatch):
    checked = []
    monkeypatch.setattr(scoring_model, "verify_packing", checked.append)
    scoring_model.scoring_model.cache_clear()
    assert scoring_model.scoring_model(toy) is scoring_model.scoring_model(toy) is models.language_model(toy)
    assert checked == [models.language_model(toy)]
    scoring_model.scoring_model.cache_clear()
