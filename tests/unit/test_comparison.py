"""What people see of a study, against numbers worked out from its cells and studies whose truth is known."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from study_cases import BYTES_A_ROUND, KINDS, ROUNDS, answers_on_test, make_study, without

from parse_mpi.compare.choices import Choice, Tried
from parse_mpi.compare.schema import Compare
from parse_mpi.compare.studyfile import write_study
from parse_mpi.errors import ParseMpiError, StorageError
from parse_mpi.measures.statistics import compare_pairs, holm
from parse_mpi.studies.comparison import comparison_tables, headline_table, write_comparison
from parse_mpi.studies.contrasts import best_of, every_difference, headline, pair_up
from parse_mpi.studies.document import Table, to_latex, to_markdown
from parse_mpi.studies.methodrows import (
    accuracy_table,
    cost_table,
    heads_table,
    method_tables,
    overview_table,
    quality_table,
    rows_of,
)
from parse_mpi.studies.scores import conditions, make_targets, mean_accuracy, right_answers, rounds_to_target

ACCURACY = {"parse": 0.8, "weak": 0.6, "strong": 0.7, "twin": 0.8, "ceiling": 0.9}
COMPARE = Compare(method="parse", baselines={"plain": ("weak", "strong"), "matched": ("twin",)}, ceiling="ceiling")
DIGITS, MFEAT = (("data", "digits"),), (("data", "mfeat"),)


@pytest.fixture(scope="module")
def study():
    axes = {"data": ["digits", "mfeat"], "method": list(ACCURACY)}
    return make_study(
        axes, lambda levels: ACCURACY[levels["method"]] - 0.3 * (levels["data"] == "mfeat"), compare=COMPARE
    )


def cell_of(study, method, seed, data="digits"):
    (found,) = (cell for cell in study.select(data=data, method=method) if cell.seed == seed)
    return found.result


def terms(first, second, data="digits"):
    return [(1.0, {"data": data, "method": first}), (-1.0, {"data": data, "method": second})]


def cells_of(table, row):
    return dict(zip(table.columns, row, strict=True))


def contests_of(study):
    return headline(study, every_difference(study))


def by_name(table):
    return {row[0]: cells_of(table, row) for row in table.rows}


# -- pairs -----------------------------------------------------------------------------------------------------------


def test_pairs_are_differences_by_seed_and_sample(study):
    pairs = pair_up(study, terms("parse", "weak"), right_answers())
    for k, seed in enumerate(study.seeds):
        ours, theirs = (answers_on_test(cell_of(study, method, seed))[0] for method in ("parse", "weak"))
        np.testing.assert_allclose(pairs.by_seed[k], ours.mean(0) - theirs.mean(0), atol=1e-12)
    assert pairs.same_samples


def test_seeds_with_a_split_of_their_own_are_told_apart(study):
    moved = replace(study, cells=tuple(_moved(cell, cell.seed * 10_000) for cell in study.cells))
    assert not pair_up(moved, terms("parse", "weak"), right_answers()).same_samples


@pytest.mark.parametrize(("kind", "counted"), [("top", (0, 1, 2)), ("unimodal", range(6)), ("multimodal", (6, 7))])
def test_only_agents_of_the_kind_count(study, kind, counted):
    pairs = pair_up(study, terms("parse", "weak"), right_answers(kind))
    ours, theirs = (answers_on_test(cell_of(study, method, 100))[0][list(counted)] for method in ("parse", "weak"))
    np.testing.assert_allclose(pairs.by_seed[0], ours.mean(0) - theirs.mean(0), atol=1e-12)


def test_agents_that_are_away_or_left_no_predictions_do_not_count(study):
    result = cell_of(study, "parse", 100)
    predicted = result.final.predicted.copy()
    predicted[1] = -1
    away = replace(result, kind=("", *KINDS[1:]), final=replace(result.final, predicted=predicted))
    cell = replace(study.select(data="digits", method="parse")[0], result=away)
    np.testing.assert_allclose(right_answers()(cell).value, answers_on_test(result)[0][2:].mean(0))
    assert right_answers("clouds")(cell) is None
    assert right_answers()(replace(cell, result=replace(result, final=None))) is None


def test_seeds_that_lack_a_cell_are_left_out_of_pairs(study):
    gap = without(study, lambda cell: cell.levels["method"] == "weak" and cell.seed == 101)
    assert len(pair_up(gap, terms("parse", "weak"), right_answers()).by_seed) == len(study.seeds) - 1
    nothing = without(study, lambda cell: cell.levels["method"] == "weak")
    assert pair_up(nothing, terms("parse", "weak"), right_answers()) is None


def test_cells_with_different_test_samples_are_no_pairs(study):
    moved = replace(study, cells=tuple(_moved(c, 5) if c.levels["method"] == "weak" else c for c in study.cells))
    with pytest.raises(ParseMpiError, match="digits_weak_100 have different test samples"):
        pair_up(moved, terms("parse", "weak"), right_answers())


def _moved(cell, by):
    final = cell.result.final
    return replace(cell, result=replace(cell.result, final=replace(final, sample=final.sample + by)))


# -- the headline ----------------------------------------------------------------------------------------------------


def test_the_best_baseline_is_picked_on_validation_alone():
    on_test = {"parse": 0.8, "weak": 0.5, "strong": 0.9}
    on_validation = {"parse": 0.8, "weak": 0.85, "strong": 0.6}
    made = make_study(
        {"data": ["digits"], "method": list(on_test)},
        lambda levels: on_test[levels["method"]],
        validation=lambda levels: on_validation[levels["method"]],
        compare=Compare(method="parse", baselines={"plain": ("weak", "strong")}),
    )
    assert best_of(made, DIGITS, ["weak", "strong"]) == "weak"
    (contest,) = contests_of(made)
    assert (contest.baseline, contest.verdict) == ("weak", "better")


def test_verdicts_on_a_known_truth(study):
    found = {(dict(contest.condition)["data"], contest.group): contest for contest in contests_of(study)}
    assert [contest.baseline for contest in found.values()] == ["strong", "twin"] * 2
    assert [contest.verdict for contest in found.values()] == ["better", "no difference shown"] * 2
    assert found["digits", "plain"].difference.estimate == pytest.approx(0.1, abs=0.03)
    turned = replace(study, compare=Compare(method="weak", baselines={"plain": ("strong", "twin")}))
    assert [contest.verdict for contest in contests_of(turned)] == ["worse", "worse"]


def test_p_is_corrected_over_all_contests_that_there_are(study):
    gap = without(study, lambda cell: cell.levels == {"data": "mfeat", "method": "twin"})
    contests = contests_of(gap)
    tested = [contest for contest in contests if contest.difference]
    assert len(tested) == 3
    assert [contest.p for contest in tested] == holm([contest.difference.p for contest in tested])
    assert tested[0].difference == compare_pairs([pair_up(gap, terms("parse", "strong"), right_answers())])


def test_a_group_that_never_finished_is_shown_as_such(study):
    gap = without(study, lambda cell: cell.levels == {"data": "mfeat", "method": "twin"})
    row = cells_of(table := headline_table(gap, contests_of(gap)), table.rows[-1])
    assert (row["data"], row["best baseline"], row["difference"], row["best rounds"]) == ("mfeat", "–", "–", "–")
    assert (row["seeds"], row["p"], row["verdict"]) == ("0", "–", "not known")


def test_one_seed_gives_no_verdict(study):
    single = replace(study, seeds=study.seeds[:1])
    assert {contest.verdict for contest in contests_of(single)} == {"too few seeds"}


def test_where_cells_are_missing_baselines_are_ranked_in_seeds_that_they_share(study):
    """`twin` leads `strong` by .1 in every seed, but the two seeds of four that are left of it are hard for all."""

    def made_harder(cell):
        if cell.seed not in (100, 101):
            return cell
        result = cell.result
        return replace(cell, result=replace(result, last=result.last - 0.3, best=result.best - 0.3))

    hard = replace(study, cells=tuple(map(made_harder, study.cells)))
    gap = without(hard, lambda cell: cell.levels["method"] == "twin" and cell.seed not in (100, 101))
    assert best_of(gap, DIGITS, ["weak", "strong", "twin"]) == "twin"
    assert best_of(without(hard, lambda c: c.levels["method"] == "parse"), DIGITS, ["weak", "strong"]) is None


def test_a_baseline_that_hardly_ever_finished_displaces_no_other(study):
    """`twin` leads `strong`, and is passed over where it shares less than half of the seeds."""
    seeds = study.seeds
    for left, best in ((len(seeds) // 2, "twin"), (1, "strong")):
        gap = without(study, lambda c, left=left: c.levels["method"] == "twin" and c.seed in seeds[left:])
        assert best_of(gap, DIGITS, ["weak", "strong", "twin"]) == best


def test_the_headline_tells_both_rounds(study):
    best = {"parse": 0.02, "strong": -0.01}

    def with_best(cell):
        result = cell.result
        return replace(cell, result=replace(result, best=result.last + best.get(cell.levels["method"], 0.0)))

    made = replace(study, cells=tuple(map(with_best, study.cells)))
    contest = contests_of(made)[0]
    assert contest.in_best_round == pytest.approx(contest.difference.estimate + 0.03)


# -- tables ----------------------------------------------------------------------------------------------------------


def test_every_method_has_a_row_in_every_table_whether_it_ran_or_not(study):
    gap = without(
        study, lambda cell: cell.levels["method"] == "weak" or (cell.levels["method"], cell.seed) == ("twin", 100)
    )
    for table in method_tables(gap, DIGITS, 0.5):
        assert [row[0] for row in table.rows] == list(ACCURACY)
    table = by_name(accuracy_table(rows_of(gap, DIGITS), DIGITS, "last", "global"))
    assert (table["weak"]["seeds"], table["weak"]["all"]) == ("0 of 4", "–")
    assert table["twin"]["seeds"] == "3 of 4"
    assert table["parse"]["seeds"] == "4"
    note = accuracy_table(rows_of(gap, DIGITS), DIGITS, "last", "global").note
    assert "weak: 4 of 4 failed; twin: 1 of 4 failed" in note
    (reasons,) = (table for table in comparison_tables(gap, [], _none(gap)) if table.title == "Cells that failed")
    assert Counter(row[1] for row in reasons.rows) == {"exit code 1: no space left": 10}


def _none(study):
    return {condition: dict.fromkeys(study.axes["method"]) for condition in conditions(study)}


@pytest.mark.parametrize(("row", "shift"), [("last", 0), ("best", 0.001)])
@pytest.mark.parametrize(("weighting", "lower"), [("global", 0), ("local", 0.01)])
def test_accuracies_are_means_over_agents_then_seeds(study, row, shift, weighting, lower):
    table = by_name(accuracy_table(rows_of(study, DIGITS), DIGITS, row, weighting))
    right = np.array([answers_on_test(cell_of(study, "strong", seed))[0].mean(1) for seed in study.seeds])
    right += shift - lower
    for column, values in {
        "all": right.mean(1),
        "top+bottom": right[:, 6:].mean(1),
        "worst agent": right.min(1),
        "sd of agents": right.std(1),
    }.items():
        assert table["strong"][column] == f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1):.1f}", column


def test_all_methods_under_all_conditions_at_a_glance(study):
    gap = without(study, lambda cell: cell.levels["method"] == "weak" or (cell.name == "digits_twin_100"))
    table = overview_table(gap)
    assert (list(table.columns), [row[0] for row in table.rows]) == (["", "digits", "mfeat"], list(ACCURACY))
    rows = by_name(table)
    assert rows["weak"]["digits"] == "–"
    assert rows["twin"]["digits"].endswith(" [3 of 4]")
    assert (
        rows["parse"]["mfeat"] == by_name(accuracy_table(rows_of(gap, MFEAT), MFEAT, "last", "global"))["parse"]["all"]
    )
    many = make_study({"data": ["digits"], "method": ["parse"], "mix": ["a", "b"]}, lambda levels: 0.5, samples=20)
    tall = overview_table(many)
    assert (list(tall.columns), [row[0] for row in tall.rows]) == (
        ["", "parse"], ["digits, mix = a", "digits, mix = b"]
    )  # fmt: skip


def test_heads_are_those_of_agents_with_several_modalities(study):
    def with_worse_head(cell):
        return replace(cell, result=replace(cell.result, last=cell.result.last - [0, 0.02]))

    made = replace(study, cells=tuple(map(with_worse_head, study.cells)))
    row = by_name(heads_table(rows_of(made, DIGITS), DIGITS))["strong"]
    ensemble = by_name(accuracy_table(rows_of(made, DIGITS), DIGITS, "last", "global"))["strong"]["top+bottom"]
    right = [answers_on_test(cell_of(study, "strong", seed))[0][6:].mean() - 0.02 for seed in study.seeds]
    assert row["ensemble"] == ensemble
    assert row["unique"] == f"{100 * np.mean(right):.1f} ± {100 * np.std(right, ddof=1):.1f}"


def test_heads_of_modalities_that_nobody_holds_are_left_out(study):
    def with_another_head(cell):
        last = np.concatenate([cell.result.last, np.full_like(cell.result.last[..., :1], np.nan)], axis=3)
        return replace(cell, result=replace(cell.result, prediction=("ensemble", "unique", "unique[pen]"), last=last))

    made = replace(study, cells=tuple(map(with_another_head, study.cells)))
    assert heads_table(rows_of(made, DIGITS), DIGITS) == heads_table(rows_of(study, DIGITS), DIGITS)


def test_retrieval_inside_agents_and_between_them_is_told_apart(study):
    def with_two_sorts(cell):
        final = cell.result.final
        pairs = ({**final.pair[0], "gallery_agent": "7"}, final.pair[1])
        values = np.stack([final.retrieval[0] / 2, final.retrieval[1]])
        return replace(cell, result=replace(cell.result, final=replace(final, pair=pairs, retrieval=values)))

    made = replace(study, cells=tuple(map(with_two_sorts, study.cells)))
    row = by_name(quality_table(rows_of(made, DIGITS), DIGITS))["parse"]
    assert (row["recall@1"], row["recall@1, apart"]) == ("20.0 ± 0.0", "10.0 ± 0.0")
    row = by_name(quality_table(rows_of(study, DIGITS), DIGITS))["parse"]
    assert (row["map"], row["map, apart"]) == ("30.0 ± 0.0", "–")


def test_what_tuning_chose_is_told_with_what_failed(study):
    tried = (Tried({}, (0.5, 0.6)), Tried({"train.optimiser.lr": 0.123456}, (0.7, 0.9)), Tried({}, (np.nan, 0.9)))
    tuning = {("digits", "parse"): Choice("", tried, 1), ("digits", "weak"): Choice("", tried[2:], None)}
    made = replace(study, tuning=tuning)
    (table,) = (table for table in comparison_tables(made, [], _none(made)) if table.title.startswith("Settings"))
    assert table.rows[0] == ["digits", "parse", "3", "1", "80.0", "train.optimiser.lr: 0.1235"]
    assert table.rows[1] == ["digits", "weak", "1", "1", "–", "none: every configuration failed"]


def test_targets_and_what_it_takes_to_reach_them():
    """Curves end at 1 - exp(-5) of the final accuracy or, if slow, well below nine tenths of the ceiling."""
    constants = {"fast": 10.0, "slow": 400.0, "ceiling": 20.0}
    axes = {"data": ["digits"], "method": list(constants)}
    made = make_study(
        axes,
        lambda levels: 0.9,
        compare=Compare(method="fast", ceiling="ceiling"),
        rounds_to_end=lambda levels: constants[levels["method"]],
    )
    (target,) = make_targets(made).values()
    best = [made.select(method="ceiling")[k].result.accuracy(row="best").mean() for k in range(len(made.seeds))]
    assert target == pytest.approx(0.9 * np.mean(best))
    table = by_name(cost_table(rows_of(made, DIGITS), DIGITS, target))
    first = []
    for cell in made.select(method="fast"):
        curve = cell.result.curve
        first.append(next(r for r, a in zip(curve.round, curve.accuracy[:, -1, 1, 0], strict=True) if a >= target))
    assert table["fast"]["rounds to target"] == f"{np.mean(first):.0f}"
    assert table["fast"]["sent until then"] == f"{np.mean(first) * BYTES_A_ROUND / 1000:.1f} kB"
    assert table["fast"]["reached"] == "4/4"
    assert (table["slow"]["rounds to target"], table["slow"]["reached"]) == ("–", "0/4")
    assert (table["fast"]["sent a round"], table["fast"]["gradient steps"]) == ("1.0 kB", "100")
    slow = rounds_to_target({DIGITS: target})(made.select(method="slow")[0])
    assert slow.value.item() == ROUNDS[-1]
    without_ceiling = replace(made, compare=Compare(method="fast"))
    assert next(iter(make_targets(without_ceiling).values())) >= target


def test_nothing_finished_is_still_a_document(study):
    empty = without(study, lambda cell: True)
    differences = every_difference(empty)
    contests = headline(empty, differences)
    text = "\n".join(map(to_markdown, comparison_tables(empty, contests, differences)))
    assert text.count("| parse | – | – |") == 1
    assert text.count("\n### ") == 2  # all at a glance, and what failed


def test_mean_accuracy_of_a_prediction_that_a_method_lacks_is_not_known(study):
    cell = study.select(method="parse")[0]
    assert mean_accuracy(prediction="synergistic")(cell) is None
    assert mean_accuracy(prediction="unique")(cell).value.shape == (1,)


# -- formats ---------------------------------------------------------------------------------------------------------

HOSTILE = Table(
    "A_b & 10 %", ["na_me", "x"], [["a|b*c", "−1.0 ± 2"], ["{$}\\~^#", "< 3 > 2"]], frozenset({"na_me"}), "5 % _"
)


def test_what_means_something_in_latex_is_escaped():
    text = to_latex(HOSTILE, "hostile")
    _check_latex(text)
    assert r"A\_b \& 10 \%. 5 \% \_" in text
    assert r"\{\$\}\textbackslash{}\textasciitilde{}\textasciicircum{}\# & $<$ 3 $>$ 2 \\" in text
    assert r"a$|$b*c & $-$1.0 $\pm$ 2 \\" in text
    assert r"\begin{tabular}{@{}lr@{}}" in text


def test_long_text_wraps_in_latex():
    text = to_latex(Table("title", ["claim", "x"], [["word " * 20, "1"]], frozenset({"claim"})), "label")
    assert r"\begin{tabular}{@{}p{60mm}r@{}}" in text


def test_lines_of_a_reason_stay_in_their_cell():
    table = Table("Cells", ["cell", "reason"], [["a", "Traceback:\n\n  no space left"]], frozenset({"cell", "reason"}))
    assert to_markdown(table).splitlines()[4] == "| a | Traceback: no space left |"
    assert r"a & Traceback: no space left \\" in to_latex(table, "label")


def test_what_means_something_in_markdown_is_escaped():
    lines = to_markdown(HOSTILE).splitlines()
    assert lines[0] == r"### A\_b & 10 %"
    assert lines[3] == "| --- | ---: |"
    assert lines[4] == r"| a\|b\*c | −1.0 ± 2 |"


@given(st.lists(st.lists(st.text(st.characters(categories=["L", "N", "P", "S"], max_codepoint=0x17F), max_size=9),
                         min_size=2, max_size=2), max_size=4))  # fmt: skip
def test_whatever_cells_hold_latex_stays_balanced(rows):
    _check_latex(to_latex(Table("title", ["a", "b"], rows), "label"))


def _check_latex(text):
    """Environments and braces close, every row has a cell for each column, nothing special is left bare."""
    opened = []
    for what, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if what == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    bare = re.sub(r"\\\\|\\[&%$#_{}]", "", text.replace(r"\textbackslash{}", "").replace("{!}{%", "{!}{"))
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    (columns,) = set(re.findall(r"\{@\{\}([lrp]+)@\{\}\}", text.replace("p{60mm}", "p")))
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")].splitlines()[1:]
    for line in body:
        if line != r"\midrule":
            assert line.endswith(r" \\")
            assert len(re.findall(r"(?<!\\)&", line.replace(r"\\", ""))) == len(columns) - 1
            assert not re.search(r"(?<!\\)[#_^~%]", line)


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_study_becomes_a_document_and_pictures_without_torch(tmp_path: Path):
    axes = {"data": ["digits"], "method": list(ACCURACY), "mix": ["even", "10:20"]}
    made = make_study(axes, lambda levels: ACCURACY[levels["method"]], compare=COMPARE, samples=60, name="headline")
    made = without(made, lambda cell: cell.levels["method"] == "weak")
    write_study(tmp_path / "study.h5", made)
    code = (
        "import sys; from pathlib import Path; from parse_mpi.studies.comparison import write_comparison\n"
        "for path in write_comparison(Path(sys.argv[1])): print(path.name)\n"
        "print({'torch', 'mpi4py', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    *names, heavy = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    pictures = ["headline", "accuracy-digits", "differences-digits", "by-mix"]
    assert names == ["study.md", "study.tex", *(f"{name}.png" for name in pictures)]
    assert heavy == "set()"
    for name in names[2:]:
        picture = imread(tmp_path / name)
        assert 300 < picture.shape[0] < 3000
        assert 900 < picture.shape[1] < 3000
        assert 0.005 < (picture[..., :3].min(axis=2) < 0.9).mean() < 0.8  # neither empty nor a blob
    text, tex = (tmp_path / "study.md").read_text("utf-8"), (tmp_path / "study.tex").read_text("utf-8")
    tables = re.split(r"(?=\\begin\{table\})", tex)[1:]
    assert len(tables) == text.count("\n### ") - 1 == 1 + 1 + 1 + 2 * 8 + 1
    assert text.count("![") == len(pictures)
    for table in tables:
        _check_latex(table)
    assert len(set(re.findall(r"\\label\{(.+)\}", tex))) == len(tables)
    assert "digits, mix = 10:20" in text
    assert "supported" in text  # claims about the headline study are judged
    assert write_comparison(tmp_path)[0].read_text("utf-8") == text


def test_without_a_section_compare_there_are_tables_and_no_verdicts(tmp_path: Path):
    made = make_study({"data": ["digits"], "method": ["parse"]}, lambda levels: 0.7, samples=40)
    write_study(tmp_path / "study.h5", made)
    assert [path.name for path in write_comparison(tmp_path)] == ["study.md", "study.tex", "accuracy-digits.png"]
    assert "verdict" not in (tmp_path / "study.md").read_text("utf-8")


def test_a_directory_without_a_study_is_an_error(tmp_path: Path):
    with pytest.raises(StorageError, match=r"study\.h5"):
        write_comparison(tmp_path)
