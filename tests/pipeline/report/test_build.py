"""The page: self-contained, escaped, accessible, and silent about what is internal."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from pipeline.metrics import PaidMetrics
from pipeline.report import ReportFacts, build_report
from pipeline.report.facts import Audit, Check, ClassImages, OtherGuarantee
from privacy.errors import InvalidRequest
from privacy.noisy_counts import NoisyAccuracy, NoisyCount

VOID = {"meta", "link", "img", "br", "hr", "input"}
SHAPES = {"circle", "line", "path", "rect"}
HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=y>"


class Page(HTMLParser):
    """Reads a page and insists that tags close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SHAPES
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="session")
def html(facts: ReportFacts) -> str:
    return build_report(facts)


@pytest.fixture(scope="session")
def page(html: str) -> Page:
    return Page(html)


def test_says_what_it_must(page: Page) -> None:
    for words in (
        "digits-demo-7f3a21",
        "RDP 9.65",
        "PRV 8.88",
        "PLD 8.85",
        "9.6431",
        "declared ε 15.00 at δ = 10⁻⁴",
        "Fréchet distance (builtin-conv)",
        "12.42",
        "98.6 %",
        "neighbouring relation: add/remove with zero-out",
        "Passed",
        "9b" * 32,
        "4e" * 32,
        "torch 2.13.0",
        "3 min 08 s",
        "views: 4",
        "Poisson-subsampled Gaussian",
    ):
        assert words in page.text, words
    assert "VOID" not in page.text


def test_nothing_is_loaded_from_outside(html: str, page: Page) -> None:
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html)
    assert not page.all("script")
    assert not page.all("iframe")
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            if name in attributes:
                assert str(attributes[name]).startswith("data:"), (tag, attributes)
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert "default-src 'none'" in str(policy)
    assert "script-src" not in str(policy)


def test_images_have_alternative_texts_and_tables_headers(page: Page) -> None:
    images = page.all("img")
    assert len(images) == 20
    assert {image["alt"] for image in images} >= {
        "10 synthetic images of class 7",
        "10 public real images of class 7",
    }
    for svg in page.all("svg"):
        assert svg.get("aria-hidden") == "true" or svg.get("role") == "img"
        assert svg.get("aria-hidden") or svg.get("aria-label") or svg.get("aria-labelledby")
    assert all(header.get("scope") in ("col", "row") for header in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a}
    assert {word for value in named for word in str(value).split()} <= set(ids)


def test_every_name_is_escaped(facts: ReportFacts) -> None:
    bad = replace(
        facts,
        run=replace(facts.run, name=HOSTILE, run_id=HOSTILE, status=HOSTILE),
        classes=tuple(replace(item, name=HOSTILE) for item in facts.classes),
        budget=replace(facts.budget, dataset=HOSTILE),
        guarantee=replace(facts.guarantee, unit=HOSTILE, relation=HOSTILE),
        components=(replace(facts.components[0], name=HOSTILE, parameters={HOSTILE: HOSTILE}),),
        audit=Audit("failed", (Check(HOSTILE, False, HOSTILE),)),
        provenance=replace(
            facts.provenance,
            spec_yaml=HOSTILE,
            versions={HOSTILE: HOSTILE},
            hardware={HOSTILE: HOSTILE},
            stages=((HOSTILE, 1.0),),
        ),
    )
    html = build_report(bad)
    assert "<script" not in html
    assert "<img src=x" not in html
    page = Page(html)
    assert "onerror" not in {name for _, attributes in page.tags for name in attributes}
    assert HOSTILE in page.text


def test_private_reference_shows_a_sentence_and_no_numbers(private_facts: ReportFacts) -> None:
    page = Page(build_report(private_facts))
    assert "The reference images are private" in page.text
    assert "internal folder" in page.text
    for words in ("98.6", "12.42", "Recall", "Confusion", "Accuracy", "Real, public"):
        assert words not in page.text, words
    assert not [image for image in page.all("img") if "real" in str(image["alt"])]


def test_ceiling_that_may_not_be_shown(facts: ReportFacts) -> None:
    assert facts.evaluation is not None
    hidden = tuple(replace(item, ceiling=None) for item in facts.evaluation.classifiers)
    page = Page(
        build_report(replace(facts, evaluation=replace(facts.evaluation, classifiers=hidden)))
    )
    assert "not shown" in page.text
    assert "ceiling" not in page.text


