//! generate - completions and man pages, printed from the definition of the command line.

use std::path::PathBuf;

use clap_complete::Shell;

use super::{Failure, command, print};

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  postrider completions bash \
                        > /usr/share/bash-completion/completions/postrider")]
pub(super) struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Print the man page, or write one per verb into a directory
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  postrider man | man -l -\n  \
                        postrider man --directory /usr/local/share/man/man1")]
pub(super) struct ManArgs {
    /// Where to write postrider.1 and a page for each verb; it must exist
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

pub(super) fn completions(args: &CompletionArgs) -> Result<(), Failure> {
    let mut out = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "postrider", &mut out);
    print(&String::from_utf8_lossy(&out))
}

pub(super) fn man(args: &ManArgs) -> Result<(), Failure> {
    match &args.directory {
        Some(directory) => clap_mangen::generate_to(command(), directory)
            .map_err(|error| Failure::Failed(format!("{}: {error}", directory.display()))),
        None => {
            let mut out = Vec::new();
            let page = clap_mangen::Man::new(command());
            page.render(&mut out).map_err(Failure::failed)?;
            print(&String::from_utf8_lossy(&out))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    // Every shell's script and the page name every verb.
    #[test]
    fn generated_files_name_every_verb() {
        let mut page = Vec::new();
        clap_mangen::Man::new(command()).render(&mut page).unwrap();
        let page = String::from_utf8(page).unwrap();
        for verb in command().get_subcommands() {
            let name = verb.get_name();
            assert!(page.contains(name), "{name} is not in the man page");
            for shell in Shell::value_variants() {
                let mut out = Vec::new();
                clap_complete::generate(*shell, &mut command(), "postrider", &mut out);
                assert!(
                    String::from_utf8(out).unwrap().contains(name),
                    "{shell} lacks {name}"
                );
            }
        }
    }
}
