"""The report of a study: `tamis study NAME --report`."""

from pathlib import Path

from flows.study.plan import Study, read_study
from flows.study.run import RESULTS, find_commit

CORE = "core"  # the study that the project's own words rest on
OUT = Path("docs/results")  # of its report; those of other studies lie beside their cells


def write_report(study: Study) -> list[Path]:
    """Write the report of what a study has so far, with the studies that it shows beside; return the files.

    Raises:
        StudyError: a study that is to be shown is not there.
        ValueError: there is nothing to compare yet.
    """
    from tasks.study import report, results

    plans = [study.plan, *(read_study(name).plan for name in study.plan.beside)]
    chance = dict.fromkeys(name for plan in plans for name in plan.chance)
    cells, shown = results.read_all(RESULTS / study.name), []
    for name in study.plan.beside:
        shown += results.read_all(RESULTS / name)
    out = OUT if study.name == CORE else RESULTS / study.name
    return report.write_report(cells, study.name, list(chance), shown=shown, commit=find_commit(), out=out)
