"""The pages of docs/reference/, written from what the code says of itself: `python docs/generate.py`.

Settings come from their classes, tables from tasks/artifacts/schemas.py, stages from dvc.yaml, commands from the
`tamis` command, selectors from their table. A test holds the committed pages against what is written here.
"""

import ast
import io
import json
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import typer.main
import yaml
from pydantic import TypeAdapter

from flows import cli
from flows.checks import STEERED
from flows.graph.stages import read_stages
from flows.params import OPTIONAL, SECTIONS
from tamis.gradients import row_sums
from tasks.artifacts import schemas
from tasks.catalogue.examples import EXAMPLES
from tasks.selection.selectors import SELECTORS
from tasks.settings import VersionSettings

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs/reference"
HEADING = "<!-- Written by docs/generate.py from {}; an edit here is lost. -->\n\n# {}\n\n"
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
SCHEMA = "https://json-schema.org/draft/2020-12/schema"
ALIKE = {"checked": "utility", "ifd": "scores", "agreement": "scores"}  # tables with the columns of another one
BESIDE = {  # tables that no stage of dvc.yaml writes, and where they lie
    "comparison": "data/comparison/version=<v>/comparison.parquet, by `tamis compare`",
    "compared": "data/comparison/version=<v>/compared.parquet, by `tamis compare`",
    "pairs": ".cache/pairs/",
}


def write_pages() -> dict[str, str]:
    """Return the text of every generated page by its name in docs/reference/."""
    return {
        "params.md": write_params(),
        "params.schema.json": json.dumps(write_schema(), indent=2) + "\n",
        "tables.md": write_tables(),
        "catalogue.md": write_catalogue(),
        "stages.md": write_stages(),
        "commands.md": write_commands(),
        "selectors.md": write_selectors(),
    }


def write_params() -> str:
    """Return the page of params.yaml: every setting with its type or allowed values, range, default and meaning."""
    text = HEADING.format("the settings of tasks/", "params.yaml")
    text += (
        "Every setting, by section. The *default* holds where `params.yaml` leaves a setting out; *as it comes* "
        "is what the committed `params.yaml` says, where it says anything. A setting without a default must stand "
        "there. A name, a type or a value that is not here is refused before anything runs. The same in a form "
        "that editors read, to complete and check what you type, is [params.schema.json](params.schema.json).\n\n"
    )
    comes = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    text += _write_section("versions.NAME", VersionSettings, {})
    return text + "\n" + "\n".join(_write_section(name, kind, comes.get(name, {})) for name, kind in SECTIONS.items())


def _write_section(name: str, kind: type, comes: Mapping[str, Any]) -> str:
    rows = [
        [
            f"`{setting}`",
            _join(_alternatives(shape)),
            _ranges(shape),
            default,
            f"`{_inline(comes[setting])}`" if setting in comes else "",
            shape.get("description", ""),
        ]
        for setting, shape, default in _list_settings(kind)
    ]
    heading = f"## {name}\n\n{(kind.__doc__ or '').strip()}\n\n"
    return heading + _table(["setting", "type or values", "range", "default", "as it comes", "meaning"], rows)


