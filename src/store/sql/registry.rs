//! Entries, people and public keys.

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use sqlx::Row as _;

use std::collections::BTreeSet;

use tokio::sync::watch;

use crate::domain::id_template::EntryTemplate;
use crate::domain::people::{Entry, Person};
use crate::domain::selector::Selector;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::store::Unavailable;
use crate::store::entries::{ChangeError, Entries, People, Templates};
use crate::store::keys::{KeyUse, PublicKeys, PublishedKey};
use crate::store::sql::{SqliteLedger, away, corrupt, from_sql, to_sql};

impl SqliteLedger {
    pub(super) async fn bodies<T: DeserializeOwned>(&self, query: &'static str) -> Result<Vec<T>, Unavailable> {
        let rows = sqlx::query(query).fetch_all(&self.pool).await.map_err(away)?;
        rows.iter().map(|r| serde_json::from_str(&r.get::<String, _>("body")).map_err(corrupt)).collect()
    }

    pub(super) async fn read_entries(&self) -> Result<(), Unavailable> {
        let entries: Vec<Entry> = self.bodies("SELECT body FROM entry").await?;
        self.replace(|held| entries.into_iter().for_each(|e| held.registry.insert(e)));
        Ok(())
    }

    pub(super) async fn read_templates(&self) -> Result<(), Unavailable> {
        let templates: Vec<EntryTemplate> = self.bodies("SELECT body FROM entry_template").await?;
        self.replace(|held| templates.into_iter().for_each(|t| held.registry.insert_template(t)));
        Ok(())
    }

    /// Brings what is held of one entry to what the ledger has: a change whose answer was lost may have happened.
    async fn read_entry(&self, spiffe_id: &SpiffeId) -> Result<(), Unavailable> {
        let row = sqlx::query("SELECT body FROM entry WHERE spiffe_id = ?").bind(spiffe_id.as_str());
        let row = row.fetch_optional(&self.pool).await.map_err(away)?;
        let entry: Option<Entry> =
            row.map(|r| serde_json::from_str(&r.get::<String, _>("body")).map_err(corrupt)).transpose()?;
        self.replace(|held| match entry {
            Some(entry) => held.registry.insert(entry),
            None => drop(held.registry.remove(spiffe_id.as_str())),
        });
        self.entry_changes.send_modify(|n| *n += 1);
        Ok(())
    }

    pub(super) async fn read_people(&self) -> Result<(), Unavailable> {
        let people: Vec<Person> = self.bodies("SELECT body FROM person").await?;
        let people = people.into_iter().map(|p| (p.id.clone(), p)).collect();
        self.replace(|held| held.people = people);
        Ok(())
    }

    pub(super) async fn read_keys(&self) -> Result<(), Unavailable> {
        let rows =
            sqlx::query("SELECT kid, key_use, jwk, until FROM public_key").fetch_all(&self.pool).await.map_err(away)?;
        let key = |row: &sqlx::sqlite::SqliteRow| {
            Ok(PublishedKey {
                kid: row.get("kid"),
                key_use: row.get::<String, _>("key_use").parse().map_err(corrupt)?,
                jwk: serde_json::from_str(&row.get::<String, _>("jwk")).map_err(corrupt)?,
                until: from_sql(row.get("until")),
            })
        };
        let keys = rows.iter().map(key).collect::<Result<Vec<_>, Unavailable>>()?;
        self.replace(|held| held.keys = keys);
        Ok(())
    }
}

pub(super) fn body<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("ledger rows have string keys and finite numbers only")
}

#[async_trait]
impl Entries for SqliteLedger {
    fn get(&self, spiffe_id: &SpiffeId) -> Option<Entry> {
        self.held().registry.get(spiffe_id.as_str()).cloned()
    }

    fn list(&self) -> Vec<Entry> {
        self.held().registry.entries().cloned().collect()
    }

    fn count(&self) -> usize {
        self.held().registry.len()
    }

    fn direct(&self, found: &BTreeSet<Selector>) -> Vec<Entry> {
        self.held().registry.direct(found).into_iter().cloned().collect()
    }

    fn of_node(&self, node: &SpiffeId) -> Vec<Entry> {
        self.held().registry.of_node(node).into_iter().cloned().collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.entry_changes.subscribe()
    }

