//! `tidemill completion`

use std::io::Write;

use clap::CommandFactory;
use clap_complete::Shell;

/// Prints what a shell has to read so that it completes our commands.
pub fn run(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut crate::Cli::command(), "tidemill", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}
