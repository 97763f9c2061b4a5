-- The table as schema 1 made it on PostgreSQL.
CREATE TABLE umbra_ledger (
    seq BIGINT NOT NULL,
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
CREATE INDEX umbra_ledger_by_dataset ON umbra_ledger (dataset, seq);
CREATE INDEX umbra_ledger_by_kind ON umbra_ledger (kind, dataset, seq);
CREATE INDEX umbra_ledger_by_reservation ON umbra_ledger (reservation, seq);
CREATE OR REPLACE FUNCTION umbra_ledger_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the privacy ledger is append-only';
END $$;
CREATE TRIGGER umbra_ledger_no_change BEFORE UPDATE OR DELETE ON umbra_ledger FOR EACH ROW EXECUTE FUNCTION umbra_ledger_refuse();
CREATE TRIGGER umbra_ledger_no_truncate BEFORE TRUNCATE ON umbra_ledger FOR EACH STATEMENT EXECUTE FUNCTION umbra_ledger_refuse();
