"""Examples are shown as they will be rendered, the learnt parts marked, and cut where they are too long."""

from hypothesis import given
from hypothesis import strategies as st
from worlds import chat_templates
from worlds.toys import toy_tokenizer

from tamis.examples.conversations import Conversation, Message, make_exchange
from tamis.language.chat_templates import Template
from tasks.first_look.marked import CLOSE, LONGEST, OPEN, Piece, cut, mark_conversation, split, write_plain

TWICE = Conversation(
    (
        Message("user", "2 + 2?"),
        Message("assistant", "4", learnt=True),
        Message("user", "and 3?"),
        Message("assistant", "7", learnt=True),
    )
)


def strip(text: str) -> str:
    return text.replace(OPEN, "").replace(CLOSE, "")


def test_every_learnt_turn_is_marked_with_what_ends_it():
    (pieces,) = mark_conversation(Template(toy_tokenizer()), TWICE)
    assert write_plain(pieces) == (
        "<|user|>2 + 2?<|end|>\n<|assistant|>⟦4<|end|>⟧\n<|user|>and 3?<|end|>\n<|assistant|>⟦7<|end|>⟧\n"
    )


def test_the_text_without_marks_is_what_the_template_writes():
    tokenizer = toy_tokenizer()
    (pieces,) = mark_conversation(Template(tokenizer), TWICE)
    turns = [{"role": one.role, "content": one.content} for one in TWICE.messages]
    assert strip(write_plain(pieces)) == tokenizer.apply_chat_template(turns, tokenize=False)


def test_texts_of_control_tokens_inside_messages_are_shown_as_they_are():
    (pieces,) = mark_conversation(Template(toy_tokenizer()), make_exchange("say <|end|>", "<|end|>!"))
    assert write_plain(pieces) == "<|user|>say <|end|><|end|>\n<|assistant|>⟦<|end|>!<|end|>⟧\n"


def test_a_row_of_several_sequences_is_shown_as_these():
    thought = list(TWICE.messages)
    thought[1] = Message("assistant", "4", True, '{"reasoning_content": "two and two"}')
    tokenizer = chat_templates.merging_tokenizer(chat_templates.QWEN_3)
    sequences = mark_conversation(Template(tokenizer), Conversation(tuple(thought)))
    assert len(sequences) == 2
    assert "two and two" in write_plain(sequences[0])
    assert "two and two" not in write_plain(sequences[1])


def test_the_published_wording_of_delift_is_shown_where_it_is_asked_for():
    (pieces,) = mark_conversation(Template(toy_tokenizer(), "delift"), make_exchange("2 + 2?", "4"))
    text = write_plain(pieces)
    assert text.startswith("Instruction: Please generate a response")
    assert text.endswith("2 + 2?\n<|end|>⟦4<|end|>⟧")


@given(st.text(min_size=1), st.data())
def test_pieces_are_the_text_in_order(text, data):
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    spans = list(zip(places[::2], places[1::2], strict=False))
    pieces = list(split(text, spans))
    assert "".join(piece.text for piece in pieces) == text
    assert "".join(piece.text for piece in pieces if piece.learnt) == "".join(text[one:two] for one, two in spans)


def test_a_short_text_is_shown_whole():
    pieces = (Piece("a" * (LONGEST - 3), False), Piece("bbb", True))
    assert cut(pieces) == pieces


def test_of_a_long_text_the_middle_is_left_out_and_said_to_be():
    pieces = cut([Piece("a" * 3000, False), Piece("b" * 1000, True)])
    assert [(one.text[:1], one.learnt, one.left_out) for one in pieces] == [
        ("a", False, False),
        ("…", False, True),
        ("b", True, False),
    ]
    assert pieces[1].text == "… 2,500 characters are left out, 500 of them learnt …"
    assert sum(len(one.text) for one in pieces if not one.left_out) == LONGEST
    assert f"a\n{pieces[1].text}\n⟦b" in write_plain(pieces)
