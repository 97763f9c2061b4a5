"""Which content stands behind which name: nothing gets a second budget by a name or a copy."""

from dataclasses import dataclass

from privacy.bottom_k import overlap
from privacy.errors import BudgetRefused, InvalidRequest
from privacy.fingerprint import Content
from privacy.ledger import Kind, Row, Transaction, View

TRAIN = "train"
"""The part that runs use where they name none, and the only one that schema 1 had."""

NEAR_COPY = 0.05
"""From this estimated share on, two data sets that share records are one."""


@dataclass(frozen=True)
class Partition:
    """One part of a data set and the content that it stands for.

    Attributes:
        dataset: the declared name.
        name: the part's name.
        fingerprint: of its content.
        records: N of the part.
        sketch: see `privacy.bottom_k`; None where schema 1 bound it, which kept none.
    """

    dataset: str
    name: str
    fingerprint: str
    records: int
    sketch: tuple[str, ...] | None

    @classmethod
    def from_row(cls, row: Row) -> "Partition":
        """Read a part from the row that bound it."""
        body = row.content
        return cls(
            dataset=str(row.dataset),
            name=body.get("partition", TRAIN),
            fingerprint=body["fingerprint"],
            records=body["records"],
            sketch=tuple(body["sketch"]) if "sketch" in body else None,
        )


def partitions_of(view: View, dataset: str) -> tuple[Partition, ...]:
    """Return the parts of a data set in the order in which they were bound."""
    rows = view.of(Kind.BIND, dataset) + view.of(Kind.PARTITION, dataset)
    parts = [Partition.from_row(row) for row in rows]
    return tuple({part.fingerprint: part for part in parts}.values())


def bind(t: Transaction, dataset: str, partition: str, content: Content) -> None:
    """Check that a part of a data set is this content, binding it on its first use.

    Content that schema 1 bound is bound again with its sketch, so that others can be compared.

    Raises:
        InvalidRequest: where N differs from what the content was bound with.
        BudgetRefused: where the content is a copy or a near copy of another data set, stands
            behind another part, or the part behind other content; where parts share records.
    """
    claim = f"bind:{content.fingerprint}"
    owner = t.by_claim(claim)
    if owner is not None:
        require_part(t, dataset, partition, content)
        claim = f"sketch:{content.fingerprint}"
        if owner.kind == Kind.PARTITION or t.by_claim(claim) is not None:
            return
    _require_disjoint(partitions_of(t, dataset), dataset, partition, content)
    _require_no_near_copy(t, dataset, content)
    body = {
        "partition": partition,
        "fingerprint": content.fingerprint,
        "records": content.records,
        "sketch": list(content.sketch),
    }
    t.append(Kind.PARTITION, body, dataset=dataset, claim=claim)


def require_part(view: View, dataset: str, partition: str, content: Content) -> None:
    """Refuse content that is bound to something else than this part; unbound content passes.

    Raises:
        InvalidRequest: where N differs from what it was bound with.
        BudgetRefused: where it is another data set's or another part's.
    """
    row = view.by_claim(f"bind:{content.fingerprint}")
    if row is None:
        return
    owner = Partition.from_row(row)
    if owner.dataset != dataset:
        raise BudgetRefused(
            f"This is the content of the data set {owner.dataset!r} under another name. A renamed "
            f"or copied data set has no budget of its own: use the name {owner.dataset!r}."
        )
    if owner.name != partition:
        raise BudgetRefused(
            f"This is the content of the part {owner.name!r} of {dataset!r}, asked for as "
            f"{partition!r}. A copied part has no budget of its own: use the part {owner.name!r}."
        )
    if owner.records != content.records:
        raise InvalidRequest(
            f"The data set {dataset!r} was bound with N={owner.records} records, found "
            f"N={content.records} for the same content."
        )


def overlap_claim(one: str, other: str) -> str:
    """Return the claim of the row that accepts what two data sets share, whoever is named first."""
    first, second = sorted((one, other))
    return f"overlap:{first}:{second}"


def _require_disjoint(
    parts: tuple[Partition, ...], dataset: str, partition: str, content: Content
) -> None:
    for part in parts:
        if part.fingerprint == content.fingerprint:
            continue
        if part.name == partition:
            raise BudgetRefused(
                f"The name {dataset!r} (part {partition!r}) stands for other content than this "
                "since it was first used. Give the changed data set a name and a budget of its own."
            )
        if part.sketch is None:
            raise BudgetRefused(
                f"The part {part.name!r} of {dataset!r} was last used with an older version, which "
                "kept nothing to compare other parts with, and parts must not share records. "
                f"Submit a run on {part.name!r} first."
            )
        if overlap(part.sketch, content.sketch).shared:
            raise BudgetRefused(
                f"The parts {part.name!r} and {partition!r} of {dataset!r} share records. Each "
                "part may spend the whole budget because no record lies in two: take the shared "
                "records out of one of them."
            )


def _require_no_near_copy(t: Transaction, dataset: str, content: Content) -> None:
    for part in map(Partition.from_row, t.of(Kind.PARTITION)):
        if part.dataset == dataset or part.sketch is None:
            continue
        if overlap(part.sketch, content.sketch).share < NEAR_COPY:
            continue
        if t.by_claim(overlap_claim(dataset, part.dataset)) is None:
            raise BudgetRefused(
                f"A good part of these records (an estimated {NEAR_COPY:.0%} of the smaller set or "
                f"more) also lies in the data set {part.dataset!r}. A changed copy has no budget "
                f"of its own: use the name {part.dataset!r}. Or let an officer accept that the "
                "budgets of both add up for the records they share: "
                f"umbra budget accept-overlap {dataset} {part.dataset}"
            )
