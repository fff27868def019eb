ALTER TABLE issued ADD COLUMN first TEXT NOT NULL DEFAULT '';
ALTER TABLE issued ADD COLUMN attested_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE issued ADD COLUMN renewable INTEGER NOT NULL DEFAULT 1;
ALTER TABLE issued ADD COLUMN node TEXT;
UPDATE issued SET first = serial, attested_at = not_after;
CREATE INDEX issued_by_identity ON issued (spiffe_id, not_after);
CREATE INDEX issued_by_node ON issued (node, not_after) WHERE node IS NOT NULL;
DROP INDEX issued_by_attestation;
CREATE TABLE entry_template (name TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
CREATE TABLE node (spiffe_id TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
CREATE TABLE bundle (
  trust_domain TEXT PRIMARY KEY, document TEXT NOT NULL, source TEXT NOT NULL, read_at INTEGER NOT NULL
) STRICT;
