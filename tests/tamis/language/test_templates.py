import pytest
from worlds.toys import toy_tokenizer

from tamis.language.templates import encode, encode_demos, join_instruction, refuse_long, write_prompts

ROLES = ("user", "assistant")


@pytest.fixture(scope="module")
def tokenizer():
    return toy_tokenizer()


def test_chat_shows_the_demo_as_an_earlier_turn(tokenizer):
    found = encode(tokenizer, "chat", ["one", "two"], ["1", "2"])
    text = tokenizer.decode(found.prefixes[0] + found.queries[1] + found.responses[1])
    assert text == "<|user|>one<|end|>\n<|assistant|>1<|end|>\n<|user|>two<|end|>\n<|assistant|>2<|end|>"


def test_chat_without_demo_is_the_plain_chat(tokenizer):
    found = encode(tokenizer, "chat", ["one"], ["1"])
    text = tokenizer.decode(found.base + found.queries[0] + found.responses[0])
    assert text == "<|user|>one<|end|>\n<|assistant|>1<|end|>"


def test_delift_is_the_published_wording(tokenizer):
    found = encode(tokenizer, "delift", ["one", "two"], ["1", "2"])
    assert tokenizer.decode(found.prefixes[0] + found.queries[1] + found.responses[1]) == (
        "Instruction:\nUse the following example as a guide to answer the query in the same format and style, "
        "providing a clear and concise response.\n\n\nExample:\none\n1\n\n\nQuery:\ntwo\n<|end|>2<|end|>"
    )
    assert tokenizer.decode(found.base + found.queries[1]) == (
        "Instruction: Please generate a response to the following query.\n\n\nQuery: two\n<|end|>"
    )


@pytest.mark.parametrize("template", ["chat", "delift"])
def test_a_response_ends_with_the_end_of_turn_token(tokenizer, template):
    found = encode(tokenizer, template, ["one"], ["many words"])
    assert found.responses[0][-1] == tokenizer.eos_token_id
    assert len(found.responses[0]) == len("many words") + 1


def test_braces_in_a_text_are_kept(tokenizer):
    found = encode(tokenizer, "delift", ["{response}"], ["{prompt} {0}"])
    assert "Example:\n{response}\n{prompt} {0}\n" in tokenizer.decode(found.prefixes[0])


@pytest.mark.parametrize("template", ["chat", "delift"])
def test_one_demo_gives_the_prefix_of_the_pair_matrix(tokenizer, template):
    found = encode(tokenizer, template, ["one", "two"], ["1", "2 "])
    for place, demo in enumerate([("one", "1"), ("two", "2 ")]):
        assert encode_demos(tokenizer, template, [demo]) == found.prefixes[place]


@pytest.mark.parametrize("template", ["chat", "delift"])
def test_no_demo_gives_the_prefix_without_one(tokenizer, template):
    assert encode_demos(tokenizer, template, []) == encode(tokenizer, template, ["one"], ["1"]).base


