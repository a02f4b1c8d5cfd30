//! Promises of pim-core.

mod foreign_keys_hash_as_postgres_does;