    async fn create(&self, entry: &Entry) -> Result<(), ChangeError> {
        let _changing = self.changing.lock().await;
        let added = sqlx::query("INSERT INTO entry (spiffe_id, body) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(entry.spiffe_id.as_str())
            .bind(body(entry))
            .execute(&self.pool)
            .await
            .map_err(away)?;
        self.read_entry(&entry.spiffe_id).await?;
        if added.rows_affected() == 0 {
            return Err(ChangeError::Exists(format!("the entry {}", entry.spiffe_id)));
        }
        Ok(())
    }

    async fn put(&self, entry: &Entry) -> Result<(), Unavailable> {
        let _changing = self.changing.lock().await;
        sqlx::query("INSERT INTO entry (spiffe_id, body) VALUES (?, ?) ON CONFLICT (spiffe_id) DO UPDATE SET body = excluded.body")
            .bind(entry.spiffe_id.as_str())
            .bind(body(entry))
            .execute(&self.pool)
            .await
            .map_err(away)?;
        self.read_entry(&entry.spiffe_id).await
    }

    async fn delete(&self, spiffe_id: &SpiffeId) -> Result<bool, Unavailable> {
        let _changing = self.changing.lock().await;
        let gone = sqlx::query("DELETE FROM entry WHERE spiffe_id = ?")
            .bind(spiffe_id.as_str())
            .execute(&self.pool)
            .await
            .map_err(away)?;
        self.read_entry(spiffe_id).await?;
        Ok(gone.rows_affected() > 0)
    }
}

#[async_trait]
impl Templates for SqliteLedger {
    fn list(&self) -> Vec<EntryTemplate> {
        self.held().registry.templates().cloned().collect()
    }

    fn fitting(&self, found: &BTreeSet<Selector>) -> Vec<EntryTemplate> {
        self.held().registry.fitting_templates(found).into_iter().cloned().collect()
    }

    async fn put(&self, template: &EntryTemplate) -> Result<(), Unavailable> {
        let _changing = self.changing.lock().await;
        sqlx::query("INSERT INTO entry_template (name, body) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET body = excluded.body")
            .bind(template.spiffe_id.as_str())
            .bind(body(template))
            .execute(&self.pool)
            .await
            .map_err(away)?;
        self.replace(|held| held.registry.insert_template(template.clone()));
        Ok(())
    }

    async fn delete(&self, name: &str) -> Result<bool, Unavailable> {
        let _changing = self.changing.lock().await;
        let gone = sqlx::query("DELETE FROM entry_template WHERE name = ?").bind(name).execute(&self.pool).await;
        let gone = gone.map_err(away)?;
        self.replace(|held| drop(held.registry.remove_template(name)));
        Ok(gone.rows_affected() > 0)
    }
}

#[async_trait]
impl People for SqliteLedger {
    fn by_name(&self, name: &str) -> Option<Person> {
        self.held().people.values().find(|p| p.name == name).cloned()
    }

    fn by_id(&self, id: &str) -> Option<Person> {
        self.held().people.get(id).cloned()
    }

    fn list(&self) -> Vec<Person> {
        self.held().people.values().cloned().collect()
    }

    async fn create(&self, person: &Person) -> Result<(), ChangeError> {
        let _changing = self.changing.lock().await;
        let added = sqlx::query("INSERT INTO person (id, name, body) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
            .bind(&person.id)
            .bind(&person.name)
            .bind(body(person))
            .execute(&self.pool)
            .await
            .map_err(away)?;
        if added.rows_affected() == 0 {
            return Err(ChangeError::Exists(format!("a person with the id {} or the name {}", person.id, person.name)));
        }
        Ok(self.read_people().await?)
    }

    async fn update(&self, person: &Person) -> Result<bool, Unavailable> {
        let _changing = self.changing.lock().await;
        let changed = sqlx::query("UPDATE person SET body = ? WHERE id = ? AND name = ?")
            .bind(body(person))
            .bind(&person.id)
            .bind(&person.name)
            .execute(&self.pool)
            .await
            .map_err(away)?;
        self.read_people().await?;
        Ok(changed.rows_affected() > 0)
    }

    async fn delete(&self, id: &str) -> Result<bool, Unavailable> {
        let _changing = self.changing.lock().await;
        let gone = sqlx::query("DELETE FROM person WHERE id = ?").bind(id).execute(&self.pool).await.map_err(away)?;
        self.read_people().await?;
        Ok(gone.rows_affected() > 0)
    }
}

#[async_trait]
impl PublicKeys for SqliteLedger {
    async fn publish(&self, key: &PublishedKey) -> Result<(), Unavailable> {
        let _changing = self.changing.lock().await;
        sqlx::query("INSERT INTO public_key (kid, key_use, jwk, until) VALUES (?, ?, ?, ?) ON CONFLICT (kid) DO UPDATE SET until = excluded.until")
            .bind(&key.kid)
            .bind(key.key_use.to_string())
            .bind(key.jwk.to_string())
            .bind(to_sql(key.until))
            .execute(&self.pool)
            .await
            .map_err(away)?;
        self.read_keys().await
    }

    fn list(&self, key_use: KeyUse, now: Timestamp) -> Vec<PublishedKey> {
        self.held().keys.iter().filter(|k| k.key_use == key_use && k.until > now).cloned().collect()
    }
}
