"""The verdict on a log, and a page that is self-contained and safe whatever the log says."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from bco_ray.evaluation.judging import wilson
from bco_ray.feedback.statistics import LogSums
from bco_ray.pipeline import charts
from bco_ray.pipeline.report import CheckResult, DataReport, examples_of, line_of, write_report
from bco_ray.schema import SETTLED

HOSTILE = "<script>alert('x')</script> $\\frac{ [bold] \x1b[31m \u202e 文"


def vote(n, label, **fields):
    base = dict.fromkeys(SETTLED.names) | {"file": "f", "position": n, "entry": 0, "id": str(n), "prompt_hash": n % 60}
    base |= {"weight": 1.0, "tags": [], "siblings": [], "metadata": "{}", "user": f"u{n % 30}", "label": label}
    base["prompt"] = json.dumps([{"role": "user", "content": f"prompt {n % 60}"}])
    base["completion"] = json.dumps([{"role": "assistant", "content": f"answer {n}"}])
    return base | fields


def checked(votes, *, examples=None, answers=None, **drops):
    return CheckResult(
        files=[{"path": "log.jsonl", "format": "canonical", "bytes": 12345}],
        read=len(votes) + sum(drops.values()),
        kept=len(votes),
        drops=drops,
        statistics=LogSums.of(votes).summary(),
        answers=answers or {},
        examples=examples or {},
    )


def mixed(count=400, **fields):
    return [vote(n, n % 3 > 0, source=("web", "app")[n % 2], model="bot/1", created_at=1.7e9 + n * 4e4, **fields)
            for n in range(count)]  # fmt: skip


def test_a_good_log_has_nothing_to_complain_of():
    verdict = checked(mixed(), superseded=10).verdict
    assert verdict.usable
    assert verdict.hints == ()


def only(verdict, kind="problems"):
    (text,) = getattr(verdict, kind)
    return text


def test_nothing_read_and_nothing_kept_say_why():
    assert "no vote in these files" in only(checked([]).verdict)
    text = only(checked([], missing_label=7, invalid_json=2).verdict)
    assert "None of the 9 votes" in text
    assert "missing_label (7)" in text
    assert "data.format" in text


@pytest.mark.parametrize(("label", "side", "other"), [(True, "up", "down"), (False, "down", "up")])
def test_one_class_only_is_unusable(label, side, other):
    verdict = checked([vote(n, label) for n in range(200)]).verdict
    assert not verdict.usable
    assert f"All 200 votes are thumbs-{side}" in only(verdict)
    assert f"thumbs-{other} differently, add it to data.label_map" in only(verdict)


def test_thumbs_up_alone_are_enough_where_the_loss_says_so():
    ups, downs = ([vote(n, label) for n in range(200)] for label in (True, False))
    verdict = replace(checked(ups), ups_suffice=True).verdict
    assert (verdict.problems, verdict.hints) == ((), ())
    assert "On thumbs-up alone trains objective.loss: sft (of a job: method supervised)." in only(checked(ups).verdict)
    text = only(replace(checked(downs), ups_suffice=True).verdict)
    assert "All 200 votes are thumbs-down, and objective.loss: sft trains on thumbs-up alone" in text
    assert "sft" not in only(checked(downs).verdict)
    few = replace(checked([vote(n, n < 60) for n in range(70)]), ups_suffice=True).verdict
    assert "Only 60 thumbs-up" in only(few, "hints")


def test_many_unknown_labels_are_unusable_and_few_are_not():
    examples = {"unknown_label": [{"detail": "label 'meh' is not in data.label_map"}]}
    text = only(checked(mixed(), examples=examples, unknown_label=100).verdict)
    assert "100 of 500 votes (20%)" in text
    assert "'meh'" in text
    assert checked(mixed(), examples=examples, unknown_label=20).verdict.usable


@pytest.mark.parametrize(
    ("votes", "says", "way_out"),
    [
        (mixed(150), "Only 50 thumbs-down", "Collect at least 100"),
        ([vote(n, n >= 100) for n in range(10_000)], "99.0% of the votes are thumbs-up", "give files of a longer time"),
        (mixed(user=None), "No vote names a user", "user: ..."),
        (mixed(user="ann"), "One user cast 100%", "data.max_votes_per_user"),
        ([{**v, "prompt_hash": v["position"] % 9} for v in mixed()], "Only 9 different prompts", "collect more"),
        ([{**v, "prompt_hash": max(0, v["position"] - 150)} for v in mixed()], "One prompt has 38%", "Leave such rows"),
        ([{**v, "source": str(v["label"])} for v in mixed()], "The source alone tells the label in 100%", "both kinds"),
    ],
)  # fmt: skip
def test_what_is_odd_is_a_hint_with_the_way_out(votes, says, way_out):
    verdict = checked(votes).verdict
    assert verdict.usable
    text = only(verdict, "hints")
    assert says in text
    assert way_out in text


def test_length_disagreement_and_losses_are_hints():
    long = json.dumps([{"role": "assistant", "content": "x" * 100}])
    text = only(checked([{**v, "completion": long} if v["label"] else v for v in mixed()]).verdict, "hints")
    assert "Liked answers are" in text
    quarrel = [vote(n // 2, n % 2 == 0, response_id=str(n // 2), user=f"u{n % 4}") for n in range(400)]
    assert "agree in 0% of pairs, by chance it would be 50%" in only(checked(quarrel).verdict, "hints")
    hints = checked(mixed(), too_long=100, unreadable_rest=1, neutral=200).verdict.hints
    assert ["too_long" in hints[0], "unreadable_rest" in hints[1], len(hints)] == [True, True, 2]


def test_examples_are_few_short_text():
    row = {"file": "f", "position": 3, "detail": "d", "raw": "ü".encode() * 1000 + b"\xff"}
    (found,) = examples_of({"invalid_json": [row] * 9}).values()
    assert len(found) == 3
    assert found[0] == {"file": "f", "position": 3, "line": 4, "detail": "d", "raw": "ü" * 200}
    assert examples_of({"x": [{**row, "raw": None}]})["x"][0]["raw"] == ""


def test_the_result_is_plain_json():
    found = checked(mixed(), neutral=1, answers={"voted": 3}).as_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["read"], found["kept"], found["drops"]) == (401, 400, {"neutral": 1})
    assert found["verdict"] == {"usable": True, "problems": [], "hints": []}


class Page(HTMLParser):
    """Tags, what they point at, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.addresses, self.words = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data):
        self.words += data.split()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    votes = mixed(user=HOSTILE) + [vote(n, True, source=HOSTILE, model=HOSTILE) for n in range(60)]
    examples = {HOSTILE: [{"file": HOSTILE, "position": 1, "line": None, "detail": HOSTILE, "raw": HOSTILE}]}
    check = checked(votes, examples=examples, answers={"unvoted": 4}, **{HOSTILE: 90})
    report = DataReport(
        replace(check, files=[{"path": HOSTILE, "format": "canonical", "bytes": 5}]),
        matching={"applied": True, "reason": "prompts differ", "auc": 0.71, "ess_fraction": 0.2},
        lengths={"applied": True, "auc_before": 0.68, "auc_after": 0.5, "ess_chosen_before": 1.0,
                 "ess_chosen_after": 0.8, "ess_rejected_before": 1.0, "ess_rejected_after": 0.7},
        look_alikes=[{"label": "down", "like_other": True, "log_ratio": 1.5,
                      "prompt": json.dumps([{"content": HOSTILE}])}],
        token_length={"up": {"p10": 1, "p50": 2, "p90": 3, "p99": 4}},
        weight_bars=[(0.0, 3), (0.5, 10), (0.63, 5), (5.0, 1)],
        mixture={
            "policy": "bot/2", "older_votes": 7, "older_not_drawn": 1200,
            "off_policy": {"rows": 0.92, "weight": 0.5, "of_named": 0.9},
            "ess_fraction": {"chosen": 0.1, "rejected": None},
            "by_version": [{"model": HOSTILE, "rows": 1234, "share": 0.92, "weight_share": 0.5},
                           {"model": None, "rows": 1, "share": 0.08, "weight_share": 0.5}],
        },
        class_weights={"chosen": 0.7, "rejected": 20.0, "capped": True},
    )  # fmt: skip
    return report, write_report(report, tmp_path_factory.mktemp("report"))


