//! A container takes connections once it is there, and is removed with whoever started it.

use std::process::Command;

use pim_servers::container;

#[test]
#[ignore = "needs a Docker engine: `cargo xtask test` runs it where one answers"]
fn and_with_the_value() {
    let contained = container::postgres().expect("starts");
    let id = contained.id().to_owned();
    assert!(is_there(&id));
    let address = contained.dsn();
    let address = address.rsplit('@').next().and_then(|rest| rest.split('/').next()).expect("an address");
    std::net::TcpStream::connect(address).expect("takes connections");
    drop(contained);
    assert!(!is_there(&id), "it is removed");
}

fn is_there(id: &str) -> bool {
    let listed = Command::new("docker").args(["ps", "--all", "--quiet", "--no-trunc"]).output().expect("lists");
    String::from_utf8_lossy(&listed.stdout).lines().any(|line| line == id)
}
