//! `config check` and `config show`.

use clap::Subcommand;
use toml::{Table, Value};

use crate::app;
use crate::cli::Global;
use crate::cli::context::{self, Failure};
use crate::config::Config;

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Errors with file, line and column; warnings about policies
    #[command(after_help = "Example: popgate config check --config config/popgate.toml")]
    Check,
    /// The Cedar schema that the routes make, for editors and `cedar validate`
    #[command(after_help = "Example: popgate config schema > config/schema.cedarschema")]
    Schema,
    /// Effective values
    #[command(after_help = "Example: popgate config show --origin")]
    Show {
        /// Say where each value is from
        #[arg(long)]
        origin: bool,
    },
}

pub fn run(global: &Global, command: &ConfigCommand) -> Result<(), Failure> {
    let (config, path) = Config::find(global.config.as_deref(), &context::environment())?;
    match command {
        ConfigCommand::Check => {
            for warning in app::check(&config)? {
                context::say(global, &format!("warning: {warning}"));
            }
            context::say(global, &format!("{}: sound", path.display()));
            Ok(())
        }
        ConfigCommand::Schema => {
            context::out(&app::schema(&config)?);
            Ok(())
        }
        ConfigCommand::Show { origin } => {
            let effective = toml::to_string(&config).map_err(|e| Failure::failed(e.to_string()))?;
            if !origin {
                context::out(&effective);
                return Ok(());
            }
            let file: Table = std::fs::read_to_string(&path)?.parse()?;
            let mut lines = Vec::new();
            flatten("", &Value::Table(effective.parse()?), &mut lines);
            for (key, value) in lines {
                context::out(&format!("{key} = {value}  # {}\n", source(&key, &file, &path)));
            }
            Ok(())
        }
    }
}

fn flatten(prefix: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    match value {
        Value::Table(table) => table
            .iter()
            .for_each(|(k, v)| flatten(&if prefix.is_empty() { k.clone() } else { format!("{prefix}.{k}") }, v, lines)),
        other => lines.push((prefix.to_owned(), other.to_string())),
    }
}

fn source(key: &str, file: &Table, path: &std::path::Path) -> String {
    let variable = format!("POPGATE_{}", key.replace('.', "__").to_uppercase());
    if context::environment().contains_key(&variable) {
        return format!("environment {variable}");
    }
    let mut here = Some(&Value::Table(file.clone())).cloned();
    for part in key.split('.') {
        here = here.and_then(|v| v.as_table().and_then(|t| t.get(part)).cloned());
    }
    let included = key.starts_with("route") || key.starts_with("mask");
    match here {
        Some(_) => path.display().to_string(),
        None if included => "included file".into(),
        None => "default".into(),
    }
}
