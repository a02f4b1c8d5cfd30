//! Maps as people edit them.

use pim_core::shard::ShardMap;

/// The next map, changed by hand.
pub(crate) fn edited(map: &ShardMap, edit: impl FnOnce(&mut toml::Table)) -> ShardMap {
    let mut text: toml::Table = map.to_toml().parse().expect("a map is TOML");
    text.insert("version".to_owned(), i64::try_from(map.version().0 + 1).expect("a small number").into());
    text.insert("parent".to_owned(), map.digest().to_string().into());
    edit(&mut text);
    ShardMap::parse(&text.to_string()).expect("a valid map")
}

/// A server as a map names it.
pub(crate) fn endpoint(id: &str, role: &str, dsn_ref: &str) -> toml::Value {
    let fields = [("id", id), ("role", role), ("dsn_ref", dsn_ref)];
    toml::Value::Table(fields.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect())
}

/// The next map, with a third shard that owns nothing yet.
pub(crate) fn with_third(map: &ShardMap) -> ShardMap {
    edited(map, add_third)
}

/// Adds a third shard, and its one server, to the text of a map.
pub(crate) fn add_third(map: &mut toml::Table) {
    let mut shard = toml::Table::new();
    shard.insert("id".to_owned(), 2.into());
    shard.insert("name".to_owned(), "shard-2".into());
    shard.insert("state".to_owned(), "live".into());
    shard.insert("endpoints".to_owned(), vec![endpoint("shard-2-primary", "primary", "shard-2")].into());
    map["shards"].as_array_mut().expect("shards").push(shard.into());
}