def _list_settings(kind: type, prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Yield name, JSON schema and default of every setting of a section, those of sections inside it, too."""
    shapes, hints = TypeAdapter(kind).json_schema()["properties"], get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            yield from _list_settings(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", shapes[field.name], _default(field)


def _default(field: Any) -> str:
    """Return a setting's default as it is written in YAML."""
    known = field.default.default if hasattr(field.default, "default") else field.default
    make = getattr(field.default, "default_factory", None) or field.default_factory
    if make is not None and make is not MISSING:
        known = make()
    if known is MISSING or repr(known) == "PydanticUndefined":
        return ""
    return f"`{_inline(known)}`"


def _inline(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def _alternatives(shape: Mapping[str, Any]) -> Iterator[str]:
    """Yield in words what a setting may be."""
    if "anyOf" in shape:
        for one in shape["anyOf"]:
            yield from _alternatives(one)
    elif "enum" in shape or "const" in shape:
        yield from (f"`{value}`" for value in shape.get("enum", [shape.get("const")]))
    elif shape.get("type") == "array":
        yield f"list of {'/'.join(_alternatives(shape['items']))}s"
    elif shape.get("type") == "object":
        values = shape.get("additionalProperties", {})
        names = shape.get("propertyNames", {}).get("enum", ["name"])
        inside = _alternatives(values) if isinstance(values, dict) else ["value"]
        yield f"`{'/'.join(names)}:` {'/'.join(inside)}"
    else:
        yield KINDS[shape["type"]]


def _join(words: Iterator[str]) -> str:
    return " or ".join(dict.fromkeys(words))


def _ranges(shape: Mapping[str, Any]) -> str:
    inside = [shape, *shape.get("anyOf", [])]
    inside += [one["additionalProperties"] for one in inside if isinstance(one.get("additionalProperties"), dict)]
    inside += [one["items"] for one in inside if "items" in one]
    found = [f"{words} {one[bound]:g}" for one in inside for bound, words in BOUNDS.items() if bound in one]
    return ", ".join(dict.fromkeys(found))


def write_schema() -> dict[str, Any]:
    """Return the JSON schema of params.yaml, for editors."""
    named = {"versions": Mapping[str, VersionSettings], **SECTIONS}
    definitions: dict[str, Any] = {}
    properties = {}
    for name, kind in named.items():
        shape = TypeAdapter(kind).json_schema(ref_template="#/$defs/{model}")
        definitions |= shape.pop("$defs", {})
        properties[name] = shape
    return {
        "$schema": SCHEMA,
        "title": "params.yaml of tamis",
        "type": "object",
        "properties": properties,
        "required": [name for name in named if name not in OPTIONAL],
        "additionalProperties": False,
        "$defs": definitions,
    }


def write_tables() -> str:
    """Return the page of the tables: columns, types, whether they may be null, and what they hold."""
    text = HEADING.format("tasks/artifacts/schemas.py and dvc.yaml", "Tables")
    text += (
        "Every table is a Parquet file and a view of the same name in `tamis sql`, with one more column, `version`; "
        "but `scores` is there called `selector_scores`, and view `pairs` is made of `utility` and `skipped`, since "
        "the store has no versions. Further views are in the [catalogue](catalogue.md). Tables of rows are joined by "
        "`version` and `id`; `utility`, `skipped` and `checked` name "
        "two rows, `target_id` and `demo_id`, and `mask` and `tensors` are joined by `version` and `tensor`. "
        "The widths of vectors below are those of the encoder and of the sketches as they come.\n\n"
    )
    comments = _read_comments(Path(schemas.__file__).read_text(encoding="utf-8"))
    known = {name.lower(): value for name, value in vars(schemas).items() if isinstance(value, pa.Schema)}
    known |= {"embedding": schemas.embedding(384), "sketches": schemas.sketches(row_sums.WIDTH)}
    return text + "\n".join(
        _write_table(name, known[alike], comments.get(alike.upper(), {}), place)
        for name, place in _places(known)
        for alike in [ALIKE.get(name, name)]
    )


def write_catalogue() -> str:
    """Return the page of the catalogue: a question for each of its views, with its query."""
    text = HEADING.format("tasks/catalogue/examples.py", "Catalogue")
    text += (
        "`tamis sql` answers questions about every version at once, and with `--revision` about those of a commit, tag "
        "or branch, without a checkout. Every [table](tables.md) is a view, and so are `turns` (a row for each message "
        "of a conversation), `pairs`, `scores` (every number that a row has, under its name), `changes` (what a "
        "version kept, edited, added and withdrew; `replaced` is the earlier text of what was edited), `runs` (what "
        "each artifact was made with) and `versions`. A question reads, and may take a minute, 4 GB and a million "
        "rows of answer, unless `--seconds`, `--gigabytes` or `--rows` say otherwise; `tamis sql -` reads it from "
        "stdin.\n\n"
    )
    return text + "\n".join(f"## {one.view}\n\n{one.question}\n\n```sql\n{one.sql}\n```\n" for one in EXAMPLES)


def _places(known: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each table and where it lies, in the order of the graph."""
    for out in (out for stage in _graph().values() for out in _outputs(stage)):
        if Path(out).suffix == ".parquet":
            yield Path(out).stem, out
    yield from ((name, place) for name, place in BESIDE.items() if name in known)


def _write_table(name: str, schema: pa.Schema, comments: Mapping[str, str], place: str) -> str:
    rows = [
        [f"`{field.name}`", f"`{field.type}`", "may be null" if field.nullable else "", comments.get(field.name, "")]
        for field in schema
    ]
    about = f", {comments['']}" if "" in comments else ""
    where = f"`{place}`" if name not in BESIDE else place
    return f"## {name}\n\nIn {where}{about}.\n\n" + _table(["column", "type", "null", "meaning"], rows)


def _read_comments(source: str) -> dict[str, dict[str, str]]:
    """Return by table the comment behind each column, and under "" that behind the table's name."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    behind = {one.start[0]: one.string.removeprefix("#").strip() for one in tokens if one.type == tokenize.COMMENT}
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            columns = [one for one in ast.walk(node.value) if _is_field(one)]
            here = {one.args[0].value: behind[one.end_lineno] for one in columns if one.end_lineno in behind}
            found[node.targets[0].id] = here | ({"": behind[node.lineno]} if node.lineno in behind else {})
    return found


def _is_field(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call) and ast.unparse(node.func) == "pa.field" and isinstance(node.args[0], ast.Constant)
    )


def write_stages() -> str:
    """Return the page of the graph: what each stage makes, reads and writes, and which settings it depends on."""
    text = HEADING.format("dvc.yaml", "Stages")
    text += (
        "The stages in the order of the flow. `<v>` is a data version and `<previous>` the one that it continues from. "
        "A stage is made anew when what it reads, a setting listed here, or a module of its code has changed; the "
        "modules are listed in `dvc.yaml` itself. DVC runs the stages from copies of it, `versions/<v>/dvc.yaml`, each "
        "with a `dvc.lock` of its own. The one stage of `dvc.yaml` that is of no version, `all`, computes nothing: "
        "`dvc repro` brings up to date what it reads, the last stage of every version.\n\n"
    )
    return text + "\n".join(_write_stage(name, stage) for name, stage in _graph().items())


def _write_stage(name: str, stage: Mapping[str, Any]) -> str:
    reads = [_place(dep) for dep in stage["deps"] if not dep.endswith(".py")]
    lists = {"reads": reads, "depends on": stage["params"], "writes": list(_outputs(stage))}
    lines = [f"- {what}: {', '.join(f'`{one}`' for one in several)}\n" for what, several in lists.items()]
    return f"## {name}\n\nWhat it makes: {stage['desc']}.\n\n" + "".join(lines)


def _graph() -> dict[str, Any]:
    return {name: stage["do"] for name, stage in read_stages(ROOT).items()}


def _outputs(stage: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a stage writes, but for run.json: when it ran and how long that took."""
    for out in (*stage["outs"], *stage.get("metrics", []), *stage.get("plots", [])):
        place = _place(out if isinstance(out, str) else next(iter(out)))
        if not place.endswith("/run.json"):
            yield place


def _place(text: str) -> str:
    for written, meant in (("${key}", "<v>"), ("${item.previous}", "<previous>"), ("${item.raw}", "<raw folder>")):
        text = text.replace(written, meant)
    return text


def write_commands() -> str:
    """Return the page of the `tamis` command."""
    text = HEADING.format("the command itself", "Commands")
    text += (
        "`tamis COMMAND --help` says the same. Tables go to stdout, everything else to stderr; where stdout is no "
        "terminal, tables are written as CSV. The exit status is 0 after success, 1 after an error, 2 after a wrong "
        "usage, 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP.\n\n"
    )
    top = typer.main.get_command(cli.app)
    options = [row for one in top.params for row in _argument(one)]
    text += "Options of every command, before its name:\n\n" + _table(["option", "default", "meaning"], options)
    return text + "\n" + "\n".join(_write_command(name, one) for name, one in _list_commands(top))


def _list_commands(group: Any, prefix: str = "tamis") -> Iterator[tuple[str, Any]]:
    for name, one in group.commands.items():
        if getattr(one, "hidden", False):
            continue
        if hasattr(one, "commands"):
            yield from _list_commands(one, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", one


def _write_command(name: str, command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    usage = " ".join([name, *("[options]" for _ in command.params[len(arguments) :][:1]), *map(_usage, arguments)])
    text = f"## {name}\n\n{_one_line(command.help)}\n\n```text\n{usage}\n```\n"
    rows = [row for one in (*arguments, *command.params) for row in _argument(one)]
    rows = list({tuple(row): row for row in rows}.values())
    return text + ("\n" + _table(["argument", "default", "meaning"], rows) if rows else "")


def _usage(argument: Any) -> str:
    word = _word(argument) + ("..." if argument.nargs == -1 else "")
    return word if argument.required else f"[{word}]"


def _word(one: Any) -> str:
    return one.metavar or one.name.upper()


def _argument(one: Any) -> Iterator[list[str]]:
    """Yield the row of an argument or option; none of the help's own option."""
    if one.name == "help" or getattr(one, "hidden", False):
        return
    flag = getattr(one, "is_flag", False)
    named = one.param_type_name == "option"
    word = ", ".join(one.opts) + ("" if flag else f" {_word(one)}") if named else _word(one)
    default = "" if flag or callable(one.default) or one.default in (None, (), []) else f"`{one.default}`"
    yield [f"`{word}`", "required" if one.required else default, _one_line(one.help)]


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def write_selectors() -> str:
    """Return the page of the selectors."""
    text = HEADING.format("tasks/selection/selectors.py", "Selectors")
    text += (
        "The words of `selection.selector`. A selector with an objective maximises it, and says of each row that was "
        "not chosen which chosen row covers it; the others sort the rows by a score, or draw them. Reference rows are "
        "those that others are scored by: of the target task (`examples.target`) or, without one, those that "
        "validate (`examples.validation_every`).\n\n"
    )
    rows = [
        [
            f"`{name}`",
            one.reads or "the examples alone",
            *map(_yes, (one.references or name in STEERED, one.objective, one.draws)),
            one.source,
        ]
        for name, one in SELECTORS.items()
    ]
    return text + _table(
        ["selector", "reads", "needs reference rows", "has an objective", "draws by chance", "source"], rows
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *([_cell(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;") if "`" not in text else text.replace("|", "\\|")


def main() -> None:
    """Write every page."""
    for name, text in write_pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
