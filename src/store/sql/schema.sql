CREATE TABLE IF NOT EXISTS join_token (
  digest TEXT PRIMARY KEY, spiffe_id TEXT NOT NULL, expires_at INTEGER NOT NULL, spent_at INTEGER, spent_csr TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS entry (spiffe_id TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS person (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, body TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS issued (
  serial TEXT PRIMARY KEY, spiffe_id TEXT NOT NULL, jkt TEXT NOT NULL, not_after INTEGER NOT NULL,
  attestation TEXT NOT NULL, der BLOB NOT NULL, issuer BLOB NOT NULL, renewed_with TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS issued_by_key ON issued (jkt, spiffe_id, not_after);
CREATE INDEX IF NOT EXISTS issued_by_attestation ON issued (attestation);
CREATE TABLE IF NOT EXISTS approval (
  id TEXT PRIMARY KEY, state TEXT NOT NULL, version INTEGER NOT NULL, request_sha256 TEXT NOT NULL,
  requester TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, body TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS approval_by_request ON approval (request_sha256, state);
CREATE INDEX IF NOT EXISTS approval_open ON approval (state, requester);
CREATE TABLE IF NOT EXISTS revocation (
  id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, value TEXT NOT NULL, reason TEXT NOT NULL, by TEXT NOT NULL,
  at INTEGER NOT NULL, until INTEGER, lifted_at INTEGER, lifted_by TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS public_key (
  kid TEXT PRIMARY KEY, key_use TEXT NOT NULL, jwk TEXT NOT NULL, until INTEGER NOT NULL
) STRICT;
