//! Programs that are not to be built are found where cargo has put them, also where its own settings say where that is.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::xtask::xtask_at;

/// Guard: the environment is not the only one that names a place.
#[test]
fn where_the_environment_names_no_place() {
    // On the disk of the program, which is linked, and not written: whoever runs has it open.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("beside-{}", std::process::id()));
    let examples = folder.join("debug/examples");
    fs::create_dir_all(&examples).unwrap();
    let program = folder.join("debug/xtask");
    fs::hard_link(env!("CARGO_BIN_EXE_xtask"), &program).unwrap();
    let personas = examples.join("persona-simulator");
    fs::write(&personas, "#!/bin/sh\necho '{\"digest\": \"beside\"}'\n").unwrap();
    fs::set_permissions(&personas, fs::Permissions::from_mode(0o755)).unwrap();
    let told = xtask_at(&program, &["lab", "--json", "plan"]);
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(told.document("plan")["digest"], "beside", "{told:?}");
}
