//! The `holdfast` binary. Everything is in the library; see `holdfast_server::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    holdfast_server::cli::main()
}
