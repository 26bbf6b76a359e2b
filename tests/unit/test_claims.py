"""docs/claims.yaml is sound, and verdicts are right about studies whose truth is known."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from launch import ROOT
from pydantic import ValidationError
from study_cases import make_study, without

from parse_mpi.compare.schema import Compare
from parse_mpi.compare.studyfile import write_study
from parse_mpi.errors import ParseMpiError
from parse_mpi.studies.claims import BEST_OF, Claim, Figure, load_claims, region_of
from parse_mpi.studies.document import to_markdown
from parse_mpi.studies.verdicts import claims_table, judge, verdict_of
from parse_mpi.yamlfile import read_yaml

CLAIMS = load_claims()
STUDIES = sorted({claim.study for claim in CLAIMS if claim.study})
SCRIPT = ROOT / "benchmarks" / "claims.py"

# -- the file --------------------------------------------------------------------------------------------------------


def test_every_claim_has_a_name_of_its_own():
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS) > 25


@pytest.mark.parametrize("name", STUDIES)
def test_named_studies_have_what_claims_ask_of_them(name):
    path = ROOT / "jobs" / "studies" / f"{name}.yaml"
    if not path.exists():
        pytest.skip(f"{path.name} is still to come")
    study = read_yaml(path).value
    assert study["name"] == name
    for claim in CLAIMS:
        for levels in claim.statistic.levels() if claim.study == name else ():
            for axis, level in levels.items():
                known = study["cells"].get(axis, {})
                if level.startswith(BEST_OF):
                    level, known = level.removeprefix(BEST_OF), study["compare"]["baselines"]
                assert level in known, claim.id


def test_recorded_verdicts_follow_from_recorded_figures():
    for claim in CLAIMS:
        assert claim.verdict == verdict_of(claim.figures, claim.region), claim.id


def test_the_results_page_shows_all_claims():
    assert to_markdown(claims_table(CLAIMS)).strip() in (ROOT / "docs" / "results.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("text", "low", "high"), [("> 0", 0, np.inf), ("< -1.5", -np.inf, -1.5), ("0.3 to 2.8", 0.3, 2.8)]
)
def test_expectations(text, low, high):
    region = region_of(text)
    assert (region.low, region.high) == (low, high)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"expect": "more"}, "no expectation"),
        ({"study": None}, "both a study and a statistic"),
        ({"study": None, "statistic": None}, "says in `note` why"),
        ({"statistic": {}}, "exactly one of"),
        ({"statistic": {"difference": {"of": {"method": "a"}, "minus": {"mix": "b"}}}}, "name the same axes"),
        ({"statistic": {"difference": {"of": {"data": "a"}, "minus": {"data": "b"}}}}, "can't be compared in pairs"),
        ({"statistic": {"ranking": [{"mix": "a"}, {"method": "b"}]}}, "name the same axes"),
        ({"statistic": {"accuracy": {"alpha": 0.1}}}, "valid string"),
        ({"statistic": {"change": {"difference": {"of": {"method": "a"}, "minus": {"method": "b"}},
                                   "at": {"method": "a"}, "rather_than": {"method": "b"}}}}, "must name the same axes"),
        ({"colour": "blue"}, "not permitted"),
    ],
)  # fmt: skip
def test_claims_that_make_no_sense_are_refused(wrong, what):
    sound = {"id": "a", "source": "b", "text": "c", "study": "d", "statistic": {"accuracy": {"method": "parse"}}}
    Claim.model_validate(sound)
    with pytest.raises(ValidationError, match=what):
        Claim.model_validate(sound | wrong)


def test_a_file_of_something_else_is_an_error(tmp_path: Path):
    (tmp_path / "claims.yaml").write_text("- id: Not An Id\n", "utf-8")
    with pytest.raises(ParseMpiError, match=r"claims\.yaml: .*validation errors"):
        load_claims(tmp_path / "claims.yaml")


# -- verdicts on known truths ----------------------------------------------------------------------------------------

ACCURACY = {"parse": 0.8, "weak": 0.6, "strong": 0.7, "twin": 0.8, "ceiling": 0.9}
PAIRED = {"of": {"method": "parse"}, "minus": {"method": "strong"}}


def truth(levels):
    """parse loses on xor; with few labels all lose .1, and parse another .05."""
    loss = 0.1 * (levels["labels"] == "few") * (1.5 if levels["method"] == "parse" else 1)
    return ACCURACY[levels["method"]] - loss - 0.3 * (levels["data"] == "xor" and levels["method"] == "parse")


@pytest.fixture(scope="module")
def study():
    return make_study(
        {"data": ["digits", "xor"], "method": list(ACCURACY), "labels": ["few", "all"]},
        truth,
        seeds=6,
        samples=400,
        compare=Compare(method="parse", baselines={"plain": ("weak", "strong")}, ceiling="ceiling"),
        rounds_to_end=lambda levels: 60 if levels["method"] == "twin" else 10,
        name="made-up",
    )


def judged(study, statistic, expect="> 0"):
    claim = {"id": "a", "source": "b", "text": "c", "study": study.name, "statistic": statistic, "expect": expect}
    return judge(Claim.model_validate(claim), study)


ON_DIGITS = {"data": "digits", "labels": "all"}


@pytest.mark.parametrize(
    ("statistic", "expect", "verdict", "estimates"),
    [
        ({"difference": PAIRED, "where": ON_DIGITS}, "> 0", "supported", [10]),
        ({"difference": PAIRED, "where": ON_DIGITS}, "< 0", "refuted", [10]),
        ({"difference": PAIRED, "where": ON_DIGITS}, "5 to 15", "supported", [10]),
        ({"difference": PAIRED, "where": ON_DIGITS}, "0.3 to 2.8", "refuted", [10]),
        ({"difference": PAIRED, "where": ON_DIGITS}, "> 9.9", "inconclusive", [10]),
        ({"difference": PAIRED, "where": {"data": "digits"}}, "> 0", "supported", [7.5]),
        ({"difference": PAIRED, "where": {"labels": "all"}}, "< 0", "supported", [-5]),
        ({"difference": PAIRED, "where": {"labels": "all"}, "each": "data"}, "> 0", "refuted", [10, -20]),
        ({"difference": PAIRED, "where": ON_DIGITS, "each": "kind"}, "> 0", "supported", [10, 10]),
        ({"difference": {"of": {"method": "parse"}, "minus": {"method": "twin"}}, "where": ON_DIGITS},
         "> 0", "inconclusive", [0]),
        ({"difference": {"of": {"method": "parse"}, "minus": {"method": "best of plain"}}, "where": ON_DIGITS},
         "> 0", "supported", [10]),
        ({"difference": PAIRED, "where": ON_DIGITS, "kind": "multimodal"}, "> 0", "supported", [10]),
        ({"difference": PAIRED, "where": ON_DIGITS, "weighting": "local"}, "> 0", "supported", [10]),
        ({"difference": PAIRED, "where": ON_DIGITS, "prediction": "unique"}, "> 0", "supported", [10]),
        ({"ranking": [{"method": "ceiling"}, {"method": "parse"}, {"method": "strong"}], "where": ON_DIGITS},
         "> 0", "supported", [10, 10]),
        ({"ranking": [{"method": "parse"}, {"method": "ceiling"}, {"method": "strong"}], "where": ON_DIGITS},
         "> 0", "refuted", [-10, 20]),
        ({"ranking": [{"labels": "all"}, {"labels": "few"}], "where": {"data": "digits", "method": "parse"}},
         "> 0", "supported", [15]),
        ({"change": {"difference": PAIRED, "at": {"labels": "few"}, "rather_than": {"labels": "all"}},
          "where": {"data": "digits"}}, "< 0", "supported", [-5]),
        ({"accuracy": {"method": "parse"}, "where": ON_DIGITS}, "> 59", "supported", [80]),
        ({"accuracy": {"method": "parse"}, "where": {"labels": "all"}, "each": "data"}, "> 59", "refuted", [80, 50]),
    ],
)  # fmt: skip
def test_verdicts(study, statistic, expect, verdict, estimates):
    made = judged(study, statistic, expect)
    assert made.verdict == verdict
    assert [figure.estimate for figure in made.figures] == pytest.approx(estimates, abs=3)
    for figure in made.figures:
        assert figure.low <= figure.estimate <= figure.high
        assert 0 < figure.detectable < 10
        assert figure.seeds == 6


def test_rounds_to_target(study):
    """The ceiling gets to nine tenths of itself soon, the twin never, which counts as its last round."""
    statistic = {"rounds_to_target": {"of": {"method": "ceiling"}, "minus": {"method": "twin"}}, "where": ON_DIGITS}
    made = judged(study, statistic, "< 0")
    rounds = {}
    target = 0.9 * np.mean([c.result.accuracy(row="best").mean() for c in study.select(**ON_DIGITS, method="ceiling")])
    for method in ("ceiling", "twin"):
        curves = [cell.result.curve for cell in study.select(**ON_DIGITS, method=method)]
        there = [curve.round[curve.accuracy[:, -1, 1, 0] >= target] for curve in curves]
        rounds[method] = np.mean([found[0] if len(found) else 100 for found in there])
    assert made.figures[0].estimate == pytest.approx(rounds["ceiling"] - rounds["twin"])
    assert (rounds["twin"], made.verdict) == (100, "supported")


def test_several_parts_have_wider_intervals_that_hold_together(study):
    statistic = {"difference": PAIRED, "where": {"labels": "all"}}
    apart = judged(study, statistic | {"each": "data"}).figures[0]
    alone = judged(study, {"difference": PAIRED, "where": ON_DIGITS}).figures[0]
    assert apart.what == "digits"
    assert apart.estimate == pytest.approx(alone.estimate)
    assert apart.low < alone.low < alone.high < apart.high


@pytest.mark.parametrize(
    ("statistic", "why"),
    [
        ({"accuracy": {"method": "harmony"}}, "no level `harmony` of `method`"),
        ({"accuracy": {"method": "parse", "alpha": "0.1"}}, "no level `0.1` of `alpha`"),
        ({"difference": {"of": {"method": "parse"}, "minus": {"method": "best of matched"}}}, "no group `matched`"),
        ({"accuracy": {"method": "parse"}, "kind": "clouds"}, "no seed of made-up has finished all cells"),
    ],
)
def test_what_a_study_lacks_leaves_a_claim_untested_and_says_so(study, statistic, why):
    made = judged(study, statistic)
    assert (made.verdict, made.figures) == ("untested", ())
    assert why in made.note


def test_failed_cells_leave_a_claim_untested_and_a_single_seed_inconclusive(study):
    statistic = {"difference": {"of": {"method": "parse"}, "minus": {"method": "best of plain"}}, "where": ON_DIGITS}
    gone = without(study, lambda cell: cell.levels["method"] in ("weak", "strong"))
    assert judged(gone, statistic).verdict == "untested"
    single = without(study, lambda cell: cell.seed > 100)
    assert judged(single, statistic).verdict == "inconclusive"


def test_a_verdict_needs_all_parts_and_one_part_refutes():
    def figure(low, high):
        return Figure(what="", estimate=(low + high) / 2, low=low, high=high, detectable=1, seeds=5)

    region = region_of("> 0")
    assert verdict_of([], region) == "untested"
    assert verdict_of([figure(0.1, 1), figure(2, 3)], region) == "supported"
    assert verdict_of([figure(1, 2), figure(-1, 1)], region) == "inconclusive"
    assert verdict_of([figure(1, 2), figure(-2, -1)], region) == "refuted"


@pytest.mark.parametrize("expect", ["> 0", "< 0", "0 to 3"])
def test_methods_that_never_differ_support_and_refute_nothing(study, expect):
    """Both reach the target in the same evaluation of every seed: the interval is 0 to 0."""
    same = {"rounds_to_target": {"of": {"method": "twin"}, "minus": {"method": "twin"}}, "where": ON_DIGITS}
    made = judged(study, same, expect)
    assert (made.figures[0].low, made.figures[0].high, made.verdict) == (0, 0, "inconclusive")


# -- the command -----------------------------------------------------------------------------------------------------


def other_lines(claims: str) -> list[str]:
    """The lines of docs/claims.yaml that no benchmark writes."""
    return [line for line in claims.splitlines() if not line.startswith(("  verdict:", "  figures:", "    - {what:"))]


def test_verdicts_are_recorded_and_nothing_else_changes(tmp_path: Path, capsys, monkeypatch):
    for name in ("claims.yaml", "results.md"):
        shutil.copy(ROOT / "docs" / name, tmp_path)
    before = (tmp_path / "claims.yaml").read_text("utf-8")
    levels = {"parse": 0.8, "weak": 0.6, "local": 0.5, "twin": 0.8}
    compare = Compare(method="parse", baselines={"plain": ("weak",), "matched": ("twin",)})
    made = make_study(
        {"data": ["digits"], "method": list(levels)},
        lambda here: levels[here["method"]],
        compare=compare,
        name="headline",
    )
    write_study(tmp_path / "study.h5", made)
    run = runpy.run_path(str(SCRIPT))["main"]
    run([str(tmp_path), "--docs", str(tmp_path)])
    assert "supported     parse-beats-plain-baselines" in capsys.readouterr().out
    claims = {claim.id: claim for claim in load_claims(tmp_path / "claims.yaml")}
    assert list(claims) == [claim.id for claim in CLAIMS]
    assert claims["parse-beats-plain-baselines"].verdict == "supported"
    assert claims["parse-gain-has-the-claimed-size"].verdict == "refuted"
    assert claims["parse-beats-matched-baselines"].verdict == "inconclusive"
    after = (tmp_path / "claims.yaml").read_text("utf-8")
    assert other_lines(after) == other_lines(before)
    page = (tmp_path / "results.md").read_text("utf-8")
    assert to_markdown(claims_table(list(claims.values()))).strip() in page
    assert page.split("### Claims")[0] == (ROOT / "docs" / "results.md").read_text("utf-8").split("### Claims")[0]
    run([str(tmp_path), "--docs", str(tmp_path)])
    assert (tmp_path / "claims.yaml").read_text("utf-8") == after
    assert (tmp_path / "results.md").read_text("utf-8") == page
