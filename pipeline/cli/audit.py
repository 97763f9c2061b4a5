"""`umbra audit`: recompute, verify, explain, and attack."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.output import WHAT_HOLDS, attack_line, emit, json_option, pairs, printable, table
from pipeline.home import Home
from pipeline.progress import Progress, SilentProgress, show_progress
from privacy.errors import IntegrityBroken, InvalidRequest

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.audit.ledger import Audit
    from pipeline.audit.release import ReleaseAudit
    from pipeline.audit.run import RunAudit
    from pipeline.runs.directory import RunDirectory
    from privacy.audit import LedgerAudit, ReservationAudit
    from privacy.audit.mechanism import MechanismAudit


class _Verbs(click.Group):
    """A group whose verb may be left out: without one, the arguments are those of `ledger`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        words = [word for word in args if not word.startswith("-")]
        if words and words[0] in self.commands:
            args.remove(words[0])
            args = [words[0], *args]
        elif args[:1] not in (["-h"], ["--help"]):
            args = ["ledger", *args]
        return super().parse_args(context, args)


@click.group(cls=_Verbs, subcommand_metavar="[VERB] [RUN|EXPORT]")
def audit() -> None:
    """Audit the ledger, a RUN or an EXPORT folder, and what ships; exit code 4 if it is broken.

    \b
    umbra audit [RUN|EXPORT] [--json]   the same as `umbra audit ledger`
    umbra audit RUN --empirical         all four verbs about a run

    A folder that is called like a verb is given as ./run.
    """


@audit.command()
@click.argument("subject", metavar="[RUN|EXPORT]", required=False)
@click.option(
    "--public-key",
    metavar="HEX|FILE",
    help="The key that the ledger must be signed by, as you know it from elsewhere.",
)
@click.option("--empirical", is_flag=True, help="Then the verbs mechanism, run and release, too.")
@json_option
def ledger(subject: str | None, public_key: str | None, empirical: bool, as_json: bool) -> int:
    """Check chain, signatures, heads, rules and exports, and compute every ε again.

    Every ε is computed from the raw rows by code that admitted nothing.
    """
    from pipeline.audit.ledger import audit as perform

    home = Home.locate()
    run = _empirical_run(home, subject) if empirical else None
    found = perform(home, subject, public_key)
    if run is not None and found.ok:
        return _empirical(home, run, found, as_json)
    emit(found.to_dict(), as_json, lambda console: show_ledger(console, found))
    if run is not None:
        # The other audits rest on the ledger.
        click.echo("umbra: the ledger's audit failed, so nothing else was audited", err=True)
    return _code(found.ok)


@audit.command()
@click.argument("subject", metavar="[SPEC|RUN]", required=False)
@click.option("--trials", type=click.IntRange(min=1), help="How often each step is run.")
@json_option
def mechanism(subject: str | None, trials: int | None, as_json: bool) -> int:
    """Run what ships on toy data: a lower bound on ε, and the laws it has to follow.

    That is the step, workers' start, warm-up and paid counts, with the q, σ, C and K of a SPEC or a
    RUN, or of a default. Of method diffusion only. Opens no data.
    """
    from pipeline.audit.run import audit_step

    progress = _progress(as_json)
    found = audit_step(Home.locate(), subject, progress, trials)
    emit(found.to_record(), as_json, lambda console: show_mechanism(console, found))
    return _code(not found.broken)


@audit.command("run")
@click.argument("run_id", metavar="RUN")
@click.option("--canaries", type=click.IntRange(min=1), help="How many, M.")
@click.option("--guesses", type=click.IntRange(min=1), help="How many are guessed, R.")
@json_option
def run_(run_id: str, canaries: int | None, guesses: int | None, as_json: bool) -> int:
    """Train the recipe of RUN again, with canaries among its released images, and guess them.

    Opens no private image and spends nothing; takes as long as the training did. Gives a lower
    bound on ε and the largest that it could have given.
    """
    from pipeline.audit.run import audit_training

    home = Home.locate()
    found = audit_training(home, _run(home, run_id), _progress(as_json), canaries, guesses)
    emit(found.to_dict(), as_json, lambda console: show_run(console, found))
    return _code(found.ok)


@audit.command()
@click.argument("run_id", metavar="RUN")
@json_option
def release(run_id: str, as_json: bool) -> None:
    """Look for copies and attack membership in the images of RUN; opens its private images.

    The findings are internal. No distance passes or fails.
    """
    home = Home.locate()
    found = _release(home, _run(home, run_id), _progress(as_json))
    emit(found.to_dict(), as_json, lambda console: show_release(console, found))


