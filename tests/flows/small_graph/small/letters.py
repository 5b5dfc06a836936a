import os


def write(raw, out, *, map):
    part = out / "part"
    part.write_text(raw.read_text().upper())
    os.replace(part, out / "letters.txt")
