"""The columns of every Parquet artifact: name, type, unit. A table is written and read under its schema only."""

import pyarrow as pa

MESSAGES = pa.list_(
    pa.struct(
        [
            pa.field("role", pa.string(), nullable=False),  # system | user | assistant | tool
            pa.field("content", pa.string(), nullable=False),  # "" where a turn is tool calls alone
            pa.field("learnt", pa.bool_(), nullable=False),  # a turn that is trained on, scored and measured
            pa.field("details", pa.string(), nullable=False),  # JSON: tool_calls, tool_call_id, name, ...; "" for none
        ]
    )
)

EXAMPLES = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),  # position over all raw files, from 0
        pa.field("id", pa.string(), nullable=False),  # digest of the conversation as it is rendered
        pa.field("same_as", pa.string(), nullable=False),  # digest of its text whatever the blanks; duplicates share it
        pa.field("topic", pa.string(), nullable=False),  # the field that is mapped to it, or the file's name
        pa.field("source", pa.string()),  # as the row gives it
        pa.field("planted", pa.string()),  # likewise: in a word, what is known to be wrong with it; null: nothing
        pa.field("prompt", pa.string(), nullable=False),  # the last user's message before the last learnt turn
        pa.field("response", pa.string(), nullable=False),  # the last learnt turn
        pa.field("messages", MESSAGES, nullable=False),  # the whole conversation
        pa.field("tools", pa.string(), nullable=False),  # JSON array of what the model may call; "" for none
        pa.field("tests", pa.string()),  # of a response that is code: statements that raise where it is wrong
        pa.field("kept", pa.string()),  # JSON object: the row's other columns that examples.keep names
        pa.field("tokens", pa.int32(), nullable=False),  # of all that a model reads of it, the template's included
        pa.field("response_tokens", pa.int32(), nullable=False),  # of its learnt turns, with their end-of-turn tokens
        pa.field("split", pa.string(), nullable=False),  # pool | target | validation | held_out | general
        pa.field("change", pa.string(), nullable=False),  # kept | edited | new, against the version before
        pa.field("earlier", pa.string()),  # offered | learnt: in an earlier version's pool | chosen there; else null
        pa.field("duplicate_of", pa.int64()),  # row of the first example with the same text
        pa.field("near_duplicate_of", pa.int64()),  # row of the first example of almost the same words
        pa.field("cluster_size", pa.int32(), nullable=False),  # rows of almost the same words, itself counted
        pa.field("weight", pa.float32(), nullable=False),  # in the objective: how many rows it stands for
        pa.field("used", pa.bool_(), nullable=False),  # later stages read these rows, each id once
        pa.field("unused_because", pa.string()),  # duplicate | near duplicate | kept | ...; null where used
        pa.field("note", pa.string()),  # what of the raw row was left out; null where nothing was
        pa.field("file", pa.string(), nullable=False),  # from the raw folder's name on
        pa.field("line", pa.int64(), nullable=False),  # from 1; the record's number in files without lines
    ]
)

WITHDRAWN = pa.schema(  # distinct rows of the version before that stand here no more
    [
        pa.field("id", pa.string(), nullable=False),  # of the version before
        pa.field("topic", pa.string(), nullable=False),  # likewise
        pa.field("prompt", pa.string(), nullable=False),  # likewise
        pa.field("response", pa.string(), nullable=False),  # likewise
        pa.field("split", pa.string(), nullable=False),  # likewise
        pa.field("earlier", pa.string()),  # as in table examples, the version before counted
        pa.field("edited_to", pa.string()),  # the id that stands in its place; null where it was withdrawn
    ]
)

LINGERING = pa.schema(  # distinct rows that versions before this one chose and trained on, and that stand here no more
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("topic", pa.string(), nullable=False),  # of the last version that had it
        pa.field("asked", pa.string(), nullable=False),  # what decides on the side of whoever asks the same
        pa.field("gone_since", pa.string(), nullable=False),  # the first version without it
        pa.field("edited_to", pa.string()),  # the id that stood in its place there; null where it was withdrawn
    ]
)

REJECTS = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),  # from the raw folder's name on
        pa.field("line", pa.int64(), nullable=False),  # from 1
        pa.field("reason", pa.string(), nullable=False),  # its kind, a colon, and what is wrong
        pa.field("text", pa.string()),  # its first 500 characters
    ]
)

DISTANCES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # target, scored without a demo
        pa.field("tokens", pa.int32(), nullable=False),  # scored answer tokens, T_i
        pa.field("distance", pa.float32(), nullable=False),  # in [0, 1], 0 is best
        pa.field("log_likelihood", pa.float32(), nullable=False),  # nats per response token
    ]
)