def _empirical(home: Home, run: "RunDirectory", found: "Audit", as_json: bool) -> int:
    from pipeline.audit.run import audit_step, audit_training

    spec, progress = run.spec(), _progress(as_json)
    # It runs a step of DP-SGD, which no other method takes.
    step = audit_step(home, run.run_id, progress) if spec.method == "diffusion" else None
    trained = audit_training(home, run, progress)
    released = _release(home, run, progress) if spec.data.holdout is not None else None
    ok = trained.ok and (step is None or not step.broken)
    facts: dict[str, Any] = {
        **found.to_dict(),
        "ok": ok,
        "mechanism": None if step is None else step.to_record(),
        "run": trained.to_dict(),
        "release": None if released is None else released.to_dict(),
    }

    def show(console: "Console") -> None:
        show_ledger(console, found)
        if step is None:
            console.print(f"Note: the method is {spec.method}, so its mechanism was not audited.")
        else:
            show_mechanism(console, step)
        show_run(console, trained)
        if released is None:
            console.print("Note: the run names no data.holdout, so its release was not audited.")
        else:
            show_release(console, released)

    emit(facts, as_json, show)
    return _code(ok)


def _empirical_run(home: Home, subject: str | None) -> "RunDirectory":
    from pipeline.audit.release import require_release

    if subject is None:
        raise InvalidRequest("--empirical audits one run: name it, `umbra audit RUN --empirical`")
    run = _run(home, subject)
    if run.spec().data.holdout is not None:
        require_release(run)  # refuse now what would be refused after the training
    return run


def _run(home: Home, subject: str) -> "RunDirectory":
    from pipeline.audit.ledger import find_run

    run = find_run(home, subject)
    if run is None:
        raise InvalidRequest(f"{subject} is not a run: expected a run's id or its folder")
    return run


def _release(home: Home, run: "RunDirectory", progress: Progress) -> "ReleaseAudit":
    from pipeline.audit.release import audit_release, require_release

    require_release(run)
    warning = f"opening the private images of {run.run_id}: the findings stay in its internal/"
    click.echo(warning, err=True)
    return audit_release(home, run, progress)


def _progress(as_json: bool) -> Progress:
    return SilentProgress() if as_json else show_progress()


def _code(ok: bool) -> int:
    return 0 if ok else IntegrityBroken.exit_code


_MOST_FINDINGS = 20


def show_ledger(console: "Console", found: "Audit") -> None:
    """Print the verdict, ε of every part, reservations, exports, and everything broken."""
    ledger = found.ledger
    verdict = "passed" if found.ok else "FAILED"
    console.print(f"Audit of {printable(found.subject)}: {verdict}. {ledger.rows} rows replayed.")
    signed = f"by {found.signed_by}" if found.signed_by else "no (see `umbra ledger sign`)"
    console.print(f"Rows signed: {signed}\n")
    _show_spent(console, ledger)
    _show_reservations(console, ledger)
    broken = [*found.files, *map(str, ledger.findings)]
    for sentence in broken[:_MOST_FINDINGS]:
        console.print(f"BROKEN: {printable(sentence)}")
    if len(broken) > _MOST_FINDINGS:
        # One damaged row may invalidate every later one: the first findings matter.
        console.print(f"BROKEN: and {len(broken) - _MOST_FINDINGS} more findings; --json has all")
    for note in ledger.notes:
        console.print(f"Note: {printable(note)}")


def _show_spent(console: "Console", ledger: "LedgerAudit") -> None:
    columns = "data set|part|N|ε declared|δ|RDP|PLD|PRV|RDP with reserved"
    rows: list[Sequence[object]] = [
        (
            *(dataset.name, part.name, part.records, dataset.epsilon, dataset.delta),
            *(part.spent.rdp, part.spent.pld, part.spent.prv, part.committed.rdp),
        )
        for dataset in ledger.datasets
        for part in dataset.partitions
    ]
    _show_rows(console, "ε spent, recomputed", columns, rows, range(2, 9))
    columns = "data set|neighbours|records|ε|δ|by"
    rows = [
        (dataset.name, given.relation, given.records, given.epsilon, given.delta, given.method)
        for dataset in ledger.datasets
        for given in dataset.guarantees
    ]
    _show_rows(console, "The same under other relations", columns, rows, range(2, 5))
    for dataset in ledger.datasets:
        for curve in dataset.attack:
            console.print(f"{dataset.name}: {attack_line(curve)}")
    if ledger.datasets:
        console.print(WHAT_HOLDS + "\n")


def _show_reservations(console: "Console", ledger: "LedgerAudit") -> None:
    columns = "run|who|data set|part|charged|attempts|state"
    rows: list[Sequence[object]] = [
        (
            *(printable(each.run_id), printable(each.author or "–"), each.dataset, each.partition),
            *(_steps(each), each.attempts, "settled" if each.settled else "open"),
        )
        for each in ledger.reservations
    ]
    _show_rows(console, "Reservations", columns, rows, [5])
    columns = "export (sha256 of its manifest)|run|data set|charges that cover it"
    rows = [
        (manifest, each.run_id, each.dataset, _steps(each))
        for each in ledger.reservations
        for manifest in each.exports
    ]
    _show_rows(console, "Exports", columns, rows)


