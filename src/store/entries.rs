//! Registration entries, templates and people.

use std::collections::BTreeSet;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::domain::id_template::EntryTemplate;
use crate::domain::people::{Entry, Person};
use crate::domain::selector::Selector;
use crate::domain::spiffe_id::SpiffeId;
use crate::store::Unavailable;

/// Why a change is refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChangeError {
    #[error("{0} exists already")]
    Exists(String),
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Registration entries. `get` answers from memory, kept current by each change.
#[async_trait]
pub trait Entries: Send + Sync {
    /// The entry of an identity.
    fn get(&self, spiffe_id: &SpiffeId) -> Option<Entry>;
    /// All entries, by identity.
    fn list(&self) -> Vec<Entry>;
    /// How many there are.
    fn count(&self) -> usize;
    /// Entries without a parent that fit what attestation found.
    fn direct(&self, found: &BTreeSet<Selector>) -> Vec<Entry>;
    /// Entries that the agent of a node serves.
    fn of_node(&self, node: &SpiffeId) -> Vec<Entry>;
    /// Counts the changes: what an agent waits for.
    fn changes(&self) -> watch::Receiver<u64>;
    /// Adds an entry; an existing one is not touched.
    async fn create(&self, entry: &Entry) -> Result<(), ChangeError>;
    /// Adds or replaces an entry.
    async fn put(&self, entry: &Entry) -> Result<(), Unavailable>;
    /// Removes an entry; false if there was none.
    async fn delete(&self, spiffe_id: &SpiffeId) -> Result<bool, Unavailable>;
}

/// Templates, from which workloads that attest get entries of their own. Reads answer from memory.
#[async_trait]
pub trait Templates: Send + Sync {
    /// All templates.
    fn list(&self) -> Vec<EntryTemplate>;
    /// Templates that fit what attestation found.
    fn fitting(&self, found: &BTreeSet<Selector>) -> Vec<EntryTemplate>;
    /// Adds or replaces a template.
    async fn put(&self, template: &EntryTemplate) -> Result<(), Unavailable>;
    /// Removes a template; false if there was none. The entries that it made stay.
    async fn delete(&self, name: &str) -> Result<bool, Unavailable>;
}

/// People. Reads answer from memory, kept current by each change.
#[async_trait]
pub trait People: Send + Sync {
    /// By the last segment of the certificate.
    fn by_name(&self, name: &str) -> Option<Person>;
    /// By `issuer#subject`.
    fn by_id(&self, id: &str) -> Option<Person>;
    /// All people, by id.
    fn list(&self) -> Vec<Person>;
    /// Adds a person; id and name are unique.
    async fn create(&self, person: &Person) -> Result<(), ChangeError>;
    /// Replaces groups and roles of a person who is there; false if there is none with this id and name.
    async fn update(&self, person: &Person) -> Result<bool, Unavailable>;
    /// Removes a person; false if there was none.
    async fn delete(&self, id: &str) -> Result<bool, Unavailable>;
}