UTILITY = pa.schema(
    [
        pa.field("target_id", pa.string(), nullable=False),  # the example that is answered
        pa.field("demo_id", pa.string(), nullable=False),  # the example shown in context
        pa.field("utility", pa.float32(), nullable=False),  # unscaled; > 0: the demo helps
        pa.field("kernel", pa.bool_(), nullable=False),  # stands in the kernel; else it tells the demo's help alone
    ]
)

SKIPPED = pa.schema(
    [
        pa.field("target_id", pa.string(), nullable=False),
        pa.field("demo_id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)

PAIRS = pa.schema(  # the parts of the store of scored pairs
    [
        pa.field("target_id", pa.string(), nullable=False),
        pa.field("demo_id", pa.string(), nullable=False),  # "" where nothing is shown
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("distance", pa.float32(), nullable=False),
        pa.field("log_likelihood", pa.float32(), nullable=False),
    ]
)

SCORES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field(
            "score", pa.float64(), nullable=False
        ),  # in its own unit. A selector takes the largest first; a gate says which end is worst
    ]
)

PHI_DATA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # a row of the score pool, by row
        pa.field("score", pa.float64(), nullable=False),  # <u / eta, g_n>; above 0: descent on it lowers the losses
        pa.field("norm", pa.float64(), nullable=False),  # ||g_n||
        pa.field("per_norm", pa.float64(), nullable=False),  # the score over it; 0 where it is 0
        pa.field("loss", pa.float64(), nullable=False),  # at the warm-up's checkpoint, nats per response token
        pa.field("order", pa.string(), nullable=False),  # first | second: without | with the curvature term
    ]
)

SUBSET = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("topic", pa.string(), nullable=False),
        pa.field("response_tokens", pa.int32(), nullable=False),
        pa.field("chosen", pa.bool_(), nullable=False),
        pa.field("rank", pa.int32()),  # from 1, in the order of choice; null where not chosen
        pa.field("gain", pa.float64()),  # of the objective when it was chosen
        pa.field("objective", pa.float64()),  # after the pick
        pa.field("covered_by", pa.string()),  # the chosen example that covers this one best; null where none does
        pa.field("cover", pa.float32()),  # how well, in units of the scaled kernel
        pa.field("gated", pa.bool_(), nullable=False),  # it left before the choice; chosen by chance alone
        pa.field("gate_score", pa.float64()),  # by which it left or stayed, in the gate's own unit; null: none is known
        pa.field("gate_usual", pa.float64()),  # of the better rows of its topic; gate_score is held against it
    ]
)

MASK = pa.schema(  # rows of the model's tensors with at least one chosen entry
    [
        pa.field("tensor", pa.string(), nullable=False),  # in the model's order
        pa.field("layer", pa.int32()),  # null outside of any
        pa.field("module", pa.string(), nullable=False),  # q | k | v | o | gate | up | down | embedding | norm | ...
        pa.field("row", pa.int64(), nullable=False),  # index along dimension 0; a vector is one row
        pa.field("columns", pa.list_(pa.int32()), nullable=False),  # of the chosen entries: flat index within the row
        pa.field("chosen", pa.int64(), nullable=False),  # how many these are
        pa.field("least", pa.float64(), nullable=False),  # of their scores
        pa.field("mean", pa.float64(), nullable=False),
        pa.field("largest", pa.float64(), nullable=False),
    ]
)

TENSORS = pa.schema(  # every tensor that the mask was cut from
    [
        pa.field("tensor", pa.string(), nullable=False),  # in the model's order
        pa.field("layer", pa.int32()),  # null outside of any
        pa.field("module", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.int64()), nullable=False),  # as it is stored
        pa.field("entries", pa.int64(), nullable=False),
        pa.field("chosen", pa.int64(), nullable=False),  # entries in the mask
        pa.field("density", pa.float64(), nullable=False),  # their share, in [0, 1]
        pa.field("threshold", pa.float64()),  # the least |score| (signed: score) of them; null where there are none
    ]
)

EVALUATION = pa.schema(
    [
        pa.field("arm", pa.string(), nullable=False),  # base | previous | chosen | random | balanced | fresh | full
        pa.field("learner", pa.string(), nullable=False),  # finetuning | in_context; of base: none
        pa.field("seed", pa.int32()),
        pa.field("held_out_of", pa.string(), nullable=False),  # data version of this row; general: a general row
        pa.field("id", pa.string(), nullable=False),
        pa.field("topic", pa.string(), nullable=False),
        pa.field("response_tokens", pa.int32(), nullable=False),
        pa.field("loss", pa.float32(), nullable=False),  # mean negative log-likelihood, nats per response token
        # The others are null where no answer is generated: for rows of the version before and general ones that no task
        # metric judges, and for this version's beyond evaluation.generated_rows.
        pa.field("rouge_l", pa.float32()),  # F-measure in [0, 1]
        pa.field("similarity", pa.float32()),  # cosine of generated and reference answers
        pa.field("correct", pa.bool_()),  # by the task metric; null without one, or where it cannot judge this row
        pa.field("cut", pa.bool_()),  # the answer ended for want of tokens (evaluation.new_tokens)
        pa.field("generated", pa.string()),  # the answer
    ]
)

