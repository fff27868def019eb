CREATE TABLE statement (digest TEXT PRIMARY KEY, jkt TEXT NOT NULL, until INTEGER NOT NULL) STRICT;
CREATE INDEX statement_until ON statement (until);
CREATE TABLE confirmed (person TEXT PRIMARY KEY, at INTEGER NOT NULL) STRICT;
CREATE TABLE uses (grant_id TEXT PRIMARY KEY, spiffe_id TEXT NOT NULL, used INTEGER NOT NULL) STRICT;
CREATE INDEX uses_by_identity ON uses (spiffe_id);
CREATE TABLE scim_user (
  provider TEXT NOT NULL, id TEXT NOT NULL, user_name TEXT NOT NULL, external_id TEXT, body TEXT NOT NULL,
  PRIMARY KEY (provider, id), UNIQUE (provider, user_name)
) STRICT;