def _show_rows(
    console: "Console",
    title: str,
    columns: str,
    rows: Sequence[Sequence[object]],
    numbers: Sequence[int] = (),
) -> None:
    """Print a table unless it is empty; | separates the columns' names."""
    if rows:
        console.print(table(title, columns.split("|"), rows, numbers))


def _steps(given: "ReservationAudit") -> str:
    charged, reserved = given.charged, given.reserved
    return ", ".join(f"{name} {charged[name]} of {steps}" for name, steps in reserved.items())


def show_mechanism(console: "Console", found: "MechanismAudit") -> None:
    """Print claims and lower bounds, and every property that the step was tested for."""
    verdict = "FAILED" if found.broken else "passed"
    console.print(
        f"Audit of the mechanism: {verdict}. q = {found.sampling_probability:.6g}, "
        f"σ = {found.noise_multiplier:.6g}, C = {found.clip_norm:g}, K = {found.views}, "
        f"δ = {found.delta:g}; {found.records} toy records, no private one.\n"
    )
    columns = "steps|ε claimed (PLD)|ε at least|could have shown|confidence|trials"
    rows = [
        (
            *(bound.steps, bound.claim, _down(bound.lower.epsilon), _down(bound.lower.detectable)),
            *(f"{100 * bound.lower.confidence:g} %", bound.lower.trials),
        )
        for bound in found.bounds
    ]
    _show_rows(console, "Lower bounds by gradient canaries", columns, rows, range(6))
    checks = [
        (
            *(check.name, "holds" if check.passed else "BROKEN"),
            *(None if check.p_value is None else f"{check.p_value:.2g}", check.detail),
        )
        for check in found.checks
    ]
    _show_rows(console, "Laws of the step", "law|verdict|p|found", checks)
    for bound in found.bounds:
        if bound.lower.epsilon > bound.claim:
            console.print(
                f"BROKEN: {bound.steps} steps claim ε = {bound.claim} and have at least "
                f"{_down(bound.lower.epsilon)}"
            )


def show_run(console: "Console", found: "RunAudit") -> None:
    """Print the lower bound, the claim, and the largest lower bound the audit could find."""
    verdict = "passed" if found.ok else "FAILED"
    claims = ", ".join(f"{bound} ({name.upper()})" for name, bound in found.claimed.items())
    facts = {
        "ε at least": f"{_down(found.epsilon_lower)} at δ = {found.delta:g}, "
        f"{100 * found.confidence:g} % confidence",
        "ε claimed": claims,
        "could have shown": f"{_down(found.detectable)} at most",
        "guesses": f"{found.right} of {found.guesses} right, {found.canaries} canaries",
    }
    console.print(f"Audit of the training of {printable(found.run_id)}: {verdict}.\n")
    console.print(pairs("One run with canaries; no private image was opened", facts))
    if not found.ok:
        console.print(
            f"BROKEN: the training has ε of at least {_down(found.epsilon_lower)}, "
            f"claimed is {found.claim}"
        )
    elif found.detectable < found.claim:
        console.print(
            "Note: this audit could not have refuted the claim. More guesses (--guesses, "
            "--canaries) raise what it can show."
        )
    if found.void:
        console.print("Note: the run itself was seeded: it is void and guarantees no privacy.")


def show_release(console: "Console", found: "ReleaseAudit") -> None:
    """Print where the findings are, and the findings only where all images are public."""
    console.print(f"Findings on the release of {printable(found.run_id)}: {found.written}")
    if found.public is None:
        console.print(
            "They were computed from private images without noise: share nothing of them."
        )
        return
    for name, space in found.public["spaces"].items():
        console.print(pairs(f"In {name}", _release_facts(space)))
    console.print(found.public["caveat"])


def _release_facts(space: dict[str, Any]) -> dict[str, object]:
    copies = space["copies"]
    facts: dict[str, object] = {}
    if (exact := copies["exact_train"]) is not None:
        images, held = copies["synthetic_count"], copies["exact_holdout"]
        facts["exact copies"] = f"{exact} of training images, {held} of the holdout, among {images}"
    facts["nearer to training"] = f"{100 * copies['closer_to_train']:.1f} % (50 % by chance)"
    for name, attack in space["membership"].items():
        low, high = attack["interval"]
        points = ", ".join(
            f"{100 * point['true_positive_rate']:.2g} % at {100 * point['rate']:g} %"
            for point in attack["points"]
        )
        facts[f"members by {name}"] = (
            f"AUC {attack['auc']:.3f} ({low:.3f} to {high:.3f}; by chance "
            f"{attack['null'][0]:.3f} to {attack['null'][1]:.3f}); found {points} false alarms"
        )
    return facts


def _down(bound: float) -> float:
    """Round a lower bound down to four decimals; claims are rounded up."""
    return math.floor(bound * 1e4) / 1e4
