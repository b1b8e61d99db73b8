//! `ddt options`: the reference of all options, which is the help of every subcommand on one page.

use std::fmt::Write;

use anyhow::Result;
use clap::Command;

/// Columns of the page's help texts.
const WIDTH: usize = 100;

/// The page, from the same definitions as the help.
pub(crate) fn page(command: Command) -> Result<String> {
    let mut command = command.term_width(WIDTH).disable_help_subcommand(true);
    command.build();
    let mut page = "# Options\n\nThe output of `ddt COMMAND --help`, of every command. \
                    `ddt options` prints this page, and a test compares the two.\n"
        .to_owned();
    section(&mut page, &mut command)?;
    // The program ends its output with a line break.
    Ok(page.trim_end().to_owned())
}

fn section(page: &mut String, command: &mut Command) -> Result<()> {
    let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
    writeln!(page, "\n## {name}\n\n```text")?;
    for line in command.render_long_help().to_string().trim_end().lines() {
        writeln!(page, "{}", line.trim_end())?;
    }
    writeln!(page, "```")?;
    for subcommand in command.get_subcommands_mut().filter(|it| !it.is_hide_set()) {
        section(page, subcommand)?;
    }
    Ok(())
}