def test_chat_shows_several_demos_as_the_chat_template_would(tokenizer):
    demos = [("one", "1"), ("two", "2"), ("three", "3")]
    turns = [{"role": role, "content": text} for pair in demos for role, text in zip(ROLES, pair, strict=True)]
    query = encode(tokenizer, "chat", ["four"], ["4"]).queries[0]
    whole = tokenizer.apply_chat_template(
        [*turns, {"role": "user", "content": "four"}], tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(encode_demos(tokenizer, "chat", demos) + query) == whole


def test_delift_shows_several_demos_under_one_header(tokenizer):
    assert tokenizer.decode(encode_demos(tokenizer, "delift", [("one", "1"), ("two", "2")])) == (
        "Instruction:\nUse the following example as a guide to answer the query in the same format and style, "
        "providing a clear and concise response.\n\n\nExample:\none\n1\n\n\nExample:\ntwo\n2\n\n\nQuery:\n"
    )


def test_demos_under_an_unknown_template_are_refused(tokenizer):
    with pytest.raises(ValueError, match="unknown template 'alpaca'; known: chat, delift"):
        encode_demos(tokenizer, "alpaca", [("a", "b")])


def prompts(tokenizer, max_tokens: int, new_tokens: int = 1, demos: int = 2):
    """Prompts of two queries, and what they are made from."""
    encoding = encode(tokenizer, "chat", ["what", "so", "beyond"], ["ab", "c" * 9, "d"])
    near = [[("one", "1"), ("two", "22")][:demos], [("three", "3"), ("four", "44")][:demos]]
    limits = {"max_tokens": max_tokens, "new_tokens": new_tokens}
    return write_prompts(tokenizer, "chat", encoding, near, **limits), encoding, near


def test_prompts_show_the_nearest_demo_last_and_end_with_the_query(tokenizer):
    (found, fewer), encoding, near = prompts(tokenizer, 1000)
    assert (found.base, found.prefixes, fewer) == ([], [], 0)
    assert found.responses == encoding.responses[:2]
    assert found.queries == [
        encode_demos(tokenizer, "chat", demos[::-1]) + query
        for demos, query in zip(near, encoding.queries, strict=False)
    ]


@pytest.mark.parametrize("new_tokens", [1, 30])
def test_prompts_keep_as_many_demos_as_fit_the_nearest_first(tokenizer, new_tokens):
    counts = set()
    for max_tokens in range(60):
        (found, fewer), encoding, near = prompts(tokenizer, max_tokens, new_tokens)
        shown = []
        for demos, query, answer, made in zip(near, encoding.queries, encoding.responses, found.queries, strict=False):
            room = max_tokens - len(query) - max(len(answer), new_tokens)
            sizes = [len(encode_demos(tokenizer, "chat", demos[:count])) for count in range(3)]
            shown.append(max((count for count in range(3) if sizes[count] <= room), default=0))
            assert made == encode_demos(tokenizer, "chat", demos[: shown[-1]][::-1]) + query
        assert fewer == sum(count < 2 for count in shown)
        counts |= set(shown)
    assert counts == {0, 1, 2}


def test_arms_with_few_rows_do_not_count_as_short_of_room(tokenizer):
    (_, fewer), *_ = prompts(tokenizer, 1000, demos=1)
    assert fewer == 0


def test_an_instruction_stands_before_the_prompt():
    assert join_instruction("Be brief.", "Why?") == "Be brief.\n\nWhy?"
    assert join_instruction("", "Why?") == "Why?"


def test_a_beginning_of_sequence_token_starts_every_prefix():
    class Starting:
        eos_token, bos_token_id = "!", 1

        def __call__(self, text, add_special_tokens=True):
            rows = [[5] * len(one) for one in ([text] if isinstance(text, str) else text)]
            rows = [[1, *row] for row in rows] if add_special_tokens else rows
            return type("Batch", (), {"input_ids": rows[0] if isinstance(text, str) else rows})

    found = encode(Starting(), "delift", ["a"], ["b"])
    assert found.base[0] == found.prefixes[0][0] == 1
    assert encode_demos(Starting(), "delift", [("a", "b"), ("c", "d")])[0] == 1
    assert 1 not in found.queries[0] + found.responses[0]


def test_an_empty_response_is_refused_with_its_place(tokenizer):
    with pytest.raises(ValueError, match=r"1 of 3 responses are empty, first places \[1\]"):
        encode(tokenizer, "chat", ["a", "b", "c"], ["x", " ", "y"])


def test_an_unknown_template_is_refused(tokenizer):
    with pytest.raises(ValueError, match="unknown template 'alpaca'; known: chat, delift"):
        encode(tokenizer, "alpaca", ["a"], ["b"])


def test_a_tokenizer_without_chat_template_is_refused():
    bare = toy_tokenizer()
    bare.chat_template = None
    with pytest.raises(ValueError, match=r"no chat template; set models\.template: delift"):
        encode(bare, "chat", ["a"], ["b"])


def test_a_chat_template_that_rewrites_earlier_turns_is_refused():
    moody = toy_tokenizer()
    moody.chat_template = "{{ messages|length }}" + moody.chat_template
    with pytest.raises(ValueError, match="renders a turn differently when others stand before or after it"):
        encode(moody, "chat", ["a"], ["b"])


def test_rows_that_are_too_long_are_named(tokenizer):
    prompts, responses = ["one", "a longer prompt", "x", "two words"], ["yes", "no, never ever", "abc", "z"]
    encoding = encode(tokenizer, "chat", prompts, responses)
    sizes = [len(query) + len(answer) for query, answer in zip(encoding.queries, encoding.responses, strict=True)]
    limit = len(encoding.base) + sorted(sizes)[1]
    refuse_long(encoding, [10, 11, 12, 13], 1000)
    with pytest.raises(ValueError, match=r"2 of 4 rows are longer than models.max_tokens .* first rows \[11, 13\]"):
        refuse_long(encoding, [10, 11, 12, 13], limit)