def test_the_page_fetches_nothing_runs_nothing_and_shows_hostile_text_as_text(written):
    html = written[1]["html"].read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert {address.split(",")[0] for address in page.addresses} == {"data:image/png;base64"}
    assert "http" not in html.replace("http-equiv", "")
    text = " ".join(page.words)
    assert text.count("<script>alert('x')</script>") >= 6
    for words in (
        "460 of 550 votes kept",
        "0.71 held-out AUC",
        "tokens, up 1 2 3 4",
        "unvoted 4.",
        "Matching leaves 20%",
        "longer than a down was 0.68 and is 0.5",
        "90% of the answers are not the current model's own",
        "92.0 % of votes off-policy (50.0 % of their weight)",
        "7 votes are older ones, 1,200 more were not drawn",
        "(none) 1 8.0 % 50.0 %",
        "leave 10% of the thumbs-up votes' information",
        "met the cap",
    ):
        assert words in text


def test_json_and_picture_lie_beside_it(written):
    report, paths = written
    found = json.loads(paths["json"].read_text(encoding="utf-8"))
    assert found == json.loads(json.dumps(report.as_json()))
    assert found["matching"]["auc"] == 0.71
    assert len(found["verdict"]["hints"]) == len(report.hints)
    assert paths["png"].read_bytes().startswith(b"\x89PNG")
    assert paths["html"].name == "report.html"


def test_an_empty_log_can_be_reported_too(tmp_path):
    report = DataReport(checked([]))
    page = write_report(report, tmp_path)["html"].read_text(encoding="utf-8")
    assert "not usable for training" in page
    assert charts.charts_of(report.check.statistics, {}, ()) == []


@pytest.mark.parametrize("bars", [[(0.0, 5)], [(1.0, 5)], [(0.0, 1), (0.05, 2), (20.0, 3)]])
def test_any_weights_can_be_drawn(bars):
    (chart,) = charts.charts_of(LogSums().summary(), {}, bars)
    assert charts.picture(chart).startswith(b"\x89PNG")


@pytest.mark.parametrize(("ups", "votes", "low", "high"), [(0, 0, 0, 1), (0, 10, 0, 0.2775), (50, 100, 0.4038, 0.5962)])
def test_wilson_interval(ups, votes, low, high):
    assert wilson(ups, votes) == pytest.approx((low, high), abs=1e-4)


def test_a_row_is_named_by_its_line(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("first\n\nthird\n")
    assert line_of(str(log), 7) == 3
    assert line_of(str(tmp_path / "gone.jsonl"), 7) is None
    assert line_of("log.csv", 7) == 8
