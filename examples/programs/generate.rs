//! Prints the generated references: `rbac-matrix` or `signals`. `cargo xtask generate` writes them.

use std::process::ExitCode;

fn main() -> ExitCode {
    let text = match std::env::args().nth(1).as_deref() {
        Some("rbac-matrix") => pim_lab::policy::matrix(),
        Some("signals") => pim_telemetry::convention::render_markdown(pim_lab::signals::CATALOGS),
        _ => {
            eprintln!("error: name what to print: rbac-matrix or signals");
            return ExitCode::from(2);
        }
    };
    print!("{text}");
    ExitCode::SUCCESS
}
