"""The selectors, once: what each reads, whether it has an objective, whether it draws, and where it is published."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Selector:
    """A way to choose rows."""

    reads: str | None  # the stage whose artifact it reads besides the examples
    objective: bool  # it maximises an objective over similarities; else it sorts or draws
    draws: bool  # it draws by chance, whatever the optimiser
    source: str  # where it is published
    references: bool = False  # it scores rows beside those of the target task or, without one, those that validate


SELECTORS = {
    "delift": Selector("utility", True, False, "DELIFT, arXiv 2411.04425"),
    "random": Selector(None, False, True, "chance"),
    "balanced": Selector(None, False, True, "chance, of every topic or source alike"),
    "fresh": Selector(None, False, True, "chance, anew in every epoch: RS2, arXiv 2305.18424"),
    "longest": Selector(None, False, False, "arXiv 2402.04833"),
    "embedding": Selector("embedding", True, False, "DELIFT's model-independent form, arXiv 2411.04425"),
    "perplexity": Selector("scores", False, False, "arXiv 2309.04564"),
    "ifd": Selector("scores", False, False, "arXiv 2308.12032"),
    "selectit": Selector("scores", False, False, "arXiv 2402.16705"),
    "deft_ucs": Selector("embedding", False, True, "arXiv 2310.16776"),
    "less": Selector("scores", False, False, "arXiv 2402.04333"),
    "ica": Selector("scores", False, False, "arXiv 2510.14459", references=True),
    "tov": Selector("scores", False, False, "arXiv 2510.00386", references=True),
    "rds": Selector("scores", False, False, "RDS+, arXiv 2503.01807", references=True),
    "bm25": Selector(None, False, False, "Robertson and Zaragoza 2009", references=True),
    "dualsft": Selector("gradients", False, False, "DualSFT, arXiv 2605.06166"),
    "dualsft_cover": Selector("gradients", True, False, "ours, on the gradients of DualSFT, arXiv 2605.06166"),
}
