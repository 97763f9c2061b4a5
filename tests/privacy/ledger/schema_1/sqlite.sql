-- The table as schema 1 made it on SQLite.
CREATE TABLE umbra_ledger (
    seq INTEGER NOT NULL,
    kind TEXT NOT NULL,
    created_at TEXT NOT NULL,
    dataset TEXT,
    reservation TEXT,
    claim TEXT,
    body TEXT NOT NULL,
    prev_hash TEXT NOT NULL,
    hash TEXT NOT NULL,
    PRIMARY KEY (seq),
    UNIQUE (claim)
);
CREATE INDEX umbra_ledger_by_kind ON umbra_ledger (kind, dataset, seq);
CREATE INDEX umbra_ledger_by_dataset ON umbra_ledger (dataset, seq);
CREATE INDEX umbra_ledger_by_reservation ON umbra_ledger (reservation, seq);
CREATE TRIGGER umbra_ledger_no_update BEFORE UPDATE ON umbra_ledger BEGIN SELECT RAISE(ABORT, 'the privacy ledger is append-only'); END;
CREATE TRIGGER umbra_ledger_no_delete BEFORE DELETE ON umbra_ledger BEGIN SELECT RAISE(ABORT, 'the privacy ledger is append-only'); END;
CREATE TRIGGER umbra_ledger_only_append BEFORE INSERT ON umbra_ledger WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM umbra_ledger) OR EXISTS (SELECT 1 FROM umbra_ledger WHERE claim = NEW.claim) BEGIN SELECT RAISE(ABORT, 'the privacy ledger is append-only'); END;
