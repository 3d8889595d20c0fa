//! How commands show their results: tables for people, JSON for programs.

use std::io::Write;
use std::time::Duration;

use clap::ValueEnum;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Attribute, Cell, Table};
use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::Value;

/// The form of results.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Table,
    /// For programs: one line
    Json,
}

impl Output {
    /// Shows one thing; the table has a row for each of its `fields`.
    pub fn thing(self, thing: &impl Serialize, fields: &[&str]) -> anyhow::Result<()> {
        match self {
            Self::Json => json_line(thing),
            Self::Table => {
                let value = serde_json::to_value(thing)?;
                let mut table = empty_table();
                for field in fields {
                    table.add_row([heading(field), Cell::new(text(&value[field]))]);
                }
                print_line(&table.to_string())
            }
        }
    }

    /// Shows things of one kind; the table has a column for each of `fields`.
    pub fn things(self, things: &[impl Serialize], fields: &[&str]) -> anyhow::Result<()> {
        match self {
            Self::Json => json_line(&things),
            Self::Table if things.is_empty() => print_line("none"),
            Self::Table => {
                let mut table = empty_table();
                table.set_header(fields.iter().map(|field| heading(field)));
                for thing in things {
                    let value = serde_json::to_value(thing)?;
                    table.add_row(fields.iter().map(|field| text(&value[field])));
                }
                print_line(&table.to_string())
            }
        }
    }
}

impl Output {
    /// Ends a command that was to change something: people have seen the plan, programs get it now, with how it ended.
    pub fn ended(self, change: &impl Serialize, applied: bool) -> anyhow::Result<()> {
        match self {
            Self::Json => json_line(change),
            Self::Table if applied => print_line("done"),
            Self::Table => print_line("nothing was changed"),
        }
    }

    /// Shows people, and nobody else, a plan: a row for each of its `fields`.
    pub fn plan(self, plan: &impl Serialize, fields: &[&str]) -> anyhow::Result<()> {
        match self {
            Self::Json => Ok(()),
            Self::Table => self.thing(plan, fields),
        }
    }
}

/// Prints a value as one line of JSON.
pub fn json_line(value: &impl Serialize) -> anyhow::Result<()> {
    print_line(&serde_json::to_string(value)?)
}

/// Unlike `println!`, gives an error instead of a panic when nobody reads on.
pub fn print_line(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

/// Says what is being done, where standard error is a terminal; elsewhere the library shows nothing.
pub fn spinner(message: &'static str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(message);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

fn empty_table() -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table
}

/// Bold where it is a terminal; the library leaves styles away elsewhere.
fn heading(field: &str) -> Cell {
    Cell::new(field.replace('_', " ")).add_attribute(Attribute::Bold)
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) if values.is_empty() => "none".to_owned(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join("\n"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cells_are_plain_text() {
        assert_eq!(text(&Value::Null), "-");
        assert_eq!(text(&json!(["write", "read"])), "write\nread");
        assert_eq!(text(&json!([])), "none");
        assert_eq!(text(&json!(6)), "6");
        assert_eq!(text(&json!(true)), "true");
    }
}
