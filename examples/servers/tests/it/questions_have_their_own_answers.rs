//! Many processes ask one server at the same time, each through a handle of its own.

use std::thread;

use pim_servers::local::LocalServer;
use pim_servers::programs::Programs;
use pim_servers::temporary::TemporaryServers;

const THREADS: usize = 4;
const QUESTIONS: usize = 100;

/// Guard: no question's answer is cut off, or taken, by another one.
#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn also_when_many_ask_at_once() {
    let servers = TemporaryServers::new().expect("a folder");
    let asked = servers.primary("asked").expect("starts");
    // As each process has it: all that they share is the folder.
    let (programs, folder) = (Programs::find().expect("is installed"), servers.folder().join("asked"));
    let password = asked.dsn().split([':', '@']).nth(2).expect("has a password").to_owned();
    let ask = &|thread: usize| {
        let server = LocalServer::open(&programs, &folder, "asked", &password).expect("is found");
        for question in 0..QUESTIONS {
            let text = format!("{thread}-{question}");
            let told = server.sql("postgres", &format!("SELECT '{text}'")).expect("answers");
            assert_eq!(told, text);
            // What says what is wrong is the asker's own as well.
            let refused = server.sql("postgres", &format!("SELECT \"{text}\"")).expect_err("is no column").to_string();
            assert!(refused.contains(&text), "{text}: {refused}");
        }
    };
    thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || ask(thread));
        }
    });
}
