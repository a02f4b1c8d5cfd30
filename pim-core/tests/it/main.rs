//! Promises of pim-core.

mod foreign_keys_hash_as_postgres_does;
mod forged_tokens_are_refused;
mod issuer;
mod key_rings_fetch_with_care;
