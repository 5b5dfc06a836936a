"""Rows that several processes read are those that one reads, in the same order."""

from dataclasses import replace

import pyarrow as pa
from worlds.raw_rows import ROWS, dump

from tasks.examples.examples import choose_files, open_reader
from tasks.examples.reading import Facts, cut_files, read_batch
from tasks.examples.settings import ExamplesSettings
from tasks.first_look.processes import read_in_processes


def test_several_processes_read_what_one_does(tmp_path, toy):
    raw, settings = tmp_path / "v1", ExamplesSettings()
    raw.mkdir()
    (raw / "a.jsonl").write_text(dump(ROWS) + "{bad\n" + dump(ROWS[:2]))
    reader, facts, others = open_reader(toy, settings, "v1"), Facts(), Facts()
    (whole,) = cut_files(choose_files(raw, settings)[0], reader, facts)
    batches = [replace(whole, records=whole.records[start : start + 5]) for start in range(0, 27, 5)]
    seen = set(facts.seen)
    alone = [table for batch in batches for table in read_batch(batch, reader, facts)]
    others.formats, others.splits = dict(facts.formats), dict(facts.splits)
    others.seen, others.unread = seen, dict(facts.unread)
    together = list(read_in_processes(iter(batches), reader, others, workers=2))
    assert pa.concat_tables(together).equals(pa.concat_tables(alone))
    assert others == facts
    assert others.count == 27
    assert others.rejects[0][0] == 24
