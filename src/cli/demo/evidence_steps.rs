//! replay, export, verify.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::cli::demo::world::World;
use crate::cli::demo::{Detail, StepError, ensure};
use crate::domain::digest::Sha256;
use crate::evidence::files::EvidenceDir;
use crate::protocol::checkpoint::Checkpoint;
use crate::protocol::tile::{WIDTH, entries_path, hash_path, push_entry, split_entries, width_at};

/// The recorded stream is what the client saw.
pub async fn replay(world: &mut World) -> Detail {
    let request_id = world.memory["stream_request"].as_str().unwrap_or_default().to_owned();
    let (code, bytes, told) = world.run(&["audit", "replay", &request_id, "--quiet"]).await?;
    ensure(code == 0, format!("the replay failed: {told}"))?;
    let replayed = json!(Sha256::of(&bytes));
    ensure(replayed == world.memory["stream_sha256"], "the replay is not what the client saw")?;
    Ok(
        json!({"request_id": request_id, "bytes": bytes.len(), "client_sha256": world.memory["stream_sha256"], "replay_sha256": replayed}),
    )
}

/// Every line parses and names its actor.
pub async fn export(world: &mut World) -> Detail {
    world.evidence().await?;
    let file = world.data.join("export.ocsf.jsonl");
    let (code, _, told) =
        world.run(&["audit", "export", "--format", "ocsf", "--out", &file.display().to_string()]).await?;
    ensure(code == 0, format!("the export failed: {told}"))?;
    let text = fs::read_to_string(&file)?;
    let lines = text.lines().count();
    let parsed: Vec<Value> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let named = parsed
        .iter()
        .filter(|l| l["actor"]["user"]["uid"].as_str().is_some_and(|u| u.starts_with("spiffe://example.org/")))
        .count();
    let mut classes = serde_json::Map::new();
    for line in &parsed {
        let class = line["class_uid"].to_string();
        let count = classes.get(&class).and_then(Value::as_u64).unwrap_or(0) + 1;
        classes.insert(class, count.into());
    }
    ensure(
        lines > 0 && lines == parsed.len() && lines == named,
        format!("of {lines} lines {} parse and {named} name their actor", parsed.len()),
    )?;
    Ok(
        json!({"format": "ocsf", "lines": lines, "parsed": parsed.len(), "with_spiffe_id": named, "classes": classes, "file": file.display().to_string()}),
    )
}

/// The evidence holds offline; three kinds of tampering do not.
pub async fn verify(world: &mut World) -> Detail {
    let kept = world.keep_checkpoint("kept.checkpoint").await?;
    let gone = world.stop_service().await;
    ensure(gone, "the service still answers")?;
    let evidence = EvidenceDir::of_data_dir(&world.data);
    let (code, output, told) = prove(world, evidence.root(), &kept).await?;
    ensure(code == 0, format!("the untouched evidence is refused: {told}"))?;
    let report = serde_json::from_slice::<Value>(&output)?["report"].clone();
    let links = report["links"].clone();
    let each = links.as_object().is_some_and(|l| l.len() == 6 && l.values().all(|n| n.as_u64().unwrap_or(0) >= 1));
    ensure(each, format!("a link of the chain proved nothing: {links}"))?;
    let size = Checkpoint::parse(&fs::read_to_string(evidence.checkpoint())?)?.size;
    let mut tampered = Vec::new();
    for kind in ["byte_changed", "record_removed", "tail_cut"] {
        let copy = world.data.join(format!("tampered-{kind}"));
        copy_dir(evidence.root(), &copy)?;
        match kind {
            "byte_changed" => change_byte(&copy, size)?,
            "record_removed" => remove_record(&copy, size)?,
            _ => cut_tail(&copy, &fs::read_to_string(world.data.join("older.checkpoint"))?)?,
        }
        let (code, output, _) = prove(world, &copy, &kept).await?;
        let reason = serde_json::from_slice::<Value>(&output)?["reason"].clone();
        ensure(code == 1, format!("{kind} went unnoticed"))?;
        tampered.push(json!({"kind": kind, "exit": code, "reason": reason}));
        fs::remove_dir_all(&copy)?;
    }
    Ok(json!({
        "leaves": report["leaves"], "root": report["root"], "checkpoint_size": report["kept_size"], "links": links, "tampered": tampered, "server_running": !gone,
    }))
}

async fn prove(world: &World, dir: &Path, kept: &Path) -> Result<(i32, Vec<u8>, String), StepError> {
    world
        .run(&["audit", "verify", &dir.display().to_string(), "--checkpoint", &kept.display().to_string(), "--json"])
        .await
}

fn copy_dir(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target).map(drop)?;
        }
    }
    Ok(())
}

fn bundle(size: u64, index: u64) -> String {
    entries_path(index, width_at(index, size))
}

fn change_byte(copy: &Path, size: u64) -> std::io::Result<()> {
    let path = copy.join(bundle(size, 0));
    let mut bytes = fs::read(&path)?;
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(path, bytes)
}

fn remove_record(copy: &Path, size: u64) -> std::io::Result<()> {
    let path = copy.join(bundle(size, 0));
    let bytes = fs::read(&path)?;
    let entries = split_entries(&bytes).unwrap_or_default();
    let mut rest = Vec::new();
    for (n, entry) in entries.iter().enumerate() {
        if n != entries.len() / 2 {
            push_entry(&mut rest, entry);
        }
    }
    fs::write(path, rest)
}

/// What a thief of the evidence directory could do without the log's key: an older checkpoint and only its entries.
fn cut_tail(copy: &Path, older: &str) -> Result<(), StepError> {
    let size = Checkpoint::parse(older)?.size;
    let (bundle_index, width) = (size / WIDTH, size % WIDTH);
    let full = copy.join(entries_path(bundle_index, WIDTH));
    let newest = newest_partial(&full)?;
    let bytes = fs::read(&newest)?;
    let mut kept = Vec::new();
    let width_entries = usize::try_from(width).unwrap_or(0);
    split_entries(&bytes).unwrap_or_default().iter().take(width_entries).for_each(|e| push_entry(&mut kept, e));
    write(&copy.join(entries_path(bundle_index, width)), &kept)?;
    let hashes = fs::read(newest_partial(&copy.join(hash_path(0, bundle_index, WIDTH)))?)?;
    write(&copy.join(hash_path(0, bundle_index, width)), &hashes[..width_entries * 32])?;
    let _ = fs::remove_file(full);
    fs::write(copy.join("checkpoint"), older)?;
    Ok(())
}

/// A tile in its full form, or its widest partial one.
fn newest_partial(full: &Path) -> Result<std::path::PathBuf, StepError> {
    if full.exists() {
        return Ok(full.to_owned());
    }
    let mut dir = full.as_os_str().to_owned();
    dir.push(".p");
    let widths = fs::read_dir(&dir)?.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u64>().ok());
    let widest = widths.max().ok_or_else(|| "there is no tile to cut".to_owned())?;
    Ok(Path::new(&dir).join(widest.to_string()))
}

fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::write(path, bytes)
}
