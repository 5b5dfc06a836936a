"""What people say on the desk: who accepts a version, and which rows are vetoed or pinned."""

import json
import re
from pathlib import Path

import yaml
from worlds.desk_pages import look, read_tables, read_text, refuse_foreign_errors
from worlds.projects import run_stages

from flows import params
from flows.approving import approve
from flows.deciding import decide
from tasks.artifacts.tables import read_table


def test_an_approval_is_written_and_shown(project, hostile):
    desk = look("sign-off")
    desk.selectbox[0].set_value("v1").run()
    desk.text_input[0].set_value("Ann")
    desk.text_area[0].set_value(hostile)
    desk.button[0].click()
    desk.run()
    refuse_foreign_errors(desk)
    assert "v1 is approved by Ann" in read_text(desk)
    (line,) = Path("data/approvals.jsonl").read_text().splitlines()
    assert json.loads(line)["note"] == hostile
    assert "v1: approved, by Ann" in read_text(look("sign-off"))


def test_what_was_made_anew_is_not_approved_before_it_was_shown(project):
    desk = look("sign-off", version="v1")
    desk.text_input[0].set_value("Ann")
    settings = yaml.safe_load(Path("params.yaml").read_text())
    settings["selection"]["selector"] = "longest"
    Path("params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    run_stages("v1")
    desk.button[0].click().run()
    assert [one.value for one in desk.error] == ["It is not approved."]
    assert "the artifacts of v1 are other ones than were shown; read what is shown of them now" in read_text(desk)
    assert not Path("data/approvals.jsonl").exists()
    desk.button[0].click().run()
    assert "v1 is approved by Ann" in read_text(desk)


def test_what_is_said_of_a_version_is_not_said_of_the_next(project):
    desk = look("sign-off", version="v1")
    desk.text_area[0].set_value("the chosen rows are good")
    desk.text_input[1].set_value("budget")
    desk.selectbox[0].set_value("v2").run()
    assert (desk.text_area[0].value, desk.text_input[1].value) == ("", "")


def test_the_checks_of_the_version_that_is_looked_at_are_shown(project):
    assert "What the checks of v2 found when it was made is not known." in read_text(look("sign-off"))
    desk = look("sign-off", version="v1")
    assert re.search(r"Checks of v1: \d+ promises kept when it was made", read_text(desk))
    (checks,) = read_tables(desk)
    assert "leakage" in [row["check"] for row in checks]
    assert {row["state"] for row in checks} <= {"kept", "broken", "shown"}


def test_damage_of_one_version_hides_no_other(project):
    assert approve("v1", params.read(), by="Ann", note="", despite=()).state == "approved"
    (project.root / "versions/v2/dvc.lock").write_text("stages: [")
    for page in ("sign-off", "overview"):
        said = read_text(look(page))
        assert "versions/v2/dvc.lock cannot be read" in said
        assert "`tamis run` brings it back from git" in said
        assert "v1: approved, by Ann" in said or "It is approved." in said
    (project.root / "data/selection/version=v2/selection.json").write_text("{")
    said = read_text(look("overview"))
    assert "selection.json cannot be read" in said
    assert "It is approved." in said


def test_what_is_not_made_is_not_approved(project):
    desk = look("sign-off")
    desk.selectbox[0].set_value("v2")
    desk.button[0].click()
    desk.run()
    assert desk.error[0].value == "It is not approved."
    assert "`tamis run v2` first" in read_text(desk)
    assert not Path("data/approvals.jsonl").exists()


def test_a_row_is_vetoed_on_its_page(project):
    row = read_table(Path("data/selection/version=v2/subset.parquet")).to_pylist()[0]
    desk = look("rows", version="v2", id=row["id"])
    desk.text_input(key=f"because of {row['id']}").set_value("it is wrong")
    desk.text_input(key="by").set_value("Ann")
    next(one for one in desk.button if one.label == "Record").click()
    desk.run()
    refuse_foreign_errors(desk)
    assert "Recorded for v2; the next run honours it." in read_text(desk)
    (decision,) = json.loads(Path("versions/v2/decisions.json").read_text())
    assert (decision["kind"], decision["because"], decision["by"]) == ("veto", "it is wrong", "Ann")
    assert "Ann vetoed it on" in read_text(look("rows", version="v2", id=row["id"]))
    said = read_text(look("sign-off"))
    assert "1 vetoed or pinned row; a row's own page" in said
    assert "1 decision of v2 not honoured yet" in said


def test_a_veto_is_taken_back_on_its_rows_page(project):
    id = read_table(Path("data/selection/version=v2/subset.parquet"))["id"][0].as_py()
    decide("veto", id, params.read(), because="so", by="Ann")
    desk = look("rows", version="v2", id=id)
    desk.selectbox(key=f"kind of {id}").set_value("release")
    next(one for one in desk.button if one.label == "Record").click()
    desk.run()
    assert "Recorded for v2; the next run honours it." in read_text(desk)
    assert "0 vetoed or pinned rows" in read_text(look("sign-off"))


def test_a_decision_without_a_reason_is_not_recorded(project):
    row = read_table(Path("data/selection/version=v2/subset.parquet")).to_pylist()[0]
    desk = look("rows", version="v2", id=row["id"])
    next(one for one in desk.button if one.label == "Record").click()
    desk.run()
    assert [one.value for one in desk.error] == ["It is not recorded."]
    assert json.loads(Path("versions/v2/decisions.json").read_text()) == []


def test_a_decision_that_the_choice_does_not_honour_is_told(project):
    subset = read_table(Path("data/selection/version=v2/subset.parquet")).to_pylist()
    chosen, left = (next(row["id"] for row in subset if row["chosen"] == wanted) for wanted in (True, False))
    for kind, id in (("veto", chosen), ("pin", left)):
        decide(kind, id, params.read(), because="so", by="Ann")
    for page in ("sign-off", "overview"):
        assert "2 decisions of v2 not honoured yet: tamis run v2" in read_text(look(page))
    assert decide("pin", chosen, params.read(), because="so", by="Bob").replaced.startswith("Ann's veto of ")


def test_a_refused_form_keeps_what_was_typed(project):
    desk = look("sign-off")
    desk.selectbox[0].set_value("v2")
    desk.text_area[0].set_value("a long note")
    desk.button[0].click()
    desk.run()
    assert desk.error[0].value == "It is not approved."
    assert desk.text_area[0].value == "a long note"
