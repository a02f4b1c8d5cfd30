//! What the README promises of the library.

mod a_book_is_lent;
mod a_list_goes_to_its_end;
mod the_door_closes;
mod upkeep_is_done;

#[cfg(feature = "postgres")]
#[expect(dead_code, reason = "the suites that it is from need more of it")]
#[path = "../../../../pim-data/tests/it/server.rs"]
mod server;

/// The same on servers.
#[cfg(feature = "postgres")]
mod postgres {
    use std::sync::Arc;

    use super::a_book_is_lent::{Folder, lends};
    use super::server;

    #[tokio::test]
    async fn from_a_request_to_a_read_model() {
        let folder = Folder::new();
        std::fs::create_dir_all(&folder.0).unwrap();
        let _databases = server::provide(&folder.0, 2);
        server::make(&folder.0, "servers-read", ["read".to_owned()]);
        lends(&folder, Some(Arc::new(server::secrets(&folder.0)))).await;
        server::forget(&folder.0);
    }
}
