//! The words everyone shares: values and state machines, without input or output.
//!
//! Pure: no clock, no entropy, no files. Depends on nothing else in the package.

pub mod approval;
pub mod digest;
pub mod id_template;
pub mod intent;
pub mod key;
pub mod leaf;
pub mod node;
pub mod people;
pub mod proof;
pub mod recording;
pub mod refusal;
pub mod registry;
pub mod revocation;
pub mod secret;
pub mod selector;
pub mod spiffe_id;
pub mod time;
pub mod verdict;