def test_void_banner_and_no_promise(facts: ReportFacts) -> None:
    page = Page(build_report(replace(facts, run=replace(facts.run, void=True))))
    assert "VOID: no privacy is promised" in page.text
    assert "learns almost the same" not in page.text
    assert "What that means" not in page.text
    assert [a for _, a in page.tags if a.get("role") == "alert"]


def test_group_privacy_is_stated(facts: ReportFacts) -> None:
    others = (
        OtherGuarantee("replace one record", 1, 17.125, 1e-4, "PLD"),
        OtherGuarantee("add or remove up to 3 records", 3, 28.93, 1e-4, "PLD of a mixture"),
    )
    group = replace(facts.guarantee, records_per_unit=3, others=others)
    page = Page(build_report(replace(facts, guarantee=group)))
    assert "one who may replace one record the same computation has ε = 17.13" in page.text
    assert "add or remove up to 3 records, as one" in page.text and "28.93" in page.text


def test_what_was_paid_for_stands_where_the_evaluation_would(facts: ReportFacts) -> None:
    accuracy = NoisyAccuracy(0.8125, 0.78, 0.84, 0.75, 0.87, 0.95)
    counts = (NoisyCount(1234, 1200, 1268, 0.95), *([NoisyCount(7, 0, 41, 0.95)] * 9))
    paid = PaidMetrics(359, 0.5, 0.95, {"mlp": accuracy}, counts)
    page = Page(build_report(replace(facts, evaluation=None, paid=paid)))
    assert "cost ε = 0.50" in page.text
    assert "81.2" in page.text and re.search(r"78\.0\s% to 84\.0\s%", page.text)
    assert "1,200 to 1,268" in page.text
    unpaid = Page(build_report(replace(facts, evaluation=None)))
    assert "tested on private real ones" not in unpaid.text


def test_run_that_was_charged_nothing(facts: ReportFacts) -> None:
    bare = replace(
        facts,
        spending=replace(
            facts.spending, steps=(), curve=(), epsilon_rdp=0.0, epsilon_prv=0.0, epsilon_pld=0.0
        ),
        classes=(ClassImages("a", np.zeros((0, 8, 8, 1), np.uint8)),),
        evaluation=None,
        components=(),
        audit=Audit("not run"),
        provenance=replace(facts.provenance, stages=(), manifest_sha256=None),
    )
    page = Page(build_report(bare))
    assert "Nothing has been charged" in page.text
    assert "none were asked for" in page.text
    assert "umbra audit" in page.text


def test_accountant_that_was_not_run(facts: ReportFacts) -> None:
    spending = replace(facts.spending, epsilon_prv=None, epsilon_pld=None)
    page = Page(build_report(replace(facts, spending=spending)))
    assert page.text.count("not computed") == 2
    assert "RDP 9.65" in page.text
    assert "None" not in page.text


def test_class_without_real_images(facts: ReportFacts) -> None:
    assert facts.evaluation is not None
    first = facts.evaluation.classifiers[0]
    gap = replace(first, class_accuracy=(None, *first.class_accuracy[1:]))
    evaluation = replace(facts.evaluation, classifiers=(gap,))
    page = Page(build_report(replace(facts, evaluation=evaluation)))
    assert "None" not in page.text


def test_failed_audit_is_plain(facts: ReportFacts) -> None:
    audit = Audit("failed", (Check("Chain of hashes", False, "row 17 was changed"),))
    page = Page(build_report(replace(facts, audit=audit)))
    assert "Failed" in page.text
    assert "✗ broken" in page.text
    assert "row 17 was changed" in page.text


def test_same_facts_same_page(facts: ReportFacts, html: str) -> None:
    assert build_report(facts) == html


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8, 1), np.float32),
        np.zeros((2, 8, 8), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
    ],
)
def test_wrong_images_are_refused(images: np.ndarray) -> None:
    with pytest.raises(InvalidRequest):
        ClassImages("a", images)


def test_results_of_other_classes_are_refused(facts: ReportFacts) -> None:
    with pytest.raises(InvalidRequest, match="9 classes"):
        replace(facts, classes=facts.classes[:9])


def test_wrong_curve_is_refused(facts: ReportFacts) -> None:
    with pytest.raises(InvalidRequest):
        replace(facts.spending, steps=(1, 2), curve=(1.0,))
    with pytest.raises(InvalidRequest):
        replace(facts.spending, steps=(2, 1), curve=(1.0, 2.0))
