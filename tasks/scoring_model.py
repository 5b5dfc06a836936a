"""The language model that scores, and the lock that it is used under."""

import threading

from transformers import PreTrainedModel

from tamis.language.packing import verify_packing
from tasks import models

model_lock = threading.Lock()  # one pass at a time: it takes all cores, and packed attention is a state of the model


@models.kept
def scoring_model(choice: models.ModelChoice) -> PreTrainedModel:
    """Return the language model, checked once to score packed sequences as it does each alone."""
    model = models.language_model(choice)
    verify_packing(model)
    return model
