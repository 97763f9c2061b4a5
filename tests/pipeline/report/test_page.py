"""The page: self-contained, escaped, accessible, and silent about what is internal."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from pipeline.metrics import PaidMetrics
from pipeline.report.page import ReportView, build_page
from privacy.accounting import EpsilonBounds
from privacy.accounting.guarantee import Guarantee
from privacy.errors import IntegrityBroken
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
def html(view: ReportView) -> str:
    return build_page(view)


@pytest.fixture(scope="session")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_states_every_released_fact(view: ReportView, page: Page) -> None:
    for words in (
        view.state.run_id,
        "RDP 9.65",
        "PRV 8.88",
        "PLD 8.85",
        "9.6431",
        "declared ε 15.00 at δ = 10⁻⁴",
        "frechet_gabor",
        "12.5",
        "81.2 %",
        "neighbouring relation: add/remove with zero-out",
        "Passed",
        view.provenance.ledger_head,
        str(view.provenance.manifest_sha256),
        f"torch {view.provenance.versions['torch']}",
        "3 s",
        "views: 2",
        "subsampled gaussian",
        view.attack[0].sentence("image"),
        "What an attacker can do at most",
        "as if all had been planned in advance",
    ):
        assert words in page.text, words
    assert "VOID" not in page.text


def test_nothing_is_loaded_from_outside(html: str, page: Page) -> None:
    without_images = re.sub(r'"data:image/png;base64,[^"]*"', "", html)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", without_images)
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
    assert len(images) == 4
    assert {image["alt"] for image in images} >= {
        "6 synthetic images of class square",
        "10 public real images of class square",
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


def test_every_name_is_escaped(view: ReportView) -> None:
    stages = tuple(stage.model_copy(update={"name": HOSTILE}) for stage in view.state.stages)
    bad = replace(
        view,
        spec=view.spec.model_copy(update={"name": HOSTILE}),
        state=view.state.model_copy(update={"run_id": HOSTILE, "stages": stages}),
        samples=tuple(replace(samples, name=HOSTILE) for samples in view.samples),
        odometer=replace(view.odometer, name=HOSTILE),
        reservation=replace(view.reservation, unit=HOSTILE),
        guarantees=(Guarantee(HOSTILE, 2, 1.0, 1e-4, HOSTILE),),
        results={
            **view.results,
            "synthetic": {HOSTILE: view.results["synthetic"]["mlp"]},
            "ceiling": {},
        },
        audit=replace(view.audit, files=(HOSTILE,)),
        provenance=replace(
            view.provenance,
            spec_yaml=HOSTILE,
            versions={HOSTILE: HOSTILE},
            hardware={HOSTILE: HOSTILE},
        ),
    )
    html = build_page(bad)
    assert "<script" not in html
    assert "<img src=x" not in html
    page = Page(html)
    assert "onerror" not in {name for _, attributes in page.tags for name in attributes}
    assert HOSTILE in page.text


def test_a_private_reference_is_replaced_by_a_sentence(private_view: ReportView) -> None:
    page = Page(build_page(private_view))
    assert "The reference images are private" in page.text
    assert "internal folder" in page.text
    for words in ("81.2", "12.5", "recall", "Confusion", "Accuracy", "Real, public"):
        assert words not in page.text, words
    assert not [image for image in page.all("img") if "real" in str(image["alt"])]


def test_a_run_without_evaluation_says_so(private_view: ReportView) -> None:
    spec = private_view.spec.model_copy(update={"evaluate": None})
    page = Page(build_page(replace(private_view, spec=spec)))
    assert "No evaluation was asked for" in page.text
    assert "reference images are private" not in page.text


def test_a_failed_evaluation_is_not_called_private_or_done(private_view: ReportView) -> None:
    stages = tuple(stage for stage in private_view.state.stages if stage.name != "evaluate")
    failed = {"stages": stages, "stage": "evaluate", "status": "failed"}
    state = private_view.state.model_copy(update=failed)
    page = Page(build_page(replace(private_view, state=state)))
    assert "The evaluation is not done" in page.text
    assert "reference images are private" not in page.text
    assert "Status: failed" in page.text


def test_the_page_of_a_run_that_writes_it_says_done(view: ReportView) -> None:
    state = view.state.model_copy(update={"stage": "report", "status": "running"})
    assert "Status: done" in Page(build_page(replace(view, state=state))).text


def test_a_private_ceiling_is_not_shown(view: ReportView) -> None:
    page = Page(build_page(replace(view, results={**view.results, "ceiling": {}})))
    assert "not shown" in page.text
    assert "ceiling" not in page.text


def test_a_void_run_is_marked_and_guarantees_nothing(view: ReportView) -> None:
    page = Page(build_page(replace(view, reservation=replace(view.reservation, void=True))))
    assert "VOID: no privacy is guaranteed" in page.text
    assert "learns almost the same" not in page.text
    assert "What that means" not in page.text
    assert [a for _, a in page.tags if a.get("role") == "alert"]


def test_guarantees_under_other_relations_are_stated(view: ReportView) -> None:
    others = (
        Guarantee("replace one record", 1, 17.125, 1e-4, "PLD"),
        Guarantee("add or remove up to 3 records", 3, 28.93, 1e-4, "PLD of a mixture"),
    )
    reservation = replace(view.reservation, records_per_unit=3)
    page = Page(build_page(replace(view, reservation=reservation, guarantees=others)))
    assert "may replace one record the same computation has ε = 17.13" in page.text
    assert "add or remove up to 3 records, as one" in page.text and "28.93" in page.text


def test_paid_figures_take_the_place_of_the_evaluation(private_view: ReportView) -> None:
    accuracy = NoisyAccuracy(0.8125, 0.78, 0.84, 0.75, 0.87, 0.95)
    counts = (NoisyCount(1234, 1200, 1268, 0.95), NoisyCount(7, 0, 41, 0.95))
    paid = PaidMetrics(359, 0.5, 0.95, {"mlp": accuracy}, counts)
    page = Page(build_page(replace(private_view, paid=paid)))
    assert "cost ε = 0.50" in page.text
    assert "81.2" in page.text and re.search(r"78\.0\s% to 84\.0\s%", page.text)
    assert "1,200 to 1,268" in page.text
    unpaid = Page(build_page(private_view))
    assert "tested on private real ones" not in unpaid.text


def test_a_run_without_charges_has_no_curve(private_view: ReportView) -> None:
    empty = replace(private_view.samples[0], synthetic=private_view.samples[0].synthetic[:0])
    bare = replace(
        private_view,
        charges=((0, 0.0),),
        bounds=EpsilonBounds(0.0, 0.0, 0.0),
        samples=(empty, *private_view.samples[1:]),
        state=private_view.state.model_copy(update={"stages": ()}),
        provenance=replace(private_view.provenance, manifest_sha256=None),
    )
    page = Page(build_page(bare))
    assert "Nothing has been charged" in page.text
    assert "none requested" in page.text


def test_an_accountant_that_states_no_bound_is_named(view: ReportView) -> None:
    page = Page(build_page(replace(view, bounds=EpsilonBounds(9.6431))))
    assert page.text.count("not computed") == 2
    assert "RDP 9.65" in page.text
    assert "None" not in page.text


def test_a_class_without_real_images_has_no_accuracy(view: ReportView) -> None:
    result = {**view.results["synthetic"]["mlp"], "per_class": [None, 0.5]}
    page = Page(build_page(replace(view, results={**view.results, "synthetic": {"mlp": result}})))
    assert "None" not in page.text


def test_a_failed_audit_is_shown(view: ReportView) -> None:
    audit = replace(view.audit, files=("release/data/train-0.parquet was changed",))
    page = Page(build_page(replace(view, audit=audit)))
    assert "Failed" in page.text
    assert "✗ broken" in page.text
    assert "train-0.parquet was changed" in page.text


def test_the_same_view_makes_the_same_page(view: ReportView, html: str) -> None:
    assert build_page(view) == html


def test_results_of_other_classes_are_refused(view: ReportView) -> None:
    with pytest.raises(IntegrityBroken, match="are for 2 classes, expected 1"):
        replace(view, samples=view.samples[:1])


def test_metrics_are_read_through_the_gate(house, blots_spec) -> None:
    """A metrics.json in release/ is not shown where the spec says that the holdout is private."""
    from pipeline.audit.ledger import audit_run
    from pipeline.report.page import report_view

    run = house.finish(house.reserve(blots_spec(("    public: true", "    public: false"))))
    (run.release / "metrics.json").write_bytes((run.internal / "metrics.json").read_bytes())
    budget = house.budget
    assert report_view(run, budget, audit_run(budget.ledger, run)).results == {}
