//! Proves a log offline: the tree first, then the chain issuance → token → proof → decision → approval → bytes.

use std::collections::BTreeMap;
use std::fs;

use serde::Serialize;

use crate::domain::digest::Sha256;
use crate::evidence::EvidenceError;
use crate::evidence::chain::{Chain, Links};
use crate::evidence::reader::{LogReader, ReadEntry};
use crate::evidence::segments;
use crate::protocol::checkpoint::{Checkpoint, Vkey};
use crate::protocol::merkle::{Frontier, leaf_hash};
use crate::protocol::tile::{WIDTH, hash_path, width_at};

/// What a verification showed.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The log's name.
    pub origin: String,
    /// Entries under the checkpoint.
    pub leaves: u64,
    /// Root over them.
    pub root: Sha256,
    /// Whether the log's key was given from outside.
    pub anchored: bool,
    /// Size of the auditor's own checkpoint, if one was given.
    pub kept_size: Option<u64>,
    /// What the chain proved.
    pub links: Links,
    /// Entries that are durable and not under the checkpoint.
    pub staged: u64,
    /// Exchanges of public routes, whose callers nobody proved, by route.
    pub public: BTreeMap<String, u64>,
    /// Requests whose body the client's own proof signs for, as it went to upstream.
    pub signed_bodies: u64,
    /// Requests whose proof signs for a body that went out in part, masked, past another edge or not at all.
    pub signed_otherwise: u64,
    /// Exchanges without an end or a whole recording: the service was stopped hard, or its disk was full.
    pub incomplete: u64,
}

/// Why the evidence does not hold.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    #[error("the checkpoint: {0}")]
    Checkpoint(#[from] crate::protocol::checkpoint::CheckpointError),
    #[error("entry {index} or a neighbour in its tile was changed: its hash is not the tile's")]
    EntryChanged { index: u64 },
    #[error("the entries do not lead to the checkpoint's root: the log was changed")]
    Root,
    #[error("tile {0} was changed: it does not hold the entries' hashes")]
    TileChanged(String),
    #[error("the tail is cut: the kept checkpoint counts {kept} entries and the log has {have}")]
    TailCut { kept: u64, have: u64 },
    #[error("a split view: the kept checkpoint has another root over the first {0} entries")]
    SplitView(u64),
    #[error("entry {index}: {what}")]
    Chain { index: u64, what: String },
}

/// What a verification starts from.
pub struct Anchors<'a> {
    /// The log's key, known from elsewhere.
    pub vkey: Option<&'a Vkey>,
    /// The auditor's own earlier checkpoint note.
    pub kept: Option<&'a str>,
}

/// Verifies a whole log.
pub fn verify(reader: &LogReader, anchors: &Anchors<'_>) -> Result<Report, VerifyError> {
    let path = reader.dir().vkey();
    let own = fs::read_to_string(&path).map_err(EvidenceError::io("read", &path));
    let vkey = match anchors.vkey {
        Some(vkey) => vkey.clone(),
        None => Vkey::parse(&own?)?,
    };
    let checkpoint = Checkpoint::verify(&reader.checkpoint_note()?, &vkey)?;
    let kept = anchors.kept.map(|note| Checkpoint::verify(note, &vkey)).transpose()?;
    if let Some(kept) = kept.as_ref().filter(|k| k.size > checkpoint.size) {
        return Err(VerifyError::TailCut { kept: kept.size, have: checkpoint.size });
    }
    check_tree(reader, &checkpoint, kept.as_ref())?;
    let entries: Vec<ReadEntry> = reader.entries(0)?.into_iter().filter(|e| e.index < checkpoint.size).collect();
    let trust_domain = checkpoint.origin.split('/').next().unwrap_or_default().to_owned();
    let recordings = segments::tallies(reader.dir())?;
    let mut chain = Chain::of(trust_domain, recordings);
    for entry in &entries {
        chain.entry(entry).map_err(|what| VerifyError::Chain { index: entry.index, what })?;
    }
    Ok(Report {
        origin: checkpoint.origin,
        leaves: checkpoint.size,
        root: checkpoint.root,
        anchored: anchors.vkey.is_some(),
        kept_size: kept.map(|k| k.size),
        staged: reader.staged(checkpoint.size).len() as u64,
        signed_bodies: chain.signed_bodies,
        signed_otherwise: chain.signed_otherwise,
        incomplete: chain.incomplete(),
        links: chain.links,
        public: chain.public,
    })
}

fn check_tree(reader: &LogReader, checkpoint: &Checkpoint, kept: Option<&Checkpoint>) -> Result<(), VerifyError> {
    let mut frontier = Frontier::default();
    let mut tiles: BTreeMap<(u32, u64), Vec<u8>> = BTreeMap::new();
    let mut split = false;
    for bundle in 0..checkpoint.size.div_ceil(WIDTH) {
        for entry in reader.bundle(bundle, checkpoint.size)? {
            frontier.push(leaf_hash(&entry), |level, index, hash| {
                if level % 8 == 0 {
                    tiles.entry((level / 8, index / WIDTH)).or_default().extend(hash.0);
                }
            });
            split |= kept.is_some_and(|k| k.size == frontier.size() && k.root != frontier.root());
        }
        check_leaf_tile(reader, checkpoint, bundle, &tiles)?;
    }
    if frontier.root() != checkpoint.root {
        return Err(VerifyError::Root);
    }
    if let Some(kept) = kept.filter(|_| split) {
        return Err(VerifyError::SplitView(kept.size));
    }
    for ((level, index), want) in &tiles {
        let name = hash_path(*level, *index, want.len() as u64 / 32);
        let (_, have) = reader.tile(&hash_path(*level, *index, WIDTH), &name)?;
        if have.get(..want.len()) != Some(want) {
            return Err(VerifyError::TileChanged(name));
        }
    }
    Ok(())
}

/// Finds the first entry whose hash is not the one in its tile, so that a change is named by its place.
fn check_leaf_tile(
    reader: &LogReader,
    checkpoint: &Checkpoint,
    bundle: u64,
    tiles: &BTreeMap<(u32, u64), Vec<u8>>,
) -> Result<(), VerifyError> {
    let name = hash_path(0, bundle, width_at(bundle, checkpoint.size));
    let Ok((_, have)) = reader.tile(&hash_path(0, bundle, WIDTH), &name) else { return Ok(()) };
    let want = tiles.get(&(0, bundle)).map(Vec::as_slice).unwrap_or_default();
    let differs = have.chunks(32).zip(want.chunks(32)).position(|(a, b)| a != b);
    match differs {
        Some(offset) => Err(VerifyError::EntryChanged { index: bundle * WIDTH + offset as u64 }),
        None => Ok(()),
    }
}
