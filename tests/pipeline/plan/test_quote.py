from pipeline.home import Home
from pipeline.plan import budget_quotes, plan


def test_a_quote_for_every_part_that_pays(house, blots_spec):
    private = ("    public: true", "    public: false")
    asked = ("  classifiers: [logreg, mlp]", "  classifiers: [logreg]\n  release: dp")
    made = plan(blots_spec(private, asked), trial=False)
    before = house.budget.ledger.head()
    found = budget_quotes(made, house.home)
    assert set(found) == {"train", "holdout"}
    assert all(quote.admitted and quote.committed == 0 for quote in found.values())
    assert found["train"].asked <= 8.01 and found["holdout"].asked <= 1.01
    assert house.budget.ledger.head() == before


def test_what_is_reserved_counts(house, blots_spec):
    house.reserve(blots_spec())
    (quote,) = budget_quotes(plan(blots_spec(), trial=False), house.home).values()
    assert not quote.admitted
    assert quote.together > 8.5 > quote.committed > quote.left


def test_no_budget_and_no_ledger_are_no_error(house, blots_spec, tmp_path):
    other = plan(blots_spec(("  name: blots\n", "  name: other\n")), trial=False)
    assert budget_quotes(other, house.home) == {}
    nowhere = Home.locate({"UMBRA_HOME": str(tmp_path / "nowhere")})
    assert budget_quotes(plan(blots_spec(), trial=False), nowhere) == {}
    assert not (tmp_path / "nowhere").exists()