COMPARISON = pa.schema(
    [
        pa.field("selector", pa.string(), nullable=False),  # all: every row of the pool
        pa.field("mask", pa.string(), nullable=False),  # none: every parameter, or the method of params.yaml
        pa.field("budget", pa.string(), nullable=False),  # as it was asked for
        pa.field("seeds", pa.int32(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),  # trained on; the mean over seeds, rounded
        pa.field("share", pa.float64(), nullable=False),  # of the pool's rows
        pa.field("parameters", pa.float64(), nullable=False),  # share of the model's that a mask chooses; 1 without
        pa.field("loss", pa.float64(), nullable=False),  # held out, nats per response token
        pa.field("low", pa.float64(), nullable=False),  # of its bootstrap interval
        pa.field("high", pa.float64(), nullable=False),
        pa.field("minus_random", pa.float64(), nullable=False),  # below 0: better than rows and mask chosen at random
        pa.field("minus_random_low", pa.float64(), nullable=False),
        pa.field("minus_random_high", pa.float64(), nullable=False),
        pa.field("plasticity", pa.float64(), nullable=False),  # loss of the base less this one; above 0: learnt
        pa.field("plasticity_low", pa.float64(), nullable=False),
        pa.field("plasticity_high", pa.float64(), nullable=False),
        pa.field("stability", pa.float64()),  # the same on general rows, below 0: forgotten; null where there are none
        pa.field("stability_low", pa.float64()),
        pa.field("stability_high", pa.float64()),
        pa.field("correct", pa.float64()),  # share of held-out rows answered right; null without a task metric
        pa.field("correct_low", pa.float64()),
        pa.field("correct_high", pa.float64()),
        pa.field("scoring_seconds", pa.float64(), nullable=False),  # of all that the choice reads, when computed
        pa.field("selecting_seconds", pa.float64(), nullable=False),  # mean over seeds
        pa.field("training_seconds", pa.float64(), nullable=False),  # likewise
        pa.field("total_seconds", pa.float64(), nullable=False),  # scoring, selecting and training
        pa.field("scoring_flops", pa.float64(), nullable=False),  # operations of that scoring, counted from tokens
        pa.field("selecting_flops", pa.float64(), nullable=False),  # of a pilot; choosing itself has none
        pa.field("training_flops", pa.float64(), nullable=False),  # mean over seeds
        pa.field("total_flops", pa.float64(), nullable=False),  # scoring, selecting and training
        pa.field("full_seconds", pa.float64(), nullable=False),  # of training on all rows; where not run, by its tokens
        pa.field("full_flops", pa.float64(), nullable=False),
        pa.field(
            "pays_after", pa.int64()
        ),  # trainings from which on scoring costs less seconds than it saves; null: never
        pa.field("pays_after_flops", pa.int64()),  # the same by operations
        pa.field("resumed", pa.int32(), nullable=False),  # scorings and trainings less what interrupted attempts took
    ]
)

COMPARED = pa.schema(  # what table comparison is made of
    [
        pa.field("selector", pa.string(), nullable=False),
        pa.field("mask", pa.string(), nullable=False),
        pa.field("budget", pa.string(), nullable=False),
        pa.field("seed", pa.int32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # held_out | general
        pa.field("id", pa.string(), nullable=False),
        pa.field("loss", pa.float32(), nullable=False),
        pa.field("correct", pa.bool_()),  # null without a task metric
    ]
)

AUDIT = pa.schema(
    [
        pa.field("check", pa.string(), nullable=False),
        pa.field("passed", pa.bool_(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),  # how many rows break the promise
        pa.field("detail", pa.string(), nullable=False),
    ]
)


def embedding(dimensions: int) -> pa.Schema:
    """Return the schema of the embedding artifact for unit vectors of a width."""
    vector = pa.list_(pa.float32(), dimensions)
    return pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("embedding", vector, nullable=False)])


def sketches(entries: int) -> pa.Schema:
    """Return the schema of the directions of gradients, for sketches of a width; 1 where there is none."""
    vector = pa.list_(pa.float32(), entries)
    return pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("sketch", vector, nullable=False)])
