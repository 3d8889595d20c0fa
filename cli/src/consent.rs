//! Nothing is changed before the plan was shown and agreed to.

use std::io::{IsTerminal, Write, stdin};

use anyhow::Context;
use clap::Args;

/// Says yes, no, or asks.
#[derive(Args, Clone, Copy)]
pub struct Consent {
    /// Show the plan and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Go ahead without asking
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
}

/// Nobody could be asked, or said no: exit code 3.
#[derive(Debug, thiserror::Error)]
pub enum Declined {
    /// There is no terminal.
    #[error("nothing was changed: there is no terminal to ask at; add --yes to go ahead, or --dry-run to see the plan")]
    NobodyToAsk,
    /// The answer was not yes.
    #[error("nothing was changed")]
    No,
}

impl Consent {
    /// Whether somebody wants to see the plan before anything is done: it need not be made for a script that has said yes,
    /// where that takes long.
    pub fn wants_plan(self) -> bool {
        !self.yes
    }

    /// Whether to go ahead with the plan, which `question` sums up: "Discard 12 dead letters?". False for `--dry-run`.
    ///
    /// # Errors
    /// [`Declined`].
    pub fn given(self, question: &str) -> anyhow::Result<bool> {
        match self {
            Self { dry_run: true, .. } => Ok(false),
            Self { yes: true, .. } => Ok(true),
            _ if !stdin().is_terminal() => Err(Declined::NobodyToAsk.into()),
            _ if asked(question).context("the answer could not be read")? => Ok(true),
            _ => Err(Declined::No.into()),
        }
    }
}

/// On standard error, so that standard output stays what programs read.
fn asked(question: &str) -> std::io::Result<bool> {
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
